"""Training and validation measured alike, the gap between them, and what it tells of over- and underfitting."""

import copy
from collections.abc import Sized
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader
from typing_extensions import override

from lightning_reg.attach.clean_evaluation import clean_loaders, evaluate
from lightning_reg.attach.fitting_signals import Curves, Signal, find_signals, summary_lines
from lightning_reg.attach.technique import callbacks_of, instance_suffix
from lightning_reg.charts import Chart, draw
from lightning_reg.core import facts
from lightning_reg.functional.learning_curves import generalization_gap
from lightning_reg.settings import SettingError, check_count
from lightning_reg.tensorboard import log_picture, log_text, takes_pictures

__all__ = ["GeneralizationGap"]


class GeneralizationGap(Callback):
    """Measures training and validation data alike, and says how far apart they are.

    What it does: the loss that training logs is that of a network with dropout on, of mixed and augmented samples, and
    of weights that change during the epoch; it can't be compared with that of validation. So when validation ends, the
    module's own ``validation_step`` is run once more on a fixed sample of the training data and of the validation data:
    in evaluation mode, on clean samples, with the same weights (averaged ones, where those are validated). What it logs
    there is kept from the loggers; its metrics objects, its state and the random streams are left as they were. When
    the fit ends the signs of over- and underfitting are printed, with the epoch they began in.

    When to use: nearly always; the gap is what regularization is for. When not: with data that can be read only once.

    Cost: at each validation that it measures, an evaluation of ``max_samples`` training and as many validation samples;
    nothing in training steps. State: a few numbers for each measurement.

    Args:
        every_n_epochs: Epochs between two measurements, at least 1.
        max_samples: How many samples of each part are measured at the most, always the same ones; all where None.
        patience: Measurements without an improvement of the validation loss that make a rise of it, at least 1.
        verbose: Whether the signs are printed when the fit ends.

    Logs:
        ``gap/loss`` and ``gap/<metric>``, how much worse validation is; ``gap/train_loss``, ``gap/val_loss`` and so on,
        what was measured; ``gap/curves``, a picture of both with the best epoch and the end marked; ``gap/signals``,
        the signs as text. Of several such callbacks with ``gap_1/`` and so on.

    Interacts with: augmentation in a data set: where the training and the validation data set are of one class, a copy
    of the first gets the transforms of the second; a data module can say better by a method
    ``evaluation_dataloader(split)``. Several validation loaders: the first one counts. A module whose metrics are only
    logged by ``on_validation_epoch_end`` is measured by what its ``validation_step`` returns.

    Raises:
        SettingError: If a setting is out of its range, the fit has no validation, or its data can't be read twice.

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
        self.signals: list[Signal] = []
        self._forget()

    def _forget(self) -> None:
        self.signals = []
        self._epochs: list[int] = []
        self._train: dict[str, list[float]] = {}
        self._validation: dict[str, list[float]] = {}
        self._lower_is_better: dict[str, bool] = {}
        self._samples: dict[str, int] = {}
        self._loaders: dict[str, DataLoader[Any]] = {}

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(every_n_epochs=self.every_n_epochs, max_samples=self.max_samples)

    @override
    def state_dict(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "epochs": self._epochs,
                "train": self._train,
                "validation": self._validation,
                "lower_is_better": self._lower_is_better,
            }
        )

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in copy.deepcopy(state_dict).items():
            setattr(self, f"_{name}", value)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # before a checkpoint's state is loaded
            self._forget()

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_overridden("validation_step", pl_module) or not trainer.enable_validation:
            raise SettingError(
                "GeneralizationGap must be left out of a fit without validation: the module needs a validation_step, "
                "the fit a validation loader, and limit_val_batches must not be 0"
            )
        # Where averaged weights are validated, they leave the module when validation ends; it is measured before.
        callbacks = callbacks_of(trainer)
        averages = [
            each for each in callbacks if isinstance(each, WeightAveraging) or getattr(each, "averages_weights", False)
        ]
        if averages and callbacks.index(self) > callbacks.index(averages[0]):
            others = [each for each in callbacks if each is not self]
            others.insert(others.index(averages[0]), self)
            trainer.callbacks = others  # type: ignore[attr-defined]  # a new list: Lightning is going through the old

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loaders = clean_loaders(trainer, self.max_samples)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self._loaders or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        train, validation = (evaluate(trainer, pl_module, self._loaders[split]) for split in ("train", "validation"))
        self._samples = {"train": train.samples, "validation": validation.samples}
        self._lower_is_better = validation.lower_is_better
        self._epochs.append(trainer.current_epoch)
        prefix = f"gap{instance_suffix(trainer, self)}"
        values: dict[str, float] = {}
        for name in (name for name in validation if name in train):
            lower = self._lower_is_better[name]
            values[f"{prefix}/{name}"] = generalization_gap(train[name], validation[name], lower_is_better=lower)
            values[f"{prefix}/train_{name}"], values[f"{prefix}/val_{name}"] = train[name], validation[name]
            self._train.setdefault(name, []).append(train[name])
            self._validation.setdefault(name, []).append(validation[name])
        # They are equal in all processes; that they are averaged keeps Lightning from warning that they may not be.
        pl_module.log_dict(values, sync_dist=True)

    @property
    def curves(self) -> Curves:
        """What was measured so far."""
        whole = [name for name, values in self._train.items() if len(values) == len(self._epochs)]
        return Curves(
            epochs=self._epochs,
            train={name: self._train[name] for name in whole},
            validation={name: self._validation[name] for name in whole},
            lower_is_better=self._lower_is_better,
        )

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        curves = self.curves
        if not curves.train:
            return
        weights = sum(each.numel() for each in pl_module.parameters() if each.requires_grad)
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        samples = len(dataset) if isinstance(dataset, Sized) else None
        self.signals = find_signals(curves, weights=weights, samples=samples, patience=self.patience)
        lines = summary_lines(curves, self.signals, self._samples)
        tag = f"gap{instance_suffix(trainer, self)}"
        log_text(trainer, f"{tag}/signals", "\n".join(f"    {line}" for line in lines))  # as it is, in Markdown
        if trainer.is_global_zero and any(takes_pictures(logger) for logger in trainer.loggers):
            log_picture(trainer, f"{tag}/curves", draw(self._charts(trainer)), trainer.global_step)
        if self.verbose and trainer.is_global_zero:
            print("\n" + "\n".join(lines) + "\n")  # noqa: T201  # what it is for

    def _charts(self, trainer: Trainer) -> list[Chart]:
        """Returns the loss, and the accuracy or what else there is first, each with the best epoch and the end."""
        curves = self.curves
        others = [name for name in curves.train if name != curves.loss]
        shown = [curves.loss, curves.accuracy or next(iter(others), None)]
        stopped = trainer.should_stop and trainer.current_epoch + 1 != trainer.max_epochs
        marks = {
            f"best, epoch {curves.epochs[curves.best]}": curves.epochs[curves.best],
            f"{'stopped' if stopped else 'end'}, epoch {curves.epochs[-1]}": curves.epochs[-1],
        }
        return [
            Chart(name, curves.epochs, {"train": curves.train[name], "validation": curves.validation[name]}, marks)
            for name in shown
            if name is not None
        ]

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._loaders = {}

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._loaders = {}
