"""A copy of the weights in the host's memory, to be restored later."""

import contextlib
import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_reg.callbacks.weights.averages.registered import is_expanded
from lightning_reg.core.gradients import without_graph
from lightning_reg.core.lightning import average_model, callbacks_of, twins

__all__ = [
    "WeightSnapshot",
    "averaging_callbacks",
    "chosen_weights_only",
    "fits",
    "load_weights",
    "warn_of_untrusted",
    "weights_of_checkpoint",
]


def averaging_callbacks(trainer: Trainer) -> list[Callback]:
    """Returns Lightning's callbacks that evaluate with averaged weights, and those with ``averages_weights``."""
    return [
        callback
        for callback in callbacks_of(trainer)
        if isinstance(callback, twins(WeightAveraging)) or getattr(callback, "averages_weights", False)
    ]


class WeightSnapshot:
    """A copy of the ``state_dict`` that a checkpoint would hold, in the host's memory.

    Where weights are averaged that is the average, because metrics are measured with it. Memory is allocated once and
    reused by the next snapshot.
    """

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.state)

    def take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes a copy."""
        saved: dict[str, Any] = {"state_dict": pl_module.state_dict()}
        for averaging_callback in averaging_callbacks(trainer):
            averaging_callback.on_save_checkpoint(trainer, pl_module, saved)
        # Validation runs in inference mode, whose tensors couldn't be written again outside of it.
        with torch.inference_mode(False), torch.no_grad():
            self.state = {name: _copied(entry, self.state.get(name)) for name, entry in saved["state_dict"].items()}


def fits(pl_module: LightningModule, state: dict[str, Any]) -> bool:
    """Whether a module has the layers of a ``state_dict``, rather than others that have come or grown since."""
    then, now = _shapes(state), _shapes(pl_module.state_dict())
    shared = then.keys() & now.keys()
    return all(then[name] == now[name] for name in shared) and not (pl_module.strict_loading and now.keys() - shared)


def _shapes(state: dict[str, Any]) -> dict[str, torch.Size | None]:
    return {name: entry.shape if isinstance(entry, Tensor) else None for name, entry in state.items()}


def load_weights(trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
    """Loads weights into a module at the end of a fit, so that later checkpoints hold them, too."""
    _load(pl_module, state, strict=pl_module.strict_loading)
    # Lightning's own put their average into the module in on_train_end, perhaps after this, and into checkpoints even
    # later.
    for callback in callbacks_of(trainer):
        average = average_model(callback)
        if isinstance(callback, twins(WeightAveraging)) and average is not None:
            _load(average.module, state, strict=pl_module.strict_loading)
        if isinstance(callback, twins(StochasticWeightAveraging)) and average is not None:
            _load(average, state, strict=pl_module.strict_loading)


def _load(module: nn.Module, state: dict[str, Any], *, strict: bool) -> None:
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if f"{prefix}.{name}".removeprefix(".") not in state:
                continue
            # Nothing can be written into one that was expanded, whose entries share memory.
            if is_expanded(buffer):
                setattr(part, name, buffer.clone(memory_format=torch.contiguous_format))
            elif buffer.is_inference():
                setattr(part, name, without_graph(buffer))
    module.load_state_dict(state, strict=strict)


def weights_of_checkpoint(
    trainer: Trainer, *, monitor: str, mode: str, epoch: int, step: int | None
) -> dict[str, Any] | None:
    """Returns the weights of one step from a ModelCheckpoint's file; None where there is none.

    Args:
        monitor: Metric that the ModelCheckpoint monitors.
        mode: Mode of the ModelCheckpoint, ``"min"`` or ``"max"``.
        epoch: Epoch of the checkpoint.
        step: Global step of the checkpoint; any of the epoch where None.
    """
    for checkpoint_callback in trainer.checkpoint_callbacks:
        if not isinstance(checkpoint_callback, twins(ModelCheckpoint)) or (
            checkpoint_callback.monitor,
            checkpoint_callback.mode,
        ) != (monitor, mode):
            continue
        for path in dict.fromkeys([checkpoint_callback.best_model_path, *checkpoint_callback.best_k_models]):
            if Path(path).is_file():
                checkpoint = _loaded(trainer, path)
                if checkpoint is None:
                    continue
                if checkpoint["epoch"] == epoch and step in (None, checkpoint["global_step"]):
                    weights: dict[str, Any] = checkpoint["state_dict"]
                    return weights
    return None


def _loaded(trainer: Trainer, path: str) -> dict[str, Any] | None:
    """Returns a checkpoint, loaded with the fit's ``weights_only``; None, with a warning, where that fails."""
    weights_only = chosen_weights_only(trainer)
    try:
        return dict(trainer.strategy.load_checkpoint(Path(path), weights_only=weights_only))
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0]
        rank_zero_warn(f"{path} can't be loaded with weights_only={weights_only}: {reason}")
        return None


def chosen_weights_only(trainer: Trainer) -> bool:
    """Returns the ``weights_only`` that ``trainer.fit`` was called with; True where none was given.

    Lightning stores it nowhere, so it is looked up on the call stack.

    Args:
        trainer: Trainer whose ``fit`` is on the stack.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_locals.get("self") is trainer and frame.f_locals.get("weights_only") is not None:
            return bool(frame.f_locals["weights_only"])
        frame = frame.f_back
    return True


def warn_of_untrusted(trainer: Trainer) -> bool:
    """Warns if the first checkpoint that a run has written can't be loaded with the run's ``weights_only``.

    Returns:
        Whether there was a checkpoint to look at.
    """
    paths = [
        checkpoint_callback.best_model_path
        for checkpoint_callback in trainer.checkpoint_callbacks
        if isinstance(checkpoint_callback, twins(ModelCheckpoint))
    ]
    written = next((path for path in paths if Path(path).is_file()), None)
    if written is not None and chosen_weights_only(trainer):
        with contextlib.suppress(ValueError, RuntimeError, OSError):
            more = sorted(get_unsafe_globals_in_checkpoint(written))
            if more:
                rank_zero_warn(
                    f"{written} holds more than data, {', '.join(more[:5])}, and can be loaded with weights_only=False "
                    "alone: keep plain values in hyperparameters and states, or fit with weights_only=False; the best "
                    "weights come from a copy in memory until then"
                )
    return written is not None


def _copied(entry: Any, place: Any) -> Any:
    if not isinstance(entry, Tensor):
        return copy.deepcopy(entry)
    if type(place) is type(entry.detach()) and (place.shape, place.dtype) == (entry.shape, entry.dtype):
        return place.copy_(entry)
    return entry.detach().to("cpu", copy=True)
