"""LSUV: initial weights scaled by a batch of data; and the scale of a network's activations."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_reg.init.fans import WEIGHT_LAYERS, layer_weights
from lightning_reg.init.initialization import initialize_
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["LSUVResult", "activation_scale", "lsuv_"]

Inputs = Tensor | tuple[Any, ...]

_EPSILON = torch.finfo(torch.float32).eps  # the least precise dtype that variances are computed in


class LSUVResult(NamedTuple):
    """Result of :func:`lsuv_`.

    Attributes:
        variances: Variance of the outputs of every scaled layer by name, in the order in which they ran.
        left: Names of layers that weren't scaled, because they never ran or share their weights with others.
    """

    variances: dict[str, float]
    left: list[str]


def lsuv_(
    module: nn.Module,
    inputs: Inputs,
    *,
    tolerance: float = 0.05,
    max_iterations: int = 10,
    orthogonal: bool = True,
) -> LSUVResult:
    r"""Layer-sequential unit-variance: scales weights, in place, until every layer's outputs have variance 1.

    .. math:: W \leftarrow W / \sigma, \quad b \leftarrow b / \sigma, \quad \sigma^2 = \operatorname{Var}[W x + b]

    Layers are the linear, convolutional and transposed ones, in the order in which they run; their outputs are those
    before norm and activation, and the variance is over all entries. Dividing the weights divides the outputs, so that
    one forward pass scales all layers: each passes on its scaled outputs. A second pass confirms all variances.

    The network runs without gradients, with dropout off, and normalizes by the statistics of this batch, as it will in
    training. Its running statistics and every module's mode are restored.

    Args:
        module: The network, whose ``forward`` takes the inputs.
        inputs: A batch of real data (N, ...), on the module's device; a tuple where there are several arguments.
        tolerance: Largest deviation of a variance from 1, above 0.
        max_iterations: Largest number of times that weights are scaled, at least 1. Two are enough, unless a layer
            computes with something other than its weight.
        orthogonal: Whether to first make weights orthogonal and biases 0 in layers that run, rather than only scale
            them.

    Returns:
        The final variances, and the layers that weren't scaled.

    Raises:
        SettingError: If outputs of a layer are constant or not finite, no layer runs, or a layer's outputs don't scale
            with its weights. Some weights may have been changed by then.

    Reference:
        Dmytro Mishkin, Jiri Matas: All you need is a good init, ICLR 2016, arXiv:1511.06422.

    >>> network = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 5))
    >>> result = lsuv_(network, 10 * torch.randn(64, 20))
    >>> {name: round(variance, 3) for name, variance in result.variances.items()}
    {'0': 1.0, '2': 1.0}
    """
    check_range("tolerance", tolerance, low=0, low_open=True)
    check_count("max_iterations", max_iterations)
    scaling = _Scaling(module, tolerance, orthogonal=orthogonal)
    with _observed(module, scaling.names, scaling.scale, scaling.prepare):
        for _ in range(max_iterations + 1):  # the last one only checks
            scaling.restart()
            _run(module, inputs)
            if not scaling.outside:
                break
    if not scaling.variances:
        raise SettingError("module must run at least one linear or convolutional layer on the inputs, but runs none")
    if scaling.outside:
        raise SettingError(
            f"module must have layers whose outputs follow their weights, but after max_iterations={max_iterations} "
            f"the variance of {', '.join(scaling.outside)} is not within {tolerance} of 1"
        )
    return LSUVResult(scaling.variances, [name for name in scaling.names.values() if name not in scaling.variances])


class _Scaling:
    """Scales layers as they run, and records their variances."""

    def __init__(self, module: nn.Module, tolerance: float, *, orthogonal: bool) -> None:
        self.names: dict[nn.Module, str] = {
            submodule: name for name, submodule in module.named_modules() if isinstance(submodule, WEIGHT_LAYERS)
        }
        for layer, name in self.names.items():
            layer_weights(layer, name)  # raises if a weight can't be scaled
        # Scaling an embedding's weights in the layer that shares them would change outputs of earlier modules.
        self.foreign = {
            parameter
            for submodule in module.modules()
            if submodule not in self.names
            for parameter in submodule.parameters(recurse=False)
        }
        self.tolerance = tolerance
        self.unprepared = set(self.names) if orthogonal else set()
        self.restart()

    def restart(self) -> None:
        self.variances: dict[str, float] = {}
        self.outside: list[str] = []
        self.done = set(self.foreign)

    def prepare(self, layer: nn.Module) -> None:
        if layer in self.unprepared and layer.get_parameter("weight") not in self.done:
            self.unprepared.discard(layer)
            initialize_(layer, "orthogonal", nn.Identity())

    def scale(self, layer: nn.Module, output: Tensor) -> Tensor | None:
        weight = layer.get_parameter("weight")
        if weight in self.done:  # a layer that runs again, or shares its weights with one that ran
            return None
        self.done.add(weight)
        name = self.names[layer]
        mean, variance = _mean_and_variance(output)
        if not math.isfinite(variance) or variance <= (8 * _EPSILON * mean) ** 2:  # rounding errors of a constant
            what = f"all {mean:.4g}" if math.isfinite(variance) else "not finite"
            raise SettingError(f"inputs must let the outputs of every layer vary, but those of {name!r} are {what}")
        self.variances[name] = variance
        if abs(variance - 1) <= self.tolerance:
            return None
        self.outside.append(name)
        weight.div_(math.sqrt(variance))
        if layer.bias is not None:
            layer.get_parameter("bias").div_(math.sqrt(variance))
        return output / math.sqrt(variance)


def activation_scale(
    module: nn.Module, inputs: Inputs, *, types: type[nn.Module] | tuple[type[nn.Module], ...] = WEIGHT_LAYERS
) -> dict[str, tuple[float, float]]:
    """Returns mean and standard deviation of the outputs of a network's layers for a batch.

    The network runs as in :func:`lsuv_`, and isn't changed.

    Args:
        module: The network, whose ``forward`` takes the inputs.
        inputs: A batch (N, ...), on the module's device; a tuple where there are several arguments.
        types: Classes of the layers; by default linear and convolutional ones, whose outputs are before norm and
            activation.

    Returns:
        (mean, standard deviation) by the layer's name, in the order in which they first run; those of the first call
        for a layer that runs several times.

    Raises:
        SettingError: If a layer returns something other than a tensor.

    >>> network = nn.Sequential(nn.Linear(100, 400), nn.ReLU())
    >>> initialize_(network, "kaiming_normal", nn.ReLU())
    >>> 1.3 < activation_scale(network, torch.randn(64, 100))["0"][1] < 1.5
    True
    """
    names = {submodule: name for name, submodule in module.named_modules() if isinstance(submodule, types)}
    scales: dict[str, tuple[float, float]] = {}

    def record(layer: nn.Module, output: Any) -> None:
        name = names[layer]
        if not isinstance(output, Tensor):
            raise SettingError(
                f"types must choose layers that return tensors, but {name!r} returns a {type(output).__name__}"
            )
        if name not in scales:
            mean, variance = _mean_and_variance(output)
            scales[name] = (mean, math.sqrt(variance))

    with _observed(module, names, record):
        _run(module, inputs)
    return scales


def _mean_and_variance(output: Tensor) -> tuple[float, float]:
    variance, mean = torch.var_mean(output.to(torch.promote_types(output.dtype, torch.float32)), correction=0)
    return mean.item(), variance.item()


def _run(module: nn.Module, inputs: Inputs) -> None:
    # Compiled graphs would be recompiled for the hooks; there are none if the compiler wasn't loaded.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.no_grad(), eager:
        module(*inputs) if isinstance(inputs, tuple) else module(inputs)


@contextmanager
def _observed(
    module: nn.Module,
    layers: Iterable[nn.Module],
    after: Callable[[nn.Module, Tensor], Tensor | None],
    before: Callable[[nn.Module], None] | None = None,
) -> Iterator[None]:
    """Calls functions before and after layers run, with norms alone in training mode, and restores everything."""
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    norms = [submodule for submodule in module.modules() if isinstance(submodule, nn.modules.batchnorm._NormBase)]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    handles: list[RemovableHandle] = []
    try:
        for submodule, _ in modes:
            submodule.training = isinstance(submodule, nn.modules.batchnorm._NormBase)
        for layer in layers:
            if before is not None:
                handles.append(layer.register_forward_pre_hook(lambda layer, _: before(layer)))
            # Before all other hooks, which then get the output that the scaled layer would return.
            handles.append(layer.register_forward_hook(lambda layer, _, output: after(layer, output), prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for submodule, mode in modes:
            submodule.training = mode
        with torch.no_grad():
            for buffer, before_pass in statistics:
                buffer.copy_(before_pass)
