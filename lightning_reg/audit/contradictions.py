"""Combinations of techniques that work against each other: each with the reason and the remedy."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from torch import nn
from torchmetrics import Metric

from lightning_reg.audit.inventory import DecayGroup, Inventory, reparametrizations
from lightning_reg.core.lightning import twins, validation_interval
from lightning_reg.core.metric_names import better_mode
from lightning_reg.core.technique import Technique
from lightning_reg.nn import Dropout, SpatialDropout
from lightning_reg.nn.rates import rates

__all__ = ["Contradiction", "contradictions", "monitors_not_logged"]

_ADAPTIVE = ("Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop")
_HIGH_RATE = 0.9
_FEW_SAMPLES = 8
_SHOWN_NAMES = 3


@dataclass(frozen=True)
class Contradiction:
    """Two things that shouldn't be combined as they are.

    Attributes:
        what: The combination, as it was found.
        reason: Why it works against itself.
        remedy: Advice on what to do instead.
    """

    what: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}. {self.remedy}."


def contradictions(found: Inventory) -> list[Contradiction]:
    """Returns every combination in an inventory that works against itself."""
    return [contradiction for check in _CHECKS for contradiction in check(found)]


def monitors_not_logged(callbacks: list[Callback], logged: list[str]) -> Iterator[Contradiction]:
    """Yields a contradiction for each metric that a callback watches and nothing has logged.

    Args:
        callbacks: The trainer's callbacks, after every stage has run once.
        logged: Names of the metrics that were logged.
    """
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        # Strict early stopping raises an error of its own.
        refuses = isinstance(callback, twins(EarlyStopping)) and getattr(callback, "strict", False)
        for name in [monitor] if isinstance(monitor, str) and not refuses else []:
            if name not in logged:
                yield Contradiction(
                    f"{type(callback).__name__} watches {name!r}, which was never logged",
                    "it never acts",
                    f"Watch one of {', '.join(logged) or '(nothing is logged)'}",
                )


def _two_clippers(found: Inventory) -> Iterator[Contradiction]:
    # Several of ours may clip gradients that don't overlap; they refuse anything else themselves.
    ours = [
        type(callback).__name__
        for callback in found.callbacks
        if isinstance(callback, Technique) and callback.clips_gradients
    ]
    # Other callbacks are recognized by their names alone.
    others = [type(callback).__name__ for callback in found.callbacks if not isinstance(callback, Technique)]
    somebodys = [name for name in others if "clip" in name.lower()]
    clippers = [*ours, *somebodys]
    if found.trainer.gradient_clip_val:
        clippers.append("Trainer(gradient_clip_val=...)")
    if somebodys and len(clippers) > 1:
        yield Contradiction(
            f"Gradients are clipped by {' and '.join(clippers)}",
            "the second sees gradients that the first has shortened, so its threshold means something else",
            "Keep one of them",
        )


def _averages(found: Inventory) -> list[Callback]:
    """Returns the callbacks that average weights, each once."""
    lightnings = _lightnings_averages(found)
    return [
        callback
        for callback in found.callbacks
        if callback in lightnings or getattr(callback, "averages_weights", False)
    ]


def _lightnings_averages(found: Inventory) -> list[Callback]:
    return found.of(WeightAveraging, StochasticWeightAveraging)


def _two_averages(found: Inventory) -> Iterator[Contradiction]:
    lightnings = _lightnings_averages(found)
    averages = _averages(found)
    if lightnings and len(averages) > 1:  # several of ours know of each other
        yield Contradiction(
            f"Weights are averaged by {' and '.join(type(average).__name__ for average in averages)}",
            "each puts its own average into the module when training ends, and the last one wins",
            "Keep one of them",
        )


def _average_with_spectral_norm(found: Inventory) -> Iterator[Contradiction]:
    if "SpectralNorm" in reparametrizations(found.module):
        for callback in _lightnings_averages(found):
            yield Contradiction(
                f"{type(callback).__name__} with spectral normalization",
                "it averages the vectors of the power iteration, too, and an average of unit vectors has no length 1, "
                "so the averaged weights break the bound",
                "Use ExponentialMovingAverage, which leaves these vectors alone",
            )


def _soft_targets_for_hard_labels(found: Inventory) -> Iterator[Contradiction]:
    if not found.mixes_labels or getattr(found.module, "takes_soft_targets", False):
        return
    kinds = (nn.NLLLoss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss)
    takers = [type(layer).__name__ for layer in found.layers(*kinds)]
    takers += [type(layer).__name__ for layer in found.layers(Metric)]
    if takers:
        yield Contradiction(
            f"The data's mixing gives probabilities as targets, and the module has {', '.join(sorted(set(takers)))}",
            "these take class indices; with probabilities a metric is silently wrong, and a loss fails",
            "Leave mix out of the data and add the callback BatchMixing, which keeps class indices in the batch",
        )


def _decay_on_norms(found: Inventory) -> Iterator[Contradiction]:
    spared = [
        parameter.name
        for group in found.groups
        if group.weight_decay
        for parameter in group.parameters
        if parameter.is_norm_or_bias
    ]
    if spared:
        names = ", ".join(spared[:_SHOWN_NAMES]) + (", ..." if len(spared) > _SHOWN_NAMES else "")
        yield Contradiction(
            f"Weight decay on {len(spared)} norms and biases ({names})",
            "they shift and scale activations and can't overfit much; pulled toward zero they only cost accuracy",
            "Give the optimizer lightning_reg.optim.weight_decay_groups(self, weight_decay)",
        )


def _coupled_decay(found: Inventory) -> Iterator[Contradiction]:
    for name in sorted({type(group.optimizer).__name__ for group in found.groups if _is_coupled(group)}):
        yield Contradiction(
            f"{name} with weight_decay",
            "it adds the decay to the gradient and divides it by the gradient's size: weights with large gradients are "
            "hardly decayed",
            "Use AdamW, which shrinks all weights alike" if "Adam" in name else "Use an optimizer with decoupled decay",
        )


def _is_coupled(group: DecayGroup) -> bool:
    return group.weight_decay > 0 and type(group.optimizer).__name__ in _ADAPTIVE and not group.is_decoupled


def _l2_penalties(found: Inventory) -> list[str]:
    return [type(technique).__name__ for technique in found.techniques() if technique.l2_strength > 0]


def _penalty_under_adam(found: Inventory) -> Iterator[Contradiction]:
    adaptive = sorted({type(optimizer).__name__ for optimizer in found.trainer.optimizers} & set(_ADAPTIVE))
    for penalty in _l2_penalties(found):
        for optimizer in adaptive:
            yield Contradiction(
                f"{penalty} under {optimizer}",
                "the penalty's gradient is divided by the gradient's size, so weights with large gradients are hardly "
                "shrunk: it isn't weight decay",
                "Where decay is meant use AdamW's weight_decay; where the penalty is meant use SGD",
            )


def _l2_twice(found: Inventory) -> Iterator[Contradiction]:
    if any(group.weight_decay for group in found.groups):
        for penalty in _l2_penalties(found):
            yield Contradiction(
                f"{penalty} and the optimizer's weight decay",
                "both shrink the same weights, so neither strength says how much",
                "Keep one of them",
            )


def _dropout_before_batch_norm(found: Inventory) -> Iterator[Contradiction]:
    dropping = {id(rate.holder) for rate in rates(found.module) if rate.value > 0}
    for container, parent in found.module.named_modules():
        if not isinstance(parent, nn.Sequential):  # elsewhere the order of layers isn't the order of calls
            continue
        before: str | None = None
        for name, layer in parent.named_children():
            if before is not None and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                path = f"{container}." if container else ""
                yield Contradiction(
                    f"Dropout {path}{before} before BatchNorm {path}{name}",
                    "dropout raises the variance of activations in training alone, so BatchNorm's running variance is "
                    "too large in evaluation",
                    "Put dropout behind the normalization",
                )
            if id(layer) in dropping and isinstance(layer, (nn.modules.dropout._DropoutNd, Dropout, SpatialDropout)):
                before = name
            elif any(True for _ in layer.parameters()) or isinstance(layer, nn.Sequential):
                before = None  # weights in between mix what was dropped


def _dropout_with_selu(found: Inventory) -> Iterator[Contradiction]:
    plain = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, Dropout, SpatialDropout)
    if found.layers(nn.SELU) and any(layer.p > 0 for layer in found.layers(*plain)):  # type: ignore[operator]
        yield Contradiction(
            "Dropout in a network with SELU",
            "SELU keeps activations at mean 0 and variance 1, and setting some to 0 changes both",
            "Use AlphaDropout",
        )


def _high_rates(found: Inventory) -> Iterator[Contradiction]:
    for rate in rates(found.module):
        if rate.value >= _HIGH_RATE:
            yield Contradiction(
                f"{rate.name} drops {100 * rate.value:.4g} %",
                "hardly any signal is left, and what is left is multiplied by a large number",
                "A rate of 0.1 to 0.5 is usual; of 0.8 at the most",
            )


def _small_batches(found: Inventory) -> Iterator[Contradiction]:
    norms = [
        layer for layer in found.layers(nn.modules.batchnorm._BatchNorm) if not isinstance(layer, nn.SyncBatchNorm)
    ]
    frozen = any(technique.freezes_batch_norm for technique in found.techniques())
    if norms and not frozen and found.batch_size is not None and found.batch_size < _FEW_SAMPLES:
        yield Contradiction(
            f"BatchNorm with batches of {found.batch_size}",
            "its mean and variance come from so few samples that they are mostly noise, and accumulation doesn't help",
            "Use larger batches, ReplaceNorm(norm='group'), or Trainer(sync_batchnorm=True) with several processes",
        )


def _softened_twice(found: Inventory) -> Iterator[Contradiction]:
    softening = [type(technique).__name__ for technique in found.techniques() if technique.softens_predictions]
    if found.label_smoothing and softening:
        also = ", and mixed labels" if found.mixing else ""
        yield Contradiction(
            f"Label smoothing {found.label_smoothing:.4g} with {' and '.join(softening)}{also}",
            "each asks for less confident predictions; together they underfit and miscalibrate",
            "Keep one of them",
        )


def _mixed_twice(found: Inventory) -> Iterator[Contradiction]:
    of_data = getattr(getattr(found.trainer, "datamodule", None), "mix", None)
    mixes = [(f"the data's {type(of_data).__name__}", of_data)]
    mixes += [(type(callback).__name__, getattr(callback, "mix", None)) for callback in found.callbacks]
    mixing = [name for name, mix in mixes if _mixes_samples(mix)]
    if len(mixing) > 1:
        yield Contradiction(
            f"Samples are mixed by {' and '.join(mixing)}",
            "each mixes what the others have mixed, so a sample keeps less than half of itself and of its label",
            "Keep one of them, or let MixupOrCutMix draw which it is for each batch",
        )


def _mixes_samples(mix: Any) -> bool:
    """Whether a transform mixes samples with one another: some only blank parts of one, or are switched off."""
    is_on = all(getattr(mix, name, 1) != 0 for name in ("alpha", "prob"))
    return is_on and bool(getattr(mix, "needs_partner", False))


def _stopping_without_validation(found: Inventory) -> Iterator[Contradiction]:
    if found.trainer.enable_validation:
        return
    for callback in found.of(EarlyStopping):
        if not getattr(callback, "_check_on_train_epoch_end", False):
            yield Contradiction(
                f"{type(callback).__name__} without validation",
                "it checks when validation ends, and there is none",
                "Give the fit a validation loader, or set check_on_train_epoch_end",
            )


def _stopping_by_training_data(found: Inventory) -> Iterator[Contradiction]:
    for callback in found.of(EarlyStopping):
        monitor = getattr(callback, "monitor", "")
        if re.match("train(ing)?[/_]", str(monitor)):
            yield Contradiction(
                f"{type(callback).__name__} watches {monitor!r}",
                "a model that overfits goes on improving on its training data, so it isn't stopped where it begins to",
                "Watch a metric of validation",
            )


def _stopping_at_the_worst(found: Inventory) -> Iterator[Contradiction]:
    for callback in found.of(EarlyStopping, ModelCheckpoint):
        watched: dict[str, str] = {str(getattr(callback, "monitor", None)): getattr(callback, "mode", "")}
        watched.update(getattr(callback, "also", {}))
        for name, mode in watched.items():
            if better_mode(name) not in (None, mode):
                way, other = ("higher", "max") if mode == "min" else ("lower", "min")
                yield Contradiction(
                    f"{type(callback).__name__} watches {name!r} with mode {mode!r}",
                    f"by its name it is better where it is {way}, so the worst weights count as the best",
                    f"Set mode to {other!r}",
                )


def _average_never_begins(found: Inventory) -> Iterator[Contradiction]:
    epochs = found.trainer.max_epochs
    for callback in (technique for technique in found.techniques() if technique.averages_weights):
        begins = getattr(callback, "start_step", 0) + (getattr(callback, "every_n_steps", 1) or 1)
        is_late = epochs is not None and 0 < epochs <= getattr(callback, "start_epoch", 0)
        if is_late or (begins > 1 and 0 < found.trainer.estimated_stepping_batches < begins):
            yield Contradiction(
                f"{type(callback).__name__} begins after the end of training",
                "nothing is averaged, and the trained weights stay",
                "Train longer, or begin earlier",
            )


def _patience_never_runs_out(found: Inventory) -> Iterator[Contradiction]:
    for callback in found.of(EarlyStopping):
        patience, checks = getattr(callback, "patience", 0), _checks(found.trainer, callback)
        if checks <= patience and checks < math.inf:
            of_epochs = found.trainer.max_epochs == checks
            yield Contradiction(
                f"{type(callback).__name__} with patience {patience} in {checks} {'epochs' if of_epochs else 'checks'}",
                "it can't run out, so training is never stopped",
                "Train longer, or choose a shorter patience",
            )


def _checks(trainer: Trainer, callback: Callback) -> float:
    """Returns the number of early stopping's checks in the whole fit; infinity where it isn't known."""
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if epochs is None or epochs <= 0:
        return math.inf
    if getattr(callback, "_check_on_train_epoch_end", False):
        return epochs
    interval, batches = validation_interval(trainer), trainer.num_training_batches
    if every is not None and isinstance(interval, float) and interval == 1:
        return epochs // every
    between = trainer.val_check_batch
    if between is None or math.isinf(batches):
        return math.inf
    # Where every is None, batches are counted through all epochs.
    return epochs * batches // between if every is None else epochs // every * (batches // between)


def _stopping_by_raw_weights(found: Inventory) -> Iterator[Contradiction]:
    if found.of(StochasticWeightAveraging):
        for callback in found.of(EarlyStopping):
            yield Contradiction(
                f"{type(callback).__name__} with StochasticWeightAveraging",
                "validation sees the trained weights and never the average, so it may stop before averaging begins",
                "Use ExponentialMovingAverage, which validates the average, or don't stop early",
            )


def _stopping_by_what_is_not_kept(found: Inventory) -> Iterator[Contradiction]:
    for technique in (technique for technique in found.techniques() if technique.averages_weights):
        prefix = getattr(technique, "prefix", "")
        for callback in found.of(EarlyStopping) if getattr(technique, "validate", "") == "both" else []:
            monitor = str(getattr(callback, "monitor", ""))
            if not monitor.startswith(prefix):
                yield Contradiction(
                    f"{type(callback).__name__} of {monitor!r} with {type(technique).__name__}",
                    "the metric is that of the trained weights, but the average is what remains",
                    f"Watch '{prefix}/{monitor}', or leave validate at 'averaged'",
                )


def _stopping_at_a_restart(found: Inventory) -> Iterator[Contradiction]:
    for technique in (technique for technique in found.techniques() if technique.restarts_rate):
        for callback in found.of(EarlyStopping):
            yield Contradiction(
                f"{type(callback).__name__} with {type(technique).__name__}",
                "the learning rate jumps up when a cycle begins and the loss with it, which may be taken for the end "
                "before the last cycles have ended",
                "Let training run to its end",
            )


def _decay_of_unit_norms(found: Inventory) -> Iterator[Contradiction]:
    shrinking = [
        *_l2_penalties(found),
        *(["weight decay"] if any(group.weight_decay for group in found.groups) else []),
    ]
    fixing = [type(technique).__name__ for technique in found.techniques() if technique.fixes_lengths]
    if shrinking and fixing:
        yield Contradiction(
            f"{fixing[0]} with {' and '.join(shrinking)}",
            "after each step weights are scaled to length 1 again, so shrinking them does nothing",
            f"Keep {fixing[0]} alone",
        )


_CHECKS: tuple[Callable[[Inventory], Iterator[Contradiction]], ...] = (
    _two_clippers,
    _two_averages,
    _average_with_spectral_norm,
    _soft_targets_for_hard_labels,
    _decay_on_norms,
    _coupled_decay,
    _penalty_under_adam,
    _l2_twice,
    _dropout_before_batch_norm,
    _dropout_with_selu,
    _high_rates,
    _small_batches,
    _softened_twice,
    _mixed_twice,
    _stopping_without_validation,
    _stopping_by_training_data,
    _stopping_at_the_worst,
    _average_never_begins,
    _patience_never_runs_out,
    _stopping_by_raw_weights,
    _stopping_by_what_is_not_kept,
    _stopping_at_a_restart,
    _decay_of_unit_norms,
)
