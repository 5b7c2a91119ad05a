"""Soft orthogonality of weight matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.gradient.weight_penalty import PenaltySession, WeightPenalty
from lightning_reg.core.facts import Log
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.step import Run
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.functional.gradient.orthogonality import (
    add_orthogonal_gradient_,
    add_probed_orthogonal_gradient_,
    orthogonal_penalty,
    probed_orthogonal_penalty,
)
from lightning_reg.settings import check_count, check_range

__all__ = ["OrthogonalPenalty"]


class OrthogonalPenalty(WeightPenalty):
    """Pulls the rows of every weight matrix toward being orthonormal: λ ‖W Wᵀ − I‖² joins the loss.

    What it does: adds 4λ (W Wᵀ − I) W to the gradients before every optimizer step, without a graph; the filters of a
    convolution are rows, too. Where a matrix has more rows than columns it is the columns that become orthonormal.

    When to use: in deep or recurrent networks, to preserve the norm of signals and gradients; against filters that
    duplicate one another. When not: together with weight decay on the same weights, which pulls the other way.

    Interacts with: stacked matrices, such as the in_proj_weight of attention or the gates of a recurrent layer: they
    are taken as one, and so made orthogonal to each other; exclude them if that isn't meant.

    Cost: two matrix products per weight matrix and optimizer step: for (rows × columns), 4 · rows · columns ·
    min(rows, columns) operations. No state.

    With ``probes`` r, about 8 · rows · columns · r operations instead: the penalty is estimated from r random vectors,
    without bias, anew at every step.

    Deviates from the paper: only its soft orthogonality, none of its spectral or mutual-coherence variants.

    Args:
        weight: Strength λ, at least 0; 1e-4 to 1e-2 is usual.
        include: Globs over names of parameters that are penalized.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of the strength over the course of training; constant where None.
        probes: Number r of random vectors for each matrix from which the penalty is estimated, at least 1; computed
            exactly where None.
        seed: Seed of the random vectors; where None, that of ``seed_everything``, or 0.

    Logs:
        ``penalty/orthogonal``, its value, and ``penalty/orthogonal_share``, its share of loss plus penalty, at the
        steps the trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, nothing selected has two
            dimensions, weights are sharded, or the optimizer is LBFGS.

    Reference:
        Nitin Bansal, Xiaohan Chen, Zhangyang Wang: Can We Gain More from Orthogonality Regularizations in Training Deep
        CNNs?, NeurIPS 2018, arXiv:1810.09102.

    >>> OrthogonalPenalty(weight=1e-3).weight
    0.001
    """

    tag = "orthogonal"
    usual_ranges = (Log("weight", 1e-4, 1e-2),)
    by_unit = True

    def __init__(
        self,
        *,
        weight: float,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
        schedule: StrengthSchedule | None = None,
        probes: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_range("weight", weight, low=0)
        if probes is not None:
            check_count("probes", probes, high=10**4)
        check_seed(seed)
        super().__init__(
            include=include,
            exclude=exclude,
            exclude_norm_and_bias=exclude_norm_and_bias,
            schedule=schedule,
        )
        self.weight = weight
        self.probes = probes
        self.seed = seed

    @property
    @override
    def adds_gradient(self) -> bool:
        return self.weight > 0

    @override
    def value(self, weights: list[Tensor]) -> Tensor:
        return orthogonal_penalty(weights, self.weight)

    @override
    def add_gradient_(self, weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor) -> None:
        add_orthogonal_gradient_(gradients, weights, self.weight * factor)

    @override
    def new_session(self, run: Run) -> PenaltySession:
        return PenaltySession(self, run) if self.probes is None else ProbedSession(self, run)


@dataclass(eq=False)
class ProbedSession(PenaltySession):
    """One fit of the estimated penalty, with vectors that depend only on the seed and the step."""

    technique: OrthogonalPenalty

    @override
    def value(self, parameters: list[nn.Parameter], weights: list[Tensor]) -> Tensor:
        return probed_orthogonal_penalty(weights, self._vectors(parameters, weights), self.technique.weight)

    @override
    def add_gradient_(
        self, parameters: list[nn.Parameter], weights: list[Tensor], gradients: list[Tensor], factor: float | Tensor
    ) -> None:
        vectors = self._vectors(parameters, weights)
        add_probed_orthogonal_gradient_(gradients, weights, vectors, self.technique.weight * factor)

    def _vectors(self, parameters: list[nn.Parameter], weights: list[Tensor]) -> list[Tensor]:
        step = self.run.trainer.global_step
        return [
            self._drawn(
                weight, random_stream(base_seed(self.technique.seed), step, "orthogonal", self.selection.names[p])
            )
            for p, weight in zip(parameters, weights, strict=True)
        ]

    def _drawn(self, weight: Tensor, stream: Random) -> Tensor:
        """Returns vectors (s, r) from N(0, I), where s is the smaller of rows and columns."""
        generator = torch.Generator(weight.device).manual_seed(stream.getrandbits(63))
        size = min(len(weight), weight[0].numel())
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.randn(size, self.technique.probes or 0, dtype=dtype, device=weight.device, generator=generator)
