"""What to try next if a network over- or underfits: the rules behind the summary of a fit and docs/guide.md."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from lightning_reg.audit.inventory import take_inventory
from lightning_reg.callbacks import GeneralizationGap
from lightning_reg.cli.invocation import changed_command
from lightning_reg.core.lightning import callbacks_of
from lightning_reg.core.metric_names import lower_is_better
from lightning_reg.data import TabularData
from lightning_reg.monitors.fitting_signals import Curves, find_signals
from lightning_reg.nn.rates import rates

__all__ = ["REMEDIES", "Remedy", "Situation", "advice_lines", "remedies", "signs_in", "signs_of", "situation_of"]

_MOST = 3
_FEW_SAMPLES = 8  # batch size below which BatchNorm's statistics would be mostly noise
_LEAST_PIXELS = 16  # on digits of 8×8 augmentation costs accuracy, configs/studies/first_aid.yaml
_LEAST_DECAY = 0.01  # torch's default for AdamW, which hardly regularizes


@dataclass(frozen=True)
class Situation:
    """The facts about a finished run that the rules depend on.

    Attributes:
        signs: Names of the observed signals, as in :class:`~lightning_reg.monitors.GeneralizationGap`.
        model: Settings of the model that can be changed on the command line, by name.
        data: Settings of the data module that can be changed on the command line, by name.
        is_image: Whether the inputs are images that are large enough for augmentation.
        is_table: Whether the inputs are rows of a table read by :class:`~lightning_reg.data.TabularData`.
        classifies: Whether the task is single-label classification.
        drop_prob: Largest drop probability in the network.
        weight_decay: Largest weight decay of the optimizers.
        label_smoothing: Largest label smoothing in use.
        penalizes: Whether a callback penalizes the size of weights.
        softens: Whether a callback encourages less confident predictions.
        mixes: Whether samples are mixed.
        averages: Whether a callback averages weights.
        stops_early: Whether a callback may stop training early.
        stopped: Whether training was stopped before ``max_epochs``.
        batch_size: Number of samples in a batch; None if unknown.
        max_epochs: Largest number of epochs; None if unlimited.
    """

    signs: frozenset[str] = frozenset()
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    is_image: bool = False
    is_table: bool = False
    classifies: bool = True
    drop_prob: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    penalizes: bool = False
    softens: bool = False
    mixes: bool = False
    averages: bool = False
    stops_early: bool = False
    stopped: bool = False
    batch_size: int | None = None
    max_epochs: int | None = None

    @property
    def overfits(self) -> bool:
        """Whether the network fits the training data, but doesn't generalize."""
        return bool(self.signs & {"overfitting", "memorization"})

    @property
    def underfits(self) -> bool:
        """Whether the network doesn't fit even the training data, or training ended too soon."""
        return not self.overfits and bool(self.signs & {"underfitting", "unfinished"})


@dataclass(frozen=True)
class Remedy:
    """Something to try.

    Attributes:
        name: Name, in a word or two.
        why: Reason why it may help, and what is known about it.
        options: Function from a situation to the words to append to the command; it returns none if the remedy
            doesn't apply.
    """

    name: str
    why: str
    options: Callable[[Situation], Sequence[str]]


def _overlay(name: str) -> list[str]:
    return ["--config", f"techniques/{name}"]


def _is_untouched(found: Situation, setting: str) -> bool:
    return setting in found.data and found.data[setting] in (None, "none")


def _augment(found: Situation) -> Sequence[str]:
    return _overlay("augmentation_basic") if found.is_image and _is_untouched(found, "augment") else []


def _norm(found: Situation) -> Sequence[str]:
    few = found.batch_size is not None and found.batch_size < _FEW_SAMPLES
    takes = found.model.get("norm") == "none" and found.model.get("activation") != "selu"
    return ["--model.norm", "layer" if few else "batch"] if takes else []


def _drop(found: Situation) -> Sequence[str]:
    takes = "drop_prob" in found.model and found.model.get("activation") != "selu"
    return ["--model.drop_prob", "0.3"] if takes and not found.drop_prob else []


def _mix(found: Situation) -> Sequence[str]:
    if found.mixes or not _is_untouched(found, "mix"):
        return []
    return _overlay("row_cutmix" if found.is_table else "mixup")


def _decay(found: Situation) -> Sequence[str]:
    small = "weight_decay" in found.model and found.weight_decay <= _LEAST_DECAY and not found.penalizes
    return ["--model.weight_decay", "0.1"] if small else []


def _average(found: Situation) -> Sequence[str]:
    return [] if found.averages else _overlay("exponential_moving_average")


def _smooth(found: Situation) -> Sequence[str]:
    takes = found.classifies and "label_smoothing" in found.model
    return ["--model.label_smoothing", "0.1"] if takes and not (found.label_smoothing or found.softens) else []


def _stop(found: Situation) -> Sequence[str]:
    if found.stops_early or "overfitting" not in found.signs:
        return []
    return ["--trainer.callbacks+=BestWeightsEarlyStopping", "--trainer.callbacks.monitor=val/loss"]


def _train_longer(found: Situation) -> Sequence[str]:
    longer = found.max_epochs is not None and found.max_epochs > 0 and not found.stopped
    return ["--trainer.max_epochs", str(2 * (found.max_epochs or 0))] if longer else []


def _drop_less(found: Situation) -> Sequence[str]:
    takes = "drop_prob" in found.model and found.drop_prob > 0 and "underfitting" in found.signs
    return ["--model.drop_prob", f"{found.drop_prob / 2:.2g}" if found.drop_prob > 0.1 else "0.0"] if takes else []


def _disturb_less(found: Situation) -> Sequence[str]:
    if "underfitting" not in found.signs:
        return []
    disturbed = [name for name in ("augment", "mix") if name in found.data and not _is_untouched(found, name)]
    return [word for name in disturbed for word in (f"--data.{name}", "null")]


def _widen(found: Situation) -> Sequence[str]:
    if "underfitting" not in found.signs:
        return []
    for name in ("hidden_sizes", "channels"):
        sizes = found.model.get(name)
        if sizes:
            return [f"--model.{name}", f"[{', '.join(str(2 * size) for size in sizes)}]"]
    return ["--model.hidden_size", str(2 * found.model["hidden_size"])] if "hidden_size" in found.model else []


REMEDIES: Mapping[str, tuple[Remedy, ...]] = {
    "overfitting": (
        Remedy("early stopping", "training goes on after validation has turned; costs nothing", _stop),
        Remedy("mixing", "no sample is seen twice, and what is between samples is learned, too", _mix),
        Remedy("normalization", "the noise of BatchNorm's statistics regularizes, and training gets faster", _norm),
        Remedy("augmentation", "more images, where what it changes doesn't matter to the label", _augment),
        Remedy("dropout", "no unit can rely on another; the classic for dense layers", _drop),
        Remedy(
            "averaged weights", "a mean over many steps is calmer than the last one; costs next to nothing", _average
        ),
        Remedy("label smoothing", "keeps a network from being too sure", _smooth),
        Remedy("weight decay", "smaller weights, smoother functions; AdamW's default is next to nothing", _decay),
    ),
    "underfitting": (
        Remedy("less disturbed data", "what is mixed and augmented takes longer to learn", _disturb_less),
        Remedy("less dropout", "a network that doesn't fit its training data needs all of its units", _drop_less),
        Remedy("longer training", "validation may still get better", _train_longer),
        Remedy("a larger network", "where training data isn't fitted, it isn't a regularizer that is missing", _widen),
    ),
}
"""Remedies by signal, in the order in which they are suggested."""


def remedies(found: Situation) -> list[tuple[Remedy, Sequence[str]]]:
    """Returns the first three applicable remedies, each with the words to append to the command."""
    if not (found.overfits or found.underfits):
        return []
    of_sign = REMEDIES["overfitting" if found.overfits else "underfitting"]
    options = [(remedy, remedy.options(found)) for remedy in of_sign]
    return [(remedy, words) for remedy, words in options if words][:_MOST]


def signs_of(trainer: Trainer) -> frozenset[str] | None:
    """Returns the names of a run's signals; None if no callback measured the generalization gap.

    Args:
        trainer: Trainer that has just finished ``fit``.
    """
    gaps = [callback for callback in callbacks_of(trainer) if isinstance(callback, GeneralizationGap)]
    measured = [callback for callback in gaps if callback.curves.epochs]
    return frozenset(signal.name for callback in measured for signal in callback.signals) if measured else None


def signs_in(results: Mapping[str, Mapping[str, float]]) -> frozenset[str]:
    """Returns the names of the signals in the final metrics alone, without learning curves.

    Args:
        results: Metrics by split, then by name.

    >>> parts = {"train": {"accuracy": 1.0, "loss": 0.01}, "validation": {"accuracy": 0.9, "loss": 0.4}}
    >>> sorted(signs_in(parts))
    ['memorization']
    """
    train, validation = results.get("train", {}), results.get("validation", {})
    names = [name for name in train if name in validation]
    if not names:
        return frozenset()
    curves = Curves(
        epochs=[0],
        train={name: [train[name]] for name in names},
        validation={name: [validation[name]] for name in names},
        lower_is_better={name: lower_is_better(name) for name in names},
    )
    return frozenset(signal.name for signal in find_signals(curves, weights=0, samples=None, patience=1))


def situation_of(trainer: Trainer, model: LightningModule, data: LightningDataModule | None) -> Situation:
    """Returns the facts about a run that the rules depend on, except for its signals.

    Args:
        trainer: Trainer that has just finished ``fit``.
        data: The data module it was trained on.
    """
    found = take_inventory(trainer, model)
    techniques = found.techniques()
    return Situation(
        model=dict(model.hparams),
        data={name: getattr(data, name) for name in ("augment", "mix") if hasattr(data, name)},
        is_image=min(_image_size(data)) >= _LEAST_PIXELS,
        is_table=isinstance(data, TabularData),
        classifies=getattr(data, "task", None) == "classification",
        drop_prob=max((rate.value for rate in rates(model)), default=0.0),
        weight_decay=max((group.weight_decay for group in found.groups), default=0.0),
        label_smoothing=found.label_smoothing,
        penalizes=any(technique.l2_strength > 0 for technique in techniques),
        softens=any(technique.softens_predictions for technique in techniques),
        mixes=bool(found.mixing),
        averages=any(getattr(callback, "averages_weights", False) for callback in found.callbacks),
        stops_early=bool(found.of(EarlyStopping)),
        stopped=trainer.should_stop and trainer.current_epoch != trainer.max_epochs,
        batch_size=found.batch_size,
        max_epochs=trainer.max_epochs,
    )


def _image_size(data: object) -> Sequence[int]:
    shape = getattr(data, "input_shape", None) or ()
    return shape[1:] if len(shape) == 3 else (1,)  # (C, H, W)


def advice_lines(found: Situation) -> list[str]:
    """Returns the last lines of a fit's summary: a verdict, and commands to try next."""
    proposed = remedies(found)
    if not proposed:
        return []
    lines = [f"{_verdict(found)}. To try next, one at a time:"]
    for remedy, options in proposed:
        command = changed_command(sys.argv[1:], options, without=["--ckpt_path"])
        lines += [f"  # {remedy.name}: {remedy.why}", f"  {command}"]
    return lines


def _verdict(found: Situation) -> str:
    if found.overfits:
        return "It overfits"
    return "It underfits" if "underfitting" in found.signs else "It was still learning"
