"""Weights that are never negative."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm
from typing_extensions import override

from lightning_reg.callbacks.weights.constraint import Constraint, ConstraintSession
from lightning_reg.core.gradients import refuse_complex
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.functional.weights.proximal import non_negative_

__all__ = ["NonNegative"]


class NonNegative(Constraint):
    """Sets negative weights to zero, after every optimizer step.

    When to use: for networks that have to be monotonic in their inputs, and for parts-based representations. When not:
    on all weights of a plain classifier, which it costs accuracy; name layers by ``include``.

    Cost: reads and writes weights once per optimizer step. No state.

    Args:
        include: Globs over names of parameters that are constrained.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.

    Raises:
        SettingError: If a glob matches nothing, weights are complex, or a layer computes its weight of them by weight
            normalization or in another way that undoes the constraint.

    Reference:
        Daniel D. Lee, H. Sebastian Seung: Learning the Parts of Objects by Non-negative Matrix Factorization, Nature
        401, 1999.

    >>> NonNegative(include=("decoder.*",)).include
    ('decoder.*',)
    """

    tag = "non_negative"
    by_unit = False
    # Weight normalization divides by the norm of what may become zero.
    undone_by = (*Constraint.undone_by, parametrizations._WeightNorm, WeightNorm)

    def __init__(
        self,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
    ) -> None:
        super().__init__(
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
        )

    @override
    def new_session(self, run: Run) -> Session[Any]:
        session = ConstraintSession(self, run)
        refuse_complex(session.selection.names, type(self).__name__, "exclude it")
        return session

    @override
    def project_(self, units: list[Tensor], factor: float) -> None:
        non_negative_(units)
