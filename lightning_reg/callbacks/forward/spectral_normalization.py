"""Weights divided by their largest singular value."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.utils import parametrizations
from typing_extensions import override

from lightning_reg.callbacks.forward.reparametrization import reparametrized
from lightning_reg.callbacks.forward.surgery import Surgery, SurgerySession
from lightning_reg.core.step import Run
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["SpectralNormalization"]


class SpectralNormalization(Surgery):
    """Divides weights of an existing network by their largest singular value, so that no layer stretches anything.

    What it does: the chosen layers compute with W / σ(W), as torch's ``spectral_norm`` does; σ is tracked by power
    iteration. The module keeps it after training: it is part of the function that was learned. Checkpoints hold the
    parametrization's own names and load with the callback; to have plain weights again, call
    ``torch.nn.utils.parametrize.remove_parametrizations``.

    When to use: discriminators of GANs; networks that should be smooth, for robustness or uncertainty. When not: before
    BatchNorm, which rescales whatever comes in.

    Cost: in training ``n_power_iterations`` products of each weight with two vectors per forward pass; two vectors a
    layer as state.

    Interacts with: averages of weights; ours average the plain weights and recompute the vectors, Lightning's can't be
    combined with it. Penalties and decay act on the plain weights, and so change only the step size. ``init="lsuv"``
    and ``InsertDropConnect`` can't be combined with it. Activation checkpointing iterates once more where it recomputes
    a layer, as it does with torch's.

    As in the paper, a convolution's weight counts as the matrix (out, in · kernel), whose norm isn't that of the layer.

    Args:
        include: Globs over names of layers.
        exclude: Globs over names of layers that are left out.
        types: Classes of layers, or their names; linear and convolutional ones where empty.
        n_power_iterations: Iterations per forward pass in training, at least 1.
        eps: Smallest norm that a vector is divided by, positive.
        seed: Seed of the vectors that power iteration starts from; that of ``seed_everything`` where None.

    Raises:
        SettingError: If a setting is out of its range, a pattern matches nothing, a weight has one dimension or is 0
            throughout as training begins, or a callback drops weights of the layer or averages copies of the module.

    Reference:
        Takeru Miyato et al.: Spectral Normalization for Generative Adversarial Networks, ICLR 2018, arXiv:1802.05957.

    >>> SpectralNormalization(include=("discriminator.*",)).n_power_iterations
    1
    """

    suited = "Linear, Conv"
    by_default = (nn.Linear, nn.modules.conv._ConvNd)
    lasts = True
    renames_weights = True

    def __init__(
        self,
        *,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        seed: int | None = None,
    ) -> None:
        check_count("n_power_iterations", n_power_iterations, high=10**4)
        check_range("eps", eps, low=0, low_open=True)
        check_seed(seed)
        super().__init__(include=include, exclude=exclude, types=types)
        self.n_power_iterations = n_power_iterations
        self.eps = eps
        self.seed = seed

    @override
    def new_session(self, run: Run) -> SurgerySession:
        kind = parametrizations._SpectralNorm
        return reparametrized(self, run, self._register, parametrization=kind, adjective="spectrally normalized")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        # Not at registration: a checkpoint may bring other weights than those that the module was made with.
        for name, layer in self.selected(pl_module).items():
            weight = layer.parametrizations.weight.original  # type: ignore[union-attr]
            if weight.numel() and not weight.any():  # type: ignore[operator]
                raise SettingError(
                    f"exclude must name {name}, whose weights are all 0: divided by their largest singular value, "
                    "which is 0, they would be NaN"
                )

    def _register(self, layer: nn.Module, name: str) -> None:
        # Power iteration starts from vectors of a stream of its own, the same in every process.
        seed = random_stream(base_seed(self.seed), "spectral normalization", name).getrandbits(63)
        device = next(layer.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            parametrizations.spectral_norm(layer, "weight", self.n_power_iterations, self.eps)
