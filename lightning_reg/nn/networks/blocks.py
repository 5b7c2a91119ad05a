"""Dense and convolutional networks: weights, normalization, activation, dropout."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.init.initialization import Initializer, initialize_
from lightning_reg.nn.factories import drop_weights_or_inputs, make_activation, make_dropout, make_norm
from lightning_reg.nn.layers.dropout import StochasticDepth, linear_rates
from lightning_reg.nn.layers.shake_drop import ShakeDrop
from lightning_reg.nn.networks.tabular import TabularEmbedding
from lightning_reg.settings import SettingError, as_sequence, check_callable, check_count, check_range

__all__ = ["ResidualBlock", "convolutional_network", "dense_network"]


class ResidualBlock(nn.Module):
    """Adds the output of a branch to its input.

    Args:
        branch: Module from the block's inputs to its outputs.
        shortcut: Module that projects inputs to the shape of the outputs; None where the shapes are equal.

    Raises:
        SettingError: If one of them can't be called.

    Reference:
        Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun: Identity Mappings in Deep Residual Networks, ECCV 2016,
        arXiv:1603.05027.

    >>> import torch
    >>> ResidualBlock(nn.Tanh())(torch.ones(2)).tolist()
    [1.7615941762924194, 1.7615941762924194]
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        check_callable("branch", branch, "a module from the block's inputs to its outputs")
        if shortcut is not None:
            check_callable("shortcut", shortcut, "a module from the block's inputs to its outputs, or None")
        self.branch = branch
        self.shortcut = shortcut

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = (inputs if self.shortcut is None else self.shortcut(inputs)) + self.branch(inputs)
        return outputs


def dense_network(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    hidden_sizes: Sequence[int],
    norm: str | Callable[[int], nn.Module] = "none",
    activation: str | Callable[[], nn.Module] = "relu",
    dropout: str | Callable[[float], nn.Module] = "standard",
    drop_prob: float = 0.0,
    init: str | Initializer = "auto",
    categories: Sequence[int] = (),
    embed_dim: int = 8,
    residual: bool = False,
    stochastic_depth_prob: float = 0.0,
    shake_drop_prob: float = 0.0,
) -> nn.Sequential:
    """A multilayer perceptron on flattened inputs, or on a table's rows whose categories are embedded.

    Residual or not, the layers and their order are the same. The blocks of a residual network are normalization,
    activation, dropout and weights; the first block adds to the output of the first hidden layer's weights.

    Args:
        input_shape: Shape of one sample.
        num_outputs: Width of the last layer.
        hidden_sizes: Widths of the hidden layers, in order; if empty, the network is linear.
        norm: Normalization after each hidden layer's weights, see :func:`lightning_reg.nn.make_norm`.
        activation: Activation, see :func:`lightning_reg.nn.make_activation`.
        dropout: Dropout after each activation, see :func:`lightning_reg.nn.make_dropout`; ``drop_connect`` and
            ``concrete`` drop weights or inputs of the next layer.
        drop_prob: Probability that an activation is dropped, in [0, 1].
        init: Initialization, see :func:`lightning_reg.init.initialization.initialize_`.
        categories: Number of categories of each of the last columns of a table, see
            :class:`lightning_reg.nn.TabularEmbedding`; empty where all inputs are numbers.
        embed_dim: Width of a category's vector.
        residual: Whether each hidden layer after the first is a residual block; where the widths differ, its input is
            projected.
        stochastic_depth_prob: Probability that the last residual block's branch is dropped from a sample, in [0, 1]; it
            rises linearly with depth. See :class:`lightning_reg.nn.StochasticDepth`.
        shake_drop_prob: Probability that the last residual block's branch is disturbed by
            :class:`lightning_reg.nn.ShakeDrop` instead, likewise.

    Returns:
        A module from (N, *input_shape) to (N, num_outputs).

    Raises:
        SettingError: If a name is unknown, a number is out of range, ``categories`` don't match the input, or
            branches are to be dropped where there are none.

    >>> dense_network((1, 8, 8), 10, hidden_sizes=[32], norm="layer", drop_prob=0.2)
    Sequential(
      (0): Flatten(start_dim=1, end_dim=-1)
      (1): Linear(in_features=64, out_features=32, bias=False)
      (2): LayerNorm((32,), eps=1e-05, ...)
      (3): ReLU()
      (4): Dropout(p=0.2)
      (5): Linear(in_features=32, out_features=10, bias=True)
    )
    """
    input_shape, hidden_sizes = as_sequence("input_shape", input_shape), as_sequence("hidden_sizes", hidden_sizes)
    check_count("num_outputs", num_outputs)
    check_count("embed_dim", embed_dim)
    categories = as_sequence("categories", categories)
    first = _embedding(input_shape, categories, embed_dim) if categories else None
    rates = _branch_rates(len(hidden_sizes), residual, stochastic_depth_prob, shake_drop_prob)
    layers: list[nn.Module] = [first or nn.Flatten()]
    width = first.out_features if first else math.prod(input_shape)
    between: list[nn.Module] = []  # layers between the weights of two layers
    for hidden, size in enumerate(hidden_sizes):
        check_count("each of hidden_sizes", size)
        norm_layer = make_norm(norm, size)
        weights: nn.Module = nn.Linear(width, size, bias=not _shifts(norm_layer))
        weights = drop_weights_or_inputs(dropout, drop_prob, weights) if hidden else weights
        if residual and hidden:
            branch = _without_identities([*between, weights, *_branch_end(rates[hidden - 1], shake_drop_prob > 0)])
            layers.append(ResidualBlock(branch, None if width == size else nn.Linear(width, size, bias=False)))
        else:
            layers += [*between, weights]
        between = [norm_layer, make_activation(activation), make_dropout(dropout, drop_prob)]
        width = size
    head = nn.Linear(width, num_outputs)
    layers += [*between, drop_weights_or_inputs(dropout, drop_prob, head) if hidden_sizes else head]
    network = _assemble(layers, init, activation)
    if first:
        first.clear_missing()  # the initialization may have set these vectors, too
    return network


def _branch_rates(hidden: int, residual: bool, stochastic_depth_prob: float, shake_drop_prob: float) -> list[float]:
    """Returns the probability with which each residual branch is dropped or disturbed."""
    probabilities = {"stochastic_depth_prob": stochastic_depth_prob, "shake_drop_prob": shake_drop_prob}
    for name, p in probabilities.items():
        check_range(name, p, low=0, high=1)
        if p and not residual:
            raise SettingError(f"{name} must be 0 without residual, because there are no branches to drop, but is {p}")
    if residual and hidden < 2:
        raise SettingError(
            "hidden_sizes must name at least two layers with residual, of which the first makes what others add to, "
            f"but names {hidden}"
        )
    if all(probabilities.values()):
        raise SettingError(
            "stochastic_depth_prob or shake_drop_prob must be 0: either drops the branches, but they are "
            f"{stochastic_depth_prob} and {shake_drop_prob}"
        )
    return linear_rates(max(probabilities.values()), max(hidden - 1, 0))


def _branch_end(rate: float, is_shaken: bool) -> list[nn.Module]:
    if not rate:
        return []
    return [ShakeDrop(rate) if is_shaken else StochasticDepth(rate)]


def convolutional_network(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    channels: Sequence[int],
    layers_per_stage: int = 2,
    norm: str | Callable[[int], nn.Module] = "batch",
    activation: str | Callable[[], nn.Module] = "relu",
    dropout: str | Callable[[float], nn.Module] = "spatial",
    drop_prob: float = 0.0,
    head_drop_prob: float = 0.0,
    init: str | Initializer = "auto",
) -> nn.Sequential:
    """Stages of 3×3 convolutions, each but the last followed by 2×2 max pooling, then the average over positions.

    Args:
        input_shape: (C, H, W) of one image.
        num_outputs: Width of the last layer.
        channels: Number of channels of each stage, in order.
        layers_per_stage: Number of convolutions in each stage.
        norm: Normalization after each convolution, see :func:`lightning_reg.nn.make_norm`.
        activation: Activation, see :func:`lightning_reg.nn.make_activation`.
        dropout: Dropout at the end of each stage, see :func:`lightning_reg.nn.make_dropout`; ``drop_connect`` and
            ``concrete`` drop weights or inputs of the next layer.
        drop_prob: Probability of that dropout, in [0, 1].
        head_drop_prob: Probability that a feature is dropped before the last layer, in [0, 1].
        init: Initialization, see :func:`lightning_reg.init.initialization.initialize_`.

    Returns:
        A module from (N, C, H, W) to (N, num_outputs).

    Raises:
        SettingError: If the images are too small for the number of stages, or an argument is out of range.

    >>> import torch
    >>> network = convolutional_network((1, 8, 8), 10, channels=[8, 16])
    >>> network(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    input_shape, channels = as_sequence("input_shape", input_shape), as_sequence("channels", channels)
    check_count("num_outputs", num_outputs)
    if len(input_shape) != 3:
        raise SettingError(f"input_shape must be (channels, height, width) of an image, but is {tuple(input_shape)}")
    if not channels:
        raise SettingError("channels must name at least one stage, but is empty")
    check_count("layers_per_stage", layers_per_stage)
    if min(input_shape[1:]) < 2 ** (len(channels) - 1):
        raise SettingError(
            f"channels has {len(channels)} stages, which halve the image {len(channels) - 1} times; "
            f"input_shape {tuple(input_shape)} is too small for that"
        )
    layers: list[nn.Module] = []
    width = input_shape[0]
    for stage, size in enumerate(channels):
        check_count("each of channels", size)
        if stage:
            layers.append(nn.MaxPool2d(2))
        for layer in range(layers_per_stage):
            norm_layer = make_norm(norm, size, spatial_dims=2)
            weights = nn.Conv2d(width, size, 3, padding=1, bias=not _shifts(norm_layer))
            layers += [
                drop_weights_or_inputs(dropout, drop_prob, weights) if stage and layer == 0 else weights,
                norm_layer,
                make_activation(activation),
            ]
            width = size
        layers.append(make_dropout(dropout, drop_prob, spatial_dims=2))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), make_dropout("standard", head_drop_prob)]
    layers.append(drop_weights_or_inputs(dropout, drop_prob, nn.Linear(width, num_outputs)))
    return _assemble(layers, init, activation)


def _embedding(input_shape: Sequence[int], categories: Sequence[int], embed_dim: int) -> TabularEmbedding:
    if len(input_shape) != 1 or input_shape[0] < len(categories):
        raise SettingError(
            f"input_shape must be (columns,) of a table with at least {len(categories)} columns, as many as there are "
            f"categories, but is {tuple(input_shape)}"
        )
    return TabularEmbedding(input_shape[0] - len(categories), categories, embed_dim)


def _shifts(norm_layer: nn.Module) -> bool:
    """Whether a normalization has a shift of its own, which makes a bias before it redundant."""
    return getattr(norm_layer, "bias", None) is not None


def _assemble(
    layers: Sequence[nn.Module], init: str | Initializer, activation: str | Callable[[], nn.Module]
) -> nn.Sequential:
    network = _without_identities(layers)
    initialize_(network, init, make_activation(activation))
    return network


def _without_identities(layers: Sequence[nn.Module]) -> nn.Sequential:
    return nn.Sequential(*[layer for layer in layers if not isinstance(layer, nn.Identity)])
