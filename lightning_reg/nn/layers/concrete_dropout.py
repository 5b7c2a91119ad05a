"""Dropout that learns its own rate."""

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.functional.forward.concrete_dropout import concrete_mask, concrete_regularization
from lightning_reg.functional.forward.dropout import mask_shape
from lightning_reg.functional.forward.noise import NoiseStream, draw
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_range

__all__ = ["ConcreteDropout", "concrete_layers", "concrete_penalty"]


class ConcreteDropout(nn.Module):
    """A linear or convolutional layer whose inputs are dropped at a rate that is learned.

    The rate has a gradient because masks are nearly, but not exactly, 0 or 1. It needs a term in the loss
    (:func:`concrete_penalty`), without which it would only fall: the models of this package add it themselves, other
    LightningModules through the callback ``ConcreteDropoutPenalty``. Before a convolution, whole channels are dropped.

    Args:
        layer: Linear layer or convolution whose inputs are dropped.
        p: Initial rate, in (0, 1).
        length_scale: l ≥ 0, length scale of the prior over the layer's weights: how strongly the term pulls large
            weights toward smaller rates.
        temperature: Temperature of the mask, above 0; the smaller, the nearer it is to 0 and 1, and the noisier the
            gradient.

    Raises:
        SettingError: If a setting is out of range, or the layer is of another type.

    Reference:
        Yarin Gal, Jiri Hron, Alex Kendall: Concrete Dropout, NeurIPS 2017, arXiv:1705.07832. As there, survivors are
        divided by 1 − p, not by the mean of the relaxed mask.

    >>> layer = ConcreteDropout(nn.Linear(8, 4), p=0.25)
    >>> round(layer.p, 4)
    0.25
    """

    def __init__(
        self, layer: nn.Module, p: float = 0.1, *, length_scale: float = 0.01, temperature: float = 0.1
    ) -> None:
        super().__init__()
        check_range("p", p, low=0, high=1, low_open=True, high_open=True)
        check_range("length_scale", length_scale, low=0)
        check_range("temperature", temperature, low=0, low_open=True)
        if not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
            raise SettingError(f"layer must be a Linear or a convolution, but is a {type(layer).__name__}")
        self.layer = layer
        self.length_scale = length_scale
        self.temperature = temperature
        self.stream: NoiseStream | None = None
        self.p_logit = nn.Parameter(torch.tensor(math.log(p / (1 - p)), device=layer.weight.device))

    @property
    def p(self) -> float:
        """Current rate; reading it synchronizes with the device."""
        return self.p_logit.detach().sigmoid().item()

    def no_weight_decay(self) -> set[str]:
        """Returns the name of the rate's logit, which decay and penalties would pull toward p = 0.5."""
        return {"p_logit"}

    @property
    def num_inputs(self) -> int:
        """Number of units that are dropped independently: features, or channels."""
        return self.layer.in_features if isinstance(self.layer, nn.Linear) else int(self.layer.in_channels)

    def regularization(self, num_samples: int) -> Tensor:
        """Returns the penalty to add to a mean negative log likelihood, a scalar.

        Args:
            num_samples: Number of training samples.
        """
        return concrete_regularization(
            self.layer.weight,
            self.p_logit,
            self.num_inputs,
            length_scale=self.length_scale,
            num_samples=num_samples,
        )

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        """Runs the layer.

        Args:
            inputs: (N, ..., F) or (N, C, ...), as the layer takes them.
        """
        return self.layer(self._perturb(inputs) if self.training else inputs)  # type: ignore[no-any-return]

    def _perturb(self, inputs: Tensor) -> Tensor:
        spatial = () if isinstance(self.layer, nn.Linear) else range(2, inputs.ndim)
        source = draw if self.stream is None or not self.stream.serves(inputs) else self.stream.draw
        # In the parameter's precision: in 16 bits u would have few values, and the gradient of the rate large steps.
        uniform = source("uniform", self.p_logit.expand(()), mask_shape(inputs.shape, spatial))
        mask = concrete_mask(uniform, self.p_logit, self.temperature)
        return inputs * (mask / torch.sigmoid(-self.p_logit)).to(inputs.dtype)

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:.3g}, length_scale={self.length_scale}, temperature={self.temperature}"


def concrete_layers(module: nn.Module) -> dict[str, ConcreteDropout]:
    """Returns every ConcreteDropout layer of a module by qualified name."""
    return {name: submodule for name, submodule in module.named_modules() if isinstance(submodule, ConcreteDropout)}


def concrete_penalty(module: nn.Module, num_samples: int) -> Tensor:
    """Returns the sum of the penalties of all ConcreteDropout layers of a module, a scalar.

    Args:
        module: Module with at least one such layer.
        num_samples: Number of training samples.

    Raises:
        SettingError: If there is no such layer.

    >>> layer = ConcreteDropout(nn.Linear(4, 2, bias=False), p=0.5, length_scale=0.0)
    >>> round(concrete_penalty(layer, 4).item(), 4)  # -log 2
    -0.6931
    """
    layers = concrete_layers(module).values()
    if not layers:
        raise SettingError(f"module must have a ConcreteDropout layer, but {type(module).__name__} has none")
    return torch.stack([layer.regularization(num_samples) for layer in layers]).sum()
