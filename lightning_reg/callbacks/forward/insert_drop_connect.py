"""DropConnect in a network that was built without."""

from collections.abc import Sequence

from torch import nn
from typing_extensions import override

from lightning_reg.callbacks.forward.dropped_weights import SUITED, drop_weights, has_plain_weights
from lightning_reg.callbacks.forward.insertion import StochasticSession, check_stochastic
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.step import Run

__all__ = ["InsertDropConnect"]


class InsertDropConnect(Surgery):
    """Drops weights of linear and convolutional layers of an existing network at random in training.

    What it does: in every forward pass in training, a new mask sets weights to zero and the rest is divided by the
    probability to be kept. Parameters, their names and checkpoints are those of the plain layer; when training ends,
    the layers are plain again.

    When to use: fully connected layers of small networks. When not: beside weight constraints that have to hold for the
    weights in use, such as ``SpectralNormalization``.

    Cost: one pass over the chosen weights in the forward and in the backward pass, and a mask of them. No state.

    Interacts with: torch.compile, whose graphs contain it. Its random numbers depend on seed, rank, epoch and batch.
    ``DropoutSchedule`` moves its rate.

    Deviates from the paper: one mask for the whole batch, and the inverted form rather than the paper's approximation
    of the mean at test time.

    Args:
        p: Probability that a weight is dropped, in [0, 1].
        include: Globs over names of layers; all of the supported types where empty.
        exclude: Globs over names of layers that are left out.
        types: Classes of layers, or their names: Linear, Conv1d, Conv2d, Conv3d; all four where empty.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If ``p`` is out of its range, a pattern matches nothing, or there is no such layer.

    Reference:
        Li Wan et al.: Regularization of Neural Networks using DropConnect, ICML 2013.

    >>> InsertDropConnect(p=0.3, include=("classifier.*",)).p
    0.3
    """

    usual_ranges = (Linear("p", 0.05, 0.5),)
    suited = SUITED

    def __init__(
        self,
        *,
        p: float = 0.1,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        seed: int | None = None,
    ) -> None:
        check_stochastic(p, seed)
        super().__init__(include=include or ("*",), exclude=exclude, types=types)
        self.p = p
        self.seed = seed

    @override
    def suits(self, module: nn.Module) -> bool:
        return has_plain_weights(module)

    @override
    def new_session(self, run: Run) -> StochasticSession:
        session = StochasticSession(self, run, seed=self.seed)
        drop_weights(session, self.p, "DropConnect")
        return session
