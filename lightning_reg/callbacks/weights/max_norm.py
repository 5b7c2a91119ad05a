"""An upper bound of the norm of a unit's weights."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from typing_extensions import override

from lightning_reg.callbacks.weights.constraint import Constraint
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule, check_never_zero
from lightning_reg.functional.weights.proximal import max_norm_
from lightning_reg.settings import check_choice, check_range

__all__ = ["MaxNorm"]


class MaxNorm(Constraint):
    """Shortens the weights that lead into a unit to a norm of at most ``max_norm``, after every optimizer step.

    When to use: beside dropout with a high learning rate, which it keeps from blowing up. When not: before a
    normalization layer, which makes the length of weights meaningless.

    Cost: reads weights once per optimizer step, and writes them. No state.

    Interacts with: proximal penalties, after which it acts whatever the order of the callbacks. Every row of a weight
    (every column where ``group="input"``) counts as a unit, also in stacked matrices such as the gates of a recurrent
    layer.

    Args:
        max_norm: Largest norm allowed, positive; 2 to 4 is usual, with infinity nothing is shortened.
        group: ``"output"``: a unit's weights are those that lead into it, a row of a linear layer's weight or a filter;
            ``"input"``: those that lead out of it, a column or an input channel.
        include: Globs over names of parameters that are constrained.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of ``max_norm`` over the training, never 0; constant where None.

    Raises:
        SettingError: If ``max_norm`` isn't positive, a glob matches nothing, nothing selected has two dimensions,
            weights are sharded, or a layer normalizes its weight by another norm.

    Reference:
        Nitish Srivastava, Geoffrey Hinton, Alex Krizhevsky, Ilya Sutskever, Ruslan Salakhutdinov: Dropout: A Simple Way
        to Prevent Neural Networks from Overfitting, JMLR 15, 2014.

    >>> MaxNorm(max_norm=3.0).max_norm
    3.0
    """

    tag = "max_norm"
    undone_by = (*Constraint.undone_by, parametrizations._SpectralNorm, SpectralNorm)
    usual_ranges = (Log("max_norm", 0.5, 8.0),)

    def __init__(
        self,
        *,
        max_norm: float = 3.0,
        group: Literal["output", "input"] = "output",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("max_norm", max_norm, low=0, low_open=True, infinite=True)
        check_choice("group", group, ("output", "input"))
        check_never_zero(schedule)
        super().__init__(
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
            group=group,
            schedule=schedule,
        )
        self.max_norm = max_norm

    @override
    def project_(self, units: list[Tensor], factor: float) -> None:
        max_norm_(units, self.max_norm * factor)
