"""Time that each technique adds to a training step, compared with code that a user would write.

``python -m benchmarks overhead`` trains each workload in one fit of a Lightning Trainer. Blocks of bare steps alternate
with blocks of the same steps with one technique attached, in random order, so that drift of the machine cancels out.
It prints the median of the ratios of neighboring blocks, with quartiles.

Workloads: an MLP 784-2048-2048-10 with batches of 128 (5.8 M weights), a CNN of three blocks on 32×32 with batches of
64 (0.3 M weights), and, with ``--workload resnet50``, a ResNet-50 (23.5 M weights) on 64×64 with batches of 8 for
techniques whose cost depends on the number of weights. Data are random numbers. The alternatives: the textbook's
penalty in the loss, plain ``torch._foreach`` calls, ``clip_grad_norm_``, Lightning's averages, and timm's
``adaptive_clip_grad`` and ``ModelEmaV3`` if timm is installed.

On a GPU it also counts how often a step makes the host wait for the device.
"""

import importlib.util
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch.utils.data import DataLoader

from benchmarks.peers import (
    ClipGradNorm,
    ForeachElasticNet,
    HookedInFourPasses,
    HookedOneByOne,
    Textbook,
    TimmAdaptive,
    TimmEma,
)
from benchmarks.tables import Options, Table
from benchmarks.timing import quartiles, quiet, wait
from benchmarks.workloads import L1, L2, WORKLOADS, Endless, Workload
from lightning_reg import callbacks
from lightning_reg.callbacks import (
    ActivationStats,
    ActivityPenalty,
    AugmentationConsistency,
    BatchMixing,
    ConfidencePenalty,
    ElasticNetPenalty,
    ExponentialMovingAverage,
    GradientCentralization,
    GradientClipping,
    GradientMonitor,
    GradientNoise,
    GroupLassoPenalty,
    InsertDropBlock,
    InsertDropConnect,
    InsertDropout,
    InsertLayerDrop,
    L1Penalty,
    L2Penalty,
    L2SPPenalty,
    LatestWeightAverage,
    Lookahead,
    ManifoldMixup,
    MaxNorm,
    Mixout,
    NonNegative,
    OrthogonalPenalty,
    RDrop,
    SharpnessAwareMinimization,
    UnitNorm,
    WeightDistribution,
)
from lightning_reg.core.facts import Place, middle
from lightning_reg.core.technique import Technique
from lightning_reg.transforms import Mixup

TIMM = "  timm's adaptive_clip_grad"
TIMM_EMA = "  timm's ModelEmaV3"
SAM = "SharpnessAwareMinimization"
TOGETHER = "fourteen of them together"
Peers = dict[str, Callable[[], list[Callback]]]

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
    "OrthogonalPenalty(probes=8)": lambda: [OrthogonalPenalty(weight=L2, probes=8)],
    "MaxNorm": lambda: [MaxNorm()],
    "UnitNorm": lambda: [UnitNorm()],
    "NonNegative": lambda: [NonNegative()],
    "ActivityPenalty": lambda: [ActivityPenalty(l2=1e-4)],
    "ConfidencePenalty": lambda: [ConfidencePenalty(weight=0.1)],
    "ExponentialMovingAverage": lambda: [ExponentialMovingAverage(decay=0.999)],
    TIMM_EMA: lambda: [TimmEma()],
    "  Lightning's EMAWeightAveraging": lambda: [EMAWeightAveraging(decay=0.999)],
    "Lookahead": lambda: [Lookahead()],
    SAM: lambda: [SharpnessAwareMinimization()],
    "SharpnessAwareMinimization(fraction=0.5)": lambda: [SharpnessAwareMinimization(fraction=0.5)],
    "SharpnessAwareMinimization(adaptive)": lambda: [SharpnessAwareMinimization(adaptive=True)],
    "GradientCentralization": lambda: [GradientCentralization()],
    "GradientNoise": lambda: [GradientNoise(eta=1e-6)],
    "GradientNoise(rademacher)": lambda: [GradientNoise(eta=1e-6, distribution="rademacher")],
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
    "BatchMixing": lambda: [BatchMixing(Mixup(alpha=0.4))],
    "AugmentationConsistency": lambda: [AugmentationConsistency(normalization=((0.5,), (0.1,)))],
    "ManifoldMixup": lambda: [ManifoldMixup(types=("ReLU",))],
    "RDrop, with dropout": lambda: [RDrop(weight=1.0), InsertDropout(types=("ReLU",))],
    "InsertDropout": lambda: [InsertDropout(types=("ReLU",))],
    "InsertDropout(spatial)": lambda: [InsertDropout(types=("ReLU",), kind="spatial")],
    "InsertDropConnect": lambda: [InsertDropConnect()],
    "Mixout": lambda: [Mixout()],
    "LatestWeightAverage": lambda: [LatestWeightAverage(every_n_steps=10)],
    "InsertLayerDrop": lambda: [InsertLayerDrop(types=("ReLU",))],
    "InsertDropBlock": lambda: [InsertDropBlock(types=("MaxPool2d",))],
    TOGETHER: lambda: [
        ElasticNetPenalty(l1=L1, l2=L2),
        GroupLassoPenalty(weight=L1),
        L2SPPenalty(weight=L2),
        OrthogonalPenalty(weight=L2),
        GradientCentralization(),
        GradientNoise(eta=1e-6),
        MaxNorm(),
        GradientClipping(max_norm=1e-3),
        GradientMonitor(),
        Lookahead(),
        ExponentialMovingAverage(decay=0.999),
        ConfidencePenalty(weight=0.1),
        ActivationStats(),
        WeightDistribution(every_n_steps=1_000_000),
    ],
}
_ATTACHED_ANY_TIME = (Place.LOSS, Place.GRADIENT, Place.WEIGHTS)
# They need special layers, a special optimizer, or the end of training.
_NOT_TIMED = ("ConcreteDropoutPenalty", "StochasticWeightAverage", "SnapshotEnsemble", "ScheduleFreeMode")


def _collected() -> Peers:
    """Returns techniques without a row above, at their usual strengths."""
    rows: Peers = {}
    for name in callbacks.__all__:
        technique = getattr(callbacks, name)
        is_named = any(row.startswith(name) for row in TECHNIQUES) or name in _NOT_TIMED
        if not is_named and issubclass(technique, Technique) and technique.place in _ATTACHED_ANY_TIME:
            settings = {usual.setting: middle(usual) for usual in technique.usual_ranges}
            rows[name] = partial(_only, technique, settings)
    return rows


def _only(technique: Callable[..., Callback], settings: dict[str, Any]) -> list[Callback]:
    return [technique(**settings)]


TECHNIQUES = {**TECHNIQUES, **_collected()}
NEEDS_IMAGES = ("InsertDropBlock", "AugmentationConsistency")
HAVE_IMAGES = ("cnn", "resnet50")
ACTS_IN_FORWARD = (
    *("Insert", "Mixout", "ActivityPenalty", "ConfidencePenalty", "DecorrelationPenalty", "ManifoldMixup", "RDrop"),
)
REFUSES_COMPILED = ("InputGradientPenalty", "JacobianPenalty")


class Alternation(Callback):
    """Attaches and detaches techniques one after the other during a fit, and times blocks of steps."""

    def __init__(self, techniques: Peers, *, steps: int, pairs: int, device: str) -> None:
        self.ratios: dict[str, list[float]] = {name: [] for name in techniques}
        self.waits: dict[str, float] = {}
        self.bare: list[float] = []
        order = random.Random(0)
        self._plan: list[tuple[str | None, str]] = []
        for _ in range(pairs):
            for name in order.sample(list(techniques), len(techniques)):
                self._plan += order.sample([(name, name), (None, name)], 2)
        self._techniques = techniques
        self._steps = steps
        self._device = device
        self._times: dict[str, dict[bool, float]] = {}
        self._attached: list[Callback] = []
        self._block = -1
        self._watch = warnings.catch_warnings(record=True)
        self._seen: list[warnings.WarningMessage] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts a block at its first step."""
        if batch_idx % (self._steps + 1) == 0:
            self._block += 1
            if self._block == len(self._plan):
                trainer.should_stop = True
                return
            self._attach(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        """Starts timing after the first step of a block, and ends the block after its last."""
        within = batch_idx % (self._steps + 1)
        if within == 0:
            self._listen()
            wait(self._device)
            self._start = time.perf_counter()
        if within == self._steps and self._block < len(self._plan):
            wait(self._device)
            seconds = (time.perf_counter() - self._start) / self._steps
            self._note(seconds, self._heard() / self._steps)
            self._release(trainer, pl_module)

    def _attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        attached, _ = self._plan[self._block]
        self._attached = self._techniques[attached]() if attached is not None else []
        trainer.callbacks = [self, *self._attached]  # type: ignore[attr-defined]  # set outside the class
        for callback in self._attached:
            callback.setup(trainer, pl_module, "fit")
        pl_module.setup("fit")  # layers are replaced after it
        for hook in ("on_fit_start", "on_train_start"):
            for callback in self._attached:
                getattr(callback, hook)(trainer, pl_module)

    def _release(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in self._attached:
            callback.teardown(trainer, pl_module, "fit")
        trainer.callbacks = [self]  # type: ignore[attr-defined]

    def _listen(self) -> None:
        """Makes torch warn about every operation that waits for the GPU."""
        if torch.device(self._device).type == "cuda":
            self._seen = self._watch.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def _heard(self) -> int:
        """Returns the number of operations that have waited since :meth:`_listen`."""
        if torch.device(self._device).type != "cuda":
            return 0
        torch.cuda.set_sync_debug_mode("default")
        self._watch.__exit__(None, None, None)
        self._watch = warnings.catch_warnings(record=True)
        return sum("synchronizing CUDA operation" in str(warning.message) for warning in self._seen)

    def _note(self, seconds: float, waits: float) -> None:
        attached, name = self._plan[self._block]
        if attached is not None:
            self.waits[name] = max(self.waits.get(name, 0), waits)
        times = self._times.setdefault(name, {})
        times[attached is not None] = seconds
        if len(times) == 2:
            self.ratios[name].append(times[True] / times[False])
            self.bare.append(times[False])
            del self._times[name]


def measure(workload: Workload, techniques: Peers, options: Options, *, steps: int, pairs: int) -> Alternation:
    """Trains a workload and returns the callback with the ratios of each technique."""
    device = torch.device(options.device)
    alternation = Alternation(techniques, steps=steps, pairs=pairs, device=options.device)
    if options.compiled:
        workload.network.compile()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu" if device.type == "cpu" else "gpu",
            devices=1,
            max_epochs=1,
            callbacks=[alternation],
            logger=TensorBoardLogger(folder),  # otherwise no histograms would be computed
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1_000_000,
        )
        inputs, labels = (part.to(device) for part in workload.batch)
        trainer.fit(workload, DataLoader(Endless((inputs, labels)), batch_size=None))
    return alternation


def tables(options: Options) -> Iterator[Table]:
    """Yields one table per workload."""
    techniques = {name: make for name, make in TECHNIQUES.items() if options.only.lower() in name.lower()}
    if importlib.util.find_spec("timm") is None:
        techniques = {name: make for name, make in techniques.items() if "timm" not in name}
        print("timm isn't installed; what is timed beside it stands alone")
    if options.compiled:  # hooks attached after the first step aren't part of the compiled code
        left_out = ACTS_IN_FORWARD + REFUSES_COMPILED
        techniques = {name: make for name, make in techniques.items() if not name.startswith(left_out)}
    workloads = list(options.workloads)[: 1 if options.quick else None]
    for name in ["tiny"] if options.smallest else workloads:
        chosen = {
            technique: make
            for technique, make in techniques.items()
            if name in HAVE_IMAGES or technique not in NEEDS_IMAGES
        }
        if chosen:
            yield _table(name, chosen, options)


def _table(workload: str, techniques: Peers, options: Options) -> Table:
    steps, pairs = options.rounds(8, 2), options.rounds(11, 2)
    result = measure(WORKLOADS[workload](), techniques, options, steps=steps, pairs=pairs)
    bare = quartiles(result.bare)[1] * 1e3
    on_gpu = torch.device(options.device).type == "cuda"
    compiled = ", compiled" if options.compiled else ""
    table = Table(
        f"What techniques add to a step: {workload}{compiled}",
        ["technique", "× a bare step", "quartiles", "adds ms", *(["waits a step"] if on_gpu else [])],
        note=f"A bare step takes {bare:.2f} ms.",
    )
    for name, ratios in result.ratios.items():
        low, median, high = quartiles(ratios)
        waits = [f"{result.waits[name]:.1f}"] if on_gpu else []
        table.add(name, f"{median:.3f}", f"{low:.3f} to {high:.3f}", f"{(median - 1) * bare:.2f}", *waits)
    return table
