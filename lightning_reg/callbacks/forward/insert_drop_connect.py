"""DropConnect in a network that was built without."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from lightning_reg.callbacks.forward.insertion import StochasticSession, check_stochastic
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.step import Run
from lightning_reg.nn.layers.drop_connect import DROP_CONNECTED, DropConnect, drop_connected, plain_again
from lightning_reg.settings import SettingError

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
        include: Globs over names of layers; all that can be where empty.
        exclude: Globs over names of layers that are left out.
        types: Classes of layers, or their names: Linear, Conv1d, Conv2d, Conv3d; all four where empty.
        seed: What random numbers start from; that of ``seed_everything`` where None.

    Raises:
        SettingError: If ``p`` is out of its range, a pattern matches nothing, or there is no such layer.

    Reference:
        Li Wan et al.: Regularization of Neural Networks using DropConnect, ICML 2013.

    >>> InsertDropConnect(p=0.3, include=("classifier.*",)).p
    0.3
    """

    usual_ranges = (Linear("p", 0.05, 0.5),)
    suited = ", ".join(kind.__name__ for kind in DROP_CONNECTED)

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
        # Torch's own alone: nobody knows how a subclass uses its weights.
        return type(module) in DROP_CONNECTED or (is_parametrized(module) and isinstance(module, tuple(DROP_CONNECTED)))

    @override
    def new_session(self, run: Run) -> StochasticSession:
        session = StochasticSession(self, run, seed=self.seed)
        for name, module in self.selected(run.module).items():
            if is_parametrized(module):
                raise SettingError(f"exclude must name {name}, whose weights are computed from others")
            layer = drop_connected(module, self.p)
            run.until_end(_Dropping(layer))
            layer.stream = session.new_stream()
            layer.lease = session.lease
            session.acting[name] = layer
            session.changes.append((f"DropConnect(p={self.p})", name))
        return session


@dataclass(frozen=True)
class _Dropping:
    layer: DropConnect

    def remove(self) -> None:
        plain_again(self.layer)
