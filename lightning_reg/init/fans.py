"""The matrices in a layer's weights, and their fans."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from lightning_reg.settings import SettingError

__all__ = ["WEIGHT_LAYERS", "LayerWeight", "layer_weights"]

WEIGHT_LAYERS = (nn.Linear, _ConvNd)
"""Layers whose output is linear in one weight tensor: linear, convolutional and transposed ones."""


@dataclass(frozen=True, eq=False)
class LayerWeight:
    """One weight tensor of a layer.

    Attributes:
        parameter: The tensor, in its layer's shape.
        blocks: Views that partition it, each of the shape (outputs, inputs, *kernel).
        fan_in: Number of inputs that reach one output, averaged over positions.
        fan_out: Number of outputs that one input reaches, likewise.
        is_recurrent: Whether it connects one time step to the next.
    """

    parameter: nn.Parameter
    blocks: Sequence[Tensor]
    fan_in: float
    fan_out: float
    is_recurrent: bool = False


def layer_weights(layer: nn.Module, name: str = "") -> list[LayerWeight]:
    r"""Returns the weights of a linear, convolutional, recurrent or attention layer; none for others.

    .. math::
        n_{in} = \frac{C_{in}}{g} \prod_i k_i, \quad n_{out} = \frac{C_{out}}{g} \prod_i \frac{k_i}{s_i}

    These are the fans of a convolution with g groups, kernel k and stride s: it is g parallel convolutions, each a
    block, and with a stride one input meets only every s-th position of the kernel. A transposed convolution has

    .. math::
        n_{in} = \frac{C_{in}}{g} \prod_i \frac{k_i}{s_i}, \quad n_{out} = \frac{C_{out}}{g} \prod_i k_i

    and is, in every group, as many interleaved convolutions as there are positions in a stride: each computes every
    s-th output from every s-th weight of the kernel, and is a block. Gates of recurrent layers, and the queries, keys
    and values of attention, are stacked in one tensor, but each is a separate matrix. Padding is ignored.

    torch computes fans from a tensor's shape as for a convolution with one group and without a stride. That is right
    for each block, except for the fan_out of convolutions with a stride.

    Args:
        layer: The layer; its submodules don't count.
        name: Qualified name of the layer, for error messages.

    Raises:
        SettingError: If a weight is computed from other parameters, or has no shape yet.

    >>> weight, = layer_weights(nn.ConvTranspose2d(8, 6, 4, stride=2, groups=2))
    >>> weight.fan_in, weight.fan_out, len(weight.blocks), weight.blocks[0].shape
    (16.0, 48, 8, torch.Size([3, 4, 2, 2]))
    """
    return [_weight(layer, leaf, _plain_parameter(layer, leaf, name)) for leaf in _names(layer)]


def _names(layer: nn.Module) -> list[str]:
    if isinstance(layer, WEIGHT_LAYERS):
        return ["weight"]
    if isinstance(layer, nn.RNNBase):
        return [leaf for leaf in layer._flat_weights_names if leaf.startswith("weight")]
    if isinstance(layer, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    if isinstance(layer, nn.MultiheadAttention):
        separate = layer.in_proj_weight is None
        return ["q_proj_weight", "k_proj_weight", "v_proj_weight"] if separate else ["in_proj_weight"]
    return []


def _plain_parameter(layer: nn.Module, leaf: str, name: str) -> nn.Parameter:
    parameter = layer._parameters.get(leaf)
    place = f"{leaf} of {name or type(layer).__name__}"
    if parameter is None:
        raise SettingError(
            f"module must hold its weights as plain parameters, but {place} is computed from others; initialize it "
            "before it is parametrized"
        )
    if isinstance(parameter, UninitializedParameter):
        raise SettingError(f"module must know all its shapes, but {place} has none yet; run a batch through it first")
    return parameter


def _weight(layer: nn.Module, leaf: str, parameter: nn.Parameter) -> LayerWeight:
    if isinstance(layer, _ConvNd):
        return _convolution(layer, parameter)
    stacked = 1
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)) and not leaf.startswith("weight_hr"):
        stacked = len(parameter) // layer.hidden_size  # the gates
    elif leaf == "in_proj_weight":
        stacked = 3
    blocks = _parts(parameter, stacked)
    outputs, inputs = blocks[0].shape
    return LayerWeight(parameter, blocks, inputs, outputs, is_recurrent=leaf.startswith(("weight_hh", "weight_hr")))


def _convolution(layer: _ConvNd, parameter: nn.Parameter) -> LayerWeight:
    taps, strides = math.prod(layer.kernel_size), math.prod(layer.stride)
    fan_in, fan_out = layer.in_channels // layer.groups * taps, layer.out_channels // layer.groups * taps
    groups = _parts(parameter, layer.groups)
    if not layer.transposed:
        return LayerWeight(parameter, groups, fan_in, fan_out / strides)
    # (inputs, outputs, *kernel) in every group
    blocks = [phase for group in groups for phase in _phases(group.transpose(0, 1), layer.stride)]
    return LayerWeight(parameter, blocks, fan_in / strides, fan_out)


def _parts(parameter: nn.Parameter, count: int) -> Sequence[Tensor]:
    return parameter.chunk(count) if count > 1 else [parameter]


def _phases(weight: Tensor, stride: Sequence[int]) -> Iterator[Tensor]:
    sizes = zip(weight.shape[2:], stride, strict=True)
    for starts in itertools.product(*(range(min(size, step)) for size, step in sizes)):
        every = (slice(start, None, step) for start, step in zip(starts, stride, strict=True))
        yield weight[(slice(None), slice(None), *every)]
