"""Random noise on gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from typing_extensions import override

from lightning_reg.core.facts import SCHEDULE_CHART, Log, Place, Position
from lightning_reg.core.gradients import dense_gradient, local, shard_of
from lightning_reg.core.lightning import instance_number
from lightning_reg.core.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.core.selection import Selection, as_patterns
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run, Step
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.core.technique import Technique
from lightning_reg.functional.gradient.gradient_noise import add_noise_, add_signs_
from lightning_reg.settings import check_choice, check_range

__all__ = ["GradientNoise"]


class GradientNoise(Technique):
    """Adds random noise to gradients, which fades as training goes on: variance η / (1 + t)^γ at step t.

    What it does: adds independent noise to every entry of every gradient before the optimizer's step, after penalties
    and before clipping (under manual optimization by ``self.clip_gradients``; torch's own, called in a training step,
    comes before it). The noise depends only on the seed and the step: all processes add the same noise, a resumed run
    continues that of the uninterrupted one, and the global random state isn't used. Sparse gradients get none, nor does
    the row of an embedding at its ``padding_idx``, which isn't trained.

    When to use: for deep or hard-to-start networks, against bad initial weights and sharp minima. When not: with small
    batches, whose gradients are noisy enough.

    Interacts with: masks on gradients, which hold for the noise, too, in the module's ``on_after_backward`` under
    automatic optimization, but not beside ``SharpnessAwareMinimization`` nor as hooks of tensors: use ``exclude``.

    Cost: draws as many random numbers as there are weights, per optimizer step. No state.

    Args:
        eta: Variance η at the first step, at least 0, in squared units of the gradient; 0.01, 0.3 and 1 are the
            paper's.
        gamma: Exponent γ of the decay, at least 0; 0.55 is the paper's.
        distribution: ``"normal"``, or ``"rademacher"``: σ or −σ with equal probability, which has the same first three
            moments and takes a fraction of the random numbers.
        seed: Seed of the noise; where None, that of ``seed_everything``, or 0.
        include: Globs over names of parameters that noise is added to.
        exclude: Globs over names of parameters that are left out.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are left out.
        schedule: Factor of the standard deviation over the course of training, beside its decay; constant where None.

    Logs:
        ``grad/noise``, the standard deviation, at the steps the trainer logs.

    Raises:
        SettingError: If ``eta`` or ``gamma`` is negative or not finite, a glob matches nothing, or the optimizer is
            LBFGS.

    Reference:
        Arvind Neelakantan, Luke Vilnis, Quoc V. Le, Ilya Sutskever, Lukasz Kaiser, Karol Kurach, James Martens: Adding
        Gradient Noise Improves Learning for Very Deep Networks, 2015, arXiv:1511.06807.

    >>> GradientNoise(eta=0.01).gamma
    0.55
    """

    place = Place.GRADIENT
    position = Position.NOISE
    charts = (SCHEDULE_CHART,)
    usual_ranges = (Log("eta", 1e-4, 1.0),)
    changes_gradients = True

    def __init__(
        self,
        *,
        eta: float = 0.01,
        gamma: float = 0.55,
        distribution: Literal["normal", "rademacher"] = "normal",
        seed: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = False,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("eta", eta, low=0)
        check_range("gamma", gamma, low=0)
        check_choice("distribution", distribution, ["normal", "rademacher"])
        check_schedule(schedule)
        check_seed(seed)
        super().__init__()
        self.eta = eta
        self.gamma = gamma
        self.distribution = distribution
        self.seed = seed
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self.schedule = schedule

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return NoiseSession(self, run)


@dataclass(eq=False)
class NoiseSession(Session[GradientNoise]):
    """One fit of gradient noise."""

    selection: Selection = field(init=False)
    strength: ScheduledStrength = field(init=False)
    padding: dict[nn.Parameter, list[int]] = field(init=False)  # rows of local shards that aren't trained
    names: dict[nn.Parameter, str] = field(init=False)  # of the selection when padding was looked for

    def __post_init__(self) -> None:
        technique = self.technique
        self.selection = Selection.by(technique, self.run.module)
        self.strength = ScheduledStrength(technique.schedule, self.run.trainer)
        self._find_padding()

    def _find_padding(self) -> None:
        self.names = self.selection.names
        self.padding = _padding_rows(self.run.module)

    @override
    def before_step(self, step: Step) -> None:
        technique, trainer = self.technique, self.run.trainer
        number = trainer.global_step
        deviation = (technique.eta / (1 + number) ** technique.gamma) ** 0.5 * self.strength.now(trainer)
        if step.logs:
            suffix = technique.suffix(trainer)
            step.log(f"grad/noise{suffix}", deviation)
            self.strength.log(self.run.module, f"gradient_noise{suffix}")
        chosen = self.selection.of(step.parameters)
        noisy = [parameter for parameter in chosen if parameter.grad is not None and not parameter.grad.is_sparse]
        if not noisy or deviation == 0:
            return
        if self.selection.names is not self.names:  # layers were replaced
            self._find_padding()
        # Copies of a shard on several processes get the same noise, else they would drift apart.
        shards: dict[tuple[int, ...], list[nn.Parameter]] = {}
        for parameter in noisy:
            shards.setdefault(shard_of(parameter), []).append(parameter)
        instance = instance_number(trainer, technique)
        add = add_noise_ if technique.distribution == "normal" else add_signs_
        for shard, parameters in shards.items():
            part = f"shard {shard}" if shard else 0
            stream = random_stream(base_seed(technique.seed), part, number, "gradient noise", instance, step.index)
            gradients = [local(dense_gradient(parameter)) for parameter in parameters]
            generator = torch.Generator(gradients[0].device).manual_seed(stream.getrandbits(63))
            padding = [
                gradient[row]
                for parameter, gradient in zip(parameters, gradients, strict=True)
                for row in self.padding.get(parameter, [])
            ]
            before = [row.clone() for row in padding]
            add(gradients, step.scaled(deviation), generator)
            for row, gradient in zip(padding, before, strict=True):
                row.copy_(gradient)


def _padding_rows(module: nn.Module) -> dict[nn.Parameter, list[int]]:
    """Returns the rows of embeddings' weights that belong to padding, counted in this process's shards."""
    rows: dict[nn.Parameter, list[int]] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.padding_idx is not None:
            for weight in layer.parameters():  # also the original of a parametrized one
                if weight.shape == (layer.num_embeddings, layer.embedding_dim):
                    rows.setdefault(weight, []).extend(_in_shard(layer.padding_idx, weight))
    return rows


def _in_shard(row: int, weight: nn.Parameter) -> list[int]:
    if not isinstance(weight, DTensor):
        return [row]
    placements = [placement if placement.is_shard(0) else Replicate() for placement in weight.placements]
    numbers = distribute_tensor(torch.arange(len(weight)), weight.device_mesh, placements).to_local()
    return numbers.eq(row).nonzero().flatten().tolist()
