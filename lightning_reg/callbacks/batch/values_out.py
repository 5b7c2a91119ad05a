"""Values that a training step takes out of torch, where they can't be followed: numbers, lists and arrays."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_reg.callbacks.batch.ends import Known, name_of, numbers_beside
from lightning_reg.callbacks.batch.followed_functions import is_check, returns_number

__all__ = ["ValuesOut"]


class ValuesOut:
    """Notes which functions took values of the targets or of a loss out of torch.

    A value that is only logged can't be told from one that a loss is multiplied by later, but most are logged last.

    Args:
        known: Tensors that were computed from the targets.

    Attributes:
        taken: Names of those functions by whose values a loss may have been computed or chosen since.
        out: Names of those by whose values nothing was computed or chosen unless ``companions`` were.
        companions: Functions that were applied to a loss after values were taken out, and numbers and arrays without a
            gradient that it met there.
    """

    def __init__(self, known: Known) -> None:
        self.taken: set[str] = set()
        self.out: set[str] = set()
        self.companions: list[Any] = []
        self._known = known
        self._of_targets: set[str] = set()

    def before_loss(self) -> None:
        """Notes that a loss of torch's is computed, which values of the targets may have shaped."""
        self.taken |= self._of_targets

    def meet(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> None:
        """Notes a function that is applied to a loss after values were taken out."""
        if self.out:
            numbers = numbers_beside((*args, *kwargs.values()), self._known.losses, self._known.targets)
            self.companions += [name_of(func), *numbers]

    def run(self, func: Callable[..., Any], operands: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs a function that returns no tensor, and notes it unless the value is the same for both ends."""
        known = self._known
        unmixed = [known.unmixed[id(value)][1] for value in operands if id(value) in known.unmixed]
        losses = [known.losses[id(value)] for value in operands if id(value) in known.losses]
        has_targets = any(id(value) in known.targets for value in operands)
        is_lost = any(id(value) in known.lost for value in operands)
        if not (unmixed or losses or has_targets or is_lost) or (unmixed and all(map(is_check, unmixed))):
            return func(*args, **kwargs)
        has_ends = not unmixed and not is_lost and all(pair.own is not None for pair in losses)
        result, ends = self._with_ends(func, args, kwargs) if has_ends else (func(*args, **kwargs), ())
        # A loss has two values anyway.
        if ends and not (losses and isinstance(result, float)) and math.isclose(*ends, rel_tol=1e-6):
            return result
        name = name_of(func)
        if isinstance(result, bool):
            if torch.is_grad_enabled() and not is_lost:  # else it is a metric's, or a check of what labels there are
                self.taken.add(name)
            return result
        self.out.add(name)
        if not losses and not unmixed and not isinstance(result, float):
            self._of_targets.add(name)
        return result

    def _with_ends(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
        """Returns what a function takes out, and if that is a number the same of each end, where there is one."""
        own, partners = (self._known.ends(args, kwargs, partners=of_partners) for of_partners in (False, True))
        if returns_number(func) and all(part.numel() == 1 for part in (args[0], own[0][0], partners[0][0])):
            # The host waits for the device once.
            result, *ends = map(func, torch.stack((args[0], own[0][0], partners[0][0])).cpu())
            return result, tuple(ends)
        result = func(*args, **kwargs)
        if isinstance(result, bool):
            with contextlib.suppress(RuntimeError, ValueError):
                return result, (func(*own[0], **own[1]), func(*partners[0], **partners[1]))
        return result, ()
