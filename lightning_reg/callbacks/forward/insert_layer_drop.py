"""LayerDrop in a network that was built without."""

from collections.abc import Sequence

from typing_extensions import override

from lightning_reg.callbacks.forward.insertion import StochasticSession, check_insertion, inserted
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.step import Run
from lightning_reg.nn.layers.layer_drop import SkippedBlock

__all__ = ["InsertLayerDrop"]


class InsertLayerDrop(Surgery):
    """Leaves whole residual blocks of an existing network out of training steps at random.

    What it does: with probability ``p`` a block returns its input, for the whole batch and with all its branches,
    whatever its depth; else it stays as it is, without being rescaled. Nothing is added to the module's children or its
    checkpoints. In evaluation, and when training has ended, all blocks count.

    When to use: deep transformers and residual networks, also so that blocks can be taken out afterwards. When not:
    networks of few blocks; ``InsertStochasticDepth``, which decides for each sample, disturbs a small batch less.

    Cost: one pass over each block's output in the forward and in the backward pass; blocks are computed all the same.
    The layer ``LayerDrop``, in a network of one's own, doesn't run the blocks that are left out. No state.

    Interacts with: torch.compile, which recompiles what it had compiled before. Its random numbers depend on seed,
    rank, epoch and batch, so that each process leaves out blocks of its own. ``DropoutSchedule`` moves its rate.

    Args:
        p: Probability that a block is left out, in [0, 1]; 0.1 to 0.2 is usual.
        include: Globs over names of residual blocks, whose inputs and outputs have the same shape; where empty,
            ``types`` alone choose.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names, such as ``"EncoderBlock"``; all that ``include`` chooses where empty.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If a setting is out of its range, nothing is chosen, a pattern matches nothing, or a block's input
            and output differ in shape.

    Reference:
        Angela Fan, Edouard Grave, Armand Joulin: Reducing Transformer Depth on Demand with Structured Dropout, ICLR
        2020, arXiv:1909.11556.

    >>> InsertLayerDrop(p=0.2, types=("TransformerEncoderLayer",)).p
    0.2
    """

    usual_ranges = (Linear("p", 0.05, 0.3),)

    def __init__(
        self,
        *,
        p: float = 0.2,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        seed: int | None = None,
    ) -> None:
        check_insertion(p, seed, include, types)
        super().__init__(include=include or ("*",), exclude=exclude, types=types)
        self.p = p
        self.seed = seed

    @override
    def new_session(self, run: Run) -> StochasticSession:
        return inserted(self, run, lambda *_: SkippedBlock(self.p), seed=self.seed, residual=True)
