"""What a technique may refuse, and with which words; everything else it has to train."""

from fnmatch import fnmatchcase

ANY = ("*",)
MANUAL = (
    "GAN that toggles",
    "critic that steps more often",
    "shared trunk",
    "carries recurrent state",
    "scheduler by hand",
    "steps within an optimizer",
)
RECURRENT = ("carries recurrent state*",)
WITHOUT_LABELS = (
    "GAN that toggles",
    "critic*",
    "batch a tensor",
    "variational",
    "momentum encoder*",
    "centered teacher",
)
BEFORE_THE_STEP = (
    "*Penalty*",
    "Gradient*",
    "SharpnessAwareMinimization*",
    "CautiousWeightDecay",
)
LOSS_TERMS = (
    "LogitPenalty*",
    "RDrop",
    "AugmentationConsistency*",
    "DecorrelationPenalty",
    "JacobianPenalty",
    "InputGradientPenalty",
    "AdversarialTraining*",
)
NEED_INPUTS = ("InputGradientPenalty", "JacobianPenalty", "AdversarialTraining*")

NEED_DENSE = (
    "BatchMixing*",
    "RegMixup",
    "ManifoldMixup",
    "RDrop",
    "AugmentationConsistency*",
    "ProgressiveResizing",
    "SharpnessAwareMinimization of the hardest",
    *NEED_INPUTS,
)

# Globs over techniques and over projects, and what the sentence has to say.
REFUSALS = [
    # A loss that is handed to manual_backward, or a step that makes several, is nobody else's.
    (("ActivityPenalty", "ConfidencePenalty", "SharpnessAwareMinimization*"), MANUAL, "automatic_optimization"),
    (LOSS_TERMS, MANUAL, "automatic_optimization"),
    (("SharpnessAwareMinimization*",), ("step with an iterator",), "dataloader_iter"),
    (BEFORE_THE_STEP, ("LBFGS",), "LBFGS"),
    (NEED_DENSE, ("batch sparse", "batch ragged*"), "dense tensor"),
    # What isn't in the batch or the loss can't be mixed.
    (("BatchMixing*",), WITHOUT_LABELS, "the loss must be computed by a function of torch's"),
    (("BatchMixing*", "RegMixup", "ManifoldMixup"), ("batch a tensor",), "target_key must be an index below 1"),
    (("BatchMixing*",), ("focal loss",), "loss"),
    (("BatchMixing*",), ("batch of graphs",), "as many samples"),
    (("BatchMixing*", "BatchImages"), ("step with an iterator",), "input_key"),
    (("ConfidencePenalty", "LogitPenalty*"), ("batch a tensor", "variational", "centered teacher"), "cross_entropy"),
    (("LabelSmoothing*",), WITHOUT_LABELS, "class indices"),
    (("EmbeddingNoise",), ANY, "include must choose modules of type Embedding"),
    (("InsertLayerDrop", "InsertStochasticDepth"), ANY, "it hands on its input, changed in place"),
    (("InsertTokenDropout",), ANY, "types must be of modules that there are"),
    (("SharpnessAwareMinimization of the hardest",), ANY, "fraction must be 1 where"),
    (("SharpnessAwareMinimization of the hardest",), ANY, "one row a sample"),
    (("SharpnessAwareMinimization of norms",), ANY, "no normalization layer has weights"),
    (("RegMixup",), MANUAL, "automatic_optimization"),
    (("RegMixup",), WITHOUT_LABELS, "the loss must be computed by a function of torch's"),
    (("RegMixup",), ANY, "one row a sample"),
    (("RegMixup",), ("step with an iterator",), "input_key"),
    (("RegMixup",), ("batch of graphs",), "as many samples"),
    (("RegMixup",), ANY, "the loss must be followed"),
    (("ManifoldMixup",), MANUAL, "automatic_optimization"),
    (("ManifoldMixup",), WITHOUT_LABELS, "the loss must be computed by a function of torch's"),
    (("ManifoldMixup",), ("step with an iterator",), "input_key"),
    (("ManifoldMixup",), ("batch of graphs",), "as many samples"),
    (("ManifoldMixup",), ANY, "matches no module"),
    (("ManifoldMixup",), ANY, "layers must be of modules"),
    (("RDrop", "AugmentationConsistency*", "JacobianPenalty"), WITHOUT_LABELS, "cross_entropy"),
    (NEED_INPUTS, ANY, "input_key"),
    (NEED_INPUTS, ANY, "inputs must be what"),
    (("InputGradientPenalty", "JacobianPenalty"), ("compiled*",), "must not be compiled"),
    (("RDrop", "AugmentationConsistency*"), ANY, "one row a sample"),
    (("AugmentationConsistency*",), ANY, "input_key"),
    (("AugmentationConsistency*",), ("momentum encoder and queue",), "must take batches of any size"),
    (("RDrop",), ANY, "no layer that is stochastic"),
    # Who predicts with several networks has to know of one what it returns, and who drives the rate drives it alone.
    (("SnapshotEnsemble",), MANUAL, "automatic_optimization"),
    (("SnapshotEnsemble",), ("carries recurrent state*", "variational"), "must call one network"),
    (("SnapshotEnsemble",), ("momentum encoder*",), "class_dim must be the dimension of the classes"),
    (("SnapshotEnsemble",), ("centered teacher", "focal loss"), "outputs must be 'logits'"),
    (("SnapshotEnsemble",), ("iterable data", "endless data"), "must say how long training is"),
    (("SnapshotEnsemble",), ("growing layers",), "must keep the shape that it has in the snapshots"),
    (("SnapshotEnsemble",), ("plateau scheduler",), "must return no scheduler of the learning rate"),
    (("SnapshotEnsemble",), ("warm-up in optimizer_step",), "the learning rate must be left to"),
    # Images, in a training of which the length is known.
    (("ProgressiveResizing",), ANY, "input_key"),
    (("ProgressiveResizing",), ANY, "max_epochs, or max_steps beside data of a known length"),
    (("ProgressiveResizing",), ANY, "start must be 1 where"),
    # Probabilities of classes, on data that is held back.
    (("TemperatureScaling",), ANY, "limit_val_batches must be above 0"),
    (("TemperatureScaling",), ANY, "validation_step must call cross_entropy"),
    (("TemperatureScaling",), ANY, "deploy must be False"),
    (("ScheduleFreeMode",), ANY, "optimizer must be schedule-free"),
    # One clips, not two.
    (("GradientClipping*",), ("looks at clipping",), "gradient_clip_val must be left out"),
    (("GradientClipping*",), ("scheduler by hand",), "clip_gradients must not be called"),
    # Layers that there aren't.
    (("ConcreteDropoutPenalty",), ANY, "must have a layer of ConcreteDropout"),
    (("FreezeBatchNorm",), (*RECURRENT, "transformer"), "BatchNorm"),
    (("ReplaceNorm",), (*RECURRENT, "transformer"), "matches no module"),
    (("DropoutSchedule",), RECURRENT, "must have a layer with a rate above 0"),
    (("InsertDropBlock",), ANY, "Conv2d"),
    (("InsertDropConnect", "SpectralNormalization", "WeightStandardization"), ("low-rank adapters",), "must name"),
    (("InsertDropConnect", "Mixout"), ("low-rank adapters",), "chooses LowRankLinear"),
    (("GroupLassoPenalty*",), ("convolutions",), "a grouped convolution"),
    # Statistics of data that the step alone can read, or that has no end.
    (("StochasticWeightAverage*",), (*MANUAL, "step with an iterator"), "buffers must be 'copy' or 'average'"),
    (("StochasticWeightAverage*",), ("iterable data", "endless data"), "buffers must be 'copy' or 'average'"),
    (("StochasticWeightAverage*",), ("endless data",), "epoch"),
    (("* scheduled",), ("endless data",), "schedule.duration"),
    (("GeneralizationGap",), ("iterable data", "endless data"), "must be a DataLoader over a data set with a length"),
    (ANY, ("complex weights",), "complex"),
]


def may_refuse(name, project, text):
    """Whether a technique may refuse a project with this text."""
    return any(
        words in text
        and any(fnmatchcase(name, glob) for glob in techniques)
        and any(fnmatchcase(project, glob) for glob in projects)
        for techniques, projects, words in REFUSALS
    )
