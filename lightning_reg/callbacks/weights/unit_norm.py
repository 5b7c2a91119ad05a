"""Weights of norm 1."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from typing_extensions import override

from lightning_reg.callbacks.weights.constraint import Constraint
from lightning_reg.functional.weights.proximal import unit_norm_
from lightning_reg.settings import check_choice

__all__ = ["UnitNorm"]


class UnitNorm(Constraint):
    """Gives the weights that lead into a unit norm 1, after every optimizer step.

    When to use: where only directions should be learned: the last layer of a metric-learning network, dictionaries of
    autoencoders. When not: on every layer of a plain classifier, whose logits it bounds; name layers by ``include``.

    Interacts with: proximal penalties, after which it acts whatever the order of the callbacks. Every row of a weight
    (every column where ``group="input"``) counts as a unit, also in stacked matrices such as the gates of a recurrent
    layer.

    Cost: reads and writes weights once per optimizer step. No state.

    Args:
        group: ``"output"``: a unit's weights are those that lead into it, a row of a linear layer's weight or a filter;
            ``"input"``: those that lead out of it, a column or an input channel.
        include: Globs over names of parameters that are constrained.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.

    Raises:
        SettingError: If a glob matches nothing, nothing selected has two dimensions, weights are sharded, or a
            layer normalizes its weight by another norm, or prunes it.

    Reference:
        Tim Salimans, Diederik P. Kingma: Weight Normalization, NeurIPS 2016, arXiv:1602.07868, with the length held
        at 1.

    >>> UnitNorm(include=("head.weight",)).group
    'output'
    """

    tag = "unit_norm"
    undone_by = (*Constraint.undone_by, parametrizations._SpectralNorm, SpectralNorm, BasePruningMethod)
    fixes_lengths = True

    def __init__(
        self,
        *,
        group: Literal["output", "input"] = "output",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
    ) -> None:
        check_choice("group", group, ("output", "input"))
        super().__init__(
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
            group=group,
        )

    @override
    def project_(self, units: list[Tensor], factor: float) -> None:
        unit_norm_(units)
