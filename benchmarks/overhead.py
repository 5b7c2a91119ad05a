"""What each technique adds to a training step, beside what a user would write.

``python -m benchmarks.overhead`` trains each workload in one fit of a Lightning Trainer. Blocks of bare steps alternate
with blocks of the same steps with one technique attached, in changing order, so that drift of the machine cancels, and
the ratio of each pair of neighbouring blocks is taken; the median over pairs is printed, with quartiles.

Workloads: an MLP 784-2048-2048-10 with batches of 128 (5.8 M weights), a CNN of three blocks on 32×32 with batches of
64, and a ResNet-50 (25.6 M weights) on 64×64 with batches of 8 for what is bound by the number of weights. Data are
random numbers. What stands beside: the textbook's penalty in the loss, plain ``torch._foreach`` calls,
``clip_grad_norm_``, and timm's ``adaptive_clip_grad`` where timm is installed.
"""

import argparse
import importlib.util
import logging
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset

from lightning_reg.callbacks import (
    ActivationStats,
    ActivityPenalty,
    ConfidencePenalty,
    ElasticNetPenalty,
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    GroupLassoPenalty,
    InsertDropBlock,
    InsertDropConnect,
    InsertDropout,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    MaxNorm,
    NonNegative,
    OrthogonalPenalty,
    UnitNorm,
    WeightDistribution,
)

L1, L2 = 1e-6, 1e-5
TIMM = "  timm's adaptive_clip_grad"
Peers = dict[str, Callable[[], list[Callback]]]


class Textbook(Callback):
    """The penalty as a textbook writes it: into the loss, through autograd."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Switches it on for one step."""
        assert_workload(pl_module).penalty = True


class ForeachElasticNet(Callback):
    """The penalty's gradient by plain foreach calls."""

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds it."""
        weights: list[Tensor] = [each for each in pl_module.parameters() if each.ndim > 1]
        gradients = [each.grad for each in weights if each.grad is not None]
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=L1)
        torch._foreach_add_(gradients, weights, alpha=L2)


class ClipGradNorm(Callback):
    """torch's clipping, called by hand."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clips."""
        nn.utils.clip_grad_norm_(pl_module.parameters(), 1e-3)


class TimmAdaptive(Callback):
    """timm's adaptive clipping, called by hand."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Clips."""
        importlib.import_module("timm.utils.agc").adaptive_clip_grad(list(pl_module.parameters()))


class HookedOneByOne(Callback):
    """What users write: hooks that take mean, deviation and zeros, each brought to the CPU at once."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Registers them."""
        leaves = [each for each in pl_module.modules() if not list(each.children())]
        self.handles = [each.register_forward_hook(self.look) for each in leaves]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Removes them."""
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def look(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Takes them."""
        self.found = output.mean().item(), output.std().item(), (output == 0).float().mean().item()


class HookedInFourPasses(HookedOneByOne):
    """The same with an operation for each, histogram included, and nothing brought to the CPU."""

    @torch.no_grad()
    def look(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Takes them."""
        norm, nonzero = torch.linalg.vector_norm(output), torch.count_nonzero(output)
        self.kept = output.sum(), norm, nonzero, torch.histc(output, 64, -10, 10)


class Workload(LightningModule):
    """Classifies random pictures."""

    def __init__(self, network: nn.Module, shape: tuple[int, ...], batch_size: int) -> None:
        super().__init__()
        self.network = network
        generator = torch.Generator().manual_seed(0)
        self.batch = (
            torch.randn(batch_size, *shape, generator=generator),
            torch.randint(0, 10, (batch_size,), generator=generator),
        )
        self.penalty = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Returns the loss."""
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        if self.penalty:
            self.penalty = False
            for weight in self.parameters():
                if weight.ndim > 1:
                    loss = loss + L1 * weight.abs().sum() + L2 / 2 * (weight**2).sum()
        return loss

    def configure_optimizers(self) -> Optimizer:
        """Returns plain SGD with momentum, whose step costs least."""
        return torch.optim.SGD(self.parameters(), lr=1e-4, momentum=0.9)


def assert_workload(module: LightningModule) -> Workload:
    """Returns the module, for the type checker."""
    if not isinstance(module, Workload):
        raise TypeError(module)
    return module


def mlp() -> Workload:
    """784-2048-2048-10, batches of 128."""
    layers = [nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)]
    return Workload(nn.Sequential(*layers), (784,), 128)


def cnn() -> Workload:
    """Three blocks of two convolutions on 32×32, batches of 64."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
        for channels in (inputs, outputs):
            layers += [nn.Conv2d(channels, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    return Workload(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)), (3, 32, 32), 64)


def resnet50() -> Workload:
    """Torchvision's ResNet-50 on 64×64, batches of 8."""
    from torchvision.models import resnet50

    return Workload(resnet50(num_classes=10), (3, 64, 64), 8)


WORKLOADS: dict[str, Callable[[], Workload]] = {"mlp": mlp, "cnn": cnn, "resnet50": resnet50}

TECHNIQUES: Peers = {
    "L1Penalty": lambda: [L1Penalty(weight=L1)],
    "L1Penalty(proximal)": lambda: [L1Penalty(weight=L1, proximal=True)],
    "L2Penalty": lambda: [L2Penalty(weight=L2)],
    "ElasticNetPenalty": lambda: [ElasticNetPenalty(l1=L1, l2=L2)],
    "  by foreach calls": lambda: [ForeachElasticNet()],
    "  the textbook's, by autograd": lambda: [Textbook()],
    "GroupLassoPenalty": lambda: [GroupLassoPenalty(weight=L1)],
    "L2SPPenalty": lambda: [L2SPPenalty(weight=L2)],
    "OrthogonalPenalty": lambda: [OrthogonalPenalty(weight=L2)],
    "MaxNorm": lambda: [MaxNorm()],
    "UnitNorm": lambda: [UnitNorm()],
    "NonNegative": lambda: [NonNegative()],
    "ActivityPenalty": lambda: [ActivityPenalty(l2=1e-4)],
    "ConfidencePenalty": lambda: [ConfidencePenalty(weight=0.1)],
    "GradientCentralization": lambda: [GradientCentralization()],
    "GradientNoise": lambda: [GradientNoise(eta=1e-6)],
    "GradientClipping(norm)": lambda: [GradientClipping(max_norm=1e-3)],
    "  with GradientMonitor at every step": lambda: [
        GradientClipping(max_norm=1e-3),
        GradientMonitor(every_n_steps=1),
    ],
    "  torch's clip_grad_norm_": lambda: [ClipGradNorm()],
    "GradientClipping(value)": lambda: [GradientClipping(algorithm="value", max_value=1e-5)],
    "GradientClipping(percentile)": lambda: [GradientClipping(algorithm="percentile")],
    "GradientClipping(zscore)": lambda: [GradientClipping(algorithm="zscore")],
    "GradientClipping(adaptive)": lambda: [GradientClipping(algorithm="adaptive", exclude_head=False)],
    TIMM: lambda: [TimmAdaptive()],
    "GradientMonitor, steps that don't log": lambda: [GradientMonitor()],
    "ActivationStats, every step": lambda: [ActivationStats(every_n_steps=1)],
    "  with histograms": lambda: [ActivationStats(every_n_steps=1, histogram_bins=64)],
    "  of 16 samples": lambda: [ActivationStats(every_n_steps=1, sample=16)],
    "  by hooks with .item()": lambda: [HookedOneByOne()],
    "  by hooks in four passes, histogram too": lambda: [HookedInFourPasses()],
    "ActivationStats, steps that don't log": lambda: [ActivationStats()],
    "WeightDistribution, steps that don't log": lambda: [WeightDistribution(every_n_steps=1_000_000)],
    "InsertDropout": lambda: [InsertDropout(types=("ReLU",))],
    "InsertDropout(spatial)": lambda: [InsertDropout(types=("ReLU",), kind="spatial")],
    "InsertDropConnect": lambda: [InsertDropConnect()],
    "InsertDropBlock": lambda: [InsertDropBlock(types=("MaxPool2d",))],
}
NEEDS_MAPS = ("InsertDropBlock",)


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """The same batch, for ever: loading isn't what is measured."""

    def __init__(self, batch: tuple[Tensor, Tensor]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.batch


class Alternation(Callback):
    """Attaches and releases one technique after the other while a fit goes on, and times blocks of steps."""

    def __init__(self, techniques: Peers, *, steps: int, pairs: int) -> None:
        self.ratios: dict[str, list[float]] = {name: [] for name in techniques}
        self.bare: list[float] = []
        order = random.Random(0)
        self._plan: list[tuple[str | None, str]] = []
        for _ in range(pairs):
            for name in order.sample(list(techniques), len(techniques)):
                self._plan += order.sample([(name, name), (None, name)], 2)
        self._techniques = techniques
        self._steps = steps
        self._times: dict[str, dict[bool, float]] = {}
        self._attached: list[Callback] = []
        self._block = self._step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begins a block."""
        if batch_idx % (self._steps + 1) == 0:
            self._block += 1
            if self._block == len(self._plan):
                trainer.should_stop = True
                return
            self._attach(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Ends a block; its first step isn't timed."""
        within = batch_idx % (self._steps + 1)
        if within == 0:
            self._start = time.perf_counter()
        if within == self._steps and self._block < len(self._plan):
            self._note((time.perf_counter() - self._start) / self._steps)
            self._release(trainer, pl_module)

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        attached, _ = self._plan[self._block]
        self._attached = self._techniques[attached]() if attached is not None else []
        trainer.callbacks = [self, *self._attached]  # type: ignore[attr-defined]  # set outside the class
        for callback in self._attached:
            callback.setup(trainer, pl_module, "fit")
        pl_module.setup("fit")  # behind which layers are changed
        for callback in list(trainer.callbacks):  # type: ignore[attr-defined]
            if callback is not self:
                callback.on_fit_start(trainer, pl_module)
                callback.on_train_start(trainer, pl_module)

    def _release(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in self._attached:
            callback.teardown(trainer, pl_module, "fit")
        trainer.callbacks = [self]  # type: ignore[attr-defined]

    def _note(self, seconds: float) -> None:
        attached, name = self._plan[self._block]
        times = self._times.setdefault(name, {})
        times[attached is not None] = seconds
        if len(times) == 2:
            self.ratios[name].append(times[True] / times[False])
            self.bare.append(times[False])
            del self._times[name]


def measure(workload: Workload, techniques: Peers, *, steps: int, pairs: int) -> Alternation:
    """Returns the ratios of each technique."""
    alternation = Alternation(techniques, steps=steps, pairs=pairs)
    with tempfile.TemporaryDirectory() as folder:
        fit(workload, alternation, folder)
    return alternation


def fit(workload: Workload, alternation: Alternation, folder: str) -> None:
    """Trains until the alternation is through."""
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        callbacks=[alternation],
        logger=TensorBoardLogger(folder),  # else histograms wouldn't be taken
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,
    )
    trainer.fit(workload, DataLoader(Endless(workload.batch), batch_size=None))


def main() -> None:
    """Prints a table a workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workload", choices=list(WORKLOADS), nargs="*", default=["mlp", "cnn"])
    parser.add_argument("--only", default="", help="measure the techniques whose name contains this")
    parser.add_argument("--steps", type=int, default=10, help="steps in a block")
    parser.add_argument("--pairs", type=int, default=15, help="pairs of blocks a technique; the median counts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

    techniques = {name: make for name, make in TECHNIQUES.items() if options.only.lower() in name.lower()}
    if importlib.util.find_spec("timm") is None and TIMM in techniques:
        del techniques[TIMM]
        print("timm isn't installed; its adaptive_clip_grad is left out")
    for workload in options.workload:
        suited = {name: make for name, make in techniques.items() if workload != "mlp" or name not in NEEDS_MAPS}
        result = measure(WORKLOADS[workload](), suited, steps=options.steps, pairs=options.pairs)
        bare = statistics.median(result.bare) * 1e3
        machine = f"torch {torch.__version__}, {torch.get_num_threads()} threads"
        print(f"\n{workload}: a bare step takes {bare:.1f} ms ({machine})")
        for name, ratios in result.ratios.items():
            low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            print(f"  {name:<40} {median:6.3f} ×   ({low:.3f} to {high:.3f})   adds {(median - 1) * bare:6.2f} ms")


if __name__ == "__main__":
    main()
