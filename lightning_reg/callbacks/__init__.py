"""Everything that attaches to a Trainer: techniques, a folder for each place of the training step, monitors, the audit.

Monitors and the audit have rooms of their own (:mod:`lightning_reg.monitors`, :mod:`lightning_reg.audit`).
"""

from lightning_reg.audit.regularization_audit import RegularizationAudit
from lightning_reg.callbacks.batch.batch_mixing import BatchMixing
from lightning_reg.callbacks.batch.progressive_resizing import ProgressiveResizing
from lightning_reg.callbacks.batch.reg_mixup import RegMixup
from lightning_reg.callbacks.forward.dropout_schedule import DropoutSchedule
from lightning_reg.callbacks.forward.embedding_noise import EmbeddingNoise
from lightning_reg.callbacks.forward.freeze_batch_norm import FreezeBatchNorm
from lightning_reg.callbacks.forward.insert_drop_block import InsertDropBlock
from lightning_reg.callbacks.forward.insert_drop_connect import InsertDropConnect
from lightning_reg.callbacks.forward.insert_dropout import InsertDropout
from lightning_reg.callbacks.forward.insert_layer_drop import InsertLayerDrop
from lightning_reg.callbacks.forward.insert_stochastic_depth import InsertStochasticDepth
from lightning_reg.callbacks.forward.insert_token_dropout import InsertTokenDropout
from lightning_reg.callbacks.forward.manifold_mixup import ManifoldMixup
from lightning_reg.callbacks.forward.mixout import Mixout
from lightning_reg.callbacks.forward.replace_norm import ReplaceNorm
from lightning_reg.callbacks.forward.spectral_normalization import SpectralNormalization
from lightning_reg.callbacks.forward.weight_standardization import WeightStandardization
from lightning_reg.callbacks.gradient.elastic_net_penalty import ElasticNetPenalty
from lightning_reg.callbacks.gradient.gradient_centralization import GradientCentralization
from lightning_reg.callbacks.gradient.gradient_clipping import GradientClipping
from lightning_reg.callbacks.gradient.gradient_noise import GradientNoise
from lightning_reg.callbacks.gradient.group_lasso_penalty import GroupLassoPenalty
from lightning_reg.callbacks.gradient.l1_penalty import L1Penalty
from lightning_reg.callbacks.gradient.l2_penalty import L2Penalty
from lightning_reg.callbacks.gradient.l2_sp_penalty import L2SPPenalty
from lightning_reg.callbacks.gradient.orthogonal_penalty import OrthogonalPenalty
from lightning_reg.callbacks.gradient.sharpness_aware_minimization import SharpnessAwareMinimization
from lightning_reg.callbacks.loss.activity_penalty import ActivityPenalty
from lightning_reg.callbacks.loss.adversarial_training import AdversarialTraining
from lightning_reg.callbacks.loss.augmentation_consistency import AugmentationConsistency
from lightning_reg.callbacks.loss.concrete_dropout_penalty import ConcreteDropoutPenalty
from lightning_reg.callbacks.loss.confidence_penalty import ConfidencePenalty
from lightning_reg.callbacks.loss.decorrelation_penalty import DecorrelationPenalty
from lightning_reg.callbacks.loss.input_gradient_penalty import InputGradientPenalty
from lightning_reg.callbacks.loss.jacobian_penalty import JacobianPenalty
from lightning_reg.callbacks.loss.label_smoothing import LabelSmoothing
from lightning_reg.callbacks.loss.logit_penalty import LogitPenalty
from lightning_reg.callbacks.loss.r_drop import RDrop
from lightning_reg.callbacks.run.best_weights_early_stopping import BestWeightsEarlyStopping
from lightning_reg.callbacks.run.temperature_scaling import TemperatureScaling
from lightning_reg.callbacks.weights.cautious_weight_decay import CautiousWeightDecay
from lightning_reg.callbacks.weights.checkpoint_soup import CheckpointSoup
from lightning_reg.callbacks.weights.exponential_moving_average import ExponentialMovingAverage
from lightning_reg.callbacks.weights.latest_weight_average import LatestWeightAverage
from lightning_reg.callbacks.weights.lookahead import Lookahead
from lightning_reg.callbacks.weights.max_norm import MaxNorm
from lightning_reg.callbacks.weights.non_negative import NonNegative
from lightning_reg.callbacks.weights.schedule_free_mode import ScheduleFreeMode
from lightning_reg.callbacks.weights.snapshot_ensemble import SnapshotEnsemble
from lightning_reg.callbacks.weights.stochastic_weight_average import StochasticWeightAverage
from lightning_reg.callbacks.weights.unit_norm import UnitNorm
from lightning_reg.callbacks.weights.wise_ft import WiSEFT
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.monitors.activation_stats import ActivationStats
from lightning_reg.monitors.batch_images import BatchImages
from lightning_reg.monitors.generalization_gap import GeneralizationGap
from lightning_reg.monitors.gradient_monitor import GradientMonitor
from lightning_reg.monitors.weight_distribution import WeightDistribution

__all__ = [
    "ActivationStats",
    "ActivityPenalty",
    "AdversarialTraining",
    "AugmentationConsistency",
    "BatchImages",
    "BatchMixing",
    "BestWeightsEarlyStopping",
    "CautiousWeightDecay",
    "CheckpointSoup",
    "ConcreteDropoutPenalty",
    "ConfidencePenalty",
    "DecorrelationPenalty",
    "DropoutSchedule",
    "ElasticNetPenalty",
    "EmbeddingNoise",
    "ExponentialMovingAverage",
    "FreezeBatchNorm",
    "GeneralizationGap",
    "GradientCentralization",
    "GradientClipping",
    "GradientMonitor",
    "GradientNoise",
    "GroupLassoPenalty",
    "InputGradientPenalty",
    "InsertDropBlock",
    "InsertDropConnect",
    "InsertDropout",
    "InsertLayerDrop",
    "InsertStochasticDepth",
    "InsertTokenDropout",
    "JacobianPenalty",
    "L1Penalty",
    "L2Penalty",
    "L2SPPenalty",
    "LabelSmoothing",
    "LatestWeightAverage",
    "LogitPenalty",
    "Lookahead",
    "ManifoldMixup",
    "MaxNorm",
    "Mixout",
    "NonNegative",
    "OrthogonalPenalty",
    "ProgressiveResizing",
    "RDrop",
    "RegMixup",
    "RegularizationAudit",
    "ReplaceNorm",
    "ScheduleFreeMode",
    "SharpnessAwareMinimization",
    "SnapshotEnsemble",
    "SpectralNormalization",
    "StochasticWeightAverage",
    "StrengthSchedule",
    "TemperatureScaling",
    "UnitNorm",
    "WeightDistribution",
    "WeightStandardization",
    "WiSEFT",
]
