"""DropBlock in a network that was built without."""

from collections.abc import Sequence

from typing_extensions import override

from lightning_reg.callbacks.forward.insertion import StochasticSession, check_insertion, inserted
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.step import Run
from lightning_reg.nn import DropBlock
from lightning_reg.nn.layers.stochastic import StochasticLayer
from lightning_reg.settings import check_count

__all__ = ["InsertDropBlock"]


class InsertDropBlock(Surgery):
    """Drops blocks of the feature maps of an existing network in training.

    What it does: the outputs of the chosen modules lose neighboring units together, at exactly the given rate, whatever
    the size of the maps. Nothing is added to the module's children or its checkpoints; when training ends, it is gone.

    When to use: behind the later stages of convolutional networks, where dropout of single units is undone by their
    neighbors; with a rate that rises (``DropoutSchedule``). When not: on features without positions.

    Cost: a random number for each unit of these outputs, a few passes over bytes, one over the outputs forward and one
    backward. No state.

    Interacts with: torch.compile, which recompiles what it had compiled before. Its random numbers depend on seed,
    rank, epoch and batch.

    Deviates from the paper: seeds may lie anywhere, and survivors are divided by their own probability to survive, so
    that rate and expectation are exact at borders and on small maps, too.

    Args:
        p: Share of units that is dropped, in [0, 1].
        block_size: Side of a block, at least 1; may be even, and larger than the map.
        per_channel: Whether each channel drops blocks of its own; else all drop the same, which is cheaper.
        include: Globs over names of modules behind which DropBlock is inserted; where empty, ``types`` alone choose.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names, such as ``"BasicBlock"``; all that ``include`` chooses where empty.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If a setting is out of its range, nothing is chosen, a pattern matches nothing, or what a module
            returns isn't (N, C, ...) with one to three dimensions of positions.

    Reference:
        Golnaz Ghiasi, Tsung-Yi Lin, Quoc V. Le: DropBlock: A regularization method for convolutional networks, NeurIPS
        2018, arXiv:1810.12890.

    >>> InsertDropBlock(p=0.1, include=("layer3", "layer4")).block_size
    7
    """

    usual_ranges = (Linear("p", 0.05, 0.25),)

    def __init__(
        self,
        *,
        p: float = 0.1,
        block_size: int = 7,
        per_channel: bool = True,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        seed: int | None = None,
    ) -> None:
        check_count("block_size", block_size)
        check_insertion(p, seed, include, types)
        super().__init__(include=include or ("*",), exclude=exclude, types=types)
        self.p = p
        self.seed = seed
        self.block_size = block_size
        self.per_channel = per_channel

    @override
    def new_session(self, run: Run) -> StochasticSession:
        return inserted(self, run, self._layer, seed=self.seed)

    def _layer(self, index: int, count: int) -> StochasticLayer:
        return DropBlock(self.p, block_size=self.block_size, per_channel=self.per_channel)
