"""One run of one technique: its state during a fit, and the part of it that checkpoints keep."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_reg.core.layout import check_layout
from lightning_reg.settings import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_reg.core.step import Run, Step

__all__ = ["HOOKS", "Session", "kept", "plain"]

_KEPT = "kept"
T = TypeVar("T")

# The hooks of a session, in the order in which they run.
HOOKS = (
    "train_starts",
    "batch_starts",
    "window_begins",
    "before_backward",
    "after_backward",
    "terms_joined",
    "step_begins",
    "before_step",
    "after_step",
    "batch_ends",
    "epoch_ends",
    "validation_starts",
    "validation_batch_starts",
    "validation_batch_ends",
    "validation_epoch_ends",
    "validation_ends",
    "test_batch_starts",
    "predict_batch_starts",
    "train_ends",
)


def kept(*, default: Any = MISSING, default_factory: Callable[[], Any] | Any = MISSING) -> Any:
    """Declares a field of a session that checkpoints keep: tensors, numbers, text, and dicts, lists or tuples of these.

    Args:
        default: Value at the start of a run.
        default_factory: Function that creates this value, for mutable ones.
    """
    return field(default=default, default_factory=default_factory, metadata={_KEPT: True})


@dataclass(eq=False)
class Session(Generic[T]):
    """One run of one technique, created when a fit starts and dropped when it ends, however it ends.

    The hooks below do nothing here. :class:`lightning_reg.core.step.Run` calls those that a subclass overrides, for all
    techniques in the order of their positions.

    Attributes:
        run: The fit, with its trainer and module.
    """

    technique: T
    run: Run

    # Before and after the run

    def __deepcopy__(self, memo: dict[int, Any]) -> Session[T]:
        """Returns the session itself, so that a copy of a module whose hooks refer to it doesn't copy the run."""
        return self

    def kept(self) -> dict[str, Any]:
        """Returns the fields that checkpoints keep, by name."""
        return {declared.name: getattr(self, declared.name) for declared in fields(self) if _KEPT in declared.metadata}

    def load(self, state: Mapping[str, Any]) -> None:
        """Loads the state from a checkpoint, before training starts or in the middle of it.

        Args:
            state: Return value of :meth:`kept`, on the CPU.

        Raises:
            SettingError: If it comes from a version with other fields, or a field has a value of another type.
        """
        names = {declared.name for declared in fields(self) if _KEPT in declared.metadata}
        if set(state) != names:
            raise SettingError(
                f"ckpt_path must hold a state of {type(self.technique).__name__} with {sorted(names)}, but holds "
                f"{sorted(state)}, which another version has written; start a new fit from the checkpoint's weights"
            )
        for name, value in state.items():
            now = getattr(self, name)
            kinds = _kinds(type(self), name) if now is None else (type(now),)
            if isinstance(now, (int, float)) or float in kinds:
                kinds = (*kinds, int, float)
            if kinds and not isinstance(value, kinds):
                raise SettingError(
                    f"ckpt_path must hold {name} of {type(self.technique).__name__} as {kinds[0].__name__}, but holds "
                    f"{type(value).__name__}"
                )
            check_layout(f"ckpt_path can't be restored: {name} of {type(self.technique).__name__}", value, now)
            setattr(self, name, value)

    def result(self) -> Any:
        """Returns the result of the run for users, a small frozen record; None if there is none."""
        return None

    def ends(self, exception: BaseException | None) -> None:
        """Runs when the run has ended, before its hooks are removed.

        Args:
            exception: Exception that ended it; None if it ended as planned.
        """

    # During the run, in this order

    def train_starts(self) -> None:
        """Runs after the sanity check, when optimizers and a checkpoint's state are loaded."""

    def batch_starts(self, batch_idx: int) -> None:
        """Runs before each training batch, and once more where a batch is run again.

        Args:
            batch_idx: Number of the batch in its epoch.
        """

    def window_begins(self) -> None:
        """Runs when gradients begin to accumulate anew, before the first backward pass."""

    def before_backward(self, loss: Tensor) -> None:
        """Runs before each backward pass.

        Args:
            loss: A scalar, scaled by the gradient scaler and divided by the number of accumulated batches.
        """

    def after_backward(self) -> None:
        """Runs after each backward pass."""

    def terms_joined(self, step: Step) -> None:
        """Runs where penalties and noise have joined the gradients early, before the module clips or masks them.

        Args:
            step: The coming step, whose gradients are unscaled unless ``step.scale`` says otherwise.
        """

    def step_begins(self, step: Step) -> None:
        """Runs before any technique acts on the gradients of a step."""

    def before_step(self, step: Step) -> None:
        """Runs between backward and the optimizer's step.

        Args:
            step: The step, whose gradients are unscaled unless ``step.scale`` says otherwise.
        """

    def after_step(self, step: Step) -> None:
        """Runs after the optimizer's step, unless a gradient scaler skips it."""

    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        """Runs after each training batch.

        Args:
            outputs: Return value of the training step.
            batch_idx: Number of the batch in its epoch.
        """

    def epoch_ends(self) -> None:
        """Runs after the last batch of an epoch and its validation."""

    def validation_starts(self) -> None:
        """Runs before each validation of the fit, the sanity check included."""

    def validation_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """Runs before each validation batch of the fit."""

    def validation_batch_ends(self) -> None:
        """Runs after each validation batch of the fit."""

    def validation_epoch_ends(self) -> None:
        """Runs after the last batch of a validation, when values of the whole validation can be logged."""

    def validation_ends(self) -> None:
        """Runs after each validation of the fit, the sanity check included."""

    def test_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """Runs before each batch of a test."""

    def predict_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        """Runs before each batch of a prediction."""

    def train_ends(self) -> None:
        """Runs when training has ended as planned."""


def _kinds(owner: type, name: str) -> tuple[type, ...]:
    """Returns the types that a field which is None so far may have; empty where its annotation doesn't tell."""
    base = next(base for base in owner.__mro__ if name in inspect.get_annotations(base))
    # Without the other annotations, whose names perhaps only type checkers import.
    alone = SimpleNamespace(__annotations__={name: inspect.get_annotations(base)[name]})
    try:
        hint = get_type_hints(alone, globalns=vars(sys.modules[base.__module__]))[name]
    except NameError:
        return ()
    kinds = [get_origin(kind) or kind for kind in (get_args(hint) if type(None) in get_args(hint) else (hint,))]
    return tuple(kinds) if all(isinstance(kind, type) for kind in kinds) else ()


def listeners(hook: str, sessions: list[Session[Any]]) -> list[Any]:
    """Returns the hook's methods of the sessions that have it."""
    having = (session for session in sessions if getattr(type(session), hook) is not getattr(Session, hook))
    return [getattr(session, hook) for session in having]


def plain(value: Any) -> Any:
    """Returns a value as a checkpoint keeps it: with full, copied tensors on the CPU.

    Args:
        value: A tensor, number or text, or a dict, list or tuple of these.
    """
    if isinstance(value, Tensor):
        tensor = value.detach()
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(entry) for entry in value)
    return value
