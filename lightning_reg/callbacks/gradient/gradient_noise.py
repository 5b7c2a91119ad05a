"""Gaussian noise on gradients."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.gradients import dense_gradient, gradient_scale, local, optimizer_index, parameters_of
from lightning_reg.attach.schedules import ScheduledStrength, StrengthSchedule, check_schedule
from lightning_reg.attach.selection import as_patterns, select_parameters
from lightning_reg.attach.streams import base_seed, random_stream
from lightning_reg.attach.technique import GradientTechnique, Position, instance_number, instance_suffix, logs_now
from lightning_reg.functional.gradients import add_noise_
from lightning_reg.settings import check_count, check_range

__all__ = ["GradientNoise"]


class GradientNoise(GradientTechnique):
    """Adds Gaussian noise to gradients, which fades as training goes on: variance η / (1 + t)^γ at step t.

    What it does: adds independent noise to every entry of every gradient before the optimizer's step, after penalties
    and before clipping. The noise depends on the seed and the step alone: all processes add the same, a resumed run
    adds what the uninterrupted one would have, and the global random stream is left alone.

    Sparse gradients get none.

    When to use: for deep or hard-to-start networks, against bad initial weights and sharp minima. When not: with small
    batches, whose gradients are noisy enough.

    Cost: draws as many random numbers as there are weights, per optimizer step. No state.

    Args:
        eta: η, variance at the first step, at least 0, in squared units of the gradient; 0.01, 0.3 and 1 are the
            paper's.
        gamma: γ, how fast it fades, at least 0.
        seed: Of the noise; where None, that of ``seed_everything``, or 0.
        include: Globs over parameter names that noise is added to.
        exclude: Globs over parameter names that it isn't.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared.
        schedule: What the standard deviation is multiplied by as training goes on, beside its fading.

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

    position = Position.NOISE

    def __init__(
        self,
        *,
        eta: float = 0.01,
        gamma: float = 0.55,
        seed: int | None = None,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = False,
        schedule: StrengthSchedule | None = None,
    ) -> None:
        check_range("eta", eta, low=0)
        check_range("gamma", gamma, low=0)
        check_schedule(schedule)
        if seed is not None:
            check_count("seed", seed, low=0)
        super().__init__()
        self.eta = eta
        self.gamma = gamma
        self.seed = seed
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self.schedule = schedule
        self._chosen: set[nn.Parameter] = set()
        self._strength = ScheduledStrength()
        self._suffix = ""

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        selected = select_parameters(
            pl_module,
            include=self.include,
            exclude=self.exclude,
            exclude_norm_and_bias=self.exclude_norm_and_bias,
        )
        self._chosen = set(selected.values())
        self._strength = ScheduledStrength(self.schedule, trainer)
        self._suffix = instance_suffix(trainer, self)

    @override
    def release(self) -> None:
        self._chosen = set()

    @override
    def before_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        step = trainer.global_step
        deviation = (self.eta / (1 + step) ** self.gamma) ** 0.5 * self._strength.now(trainer)
        if logs_now(trainer):
            pl_module.log(f"grad/noise{self._suffix}", deviation)
            self._strength.log(pl_module, f"gradient_noise{self._suffix}")
        noisy = [
            each
            for each in parameters_of(optimizer)
            if each in self._chosen and each.grad is not None and not each.grad.is_sparse
        ]
        if not noisy or deviation == 0:
            return
        index = optimizer_index(trainer, optimizer)
        # Whole parameters get the same noise in every process, else they would drift apart; shards are different ones.
        part = trainer.global_rank if isinstance(noisy[0], DTensor) else 0
        stream = random_stream(
            base_seed(self.seed), part, step, "gradient noise", instance_number(trainer, self), index
        )
        gradients = [local(dense_gradient(each)) for each in noisy]
        generator = torch.Generator(gradients[0].device).manual_seed(stream.getrandbits(63))
        scale = gradient_scale(trainer, optimizer)
        add_noise_(gradients, deviation if scale is None else deviation * scale, generator)
