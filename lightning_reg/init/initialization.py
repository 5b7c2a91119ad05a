r"""Initialization of weights, by name and by the activation that follows.

The aim is that the variance of activations and gradients stays the same from layer to layer. With n inputs of
variance s² and weights of variance v, a linear unit has variance n·v·s²: so v = gain²/n, where the gain makes up for
the variance that the activation removes.

The number n can't be read off a tensor's shape alone: groups, strides, transposed convolutions and stacked gates change
it. :func:`lightning_reg.init.fans.layer_weights` computes each layer's fans, and splits its weights into blocks of the
shape (outputs, inputs, *kernel). Schemes that use fans (:class:`VarianceScaling`) get them as arguments; all others,
including a user's functions, fill one block at a time and read its shape as that of a plain layer.
"""

import fnmatch
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import init

from lightning_reg.init.fans import LayerWeight, layer_weights
from lightning_reg.init.followers import NORMS, following_activations
from lightning_reg.settings import SettingError, check_callable, check_choice, check_range, named_or_imported

__all__ = [
    "INITIALIZATIONS",
    "Initializer",
    "VarianceScaling",
    "initialize_",
    "scheme_for_activation",
    "zero_residual_gamma_",
]

Initializer = Callable[[Tensor], object]
"""A function that fills a weight tensor in place, like those of torch.nn.init."""

_RELU_GAIN = math.sqrt(2)  # half of the activations' mean square is lost
_LIKE_RELU = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.Hardswish, nn.Softplus)


@dataclass(frozen=True)
class VarianceScaling:
    """Draws weights whose variance depends on the number of inputs or outputs that they connect.

    Without fans as arguments, it reads the tensor's shape as (outputs, inputs, *kernel), as torch.nn.init does.

    Args:
        gain: Factor that makes up for the variance that the activation removes, at least 0; the standard deviation is
            gain/√fan.
        mode: Fan to scale by: ``"fan_in"`` preserves the variance of activations, ``"fan_out"`` that of gradients,
            ``"fan_average"`` is a compromise.
        distribution: Distribution of the weights: ``"normal"`` or ``"uniform"``.

    Raises:
        SettingError: If an argument is out of range.

    >>> weight = torch.empty(100, 400)
    >>> VarianceScaling(1.0, "fan_in", "uniform")(weight)
    >>> bool(weight.abs().max() <= 3**0.5 / 400**0.5)
    True
    """

    gain: float = 1.0
    mode: Literal["fan_in", "fan_out", "fan_average"] = "fan_in"
    distribution: Literal["normal", "uniform"] = "normal"

    def __post_init__(self) -> None:
        check_range("gain", self.gain, low=0)
        check_choice("mode", self.mode, ("fan_in", "fan_out", "fan_average"))
        check_choice("distribution", self.distribution, ("normal", "uniform"))

    def __call__(self, weight: Tensor, *, fan_in: float | None = None, fan_out: float | None = None) -> None:
        """Fills a tensor in place.

        Args:
            weight: Tensor to fill, of at least two dimensions where a fan is computed from its shape.
            fan_in: Number of inputs that reach one output; computed from the shape where None.
            fan_out: Number of outputs that one input reaches; computed from the shape where None.

        Raises:
            SettingError: If a fan is unknown.
        """
        if (fan_in is None or fan_out is None) and weight.ndim < 2:
            raise SettingError(
                f"weight must have at least two dimensions to have a fan_in and a fan_out, but has the shape "
                f"{tuple(weight.shape)}; give both, or take an initialization without fans"
            )
        if not weight.numel():
            return
        if fan_in is None:
            fan_in = math.prod(weight.shape[1:])
        if fan_out is None:
            fan_out = weight.shape[0] * math.prod(weight.shape[2:])
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_average": (fan_in + fan_out) / 2}[self.mode]
        std = self.gain / math.sqrt(fan)
        if self.distribution == "normal":
            init.normal_(weight, std=std)
        else:
            init.uniform_(weight, -math.sqrt(3) * std, math.sqrt(3) * std)


def _orthogonal_(weight: Tensor) -> Tensor:
    if weight.ndim < 2:
        raise SettingError(
            f"weight must have at least two dimensions to be orthogonal, but has the shape {tuple(weight.shape)}"
        )
    # torch has no decomposition in 16 bits.
    precise = torch.empty(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
    return weight.copy_(init.orthogonal_(precise))


INITIALIZATIONS: dict[str, Initializer] = {
    "zeros": init.zeros_,
    "uniform": partial(init.uniform_, a=-0.05, b=0.05),
    "normal": partial(init.normal_, std=0.05),
    "truncated_normal": partial(init.trunc_normal_, std=0.02, a=-0.04, b=0.04),
    "small_normal": partial(init.normal_, std=0.02),
    "xavier_normal": VarianceScaling(1.0, "fan_average", "normal"),
    "xavier_uniform": VarianceScaling(1.0, "fan_average", "uniform"),
    "kaiming_normal": VarianceScaling(_RELU_GAIN, "fan_in", "normal"),
    "kaiming_uniform": VarianceScaling(_RELU_GAIN, "fan_in", "uniform"),
    "kaiming_normal_fan_out": VarianceScaling(_RELU_GAIN, "fan_out", "normal"),
    "kaiming_uniform_fan_out": VarianceScaling(_RELU_GAIN, "fan_out", "uniform"),
    "lecun_normal": VarianceScaling(1.0, "fan_in", "normal"),
    "orthogonal": _orthogonal_,
}
"""Initialization schemes by name, as functions that fill one weight tensor in place."""


def scheme_for_activation(activation: nn.Module) -> Initializer:
    """Returns the scheme that preserves the variance through an activation.

    Args:
        activation: The module that follows the weights.

    Returns:
        Kaiming normal (fan_in) for ReLU, its smooth relatives (GELU, SiLU, ...) and leaky ones with their slope; LeCun
        normal for SELU; Xavier normal for sigmoid, tanh, no activation and unknown ones.

    Reference:
        Xavier Glorot, Yoshua Bengio: Understanding the difficulty of training deep feedforward neural networks,
        AISTATS 2010. Kaiming He et al.: Delving Deep into Rectifiers, ICCV 2015, arXiv:1502.01852. Günter Klambauer
        et al.: Self-Normalizing Neural Networks, NeurIPS 2017, arXiv:1706.02515.

    >>> scheme_for_activation(nn.LeakyReLU(1.0))
    VarianceScaling(gain=1.0, mode='fan_in', distribution='normal')
    """
    slope = _negative_slope(activation)
    if slope is not None:
        return VarianceScaling(math.sqrt(2 / (1 + slope**2)))
    if isinstance(activation, nn.SELU):
        return INITIALIZATIONS["lecun_normal"]
    if isinstance(activation, _LIKE_RELU):
        return INITIALIZATIONS["kaiming_normal"]
    return INITIALIZATIONS["xavier_normal"]


def _negative_slope(activation: nn.Module) -> float | None:
    if isinstance(activation, nn.LeakyReLU):
        return activation.negative_slope
    if isinstance(activation, nn.RReLU):
        return (activation.lower + activation.upper) / 2
    return activation.weight.mean().item() if isinstance(activation, nn.PReLU) else None


@torch.no_grad()
def initialize_(module: nn.Module, scheme: str | Initializer, activation: nn.Module) -> None:
    """Initializes every linear, convolutional, recurrent and attention layer of a module, in place.

    Weights follow the scheme and biases become 0. Each group of a convolution, gate of a recurrent layer, and the
    queries, keys and values of attention are separate matrices, see :func:`layer_weights`. Normalization layers keep
    the values from their constructors (γ = 1, β = 0), and so do all other modules, embeddings included, except that
    ``"small_normal"``, the scheme for transformers, draws embeddings like all weights.

    ``"auto"`` depends on the activation that follows, which is searched in every ``nn.Sequential``, past normalization,
    dropout, pooling and reshaping. A layer that is followed by another one, or is the last of ``module``, has none, and
    gets Xavier weights. Where the next module is unknown, ``activation`` decides. Recurrent layers get Xavier input
    weights, orthogonal recurrent weights, and a bias of 1 on an LSTM's forget gate, so that it remembers from the
    start; attention gets Xavier weights.

    Args:
        module: Module whose layers are initialized.
        scheme: ``"auto"``, ``"default"`` (torch's initialization, nothing is changed), a key of ``INITIALIZATIONS``,
            ``"lsuv"`` (orthogonal weights, for ``lsuv_`` to scale with a batch), or a function (or its import path)
            that fills a weight tensor of the shape (outputs, inputs, *kernel) in place.
        activation: Activation assumed where the following one is unknown; only used by ``"auto"``.

    Raises:
        SettingError: If the scheme's name is unknown, or a weight isn't a plain parameter.

    Reference:
        Rafal Jozefowicz, Wojciech Zaremba, Ilya Sutskever: An Empirical Exploration of Recurrent Network
        Architectures, ICML 2015. Andrew M. Saxe, James L. McClelland, Surya Ganguli: Exact solutions to the nonlinear
        dynamics of learning in deep linear neural networks, ICLR 2014, arXiv:1312.6120.

    >>> network = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.LSTM(128, 64))
    >>> initialize_(network, "auto", nn.Tanh())
    >>> network[2].bias_ih_l0.detach().view(4, 64).mean(1)  # input, forget, cell and output gate
    tensor([0., 1., 0., 0.])
    """
    if scheme == "default":
        return
    scheme = named_or_imported("init", scheme, ["auto", "default", "lsuv", *INITIALIZATIONS])
    if not isinstance(scheme, str):
        check_callable("init", scheme, "a name or a function that fills a tensor in place")
    if scheme == "lsuv":
        scheme = "orthogonal"
    followers = following_activations(module) if scheme == "auto" else {}
    for name, layer in module.named_modules():
        weights = layer_weights(layer, name)
        for weight in weights:
            if scheme == "auto":
                _fill(weight, _guide(layer, weight, followers, activation))
            else:
                _fill(weight, INITIALIZATIONS[scheme] if isinstance(scheme, str) else scheme)
        if weights:
            _zero_biases(layer)
        if scheme == "auto":
            _open_forget_gate(layer)
        if scheme == "small_normal" and isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
            INITIALIZATIONS["small_normal"](layer.weight)
            if layer.padding_idx is not None:
                layer.weight[layer.padding_idx].zero_()


def _fill(weight: LayerWeight, fill: Initializer) -> None:
    if not weight.parameter.numel():
        return
    if isinstance(fill, VarianceScaling):
        fill(weight.parameter, fan_in=weight.fan_in, fan_out=weight.fan_out)
        return
    for block in weight.blocks:
        whole = block.contiguous()  # functions may want to view it in another shape
        _call(fill, whole)
        if whole is not block:
            block.copy_(whole)


def _call(fill: Initializer, block: Tensor) -> None:
    """Calls a user's function, and names the setting in the error if it doesn't take a tensor."""
    call = f"{getattr(fill, '__name__', fill)}(weight)"
    try:
        found = fill(block)
    except SettingError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise SettingError(f"init must fill a tensor in place, but {call} fails: {error}") from error
    if isinstance(found, Tensor) and found.data_ptr() != block.data_ptr():
        raise SettingError(f"init must fill a tensor in place, but {call} returns another one")


def _zero_biases(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        # The "bias_k" and "bias_v" of attention aren't shifts, but an additional key and value.
        if name.startswith(("bias", "in_proj_bias")) and name not in ("bias_k", "bias_v"):
            parameter.zero_()


def _open_forget_gate(layer: nn.Module) -> None:
    if isinstance(layer, (nn.LSTM, nn.LSTMCell)):
        for name, parameter in layer.named_parameters(recurse=False):
            if name.startswith("bias_ih"):  # only this one: torch adds another bias, that of the recurrent matrix
                parameter.chunk(4)[1].fill_(1.0)  # input, forget, cell, output


def _guide(
    layer: nn.Module, weight: LayerWeight, followers: dict[nn.Module, nn.Module | None], activation: nn.Module
) -> Initializer:
    if weight.is_recurrent:
        return INITIALIZATIONS["orthogonal"]
    of_attention = (nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear)
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase, *of_attention)):
        return INITIALIZATIONS["xavier_normal"]
    return scheme_for_activation(followers.get(layer) or activation)


def zero_residual_gamma_(module: nn.Module, include: str | Sequence[str | nn.Module]) -> list[str]:
    """Sets γ = 0 in the normalization layers that end residual branches, in place: every block starts as the identity.

    The network is then shallow at first, and deepens in the course of training.

    Args:
        module: Module whose layers are initialized.
        include: Globs over names of normalization layers, or the layers; ``"*.bn3"`` for torchvision's ResNet-50.

    Returns:
        Names of the layers, in the order of the module.

    Raises:
        SettingError: If an entry of ``include`` matches no normalization layer with a γ.

    Reference:
        Priya Goyal et al.: Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017, arXiv:1706.02677.

    >>> branch = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))
    >>> zero_residual_gamma_(branch, "4")
    ['4']
    >>> branch[4].weight
    Parameter containing:
    tensor([0., 0., 0., 0.], requires_grad=True)
    """
    norms = {name: submodule for name, submodule in module.named_modules() if _has_gamma(submodule)}
    chosen: set[str] = set()
    for wanted in [include] if isinstance(include, str) else include:
        if isinstance(wanted, str):
            found = set(fnmatch.filter(norms, wanted))
        else:
            found = {name for name, norm in norms.items() if norm is wanted}
        if not found:
            names = ", ".join(list(norms)[:8]) or "none"
            raise SettingError(f"include must choose normalization layers with a γ ({names}), but {wanted!r} does not")
        chosen |= found
    for name in chosen:
        nn.init.zeros_(norms[name].weight)
    return [name for name in norms if name in chosen]


def _has_gamma(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    return weight is not None and (isinstance(layer, NORMS) or (weight.ndim == 1 and not isinstance(layer, nn.PReLU)))
