"""Inventory of what regularizes a run, found in its trainer, module, optimizers and data."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from lightning_reg.audit.introspection import described, shown, telling_settings
from lightning_reg.core.facts import Place
from lightning_reg.core.lightning import callbacks_of, twins
from lightning_reg.core.technique import Technique
from lightning_reg.functional.weights.cautious_decay import decay_timescale
from lightning_reg.nn.insertion import insertions
from lightning_reg.nn.rates import is_stochastic, rates
from lightning_reg.optim import OwnedParameter, is_normalization, owned_parameters

__all__ = ["DecayGroup", "Inventory", "Row", "reparametrizations", "take_inventory", "technique_settings"]

_PLACES = ("batch", "forward", "loss", "gradient", "weights", "run")
# Parts of the names of optimizers with decoupled weight decay.
_DECOUPLED = ("AdamW", "Adafactor", "Lion", "Muon")
_LIGHTNINGS_PLACES: dict[type[Callback], str] = {
    EarlyStopping: "run",
    GradientAccumulationScheduler: "gradient",
    ModelPruning: "weights",
    StochasticWeightAveraging: "weights",
    WeightAveraging: "weights",
}


@dataclass(frozen=True)
class Row:
    """One regularizer of a run.

    Attributes:
        place: Place in the training step where it acts.
        settings: Its settings, in words.
    """

    place: str
    technique: str
    settings: str


@dataclass(frozen=True)
class DecayGroup:
    """A parameter group of an optimizer, and how it is decayed.

    Attributes:
        weight_decay: Strength of the decay, 0 where the optimizer has none.
        parameters: Parameters of the group that belong to the module.
        highest_rate: Largest of the group's ``lr``, ``initial_lr`` and ``max_lr``; 0 where it has none.
    """

    optimizer: Optimizer
    weight_decay: float
    parameters: list[OwnedParameter]
    highest_rate: float = 0.0

    @property
    def is_decoupled(self) -> bool:
        """Whether weights shrink beside the step, rather than through the gradient."""
        return any(name in type(self.optimizer).__name__ for name in _DECOUPLED) or bool(
            self.optimizer.param_groups[0].get("decoupled_weight_decay", False)
        )


@dataclass
class Inventory:
    """Everything that regularizes a run.

    Attributes:
        groups: Parameter groups of all optimizers.
        mixing: Transforms that mix samples, of the data module and of callbacks.
        mixes_labels: Whether training targets arrive in the training step as probabilities.
        label_smoothing: Largest label smoothing that was found, 0 where there is none.
        batch_size: Samples in a batch of one process; None where the loader has no batch size.
    """

    trainer: Trainer
    module: LightningModule
    callbacks: list[Callback]
    groups: list[DecayGroup] = field(default_factory=list)
    mixing: list[Any] = field(default_factory=list)
    mixes_labels: bool = False
    label_smoothing: float = 0.0
    batch_size: int | None = None
    rows: list[Row] = field(default_factory=list)

    def of(self, *kinds: type[Callback]) -> list[Callback]:
        """Returns the callbacks of some classes, which are ``lightning``'s; also those of the other package's twins."""
        return [callback for callback in self.callbacks if isinstance(callback, twins(*kinds))]

    def techniques(self) -> list[Technique]:
        """Returns this package's callbacks, which declare what they do."""
        return [callback for callback in self.callbacks if isinstance(callback, Technique)]

    def layers(self, *kinds: type[nn.Module]) -> list[nn.Module]:
        """Returns the module's layers of some kinds."""
        return [submodule for submodule in self.module.modules() if isinstance(submodule, kinds)]


def take_inventory(trainer: Trainer, pl_module: LightningModule) -> Inventory:
    """Finds everything that regularizes a run.

    Args:
        trainer: Trainer whose fit has started, with optimizers and loaders.
        pl_module: The module, after callbacks have changed its layers.
    """
    found = Inventory(trainer, pl_module, callbacks_of(trainer))
    data = getattr(trainer, "datamodule", None)
    found.groups = _decay_groups(trainer, pl_module)
    mixes = [getattr(holder, "mix", None) for holder in [data, *found.callbacks]]
    found.mixing = [mix for mix in mixes if mix is not None]
    found.mixes_labels = getattr(data, "mix", None) is not None
    found.label_smoothing = _label_smoothing(pl_module)
    found.batch_size = _batch_size(trainer)
    rows = [
        *_batch_rows(found, data),
        *_forward_rows(pl_module),
        *_loss_rows(found),
        *_gradient_rows(trainer),
        *_weight_rows(found),
        *_run_rows(trainer),
        *(row for callback in found.callbacks for row in _callback_rows(callback)),
    ]
    found.rows = sorted(rows, key=lambda row: _PLACES.index(row.place))
    return found


def technique_settings(trainer: Trainer) -> dict[str, bool | int | float | str]:
    """Returns the settings of every technique that changes the training, so that runs can be compared by them.

    Args:
        trainer: Trainer with its callbacks, and its data module if there is one.
    """
    found: dict[str, bool | int | float | str] = {}
    for title, value in _data_techniques(getattr(trainer, "datamodule", None)):
        found[title] = shown(value)
    counts: Counter[str] = Counter()
    for callback in callbacks_of(trainer):
        if _place_of(callback) is None or getattr(callback, "only_watches", False):
            continue
        name = type(callback).__name__
        counts[name] += 1
        name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        settings = telling_settings(callback)
        for setting, value in settings.items():
            found[f"{name}/{setting}"] = value if isinstance(value, (bool, int, float, str)) else shown(value)
        if not settings:
            found[name] = True  # other runs have an empty field there
    return found


def _data_techniques(data: Any) -> Iterator[tuple[str, Any]]:
    for name, title in (("augment", "augmentation"), ("mix", "mixing")):
        value = getattr(data, name, None)
        if value is not None and value != "none":
            yield title, value


def _place_of(callback: Callback) -> str | None:
    place = getattr(callback, "place", None)  # techniques declare it
    if isinstance(place, Place):
        return place.value
    for kind, name in _LIGHTNINGS_PLACES.items():
        if isinstance(callback, twins(kind)):
            return name
    return "weights" if getattr(callback, "averages_weights", False) else None


def _callback_rows(callback: Callback) -> Iterator[Row]:
    place = _place_of(callback)
    name = type(callback).__name__
    if getattr(callback, "only_watches", False):
        return
    if place is not None:
        yield Row(place, name, described(callback))
    elif type(callback).__module__.partition(".")[0] not in ("lightning", "pytorch_lightning", "lightning_reg"):
        yield Row("run", name, "somebody's callback; what it does isn't known here")


def _batch_rows(found: Inventory, data: Any) -> Iterator[Row]:
    trainer, size = found.trainer, found.batch_size
    if size is not None:
        accumulated = trainer.accumulate_grad_batches
        factors = [f"{size} samples"]
        if trainer.world_size > 1:
            factors.append(f"{trainer.world_size} processes")
        if accumulated > 1:
            factors.append(f"{accumulated} accumulated")
        total = size * trainer.world_size * accumulated
        yield Row("batch", "batch size", " × ".join(factors) + (f" = {total} a step" if len(factors) > 1 else ""))
    for title, value in _data_techniques(data):
        yield Row("batch", title, f"{shown(value)}, by the data")
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    while hasattr(dataset, "dataset"):  # a Subset of another
        dataset = dataset.dataset
    transform = getattr(dataset, "transform", None)
    if transform is not None:
        yield Row("batch", "transforms", f"{shown(transform)}, by the data set")


def _forward_rows(pl_module: LightningModule) -> Iterator[Row]:
    dropping: dict[str, list[float]] = {}
    for rate in rates(pl_module):
        if rate.value > 0:
            dropping.setdefault(type(rate.holder).__name__, []).append(rate.value)
    for kind, values in dropping.items():
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        shown_rate = f"rate {low}" if low == high else f"rates {low} to {high}"
        yield Row("forward", kind, f"{shown_rate} in {_layers(len(values))}")
    rated = {id(rate.holder) for rate in rates(pl_module)}
    others = [submodule for submodule in pl_module.modules() if is_stochastic(submodule) and id(submodule) not in rated]
    inserted = [hook.layer for hook in insertions(pl_module)]
    others += [layer for layer in inserted if is_stochastic(layer) and id(layer) not in rated]
    for kind, count in Counter(type(other).__name__ for other in others).items():
        yield Row("forward", kind, f"in {_layers(count)}")
    norms = Counter(
        type(submodule).__name__
        for name, submodule in pl_module.named_modules()
        if is_normalization(submodule) and "parametrizations." not in name  # those are of weights
    )
    for kind, count in norms.items():
        yield Row("forward", kind, _layers(count))
    for kind, count in Counter(reparametrizations(pl_module)).items():
        yield Row("forward", kind, f"of the weights of {_layers(count)}")
    frozen = [parameter.numel() for parameter in pl_module.parameters() if not parameter.requires_grad]
    if frozen:
        total = sum(parameter.numel() for parameter in pl_module.parameters())
        yield Row("forward", "frozen weights", f"{sum(frozen):,} of {total:,}")


def reparametrizations(module: nn.Module) -> list[str]:
    """Returns the names of all parametrizations of weights below a module, without leading underscores."""
    names = []
    for submodule in module.modules():
        if is_parametrized(submodule):
            lists = submodule.parametrizations.values()  # type: ignore[operator]  # a ModuleDict there
            names += [type(part).__name__.lstrip("_") for parts in lists for part in parts]
        # torch's older spectral and weight normalization are hooks.
        hooks = [type(hook).__name__ for hook in submodule._forward_pre_hooks.values()]
        names += [name for name in hooks if name in ("SpectralNorm", "WeightNorm")]
    return names


def _loss_rows(found: Inventory) -> Iterator[Row]:
    if found.label_smoothing:
        yield Row("loss", "label smoothing", f"{found.label_smoothing:.6g}")


def _label_smoothing(pl_module: LightningModule) -> float:
    candidates = [getattr(submodule, "label_smoothing", None) for submodule in pl_module.modules()]
    candidates.append(pl_module.hparams.get("label_smoothing"))
    return max((float(candidate) for candidate in candidates if isinstance(candidate, (int, float))), default=0.0)


def _gradient_rows(trainer: Trainer) -> Iterator[Row]:
    if trainer.gradient_clip_val:  # 0 is none
        algorithm = trainer.gradient_clip_algorithm or "norm"
        yield Row("gradient", "clipping by the Trainer", f"{algorithm} {trainer.gradient_clip_val:.6g}")


def _decay_groups(trainer: Trainer, pl_module: LightningModule) -> list[DecayGroup]:
    owned = {id(owned_parameter.parameter): owned_parameter for owned_parameter in owned_parameters(pl_module)}
    return [
        DecayGroup(
            optimizer,
            float(group.get("weight_decay") or 0.0),
            [owned[id(parameter)] for parameter in group["params"] if id(parameter) in owned],
            max(float(group.get(rate) or 0.0) for rate in ("lr", "initial_lr", "max_lr")),
        )
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
    ]


def _weight_rows(found: Inventory) -> Iterator[Row]:
    for optimizer in found.trainer.optimizers:
        groups = [part for part in found.groups if part.optimizer is optimizer]
        name = type(optimizer).__name__
        decayed = [part for part in groups if part.weight_decay]
        if not decayed:
            yield Row("weights", name, "no weight decay")
            continue
        total = sum(parameter.parameter.numel() for group in groups for parameter in group.parameters)
        for group in decayed:
            weights = sum(parameter.parameter.numel() for parameter in group.parameters)
            kind = "weight decay" if group.is_decoupled else "L2 through the gradient"
            share = f"all {total:,} weights" if weights == total else f"{weights:,} of {total:,} weights"
            span = _timescale(found.trainer, group)
            yield Row("weights", name, f"{kind} {group.weight_decay:.6g} on {share}{span}")


def _timescale(trainer: Trainer, group: DecayGroup) -> str:
    """Returns, in words, the number of epochs over which decoupled decay averages updates at the highest rate."""
    steps = trainer.num_training_batches / trainer.accumulate_grad_batches
    if not group.is_decoupled or not group.highest_rate or math.isinf(steps) or not steps:
        return ""
    epochs = decay_timescale(group.highest_rate, group.weight_decay, math.ceil(steps))
    return f", timescale {epochs:,.0f} epochs" if epochs >= 100 else f", timescale {epochs:.3g} epochs"


def _run_rows(trainer: Trainer) -> Iterator[Row]:
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        limits.append(f"{trainer.max_epochs} {'epoch' if trainer.max_epochs == 1 else 'epochs'}")
    if trainer.max_steps > 0:
        limits.append(f"{trainer.max_steps:,} {'step' if trainer.max_steps == 1 else 'steps'}")
    if limits:
        yield Row("run", "length", f"at most {' and '.join(limits)}")


def _batch_size(trainer: Trainer) -> int | None:
    loader = trainer.train_dataloader
    size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return size if isinstance(size, int) else None


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"
