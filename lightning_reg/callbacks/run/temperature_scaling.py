"""Temperature scaling of a classifier's logits, fitted on validation data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.core.charts import pixels
from lightning_reg.core.copies.isolation import copy_module, isolated
from lightning_reg.core.facts import Chart, Place
from lightning_reg.core.lightning import instance_number, validate_apart
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.core.tensorboard import log_image
from lightning_reg.functional.measures.calibration import best_temperature, reliability, scaled_loss
from lightning_reg.settings import SettingError, check_count

__all__ = ["Calibration", "TemperatureScaling"]

_CHECKPOINT_KEY = "lightning_reg_temperature"


@dataclass(frozen=True)
class Calibration:
    """Agreement of predicted probabilities with the validation data, before and after scaling.

    Attributes:
        temperature: Temperature T, by which logits are divided.
        loss: Mean negative log-likelihood before scaling.
        error: Expected calibration error before scaling.
    """

    temperature: float
    loss: float
    loss_scaled: float
    error: float
    error_scaled: float


class TemperatureScaling(Technique):
    """Divides a classifier's logits by the temperature at which they fit the validation data best.

    What it does: takes logits and labels from the ``cross_entropy`` that the module's ``validation_step`` calls, and
    finds the temperature T with the smallest loss of z/T, by Newton's method. Every validation logs it, with loss and
    expected calibration error before and after. When training has ended, whatever weights the module then has (the best
    ones, an average) are validated once more, on a copy, and the last layer's weights and bias are divided by T: so it
    is deployed with the module, in its ``state_dict``, and needs no code where it predicts. Which class is predicted
    stays the same. A checkpoint of the fit keeps T beside its weights; ``trainer.test`` and its like, with this
    callback, put it in.

    When to use: always where probabilities are read as such: for thresholds, costs, ensembles, abstaining. It is fitted
    on as little as a few hundred samples. As a stopping rule: monitor ``calibration/loss_scaled`` (refine, then
    calibrate), which doesn't rise only because a network becomes overconfident, so that training goes on as long as the
    classes still come apart. When not: where only the ranking counts; for a result on the very validation data that T
    was fitted on, which is slightly optimistic.

    Cost: the logits of the validation data in memory, a few passes over them a validation, and one validation more at
    the end. No state but T.

    Interacts with: Mixup, label smoothing and ``LogitPenalty``, which make networks underconfident: T falls below 1. A
    further fit starts from the scaled weights. Dense predictions count every pixel.

    Args:
        deploy: Whether the last layer is divided by T; else T is only measured.
        bins: Number of bins of the calibration error and of the reliability diagram, at least 1.

    Logs:
        ``calibration/temperature``, ``calibration/loss``, ``calibration/loss_scaled``, ``calibration/error``,
        ``calibration/error_scaled`` after each validation; at the end a reliability diagram, as an image
        ``calibration/reliability``.

    Raises:
        SettingError: If ``bins`` is out of its range; at the fit's start, if nothing is validated, or T is to be
            deployed and ``validation_step`` takes an iterator; at the first validation, if it doesn't hand logits and
            class indices to ``cross_entropy``, or there is no ``nn.Linear`` whose outputs are these logits, where T is
            to be deployed.

    Reference:
        Chuan Guo, Geoff Pleiss, Yu Sun, Kilian Q. Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
        arXiv:1706.04599. Eugène Berta, David Holzmüller, Michael I. Jordan, Francis Bach: Rethinking Early Stopping:
        Refine, Then Calibrate, 2025, arXiv:2501.19195.

    >>> TemperatureScaling().bins
    15
    """

    place = Place.RUN
    charts = (
        Chart("Calibration", "temperature", r"calibration/temperature"),
        Chart("Calibration", "loss, and at the best temperature", r"calibration/loss"),
        Chart("Calibration", "expected calibration error", r"calibration/error"),
    )

    def __init__(self, *, deploy: bool = True, bins: int = 15) -> None:
        super().__init__()
        check_count("bins", bins, high=10**4)
        self.deploy = deploy
        self.bins = bins

    @property
    def calibration(self) -> Calibration | None:
        """Calibration in the latest validation; None before the first."""
        found: Calibration | None = self.last_result
        return found

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return TemperatureSession(self, run)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.kept:
            checkpoint.setdefault(_CHECKPOINT_KEY, {})[str(instance_number(trainer, self))] = dict(self.kept)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(_CHECKPOINT_KEY, {}).get(str(instance_number(trainer, self)))
        if saved is None or not saved["head"]:
            return
        is_fit = trainer.state.fn == TrainerFn.FITTING
        if is_fit and saved["is_deployed"]:
            _scale(pl_module, saved["head"], saved["temperature"])  # training goes on with the unscaled weights
        elif not is_fit and self.deploy and not saved["is_deployed"]:
            _scale(pl_module, saved["head"], 1 / saved["temperature"])


@dataclass(eq=False)
class TemperatureSession(Session[TemperatureScaling]):
    """One fit.

    Attributes:
        temperature: Temperature of the latest validation.
        head: Name of the layer whose outputs are the logits; empty where it isn't known.
        is_deployed: Whether the layer has been scaled.
        latest: Calibration in the latest validation.
        suffix: Suffix of the tags, which distinguishes several instances.
        logits: Logits and labels of the current validation.
    """

    temperature: float = kept(default=1.0)
    head: str = kept(default="")
    is_deployed: bool = kept(default=False)
    latest: Calibration | None = field(default=None, init=False)
    suffix: str = field(init=False)
    logits: _Logits = field(init=False)

    def __post_init__(self) -> None:
        run, name = self.run, type(self.technique).__name__
        if not run.trainer.enable_validation:
            raise SettingError(f"limit_val_batches must be above 0, and there must be a validation loader, with {name}")
        takes_iterator = is_param_in_hook_signature(run.module.validation_step, "dataloader_iter", explicit=True)
        if takes_iterator and self.technique.deploy:
            raise SettingError(
                f"deploy must be False with {name} where validation_step takes a dataloader_iter, because a batch has "
                "to be run again to find the layer whose outputs are the logits"
            )
        self.suffix = self.technique.suffix(run.trainer)
        self.logits = _Logits()
        run.around_step("validation_step", self._step)
        # After whatever callbacks, others' included, do to the weights when training ends.
        run.around(run.trainer.strategy, "on_train_end", self._end, innermost=True)

    @override
    def result(self) -> Calibration | None:
        return self.latest

    @override
    def validation_starts(self) -> None:
        self.logits = _Logits()

    def _step(self, validation_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        searches = self.technique.deploy and not self.head
        # A step may change its batch.
        given = apply_to_collection((args, kwargs), Tensor, torch.clone) if searches else None
        with self.logits:
            output = validation_step(*args, **kwargs)
        if given is not None:
            self._find_head(*given)
        return output

    def _find_head(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Finds the layer whose weights scale the logits, by trial on a copy of the module."""
        run, name = self.run, type(self.technique).__name__
        wanted, _ = self.logits.joined()
        layers = {
            path: layer
            for path, layer in run.module.named_modules()
            if isinstance(layer, nn.Linear) and layer.out_features == wanted.shape[1] and "weight" in layer._parameters
        }
        for path in reversed(layers):
            with isolated(run.trainer, run.module, name, _silent) as copied, torch.no_grad():
                _scale(copied, path, 0.5)
                with _Logits() as seen:
                    type(run.module).validation_step(copied, *args, **kwargs)
            found, _ = seen.joined()
            if found.shape == wanted.shape and torch.allclose(found, wanted / 2, rtol=1e-2, atol=1e-3):
                self.head = path
                return
        raise SettingError(
            f"deploy must be False with {name} where no nn.Linear has the logits for its outputs, so that dividing its "
            "weights by T divides them"
        )

    @override
    def validation_epoch_ends(self) -> None:
        if self.run.trainer.sanity_checking:
            self.logits.joined()  # raises now if there are none
            return
        self.latest = self._measured(self.logits)
        self.temperature = self.latest.temperature
        for kind, value in vars(self.latest).items():
            self.run.log(f"calibration{self.suffix}/{kind}", value)
        self.logits = _Logits()

    def _measured(self, seen: _Logits) -> Calibration:
        from torchmetrics.functional.classification import multiclass_calibration_error
        from torchmetrics.utilities.distributed import gather_all_tensors

        logits, labels = seen.joined()
        if self.run.trainer.world_size > 1:
            logits, labels = (torch.cat(gather_all_tensors(part.contiguous())) for part in (logits, labels))
        temperature = best_temperature(logits, labels)
        before, after = (
            float(multiclass_calibration_error(scaled.softmax(1), labels, logits.shape[1], n_bins=self.technique.bins))
            for scaled in (logits, logits / temperature)
        )
        return Calibration(
            temperature,
            loss=scaled_loss(logits, labels, 1.0),
            loss_scaled=scaled_loss(logits, labels, temperature),
            error=before,
            error_scaled=after,
        )

    def _end(self, on_train_end: Callable[[], Any]) -> Any:
        output = on_train_end()
        trainer, technique = self.run.trainer, self.technique
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # set by its constructor
            return output
        if self.latest is None:
            rank_zero_warn(f"{type(technique).__name__} had no effect: training ended before its first validation")
            return output
        with _Logits() as seen:
            _validate(trainer, copy_module(trainer, self.run.module, type(technique).__name__))
        self.latest = found = self._measured(seen)
        self.temperature = found.temperature
        logits, labels = seen.joined()
        scaled = (logits.softmax(1), (logits / found.temperature).softmax(1))
        sums = torch.stack([reliability(probabilities, labels, bins=technique.bins) for probabilities in scaled])
        sums = torch.as_tensor(trainer.strategy.reduce(sums, reduce_op="sum"))
        log_image(trainer, f"calibration{self.suffix}/reliability", _diagram(sums.cpu(), found), trainer.global_step)
        if technique.deploy:
            _scale(self.run.module, self.head, 1 / found.temperature)
            self.is_deployed = True
        rank_zero_info(
            f"Temperature {found.temperature:.3f}: validation loss {found.loss:.4f} to {found.loss_scaled:.4f}, "
            f"calibration error {found.error:.4f} to {found.error_scaled:.4f}"
        )
        return output


class _Logits(TorchFunctionMode):
    """Records the logits and labels that ``cross_entropy`` is called with, and changes no result."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor]] = []

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy:
            names = ("input", "target", "weight", "size_average", "ignore_index")
            given = dict(zip(names, args, strict=False)) | kwargs
            logits, labels = given["input"].detach(), given["target"].detach()
            if not labels.is_floating_point() and logits.ndim > 1:
                logits, labels = logits.movedim(1, -1).flatten(0, -2).float(), labels.flatten()
                counted = labels != given.get("ignore_index", -100)
                self._seen.append((logits[counted].clone(), labels[counted].clone()))
        return func(*args, **kwargs)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Returns all logits, (N, C), and labels, (N,).

        Raises:
            SettingError: If there are none, or logits of different numbers of classes.
        """
        if not self._seen:
            raise SettingError(
                "validation_step must call cross_entropy with logits and class indices with TemperatureScaling, which "
                "fits the temperature to them"
            )
        logits, labels = zip(*self._seen, strict=True)
        numbers = sorted({part.shape[1] for part in logits})
        if len(numbers) > 1:
            raise SettingError(
                "validation_step must call cross_entropy of one head with TemperatureScaling, but calls it "
                f"with {' and '.join(map(str, numbers))} classes"
            )
        return torch.cat(logits), torch.cat(labels)


def _silent(*args: Any, **kwargs: Any) -> None:
    """Replaces a module's ``log``."""


def _validate(trainer: Trainer, copied: LightningModule) -> None:
    """Runs the fit's validation with a copy of the module, after the end of training."""
    trainer.validating = True
    try:
        with isolate_rng():  # which a loader draws from
            validate_apart(trainer, copied)
    finally:
        trainer.training = True


def _scale(module: nn.Module, head: str, factor: float) -> None:
    with torch.no_grad():
        for parameter in module.get_submodule(head).parameters(recurse=False):
            parameter.mul_(factor)


def _diagram(sums: Tensor, found: Calibration) -> Tensor:
    """Returns a reliability diagram, (H, W, 3), uint8: accuracy over confidence, before and after.

    Args:
        sums: Results of :func:`reliability` before and after scaling, (2, 3, K).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
    titles = (f"before: error {found.error:.3f}", f"T = {found.temperature:.2f}: error {found.error_scaled:.3f}")
    for axes, (counts, confidences, right), title in zip(figure.subplots(1, 2), sums.double(), titles, strict=True):
        filled = counts > 0
        width = 1 / len(counts)
        places = (torch.arange(len(counts)) + 0.5) * width
        axes.bar(places[filled].numpy(), (right / counts)[filled].numpy(), width=width * 0.9, color="tab:blue")
        axes.plot((confidences / counts)[filled].numpy(), (right / counts)[filled].numpy(), "k.", markersize=4)
        axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=title)
    return pixels(figure)
