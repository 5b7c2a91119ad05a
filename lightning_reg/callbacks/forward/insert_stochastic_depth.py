"""Stochastic depth in a residual network that was built without."""

from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from lightning_reg.callbacks.forward.insertion import StochasticSession, check_insertion, inserted
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.step import Run
from lightning_reg.nn import StochasticDepth, linear_rates
from lightning_reg.nn.layers.stochastic import StochasticLayer
from lightning_reg.settings import check_choice

__all__ = ["InsertStochasticDepth"]


class InsertStochasticDepth(Surgery):
    """Drops residual blocks of an existing network at random in training.

    What it does: with a probability that may grow with its depth, a block returns its input; else what it adds to the
    input is divided by the probability of being kept. Nothing is added to the module's children or its checkpoints.

    When to use: deep residual networks and transformers. When not: networks of few blocks, or without residual
    connections.

    Cost: one pass over each block's output in the forward and in the backward pass; blocks are computed all the same.
    No state.

    Interacts with: torch.compile, which recompiles what it had compiled before. Its random numbers depend on seed,
    rank, epoch and batch. ``DropoutSchedule`` moves its rates.

    In torchvision's ResNets, ``include=("*.bn2",), at="branch"`` names the ends of all branches (``"*.bn3"`` of
    bottlenecks); blocks that change the shape can't be skipped as a whole.

    Deviates from the paper: survivors are rescaled in training instead of all at test time. In a network that has an
    activation behind the sum, as ResNet has, the block is dropped together with it.

    Args:
        p: Probability that the last block is dropped, in [0, 1].
        include: Globs over names of residual blocks, or of modules at the end of residual branches, in the order of
            depth; where empty, ``types`` alone choose.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names, such as ``"EncoderBlock"``; all that ``include`` chooses where empty.
        at: ``"block"``: the modules are whole blocks, whose inputs and outputs have the same shape; ``"branch"``: each
            is the last module of a branch, whose output is added to something.
        rates: ``"linear"``: the l-th of L blocks is dropped with probability p·l/L; ``"constant"``: all with p.
        mode: ``"row"``: each sample drops a block by itself; ``"batch"``: all do or none.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If a setting is out of its range, nothing is chosen, a pattern matches nothing, or a block's input
            and output differ in shape.

    Reference:
        Gao Huang et al.: Deep Networks with Stochastic Depth, ECCV 2016, arXiv:1603.09382.

    >>> InsertStochasticDepth(p=0.2, types=("EncoderBlock",)).rates
    'linear'
    """

    usual_ranges = (Linear("p", 0.05, 0.5),)

    def __init__(
        self,
        *,
        p: float = 0.1,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        at: Literal["block", "branch"] = "block",
        rates: Literal["linear", "constant"] = "linear",
        mode: Literal["row", "batch"] = "row",
        seed: int | None = None,
    ) -> None:
        check_choice("at", at, ("block", "branch"))
        check_choice("rates", rates, ("linear", "constant"))
        check_choice("mode", mode, ("row", "batch"))
        check_insertion(p, seed, include, types)
        super().__init__(include=include or ("*",), exclude=exclude, types=types)
        self.p = p
        self.seed = seed
        self.at = at
        self.rates = rates
        self.mode = mode

    @override
    def new_session(self, run: Run) -> StochasticSession:
        return inserted(self, run, self._layer, seed=self.seed, residual=self.at == "block")

    def _layer(self, index: int, count: int) -> StochasticLayer:
        p = linear_rates(self.p, count)[index] if self.rates == "linear" else self.p
        return StochasticDepth(p, mode=self.mode)
