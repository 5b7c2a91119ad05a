"""LayerDrop: skips whole blocks, for all samples of a batch."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.autograd import is_traced_or_transformed
from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn.layers.dropout import RatedLayer
from lightning_reg.nn.layers.stochastic import uniform_from
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import SettingError, check_range

__all__ = ["LayerDrop", "SkippedBlock", "left_out"]


class LayerDrop(nn.Sequential):
    """Blocks one behind the other, each of which is left out of a training step with probability ``p``.

    What it does: a block that is left out isn't run, for the whole batch: its input passes to the next block. Nothing
    is rescaled; in evaluation all blocks run. The gradients of its weights are then 0 rather than None, so that several
    processes can train it. Compiled code computes all blocks, and discards the results of those left out. Names of
    weights are those of ``torch.nn.Sequential``.

    When to use: in deep networks of equal residual blocks, for speed, and so that blocks can be removed afterwards.
    When not: few blocks; blocks that aren't residual; sharded weights, whose processes have to run the same blocks.

    Args:
        blocks: Modules whose outputs have the shape of their inputs.
        p: Probability that a block is left out, in [0, 1]; 0.1 to 0.2 is usual.

    Raises:
        SettingError: If ``p`` is out of range, or a block changes the shape.

    Reference:
        Angela Fan, Edouard Grave, Armand Joulin: Reducing Transformer Depth on Demand with Structured Dropout, ICLR
        2020, arXiv:1909.11556.

    >>> network = LayerDrop(nn.Tanh(), nn.Tanh(), p=1.0)
    >>> network(torch.ones(2)), network.eval()(torch.zeros(2))
    (tensor([1., 1.]), tensor([0., 0.]))
    """

    stream: NoiseStream | None = None
    """Source of random numbers; torch's global stream where None."""

    def __init__(self, *blocks: nn.Module, p: float = 0.2) -> None:
        check_range("p", p, low=0, high=1)
        super().__init__(*blocks)
        self.p = p

    @override
    @traced_whole
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return self._all(input)
        # On the host, which decides whether a block runs.
        numbers = uniform_from(self.stream, input.new_empty(0, device="cpu"), (len(self),))
        is_masked = is_traced_or_transformed()
        for block, number in zip(self, numbers, strict=True):
            if is_masked:
                input = torch.where(number.to(input.device) < self.p, input, self._run(block, input))
            elif number < self.p:
                input = left_out(input, block)
            else:
                input = self._run(block, input)
        return input

    def _all(self, inputs: Tensor) -> Tensor:
        for block in self:
            inputs = block(inputs)
        return inputs

    def _run(self, block: nn.Module, inputs: Tensor) -> Tensor:
        outputs = block(inputs)
        if not isinstance(outputs, Tensor) or outputs.shape != inputs.shape:
            kind = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise SettingError(
                f"blocks must return a tensor of the shape of their inputs, but a {type(block).__name__} makes {kind} "
                f"of {tuple(inputs.shape)}"
            )
        return outputs

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:.4g}"


class SkippedBlock(RatedLayer):
    """Replaces a block's output by its input, at random for a whole batch.

    Args:
        p: Probability that the output is replaced, in [0, 1].

    >>> SkippedBlock(1.0).perturb_block(torch.zeros(2), torch.ones(2))
    tensor([0., 0.])
    """

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        return self.perturb_block(torch.zeros_like(inputs), inputs)

    @override
    def perturb_block(self, start: Tensor, end: Tensor) -> Tensor:
        return torch.where(self.draw("bernoulli", end, (), 1 - self.p) > 0, end, start)


def left_out(inputs: Tensor, block: nn.Module) -> Tensor:
    """Returns the inputs of a block that isn't run, and gives its weights gradients of 0.

    >>> block, inputs = nn.Linear(2, 2), torch.ones(1, 2)
    >>> left_out(inputs, block).sum().backward()
    >>> block.bias.grad
    tensor([0., 0.])
    """
    weights = [weight for weight in block.parameters() if weight.requires_grad]
    if not weights or not torch.is_grad_enabled():
        return inputs
    outputs: Tensor = _LeftOut.apply(inputs, *weights)
    return outputs


class _LeftOut(Function):
    @staticmethod
    @override
    def forward(ctx: Any, inputs: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(*weights)
        return inputs.view_as(inputs)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *map(torch.zeros_like, ctx.saved_tensors)
