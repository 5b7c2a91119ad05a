"""Warnings about training that bypasses techniques, which then have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_reg.core.lightning import has_stand_in
from lightning_reg.core.selection import Selection
from lightning_reg.settings import SettingError

if TYPE_CHECKING:
    from lightning_reg.core.session import Session
    from lightning_reg.core.technique import Technique

__all__ = ["Bypasses", "all_had_a_turn", "unannounced", "warn_of_unrun"]

# Batches after which every module must have run: some are trained alternately.
_PATIENCE = 100


def all_had_a_turn(trainer: Trainer, batch_idx: int) -> bool:
    """Whether a module that hasn't run by the end of this batch counts as one that never does."""
    return trainer.is_last_batch or batch_idx >= _PATIENCE


def warn_of_unrun(technique: Technique, names: Sequence[str], how: str) -> None:
    """Warns of modules that a technique was to act on, but that never ran.

    Args:
        names: Names of the modules; no warning if there are none.
        how: How they had to run.
    """
    if names:
        rank_zero_warn(f"{type(technique).__name__} does nothing to what wasn't run {how}: {', '.join(names)}")


@dataclass
class Bypasses:
    """Techniques of a fit that haven't been seen to have an effect.

    Attributes:
        stepping: Names of those that act on optimizer steps, until the first step.
        adding: Names of those that add to the loss, until the first backward pass.
        inert: Names of those that can have none, as there is no optimizer.
        has_batches: Whether a training batch has begun.
    """

    stepping: list[str]
    adding: list[str]
    inert: list[str] = field(default_factory=list)
    has_batches: bool = False

    @classmethod
    def of(cls, techniques: list[Technique], trainer: Trainer) -> Bypasses:
        """Returns the record of a fit that is about to start."""
        stepping = [type(technique).__name__ for technique in techniques if technique.acts_on_steps]
        adding = [type(technique).__name__ for technique in techniques if technique.adds_to_loss]
        if not has_stand_in(trainer):
            return cls(stepping, adding)
        watching = {type(technique).__name__ for technique in techniques if technique.only_watches}
        return cls([], [], inert=[name for name in (*stepping, *adding) if name not in watching])

    def before_backward(self, loss: Tensor) -> None:
        """Watches for the gradient of the loss that the module's ``backward`` is given."""
        if self.adding and loss.requires_grad:
            loss.register_hook(self._saw_gradient)  # type: ignore[no-untyped-call]

    def _saw_gradient(self, gradient: Tensor) -> None:
        self.adding = []

    def after_backward(self) -> None:
        """Warns if ``backward`` didn't use the loss."""
        if self.adding:
            rank_zero_warn(
                f"{_listed(self.adding)} added to the loss, but had no effect: the module's own backward doesn't "
                "differentiate the loss that it is given"
            )
        self.adding = []

    def step(self) -> None:
        """Notes an optimizer step."""
        self.stepping = []

    def train_ends(self, sessions: list[Session[Any]]) -> None:
        """Warns if there was no step, or none of an optimizer, or of none of the parameters that a technique selects.

        Args:
            sessions: Those of all techniques.
        """
        if self.inert and self.has_batches:
            rank_zero_warn(f"{_listed(self.inert)} had no effect: configure_optimizers returned None")
        if self.stepping and self.has_batches:
            rank_zero_warn(
                f"{_listed(self.stepping)} had no effect: no optimizer step was seen in this fit; in manual "
                "optimization call step() of what self.optimizers() returns"
            )
        for session in sessions:
            for selection in (value for value in vars(session).values() if isinstance(value, Selection)):
                if selection.bypassed:
                    name, setting = type(session.technique).__name__, selection.setting
                    rank_zero_warn(
                        f"{name} had no effect on what {setting} selects, because none of it was trained: "
                        f"{selection.bypassed}"
                    )


def unannounced(technique: Technique, module: LightningModule) -> SettingError:
    """Returns the refusal of an optimizer that steps without a call to ``on_before_optimizer_step``."""
    if has_stand_in(module.trainer):
        return SettingError(
            f"configure_optimizers must return an optimizer with {type(technique).__name__}, which acts on its steps"
        )
    if module.automatic_optimization:  # Lightning says it within the closure
        return SettingError(
            f"optimizer_step must call step of the optimizer that it is given, and the optimizer its closure, with "
            f"{type(technique).__name__}, else Lightning doesn't say when the optimizer steps"
        )
    return SettingError(
        f"use_pl_optimizer must be True in self.optimizers() with {type(technique).__name__}, else Lightning doesn't "
        "say when the optimizer steps"
    )


def _listed(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))
