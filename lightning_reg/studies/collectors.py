"""Collectors of results other than metrics, such as weights and predictions, as plain values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.core.hooks import ForwardHook
from lightning_reg.monitors.activations import ActivationWatch, Sums
from lightning_reg.monitors.generalization_gap import GeneralizationGap, Measurements
from lightning_reg.settings import SettingError

__all__ = ["ActivationRecorder", "LearningCurves", "curves_of", "predictions_of", "reload_of", "weights_of"]

_WEIGHT_BINS = 81  # an odd number, so that one bin is centered at zero
_FIRST_STEPS = 10  # where the effect of an initialization is visible
_MOST_STEPS = 60


class LearningCurves(GeneralizationGap):
    """A silent :class:`~lightning_reg.monitors.GeneralizationGap`; it records nothing where it can't measure."""

    def __init__(self) -> None:
        super().__init__(verbose=False)

    @override
    def refuse(self, error: SettingError) -> None:
        """Ignores the error: a measurement must not restrict what can be studied."""

    @override
    def warn(self, text: str) -> None:
        """Suppresses warnings."""

    @override
    def tell(self, trainer: Trainer, measured: Measurements) -> None:
        """Prints nothing, because the report interprets the curves."""


def curves_of(gap: GeneralizationGap) -> dict[str, list[tuple[float, float]]]:
    """Returns the curves as lists of (epoch, value), by names such as ``train/loss``."""
    curves = gap.curves
    return {
        f"{split}/{name}": list(zip(map(float, curves.epochs), values, strict=True))
        for split, metrics in (("train", curves.train), ("validation", curves.validation))
        for name, values in metrics.items()
    }


@torch.no_grad()
def weights_of(module: nn.Module) -> dict[str, Any]:
    """Returns the distribution of a module's weights, in bins that are the same for all modules.

    Args:
        module: Module whose parameters of at least two dimensions are counted.

    >>> weights_of(nn.Linear(2, 3))["parameters"]
    6
    """
    matrices = [parameter.detach().float().flatten().cpu() for parameter in module.parameters() if parameter.ndim >= 2]
    values = torch.cat(matrices) if matrices else torch.zeros(0)
    finite = values[values.isfinite()]
    edges = torch.linspace(-1, 1, _WEIGHT_BINS + 1, dtype=torch.float64)
    counts = torch.histc(finite.clamp(-1, 1), bins=_WEIGHT_BINS, min=-1, max=1)
    return {
        "edges": edges.tolist(),
        "counts": [int(count) for count in counts.tolist()],
        "zero_fraction": float((values == 0).double().mean()) if len(values) else 0.0,
        "parameters": len(values),
        "norm": float(torch.linalg.vector_norm(values.double())),
    }


class ActivationRecorder(Callback):
    """Records the mean and standard deviation of the outputs of each layer with a weight matrix during training.

    These outputs precede norms and activation functions, where initializations aim at a standard deviation near 1. Each
    of the first ten steps is measured, then about sixty evenly spaced steps.
    """

    def __init__(self) -> None:
        self._watch: ActivationWatch | None = None
        self._handles: list[ForwardHook] = []
        self._every = 1
        self._steps: list[int] = []
        self._layers: dict[str, dict[str, list[float]]] = {}

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._every = 50 if math.isinf(total) else max(math.ceil(total / _MOST_STEPS), 1)
        layers = {
            name: layer
            for name, layer in pl_module.named_modules()
            if any(parameter.ndim >= 2 for parameter in layer.parameters(recurse=False))
        }
        self._watch = ActivationWatch(layers)
        self._handles = self._watch.attach()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        is_new = not self._steps or self._steps[-1] != step
        if self._watch is not None:
            self._watch.is_measuring = is_new and (step < _FIRST_STEPS or step % self._every == 0)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._watch is None or not self._watch.is_measuring:
            return
        self._watch.is_measuring = False
        self._steps.append(max(trainer.global_step - 1, 0))
        for name, seen in self._watch.take().items():
            statistics = Sums(*seen.sums.tolist()).statistics(bounded=False)
            columns = self._layers.setdefault(name, {"mean": [], "std": []})
            for column in columns:
                columns[column].append(statistics[column])

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._let_go()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._let_go()

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._watch = [], None

    def collected(self) -> dict[str, Any]:
        """Returns the measured steps, and the statistics per step of each layer that ran at all of them."""
        whole = {name: layer for name, layer in self._layers.items() if len(layer["mean"]) == len(self._steps)}
        return {"steps": self._steps, "layers": whole}


def reload_of(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Compares a model's predictions before it was saved with those after it was loaded.

    Args:
        before: Predictions before saving, (N,) or (N, C).
        after: Predictions after loading, of the same shape.

    Raises:
        SettingError: If the shapes differ.
    """
    if before.shape != after.shape:
        shapes = f"{tuple(before.shape)} and {tuple(after.shape)}"
        raise SettingError(f"predictions must have one shape before saving and after loading, but have {shapes}")
    gap = (before.double() - after.double()).abs()
    same = bool((before.argmax(1) == after.argmax(1)).all()) if before.ndim == 2 else bool((gap == 0).all())
    return {"largest_difference": float(gap.max()), "samples": len(before), "same_classes": same}


def predictions_of(
    targets: Sequence[int] | Tensor, predicted: Tensor, task: str = "classification"
) -> Mapping[str, Any]:
    """Returns targets and predictions: predicted classes, flattened labels, or flattened values.

    Args:
        targets: Class indices or numbers (N,), or labels or numbers (N, L).
        predicted: Class probabilities (N, C) for classification; predictions of the targets' shape otherwise.
        task: ``classification``, ``multilabel`` or ``regression``.
    """
    if task == "regression":
        return {"targets": torch.as_tensor(targets).flatten().tolist(), "values": predicted.flatten().tolist()}
    classes = predicted > 0.5 if task == "multilabel" else predicted.argmax(1)
    return {
        "targets": torch.as_tensor(targets).long().flatten().tolist(),
        "classes": classes.long().flatten().tolist(),
    }
