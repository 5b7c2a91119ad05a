"""Mixout: weights that are swapped for those that fine-tuning started from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.forward.dropped_weights import SUITED, drop_weights, has_plain_weights
from lightning_reg.callbacks.forward.insertion import StochasticSession, check_stochastic
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.gradients import whole
from lightning_reg.core.session import Session, kept
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.nn.layers.drop_connect import DropConnect
from lightning_reg.settings import SettingError

__all__ = ["Mixout"]


class Mixout(Surgery):
    """Swaps weights of linear and convolutional layers for those that fine-tuning started from, at random in training.

    What it does: in every forward pass in training, a new mask swaps each weight with probability ``p`` for what it was
    when the fit started, and the rest is moved away from it so that the expectation stays. Weights are thus pulled back
    where the data don't require others. After a resume, the starting point is what the weights were when the first fit
    started. Parameters, their names and evaluation are those of the plain layers; when training ends, they are plain
    again.

    When to use: in fine-tuning a large pretrained network on little data, where runs differ much or some fail. When
    not: for layers that start from random numbers, such as a new head: exclude it, and give it an
    ``InsertDropConnect``; where the starting weights are zeros, the two are the same.

    Cost: three passes over the chosen weights in the forward pass and one in the backward pass, and a mask of them.
    State: a copy of these weights, in memory and in every checkpoint.

    Interacts with: torch.compile, whose graphs contain it. Its random numbers depend on seed, rank, epoch and batch.
    ``DropoutSchedule`` moves its rate. With sharded weights, every process holds the whole starting point.

    Args:
        p: Probability that a weight is swapped, in [0, 1]; 0.7 to 0.9 is usual for large language models.
        include: Globs over names of layers; all of the supported types where empty.
        exclude: Globs over names of layers that are left out.
        types: Classes of layers, or their names: Linear, Conv1d, Conv2d, Conv3d; all four where empty.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If ``p`` is out of its range, a pattern matches nothing, there is no such layer, or a checkpoint's
            starting point belongs to other weights.

    Reference:
        Cheolhyoung Lee, Kyunghyun Cho, Wanmo Kang: Mixout: Effective Regularization to Finetune Large-scale Pretrained
        Language Models, ICLR 2020, arXiv:1909.11299.

    >>> Mixout(p=0.8, exclude=("classifier",)).p
    0.8
    """

    usual_ranges = (Linear("p", 0.1, 0.9),)
    suited = SUITED
    state_dict = Technique.saved_state
    load_state_dict = Technique.load_saved_state

    def __init__(
        self,
        *,
        p: float = 0.7,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        seed: int | None = None,
    ) -> None:
        check_stochastic(p, seed)
        super().__init__(include=include or ("*",), exclude=exclude, types=types)
        self.p = p
        self.seed = seed

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(include=self.include, exclude=self.exclude, types=[str(t) for t in self.types])

    @override
    def suits(self, module: nn.Module) -> bool:
        return has_plain_weights(module)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        session = MixoutSession(self, run, seed=self.seed)
        session.layers = drop_weights(session, self.p, "Mixout")
        for layer in session.layers.values():
            layer.swaps = True
        # An evaluation after a fit keeps its starting point, for checkpoints and for predictions that drop something.
        starts: dict[str, Tensor] = self.kept.get("starts", {})
        if session.fits(starts):
            session.starts = dict(starts)
            session.use()
        return session


@dataclass(eq=False)
class MixoutSession(StochasticSession):
    """One fit: the starting point by name of the layer.

    Attributes:
        layers: Layers whose weights are swapped, by name.
    """

    technique: Mixout
    layers: dict[str, DropConnect] = field(default_factory=dict)
    starts: dict[str, Tensor] = kept(default_factory=dict)

    @override
    def load(self, state: Mapping[str, Any]) -> None:
        super().load(state)
        if self.starts and not self.fits(self.starts):
            missing = next(name for name, layer in self.layers.items() if not _is_of(self.starts.get(name), layer))
            raise SettingError(
                f"ckpt_path must hold the starting point of {missing}, for which Mixout swaps its weights, in the "
                f"shape {tuple(self.layers[missing].weight.shape)}; start a new fit from the pretrained weights instead"
            )
        self.use()

    def fits(self, starts: Mapping[str, Tensor]) -> bool:
        """Whether there is a starting point for each of the layers."""
        return all(_is_of(starts.get(name), layer) for name, layer in self.layers.items())

    @override
    def train_starts(self) -> None:
        # Not at fit start: strategies that shard weights restore a checkpoint after that.
        if not self.starts:
            if self.run.trainer.global_step > 0:
                rank_zero_warn(
                    f"The checkpoint holds no starting point of a Mixout with p {self.technique.p} and include "
                    f"{list(self.technique.include)}; weights are swapped for those of the checkpoint"
                )
            self.starts = {name: whole(layer.weight.detach()).clone() for name, layer in self.layers.items()}
        self.use()

    @override
    def train_ends(self) -> None:
        super().train_ends()
        if not any(layer.weight.requires_grad for layer in self.layers.values()):
            rank_zero_warn(f"Mixout had no effect: the weights of {', '.join(self.layers)} are frozen")

    def use(self) -> None:
        """Gives the layers their starting points, on the device and in the dtype of their weights."""
        for name, layer in self.layers.items() if self.starts else ():
            start = self.starts[name] = self.starts[name].to(layer.weight.device, layer.weight.dtype)
            layer.start = start


def _is_of(start: Tensor | None, layer: DropConnect) -> bool:
    return start is not None and start.shape == layer.weight.shape
