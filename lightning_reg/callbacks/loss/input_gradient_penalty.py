"""A penalty on the gradient of the loss by the inputs."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.loss.input_term import InputTermSession
from lightning_reg.callbacks.loss.loss_term import LossTerm
from lightning_reg.core.batches import Key, check_key
from lightning_reg.core.facts import Log
from lightning_reg.core.lightning import scaler_scale
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.functional.loss.input_penalties import input_gradient_penalty
from lightning_reg.settings import check_range

__all__ = ["InputGradientPenalty"]


class InputGradientPenalty(LossTerm):
    """Penalizes how fast the loss changes with the inputs: double backpropagation.

    What it does: the training step gets inputs that require a gradient, and λ times the mean over samples of ‖∂ℓ/∂x‖²
    joins the loss that goes into backward, with ℓ the sample's own loss. The user's batch, and the loss that the module
    logs, aren't changed.

    When to use: against small perturbations of the inputs, on small data sets, for less noisy explanations by
    gradients. When not: where a step's time is short; on integer inputs; where the loss is a sum over samples rather
    than a mean; for accuracy on clean inputs, which it didn't raise in the study ``wave2_loss``.

    Cost: about two more backward passes, and the memory of their graph. No state.

    Interacts with: attention, whose fused kernels have no second derivative and are plain operations instead, outside
    of activation checkpointing, and cuDNN's recurrent layers, which have none either and which torch names in its
    error. ``nn.ReLU`` has one almost everywhere. What other terms add to the loss before this one sees it is part of ℓ.

    Args:
        weight: Strength λ, at least 0; 0.01 to 10 is usual for standardized inputs.
        input_key: Position of the inputs in a batch: an index, a name, or a getter and a setter.
        schedule: Factor of the strength over the course of training; constant where None.

    Logs:
        ``penalty/input_gradient``, its value, and ``penalty/input_gradient_share``, its share of loss plus penalty, at
        the steps the trainer logs.

    Raises:
        SettingError: If ``weight`` is negative or not finite, the module optimizes manually or is compiled, or weights
            are sharded; at the first batch, if its inputs aren't of a floating dtype, or the loss doesn't depend on
            them.

    Reference:
        Harris Drucker, Yann Le Cun: Improving Generalization Performance Using Double Backpropagation, IEEE
        Transactions on Neural Networks, 1992. Andrew Ross, Finale Doshi-Velez: Improving the Adversarial Robustness and
        Interpretability of Deep Neural Networks by Regularizing Their Input Gradients, AAAI 2018, arXiv:1711.09404.

    >>> InputGradientPenalty(weight=0.1).weight
    0.1
    """

    tag = "input_gradient"
    usual_ranges = (Log("weight", 1e-3, 10.0),)

    def __init__(self, *, weight: float, input_key: Key = 0, schedule: StrengthSchedule | None = None) -> None:
        check_range("weight", weight, low=0)
        check_key("input_key", input_key)
        super().__init__(schedule=schedule)
        self.weight = weight
        self.input_key = input_key

    @property
    @override
    def is_idle(self) -> bool:
        return self.weight == 0

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return InputGradientSession(self, run, self.input_key)


@dataclass(eq=False)
class InputGradientSession(InputTermSession):
    """One fit of the input gradient penalty."""

    technique: InputGradientPenalty

    @override
    def by_inputs(self, loss: Tensor) -> Tensor:
        scale = scaler_scale(self.run.trainer, loss.device)
        if scale is None:
            return input_gradient_penalty(loss, self.inputs, self.technique.weight)
        # Gradients by activations in 16 bits would underflow, as those of the loss would.
        return input_gradient_penalty(scale * loss, self.inputs, self.technique.weight) / scale.square()
