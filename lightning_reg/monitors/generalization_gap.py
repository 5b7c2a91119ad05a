"""Training and validation measured alike, the gap between them, and signs of over- and underfitting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_reg.core import facts
from lightning_reg.core.charts import Chart, draw
from lightning_reg.core.copies.isolation import isolated
from lightning_reg.core.lightning import is_overridden, planned_epochs, validation_epoch_end
from lightning_reg.core.schedules import warn_if_never
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.core.tensorboard import log_image, log_text, takes_images
from lightning_reg.functional.measures.learning_curves import generalization_gap
from lightning_reg.monitors.clean_evaluation import clean_loaders, differs_in_chance, evaluate, number_of_samples
from lightning_reg.monitors.fitting_signals import Curves, Signal, find_signals, summary_lines
from lightning_reg.settings import SettingError, check_count

__all__ = ["GeneralizationGap"]


class GeneralizationGap(Technique):
    """Measures training and validation data alike, and says how far apart they are.

    What it does: the loss that training logs is that of a network with dropout on, of mixed and augmented samples, and
    of weights that change during the epoch; it can't be compared with that of validation. So when validation ends, the
    module's own ``validation_step`` is run once more on a fixed sample of the training data and of the validation data:
    in evaluation mode, on clean samples, with the same weights (averaged ones, where those are validated). That is done
    by a copy of the module, which is dropped: nothing that it logs, counts or keeps reaches the module, the loggers or
    the random streams. When the fit ends the signs of over- and underfitting are printed, with the epoch they began in.

    When to use: nearly always; the gap is what regularization is for. When not: with data that can be read only once.

    Cost: at each validation that it measures, an evaluation of ``max_samples`` training and as many validation samples,
    and the memory of one more module; nothing in training steps. State: a few numbers for each measurement.

    Args:
        every_n_epochs: Epochs between two measurements, at least 1.
        max_samples: Largest number of samples measured of each split, at least 1, always the same ones; all where None.
        patience: Measurements without an improvement of the validation loss after which it counts as rising, at least
            1.
        verbose: Whether the signs are printed when the fit ends.

    Logs:
        ``gap/loss`` and ``gap/<metric>``, how much worse validation is; ``gap/train_loss``, ``gap/val_loss`` and so on,
        what was measured; ``gap/curves``, an image of both with the best epoch and the end marked; ``gap/signals``, the
        signs as text. Several such callbacks log under ``gap_1/`` and so on. Metrics that only their split tells apart,
        such as ``val_loss`` and ``loss``, are numbered: ``gap/loss`` and ``gap/loss_2``.

    Interacts with: augmentation in a data set: where the training data set, or one within it, is of the class of a
    validation data set, a copy of it gets the transforms of that; what validation has no counterpart of, such as a
    wrapper around the training data alone, is measured as it is, with a warning where it differs at each reading. A
    data module can override that with a method ``evaluation_dataloader(split)``. Samplers: what they draw from is
    measured, each sample once, without weights; in a fixed order only what ``overfit_batches``, ``limit_train_batches``
    and ``limit_val_batches`` let through.
    Several validation loaders: the first one counts. A module whose metrics are only logged by
    ``on_validation_epoch_end`` is measured by what its ``validation_step`` returns. Sums (``reduce_fx="sum"``,
    ``SumMetric``, metrics with ``reduction="sum"``) are compared only where both parts have equally many samples.
    Without validation it warns and measures nothing. Whether lower is better is read from a metric's
    ``higher_is_better``, else from its name.

    Raises:
        SettingError: If a setting is out of its range, the data can't be read twice, or the module holds something that
            can't be copied.

    Reference:
        Ian Goodfellow, Yoshua Bengio, Aaron Courville: Deep Learning, MIT Press 2016, sections 5.2 and 7.8.

    >>> GeneralizationGap(max_samples=512).every_n_epochs
    1
    """

    place = facts.Place.RUN
    charts = (
        facts.Chart("Generalization", "loss, training and validation measured alike", r"gap(_\d+)?/(train|val)_loss$"),
        facts.Chart("Generalization", "accuracy, measured alike", r"gap(_\d+)?/(train|val)_acc(uracy)?$"),
        facts.Chart("Generalization", "gap: how much worse validation is", r"gap(_\d+)?/(?!train_|val_)"),
    )
    only_watches = True  # the audit leaves out what changes nothing

    def __init__(
        self,
        *,
        every_n_epochs: int = 1,
        max_samples: int | None = 1024,
        patience: int = 3,
        verbose: bool = True,
    ) -> None:
        check_count("every_n_epochs", every_n_epochs)
        if max_samples is not None:
            check_count("max_samples", max_samples)
        check_count("patience", patience)
        self.every_n_epochs = every_n_epochs
        self.max_samples = max_samples
        self.patience = patience
        self.verbose = verbose
        super().__init__()

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(every_n_epochs=self.every_n_epochs, max_samples=self.max_samples)

    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return _Measuring(self, run) if self._has_validation(run) else Session(self, run)

    def _has_validation(self, run: Run) -> bool:
        found = is_overridden(run.module, "validation_step") and run.trainer.enable_validation
        if not found:
            self.warn(
                "GeneralizationGap measures nothing in this fit, which has no validation: the module needs a "
                "validation_step, the fit a validation loader, and limit_val_batches must not be 0"
            )
        return found

    @property
    def curves(self) -> Curves:
        """Curves measured so far."""
        measured: Measurements = self.last_result or _NOTHING
        return measured.curves

    @property
    def signals(self) -> list[Signal]:
        """The signs that were found when the fit ended."""
        measured: Measurements = self.last_result or _NOTHING
        return list(measured.signals or ())

    def warn(self, text: str) -> None:
        """Warns that there is nothing to measure, or something else than is meant."""
        rank_zero_warn(text)

    def refuse(self, error: SettingError) -> None:
        """Raises that something can't be measured; a subclass that doesn't raise turns measuring off."""
        raise error

    def tell(self, trainer: Trainer, measured: Measurements) -> None:
        """Logs and prints the measurements of a fit.

        Args:
            trainer: Trainer whose training has ended.
            measured: All measurements, at least one.
        """
        lines = summary_lines(measured.curves, measured.signals, measured.samples)
        tag = f"gap{self.suffix(trainer)}"
        log_text(trainer, f"{tag}/signals", "\n".join(f"    {line}" for line in lines))  # as it is, in Markdown
        if trainer.is_global_zero and any(takes_images(logger) for logger in trainer.loggers):
            log_image(trainer, f"{tag}/curves", draw(_charts(trainer, measured.curves)), trainer.global_step)
        if self.verbose and trainer.is_global_zero:
            print("\n" + "\n".join(lines) + "\n")  # noqa: T201  # what it is for


@dataclass(frozen=True)
class Measurements:
    """The measurements of a fit.

    Attributes:
        samples: Number of samples, by ``train`` and ``validation``.
        signals: Signs of over- and underfitting; none before the fit ends, and None where validation measures training
            samples alone.
    """

    curves: Curves
    samples: Mapping[str, int]
    signals: Sequence[Signal] | None


_NOTHING = Measurements(Curves((), {}, {}, {}), {}, ())


@dataclass(eq=False)
class _Measuring(Session[GeneralizationGap]):
    """One fit with validation."""

    epochs: list[int] = kept(default_factory=list)
    train: dict[str, list[float]] = kept(default_factory=dict)
    validation: dict[str, list[float]] = kept(default_factory=dict)
    lower_is_better: dict[str, bool] = kept(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    signals: list[Signal] | None = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)  # waits to be logged
    loaders: dict[str, DataLoader[Any]] = field(default_factory=dict)
    made_of: list[Any] = field(default_factory=list)  # the trainer's own, which it may reload
    sees_training_alone: bool = False  # in validation
    is_off: bool = False
    was_validated: bool = False

    def __post_init__(self) -> None:
        # Before the hooks of callbacks, some of which take averaged weights out of the module.
        self.run.around(*validation_epoch_end(self.run.trainer), self._measure_first)

    def _isolated(self) -> AbstractContextManager[Any]:
        name = type(self.technique).__name__
        return isolated(self.run.trainer, self.run.module, name, lambda *_, **__: None)

    @override
    def train_starts(self) -> None:
        warn_if_never(self.technique, self.run.trainer, "epoch", self.technique.every_n_epochs, "every_n_epochs")
        with self._refusing(), self._isolated():
            # What can't be copied or read twice is refused before anything is trained.
            if is_param_in_hook_signature(self.run.module.validation_step, "dataloader_iter", explicit=True):
                raise SettingError(
                    f"validation_step must take a batch with {type(self.technique).__name__}, not a dataloader_iter"
                )
            if self.run.trainer.val_dataloaders is not None:  # else Lightning makes them before the first validation
                self._load()

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except SettingError as error:
            self.is_off = True
            self.technique.refuse(error)

    def _load(self) -> None:
        trainer = self.run.trainer
        made_of = [trainer.train_dataloader, trainer.val_dataloaders]
        if not self.loaders or any(one is not two for one, two in zip(made_of, self.made_of, strict=True)):
            is_first = not self.loaders
            self.loaders, both, self.sees_training_alone = clean_loaders(trainer, self.technique.max_samples)
            self.made_of = made_of
            if is_first and both:
                self.technique.warn(
                    f"GeneralizationGap measures {both} samples as training and as validation data, because both "
                    "loaders draw them of one data set: their gap is 0, whatever is learned; let a data module's "
                    "evaluation_dataloader(split) return loaders of other samples for 'train' and 'val'"
                )
            elif is_first and differs_in_chance(self.loaders):
                self.technique.warn(
                    "GeneralizationGap measures training samples that differ at each reading, as validation's don't: "
                    "if their data set augments them, let a data module's evaluation_dataloader(split) return a "
                    "loader of 'train' that doesn't"
                )

    def _measure_first(self, ends: Callable[[], None]) -> None:
        trainer = self.run.trainer
        self.was_validated |= not trainer.sanity_checking
        is_due = (trainer.current_epoch + 1) % self.technique.every_n_epochs == 0
        if is_due and not trainer.sanity_checking and not self.is_off:
            with self._refusing():
                self._measure()
        ends()

    def _measure(self) -> None:
        self._load()
        trainer, module = self.run.trainer, self.run.module
        technique = type(self.technique).__name__
        validation = evaluate(trainer, module, self.loaders["validation"], technique)
        try:
            train = evaluate(trainer, module, self.loaders["train"], technique)
        except SettingError:
            raise
        except Exception as error:
            raise SettingError(
                f"validation_step must take batches of the training data with {technique}, but fails with one: "
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}; write a data module's "
                "evaluation_dataloader(split) that returns a loader of validation's kind for 'train' and 'val'"
            ) from error
        self.samples = {"train": train.samples, "validation": validation.samples}
        self.lower_is_better = validation.lower_is_better
        self.epochs.append(trainer.current_epoch)
        prefix = f"gap{self.technique.suffix(trainer)}"
        for name in validation:
            is_more_of_more = name in validation.sums and train.samples != validation.samples
            if name not in train or is_more_of_more:
                continue
            gap = generalization_gap(train[name], validation[name], lower_is_better=self.lower_is_better[name])
            self.measured |= {
                f"{prefix}/{name}": gap,
                f"{prefix}/train_{name}": train[name],
                f"{prefix}/val_{name}": validation[name],
            }
            self.train.setdefault(name, []).append(train[name])
            self.validation.setdefault(name, []).append(validation[name])

    @override
    def validation_epoch_ends(self) -> None:
        if self.measured:
            # Equal in all processes; that they are averaged keeps Lightning from warning that they may not be.
            self.run.module.log_dict(self.measured, sync_dist=True)
            self.measured = {}

    @override
    def result(self) -> Measurements:
        whole = [name for name, values in self.train.items() if len(values) == len(self.epochs)]
        curves = Curves(
            epochs=self.epochs,
            train={name: self.train[name] for name in whole},
            validation={name: self.validation[name] for name in whole},
            lower_is_better=self.lower_is_better,
        )
        return Measurements(curves, self.samples, None if self.signals is None else tuple(self.signals))

    @override
    def train_ends(self) -> None:
        trainer, module = self.run.trainer, self.run.module
        curves = self.result().curves
        if not curves.train:
            if not (self.is_off or trainer.fast_dev_run):  # type: ignore[attr-defined]
                self._warn_of_nothing()
            return
        weights = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        samples = number_of_samples(trainer)
        found = find_signals(curves, weights=weights, samples=samples, patience=self.technique.patience)
        self.signals = None if self.sees_training_alone else found
        self.technique.tell(trainer, self.result())

    def _warn_of_nothing(self) -> None:
        every = self.technique.every_n_epochs
        if not self.was_validated:
            why = "training ended before its first validation"
        elif self.epochs:
            why = "validation_step logs nothing that can be compared between parts of unequal size"
        elif every <= planned_epochs(self.run.trainer):
            why = f"every_n_epochs is {every}, but no epoch that is a multiple of it had a validation"
        else:
            return  # which was said when training began
        self.technique.warn(f"GeneralizationGap measured nothing: {why}")


def _charts(trainer: Trainer, curves: Curves) -> list[Chart]:
    """Returns charts of the loss and of the accuracy or another metric, with the best epoch and the end marked."""
    others = [name for name in curves.train if name != curves.loss]
    shown = [curves.loss, curves.accuracy or next(iter(others), None)]
    stopped = trainer.should_stop and trainer.current_epoch != trainer.max_epochs  # here it counts whole epochs
    marks = {
        f"best, epoch {curves.epochs[curves.best]}": curves.epochs[curves.best],
        f"{'stopped' if stopped else 'end'}, epoch {curves.epochs[-1]}": curves.epochs[-1],
    }
    return [
        Chart(name, curves.epochs, {"train": curves.train[name], "validation": curves.validation[name]}, marks)
        for name in shown
        if name is not None
    ]
