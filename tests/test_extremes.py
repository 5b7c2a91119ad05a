"""A strength of zero means nothing, and one at its other end what it says: both to the bit."""

import copy
from random import Random

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import (
    ActivityPenalty,
    AdversarialTraining,
    BatchMixing,
    CautiousWeightDecay,
    ConfidencePenalty,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientClipping,
    GradientNoise,
    GroupLassoPenalty,
    InsertDropBlock,
    InsertDropConnect,
    InsertDropout,
    InsertLayerDrop,
    InsertStochasticDepth,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    LabelSmoothing,
    LogitPenalty,
    Lookahead,
    MaxNorm,
    Mixout,
    OrthogonalPenalty,
    ProgressiveResizing,
    SharpnessAwareMinimization,
)
from lightning_reg.models.tasks import Classification, Multilabel
from lightning_reg.nn import (
    Attention,
    TransformerBlock,
    WeightDropLSTM,
    convolutional_network,
    dense_network,
    recurrent_network,
    transformer_network,
)
from lightning_reg.transforms import CutMix, Cutout, Mixup, MixupOrCutMix, RandomErasing


class Somebodys(LightningModule):
    """Its optimizer decays whatever has a gradient, and one part of it never has one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        self.unused = nn.Linear(5, 5)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def trained(*callbacks, epochs=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(24, 1, 6, 6, generator=generator)
    labels = torch.randint(3, (24,), generator=generator)
    module = Somebodys()
    started = copy.deepcopy(module.state_dict())
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader(TensorDataset(images, labels), batch_size=8))
    return started, module.state_dict()


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


NOTHING = {
    "L1": lambda: L1Penalty(weight=0.0),
    "L1 proximal": lambda: L1Penalty(weight=0.0, proximal=True),
    "L2": lambda: L2Penalty(weight=0.0),
    "elastic net": lambda: ElasticNetPenalty(l1=0.0, l2=0.0),
    "elastic net proximal": lambda: ElasticNetPenalty(l1=0.0, l2=0.0, proximal=True),
    "group lasso": lambda: GroupLassoPenalty(weight=0.0),
    "group lasso proximal": lambda: GroupLassoPenalty(weight=0.0, proximal=True),
    "orthogonal": lambda: OrthogonalPenalty(weight=0.0),
    "L2-SP": lambda: L2SPPenalty(weight=0.0),
    "activity": lambda: ActivityPenalty(l1=0.0, l2=0.0, temporal=0.0),
    "adversarial": lambda: AdversarialTraining(eps=0.0),
    "adversarial without a share": lambda: AdversarialTraining(eps=0.1, clean_weight=1.0),
    "resizing in one stage": lambda: ProgressiveResizing(stages=1),
    "confidence": lambda: ConfidencePenalty(weight=0.0),
    "logits": lambda: LogitPenalty(weight=0.0),
    "logits, z": lambda: LogitPenalty(kind="z", weight=0.0),
    "smoothing": lambda: LabelSmoothing(smoothing=0.0),
    "cautious decay": lambda: CautiousWeightDecay(weight=0.0),
    "F-SAM": lambda: SharpnessAwareMinimization(rho=0.0, friendly=True),
    "noise": lambda: GradientNoise(eta=0.0),
    "SAM": lambda: SharpnessAwareMinimization(rho=0.0),
    "ASAM": lambda: SharpnessAwareMinimization(rho=0.0, adaptive=True),
    "Lookahead": lambda: Lookahead(k=2, alpha=1.0),
    "clipping to infinity": lambda: GradientClipping(max_norm=torch.inf),
    "clipping of another norm to infinity": lambda: GradientClipping(max_norm=torch.inf, norm_type=torch.inf),
    "clipping values to infinity": lambda: GradientClipping(algorithm="value", max_value=torch.inf),
    "adaptive clipping to infinity": lambda: GradientClipping(algorithm="adaptive", clip_factor=torch.inf),
    "clipping of z-scores to infinity": lambda: GradientClipping(
        algorithm="zscore", z_threshold=torch.inf, warmup_steps=2
    ),
    "max-norm of infinity": lambda: MaxNorm(max_norm=torch.inf),
    "EMA that keeps nothing": lambda: ExponentialMovingAverage(decay=0.0),
    "EMA of no half-life": lambda: ExponentialMovingAverage(half_life=0.0),
    "mixup of alpha 0": lambda: BatchMixing(Mixup(alpha=0.0)),
    "CutMix of alpha 0": lambda: BatchMixing(CutMix(alpha=0.0)),
    "both of alpha 0": lambda: BatchMixing(MixupOrCutMix(mixup_alpha=0.0, cutmix_alpha=0.0)),
    "mixing in no epoch": lambda: BatchMixing(Mixup(), epochs=0),
    "cutout of no pixel": lambda: BatchMixing(Cutout(size=0)),
    "cutout of no share": lambda: BatchMixing(Cutout(size=0.0)),
    "erasing of no area": lambda: BatchMixing(RandomErasing(prob=1.0, scale=(0.0, 0.0))),
    "dropout": lambda: InsertDropout(p=0.0, include=("network.1",)),
    "DropConnect": lambda: InsertDropConnect(p=0.0, include=("network.3",)),
    "DropBlock": lambda: InsertDropBlock(p=0.0, include=("network.1",)),
    "stochastic depth": lambda: InsertStochasticDepth(p=0.0, include=("network.1",)),
    "LayerDrop": lambda: InsertLayerDrop(p=0.0, include=("network.1",)),
    "mixout": lambda: Mixout(p=0.0, include=("network.3",)),
}


@pytest.fixture(scope="module")
def bare():
    return trained()


@pytest.mark.parametrize("technique", NOTHING)
def test_nothing_is_nothing_to_the_bit(technique, bare):
    _, weights = trained(NOTHING[technique]())
    assert equal(weights, bare[1])


BACK = {
    "Lookahead that never goes": lambda: Lookahead(k=3, alpha=0.0),
}


@pytest.mark.parametrize("technique", BACK)
def test_what_undoes_all_steps_ends_where_it_began(technique):
    started, weights = trained(BACK[technique]())  # six steps, two windows
    assert equal(weights, started)


def test_an_average_that_keeps_all_is_the_first_weights(bare):
    _, weights = trained(ExponentialMovingAverage(decay=1.0), epochs=1)

    def one_step():
        class OneStep(pl.Callback):
            def on_train_batch_end(self, trainer, pl_module, *_):
                trainer.should_stop = True

        return trained(OneStep(), epochs=1)[1]

    assert equal(weights, one_step())


DROPPED = {
    "dropout": lambda: InsertDropout(p=1.0, include=("network.2",)),
    "stochastic depth": lambda: InsertStochasticDepth(p=1.0, include=("network.2",), at="branch"),
    "DropBlock": lambda: InsertDropBlock(p=1.0, include=("network.1",)),
    "DropConnect": lambda: InsertDropConnect(p=1.0, include=("network.3",)),
}


@pytest.mark.parametrize("technique", DROPPED)
def test_what_drops_everything_leaves_zeros(technique):
    """Then only the last layer's bias sees the targets, and the filters' gradients are zeros."""
    seen = []

    class Look(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            seen.append((pl_module.network[0].weight.grad.abs().max(), pl_module.network[3].bias.grad.abs().max()))

    trained(DROPPED[technique](), Look())
    assert all(filters == 0 and bias > 0 for filters, bias in seen)


NETWORKS = {
    "dense": ((6,), lambda p: dense_network((6,), 3, hidden_sizes=(8,), drop_prob=p)),
    "convolutional": ((1, 8, 8), lambda p: convolutional_network((1, 8, 8), 3, channels=(4,), head_drop_prob=p)),
    "recurrent": ((4, 6), lambda p: recurrent_network((4, 6), 3, hidden_size=5, drop_prob=p)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_drops_everything_returns_its_last_bias(name):
    shape, make = NETWORKS[name]
    network = make(1.0).train()
    bias = [part for part in network.modules() if isinstance(part, nn.Linear)][-1].bias
    nn.init.normal_(bias)
    assert torch.equal(network(torch.randn(5, *shape)), bias.expand(5, -1))


def test_attention_that_drops_all_weights_attends_to_nothing():
    attention = Attention(embed_dim=8, num_heads=2, attention_drop_prob=1.0).train()
    outputs = attention(torch.randn(2, 4, 8))
    assert torch.equal(outputs, outputs[:1, :1].expand_as(outputs))  # the last bias alone


def test_a_transformer_whose_branches_are_dropped_hands_its_tokens_on():
    torch.manual_seed(0)
    network = transformer_network((4, 6), 3, embed_dim=8, depth=1, num_heads=2, stochastic_depth_prob=1.0).train()
    tokens = []
    block = next(part for part in network.modules() if isinstance(part, TransformerBlock))
    block.register_forward_hook(lambda _, inputs, output: tokens.append((inputs[0], output)))
    network(torch.randn(2, 4, 6))
    assert torch.equal(*tokens[0])


def test_a_recurrent_matrix_that_drops_all_is_a_matrix_of_zeros():
    torch.manual_seed(0)
    dropped = WeightDropLSTM(3, 5, p=1.0, batch_first=True)
    plain = nn.LSTM(3, 5, batch_first=True)
    plain.load_state_dict(dropped.state_dict())
    nn.init.zeros_(plain.weight_hh_l0)
    inputs = torch.randn(2, 7, 3)
    assert torch.equal(dropped(inputs)[0], plain(inputs)[0])


def test_smoothing_of_one_asks_for_the_uniform_distribution():
    logits, targets = torch.randn(8, 4, dtype=torch.float64), torch.randint(4, (8,))
    task = Classification(label_smoothing=1.0)
    task.build(num_classes=4, num_targets=None)
    uniform = -logits.log_softmax(1).mean()
    torch.testing.assert_close(task.loss(logits, targets), uniform)
    labels = Multilabel(label_smoothing=1.0)
    labels.build(num_classes=None, num_targets=4)
    half = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, 0.5))
    torch.testing.assert_close(labels.loss(logits, F.one_hot(targets, 4).double()), half)


@pytest.mark.parametrize("mix", [Mixup(alpha=0.0), CutMix(alpha=0.0), Cutout(size=0), Cutout(size=0.0)], ids=repr)
def test_mixing_of_zero_draws_nothing(mix):
    assert mix.draw(torch.rand(3, 1, 8, 8), stream=Random(0)) is None


def test_infinite_gradients_stay_as_they_are_where_nothing_is_clipped():
    module = Somebodys()
    gradient = torch.full_like(module.unused.weight, torch.inf)
    gradient[0] = 1.0
    module.unused.weight.grad = gradient.clone()
    clipped = []

    class Infinite(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            pl_module.unused.weight.grad = gradient.clone()

        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            if pl_module.unused.weight.grad is not None:
                clipped.append(pl_module.unused.weight.grad.clone())

    trained(GradientClipping(max_norm=torch.inf), Infinite(), epochs=1)
    assert clipped
    assert all(torch.equal(found, gradient) for found in clipped)
