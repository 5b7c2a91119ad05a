"""Parts of networks over sequences (N, T, F): images as sequences, norm, dropout and pooling over time."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor, cat, nn
from typing_extensions import override

from lightning_reg.nn.factories import DROPOUTS, WEIGHT_DROPOUTS, make_dropout, make_norm
from lightning_reg.nn.layers.dropout import VariationalDropout
from lightning_reg.nn.layers.stochastic import check_rank
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_callable, check_choice, check_range, named_or_imported

__all__ = ["ImageRows", "OverTime", "SequencePool", "make_sequence_dropout", "make_sequence_norm", "named_sequential"]

# torch's norms that take the features in the second dimension.
_FEATURES_SECOND = (nn.modules.batchnorm._NormBase, nn.GroupNorm)


class ImageRows(nn.Module):
    """Reads an image row by row: (N, C, H, W) becomes the sequence (N, H, C·W); a sequence (N, T, F) stays as it is.

    Raises:
        SettingError: If the inputs have another number of dimensions.

    >>> import torch
    >>> ImageRows()(torch.zeros(2, 3, 8, 6)).shape
    torch.Size([2, 8, 18])
    """

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        check_rank(self, inputs, "(N, T, F) of sequences or (N, C, H, W) of images", least=3, most=4)
        return inputs.transpose(1, 2).flatten(2) if inputs.ndim == 4 else inputs


class OverTime(nn.Module):
    """Applies a layer with features in the second dimension, (N, F, T), to a sequence (N, T, F).

    Args:
        layer: Module from (N, F, T) to the same shape.

    Raises:
        SettingError: If it can't be called.

    >>> import torch
    >>> OverTime(nn.BatchNorm1d(4))(torch.randn(2, 5, 4)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        check_callable("layer", layer, "a module from (N, F, T) to the same shape")
        self.layer = layer

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs.transpose(1, 2))
        return outputs.transpose(1, 2)


class SequencePool(nn.Module):
    """Pools a sequence over time: (N, T, F) becomes (N, F).

    Args:
        mode: Kind of pooling: ``"first"`` or ``"last"`` time step, ``"mean"`` or ``"max"`` over time.
        bidirectional: Whether the second half of the features comes from a backward direction, which ends at the first
            step; only used by ``"last"``.

    Raises:
        SettingError: If the mode is unknown.

    >>> import torch
    >>> SequencePool("mean")(torch.tensor([[[1.0], [3.0]]]))
    tensor([[2.]])
    """

    def __init__(self, mode: Literal["first", "last", "mean", "max"], *, bidirectional: bool = False) -> None:
        super().__init__()
        check_choice("mode", mode, ("first", "last", "mean", "max"))
        self.mode = mode
        self.bidirectional = bidirectional

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        if self.mode == "mean":
            return inputs.mean(1)
        if self.mode == "max":
            return inputs.amax(1)
        if self.mode == "first":
            return inputs[:, 0]
        if not self.bidirectional:
            return inputs[:, -1]
        onwards, backwards = inputs.chunk(2, -1)
        return cat([onwards[:, -1], backwards[:, 0]], -1)

    @override
    def extra_repr(self) -> str:
        return repr(self.mode)


def make_sequence_norm(norm: str | Callable[[int], nn.Module], num_features: int) -> nn.Module:
    """Makes a normalization layer for sequences (N, T, F).

    ``layer`` and ``rms`` normalize each time step independently. The others treat time steps as positions: ``batch``
    averages over samples and time, ``group`` and ``instance`` over the time of one sample.

    Args:
        norm: A key of ``NORMS``, or a callable (or its import path) from the number of features to a module.

    Raises:
        SettingError: If the name is unknown.

    >>> make_sequence_norm("layer", 8)
    LayerNorm((8,), eps=1e-05, ...)
    >>> make_sequence_norm("batch", 8).layer
    BatchNorm1d(8, ...)
    """
    if norm in ("none", "layer", "rms"):
        return make_norm(norm, num_features)
    layer = make_norm(norm, num_features, spatial_dims=1)
    is_named = isinstance(norm, str) and "." not in norm
    return OverTime(layer) if is_named or isinstance(layer, _FEATURES_SECOND) else layer


def make_sequence_dropout(dropout: str | Callable[[float], nn.Module], p: float) -> nn.Module:
    """Makes a dropout layer for sequences (N, T, F).

    Args:
        dropout: ``variational`` or ``spatial``, which drop a feature at all time steps of a sequence; another
            key of ``DROPOUTS``; or a callable (or its import path) from the probability to a module.
        p: Probability that something is dropped, in [0, 1]; at 0 the result is an Identity.

    Raises:
        SettingError: If the name is unknown or in ``WEIGHT_DROPOUTS``, or ``p`` is out of range.

    >>> make_sequence_dropout("variational", 0.2)
    VariationalDropout(p=0.2, time_dim=1)
    """
    names = list(dict.fromkeys(("variational", *DROPOUTS)))
    if isinstance(dropout, str) and dropout in WEIGHT_DROPOUTS:
        raise SettingError(
            f"dropout must be a layer of its own between those of a sequence, but is {dropout!r}; allowed are "
            f"{', '.join(names)} or a callable"
        )
    dropout = named_or_imported("dropout", dropout, names)
    if dropout in ("variational", "spatial"):
        check_range("drop_prob", p, low=0, high=1)
        return VariationalDropout(p) if p else nn.Identity()
    if isinstance(dropout, str) and 0 not in DROPOUTS[dropout]:  # it needs positions
        layer = make_dropout(dropout, p, spatial_dims=1)
        return OverTime(layer) if p else layer
    return make_dropout(dropout, p)


def named_sequential(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """Chains named layers without the identities, so that names, the keys of checkpoints, don't depend on these.

    Args:
        layers: Layers by name, in order.

    >>> named_sequential({"norm": nn.Identity(), "head": nn.Linear(4, 2)})
    Sequential(
      (head): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    return nn.Sequential(
        OrderedDict((name, layer) for name, layer in layers.items() if not isinstance(layer, nn.Identity))
    )
