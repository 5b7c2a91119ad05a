"""The mean of the weights of several trainings of one model, from their checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.averaging import CHECKPOINT_KEY
from lightning_reg.callbacks.weights.averages.registered import spectral_vectors, tensors_of
from lightning_reg.callbacks.weights.averages.remembered_inputs import batch_norms
from lightning_reg.core.lightning import callbacks_of, is_overridden, set_callbacks
from lightning_reg.core.messages import without_loggers
from lightning_reg.core.wrapping import around
from lightning_reg.files import check_weights, read_checkpoint
from lightning_reg.functional.spectrum import singular_vectors
from lightning_reg.functional.weights.averaging import mean_of
from lightning_reg.settings import SettingError, check_choice

__all__ = ["CheckpointSoup", "Soup"]

Mode = Literal["min", "max"]
Statistics = Literal["recompute", "average"]
Weights = dict[str, Any]
# Entries that belong to the one fit that a checkpoint was saved in.
_OF_A_FIT = ("optimizer_states", "lr_schedulers", "loops", "callbacks", CHECKPOINT_KEY)


@dataclass(frozen=True)
class Soup:
    """A soup, whose weights the module has.

    Attributes:
        ingredients: Checkpoints that it is the mean of, in the order in which they were added.
        scores: Monitored metric of each checkpoint alone, by path; empty where nothing was validated.
        score: Monitored metric of the soup; None where nothing was validated.
    """

    ingredients: tuple[Path, ...]
    scores: Mapping[Path, float]
    score: float | None
    state_dict: Weights = field(repr=False)

    def save(self, path: str | Path) -> None:
        """Saves a checkpoint for ``test``, ``predict`` and ``load_from_checkpoint``; no fit can be resumed from it.

        Args:
            path: File to write; all its entries but the weights are those of the first ingredient.
        """
        first = read_checkpoint("checkpoints", self.ingredients[0])
        kept = {name: value for name, value in first.items() if name not in _OF_A_FIT}
        torch.save({**kept, "state_dict": self.state_dict}, path)


class CheckpointSoup:
    """Averages the weights of fine-tuned checkpoints, all of them or those that help.

    What it does: a uniform soup is the mean of all checkpoints. A greedy one validates each, begins with the best, and
    takes in the next best ones as long as the soup's metric becomes no worse. BatchNorm's statistics are recomputed for
    each mean by passing training data through the module's validation step; singular vectors of spectral normalization
    are recomputed. It costs no more at prediction than one model. From the command line it is
    ``lightning-reg soup CHECKPOINT CHECKPOINT ... --config FILE``, which saves a checkpoint.

    When to use: for several fine-tunings of one pretrained model, with other hyperparameters, seeds or data orders,
    instead of the best of them; for several checkpoints of one long run. When not: for trainings from different
    initializations, whose mean is worth nothing: they lie in different valleys. Use ``SnapshotEnsemble`` there.

    Cost: greedy, a validation of each checkpoint and one of each candidate soup, with a pass over the training data
    before each where there is BatchNorm; all weights in the host's memory.

    Deviates from the paper: BatchNorm's statistics are recomputed; the paper's transformers have none.

    Args:
        greedy: Whether checkpoints that make the soup worse are left out.
        monitor: Metric that the module logs in validation; used only if ``greedy``.
        mode: ``"min"`` if a lower metric is better, ``"max"`` if a higher one is.
        buffers: BatchNorm's statistics: ``"recompute"`` for each mean, or ``"average"`` over the checkpoints.

    Raises:
        SettingError: If a setting is out of its range.

    Reference:
        Mitchell Wortsman, Gabriel Ilharco, Samir Yitzhak Gadre et al.: Model soups: averaging weights of multiple
        fine-tuned models improves accuracy without increasing inference time, ICML 2022, arXiv:2203.05482.

    >>> CheckpointSoup(monitor="val/accuracy", mode="max").greedy
    True
    """

    def __init__(
        self,
        *,
        greedy: bool = True,
        monitor: str = "val_loss",
        mode: Mode = "min",
        buffers: Statistics = "recompute",
    ) -> None:
        check_choice("mode", mode, get_args(Mode))
        check_choice("buffers", buffers, get_args(Statistics))
        self.greedy = greedy
        self.monitor = monitor
        self.mode: Mode = mode
        self.buffers: Statistics = buffers

    if not TYPE_CHECKING:  # for which it would have every attribute

        def __getattr__(self, name: str) -> Any:
            if hasattr(Callback, name):  # a trainer has been given it among its callbacks
                raise TypeError(
                    "CheckpointSoup is no callback, and must be used after training, as "
                    "CheckpointSoup().cook(trainer, model, checkpoints)"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def cook(
        self,
        trainer: Trainer,
        model: LightningModule,
        checkpoints: Sequence[str | Path],
        *,
        datamodule: LightningDataModule | None = None,
        val_dataloaders: Any = None,
        train_dataloaders: Any = None,
    ) -> Soup:
        """Makes a soup, and loads its weights into the model.

        Args:
            trainer: Trainer that validates; nothing is written to its loggers.
            model: Module that all checkpoints are of.
            checkpoints: Paths of at least two checkpoints.
            datamodule: Data module with the validation data, and with training data for BatchNorm's statistics.
            val_dataloaders: Validation data, instead of a data module's; the model's own where both are None.
            train_dataloaders: Data for BatchNorm's statistics; the data module's or the model's own where None.

        Returns:
            The soup, with its ingredients.

        Raises:
            SettingError: If checkpoints are of different models, one of a uniform soup has NaNs, there is no data for
                BatchNorm's statistics, or the module doesn't log the metric.
        """
        found = _read(model, checkpoints, allows_nan=self.greedy)
        kitchen = _Kitchen(trainer, model, datamodule, val_dataloaders, train_dataloaders)
        if self.buffers == "recompute" and batch_norms(model):
            kitchen.check_training_data()
        with without_loggers(trainer):
            if not self.greedy:
                soup = self._serve(kitchen, list(found.values()))
                return Soup(tuple(found), {}, None, soup)
            scores = {path: self._score(kitchen, weights) for path, weights in found.items()}
            sign = 1 if self.mode == "min" else -1
            ranked = sorted(found, key=lambda path: (math.isnan(scores[path]), sign * scores[path]))
            taken, best = [ranked[0]], scores[ranked[0]]
            for path in ranked[1:]:
                self._serve(kitchen, [found[name] for name in (*taken, path)])
                score = kitchen.validated(self.monitor)
                if score <= best if self.mode == "min" else score >= best:
                    taken, best = [*taken, path], score
            soup = self._serve(kitchen, [found[name] for name in taken])
            return Soup(tuple(taken), scores, best, soup)

    def _score(self, kitchen: _Kitchen, weights: Weights) -> float:
        kitchen.model.load_state_dict(weights)
        return kitchen.validated(self.monitor)

    def _serve(self, kitchen: _Kitchen, weights: Sequence[Weights]) -> Weights:
        """Loads the mean of weights into the model, and returns the model's state dict."""
        model = kitchen.model
        mean = {
            name: mean_of([entry[name] for entry in weights]) if _is_real(value) else value
            for name, value in weights[0].items()
        }
        model.load_state_dict(mean)
        tensors = tensors_of(model)
        with torch.no_grad():
            for weight, u, v, dim in spectral_vectors(model):
                matrix = tensors[weight].detach().movedim(dim, 0).flatten(1)
                for name, vector in zip((u, v), singular_vectors(matrix), strict=True):
                    tensors[name].copy_(vector)
        if self.buffers == "recompute" and len(weights) > 1:
            kitchen.recompute_statistics()
        return {
            name: value.detach().cpu().clone() if isinstance(value, Tensor) else value
            for name, value in model.state_dict().items()
        }


class _Kitchen:
    """A trainer, a model and data, and the operations on them that a soup needs."""

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        datamodule: LightningDataModule | None,
        val_dataloaders: Any,
        train_dataloaders: Any,
    ) -> None:
        self.model = model
        self._trainer = trainer
        self._datamodule = datamodule
        self._val = val_dataloaders
        self._train = train_dataloaders

    def validated(self, monitor: str) -> float:
        """Validates the model, and returns a metric."""
        self._trainer.validate(self.model, dataloaders=self._val, datamodule=self._datamodule, verbose=False)
        metrics = self._trainer.callback_metrics
        if monitor not in metrics:
            raise SettingError(
                f"monitor must be logged by validation, but is {monitor!r}, and there are "
                f"{', '.join(sorted(metrics)) or 'none'}"
            )
        return float(metrics[monitor])

    def check_training_data(self) -> None:
        """Raises if there is no training data."""
        source = self._datamodule or self.model
        if self._train is None and not is_overridden(source, "train_dataloader"):
            raise SettingError(
                "train_dataloaders must be given where the module has BatchNorm, whose statistics are recomputed for "
                "averaged weights; or choose buffers='average'"
            )

    def recompute_statistics(self) -> None:
        """Passes training data through the validation step, with BatchNorm alone in training mode."""
        if not batch_norms(self.model):
            return
        trainer, data, datamodule = self._trainer, self._train, None
        if data is None and self._datamodule is None:
            data = self.model.train_dataloader()
        callbacks, limit = callbacks_of(trainer), trainer.limit_val_batches
        with ExitStack() as stack:
            if data is None and self._datamodule is not None:
                # As its validation data, so that its batch hooks apply to them.
                datamodule = self._datamodule
                stack.callback(around(datamodule, "val_dataloader", self._training_data).remove)
            stack.callback(set_callbacks, trainer, callbacks)
            stack.callback(setattr, trainer, "limit_val_batches", limit)
            set_callbacks(trainer, [*callbacks, _Statistics()])
            trainer.limit_val_batches = trainer.limit_train_batches
            trainer.validate(self.model, dataloaders=data, datamodule=datamodule, verbose=False)

    def _training_data(self, val_dataloader: Callable[[], Any]) -> Any:
        """Returns the data module's training data in place of its validation data."""
        datamodule = cast("LightningDataModule", self._datamodule)
        datamodule.setup("fit")
        return datamodule.train_dataloader()


class _Statistics(Callback):
    """Recomputes BatchNorm's statistics from the validated batches, all weighing the same."""

    def __init__(self) -> None:
        self._momenta: dict[Any, float | None] = {}

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for norm in batch_norms(pl_module).values():
            self._momenta[norm] = norm.momentum
            with torch.inference_mode(False):
                norm.reset_running_stats()
            norm.momentum = None  # a cumulative mean
            norm.training = True

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for norm, momentum in self._momenta.items():
            norm.momentum, norm.training = momentum, False

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _read(model: LightningModule, checkpoints: Sequence[str | Path], *, allows_nan: bool) -> dict[Path, Weights]:
    paths = list(dict.fromkeys(map(Path, checkpoints)))
    if len(paths) < 2:
        raise SettingError(f"checkpoints must be at least two files, but is {[str(path) for path in paths]}")
    found: dict[Path, Weights] = {}
    wanted = {name: _shape(value) for name, value in model.state_dict().items()}
    for path in paths:
        content = read_checkpoint("checkpoints", path)
        weights = content.get("state_dict") if isinstance(content, Mapping) else None
        if not isinstance(weights, Mapping):
            raise SettingError(f"checkpoints must be Lightning's, with a state_dict, but {str(path)!r} has none")
        shapes = {name: _shape(value) for name, value in weights.items()}
        for name in {**wanted, **shapes}:
            if shapes.get(name, "absent") != wanted.get(name, "absent"):
                raise SettingError(
                    f"checkpoints must all be of the model that is given, but in {str(path)!r} {name!r} is "
                    f"{shapes.get(name, 'absent')}, and {wanted.get(name, 'absent')} in the model"
                )
        # A training that has diverged is an ingredient that the greedy soup leaves out, and that spoils a uniform one.
        check_weights(f"checkpoints {str(path)!r}", weights, dict(model.named_parameters()), allows_nan=allows_nan)
        found[path] = dict(weights)
    return found


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
