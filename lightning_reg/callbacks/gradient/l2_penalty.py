"""L2 penalty on weights."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_reg.attach.gradients import AccumulationWindow, instance_suffix, refuse_closure_optimizers
from lightning_reg.attach.selection import select_parameters
from lightning_reg.functional.penalties import add_l2_gradient_, l2_penalty
from lightning_reg.settings import check_range

__all__ = ["L2Penalty"]


class L2Penalty(Callback):
    """Pulls weights toward zero in proportion to their size: λ/2 Σw² joins the loss.

    What it does: adds λw to the gradients before every optimizer step, without a graph. The result is that of the
    penalty written into the loss, under gradient accumulation, mixed precision, DDP and manual optimization too,
    while the loss that the module logs stays clean.

    When to use: with SGD, or where the penalty should pass through the optimizer like any other part of the loss.
    When not: with Adam and its relatives, whose adaptive steps undo most of it; there decoupled decay (AdamW's
    ``weight_decay``) is what is usually meant.

    Cost: reads weights and gradients and writes gradients once per optimizer step. No state.

    Args:
        weight: Strength λ, at least 0; 1e-5 to 1e-3 is usual.
        include: Globs over parameter names that are penalised.
        exclude: Globs over parameter names that are not.
        exclude_norm_and_bias: Whether biases and the parameters of normalization layers are spared.

    Logs:
        ``penalty/l2``: its value, at the steps the trainer logs; of several instances ``penalty/l2_1`` and so on.

    Raises:
        SettingError: If ``weight`` is negative or not finite, a glob matches nothing, or the optimizer is LBFGS.

    Reference:
        Anders Krogh, John A. Hertz: A Simple Weight Decay Can Improve Generalization, NeurIPS 1991.

    >>> L2Penalty(weight=1e-4, exclude=("head.*",)).weight
    0.0001
    """

    def __init__(
        self,
        *,
        weight: float,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        exclude_norm_and_bias: bool = True,
    ) -> None:
        check_range("weight", weight, low=0)
        self.weight = weight
        self.include = tuple(include)
        self.exclude = tuple(exclude)
        self.exclude_norm_and_bias = exclude_norm_and_bias
        self._penalised: list[nn.Parameter] = []
        self._window = AccumulationWindow()
        self._tag = "penalty/l2"

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_closure_optimizers(trainer, "L2Penalty")
        selected = select_parameters(
            pl_module,
            include=self.include,
            exclude=self.exclude,
            exclude_norm_and_bias=self.exclude_norm_and_bias,
        )
        self._penalised = list(selected.values())
        self._window = AccumulationWindow()
        self._tag = f"penalty/l2{instance_suffix(trainer, self)}"

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._window.count()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        factor = self._window.close(trainer, optimizer)
        if self.weight == 0 or (isinstance(factor, float) and factor == 0):
            return
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        # Asked anew at each step, because layers may be frozen and thawed in between.
        weights = [weight for weight in self._penalised if weight in stepped and weight.requires_grad]
        if weights:
            add_l2_gradient_([_dense_gradient(weight) for weight in weights], weights, factor * self.weight)
        if trainer._logger_connector.should_update_logs:
            # Of all optimizers together; of none while everything is frozen.
            trainable = [weight.detach() for weight in self._penalised if weight.requires_grad]
            if trainable:
                pl_module.log(self._tag, l2_penalty(trainable, self.weight))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._penalised = []  # else the callback would keep the network alive

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._penalised = []  # teardown isn't called when an exception ends the fit


def _dense_gradient(parameter: nn.Parameter) -> Tensor:
    """Returns a gradient that a penalty of all weights can be added to.

    It has one even where the loss has none: a branch that this batch didn't take, rows that it didn't look up.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    elif parameter.grad.is_sparse:
        parameter.grad = parameter.grad.to_dense()
    return parameter.grad
