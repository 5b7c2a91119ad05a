"""Stochastic layers inserted into somebody else's module for as long as a trainer runs."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_reg.attach.streams import base_seed, random_stream
from lightning_reg.attach.surgery import Change, Surgery
from lightning_reg.attach.technique import instance_number
from lightning_reg.functional.noise import NoiseStream
from lightning_reg.nn.insertion import Insertion
from lightning_reg.nn.stochastic import StochasticLayer
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["LayerInsertion", "StochasticSurgery"]


class StochasticSurgery(Surgery):
    """Makes a module drop something in training, with random numbers of its own.

    These depend on seed, rank, epoch and batch alone, so a resumed run drops what the uninterrupted one would have.

    Args:
        p: Probability that something is dropped, in [0, 1).
        include: Globs over names of modules.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names.
        seed: What the random numbers start from; that of ``seed_everything`` where None.
    """

    def __init__(
        self,
        *,
        p: float,
        include: str | Sequence[str],
        exclude: str | Sequence[str],
        types: str | Sequence[str | type],
        seed: int | None,
    ) -> None:
        check_range("p", p, low=0, high=1, high_open=True)
        if seed is not None:
            check_count("seed", seed, low=0)
        super().__init__(include=include, exclude=exclude, types=types)
        self.p = p
        self.seed = seed
        self._streams: list[NoiseStream] = []

    def stream(self) -> NoiseStream:
        """Returns a new stream, which starts anew with every batch."""
        self._streams.append(NoiseStream())
        return self._streams[-1]

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        number = instance_number(trainer, self)
        position = (trainer.global_rank, trainer.current_epoch, batch_idx)
        seeds = random_stream(base_seed(self.seed), *position, type(self).__name__, number)
        for stream in self._streams:
            stream.start(seeds.getrandbits(43))

    @override
    def release(self) -> None:
        self._streams = []


class LayerInsertion(StochasticSurgery):
    """Inserts stochastic layers behind modules.

    Args:
        p: Probability that something is dropped, in [0, 1).
        include: Globs over names of modules; where empty, ``types`` alone choose.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names.
        seed: What the random numbers start from; that of ``seed_everything`` where None.
        residual: Whether the modules are whole residual blocks.
    """

    def __init__(
        self,
        *,
        p: float,
        include: str | Sequence[str],
        exclude: str | Sequence[str],
        types: str | Sequence[str | type],
        seed: int | None,
        residual: bool = False,
    ) -> None:
        if not include and not types:
            raise SettingError("include or types must say behind which modules, but both are empty")
        super().__init__(p=p, include=include or ("*",), exclude=exclude, types=types, seed=seed)
        self._residual = residual
        self._inserted: list[Insertion] = []

    @abstractmethod
    def make(self, module: nn.Module, index: int, count: int) -> StochasticLayer:
        """Makes one layer.

        Args:
            module: Behind which it stands.
            index: Its place among all that are inserted, in the order of the module's names, from 0.
            count: How many there are.
        """

    @override
    def operate(self, trainer: Trainer, pl_module: LightningModule) -> list[Change]:
        chosen = self.selected(pl_module)
        layers = [self.make(module, index, len(chosen)) for index, module in enumerate(chosen.values())]
        for layer, (name, module) in zip(layers, chosen.items(), strict=True):
            layer.stream = self.stream()
            self._inserted.append(Insertion(layer, name, residual=self._residual))
            self.handles.append(module.register_forward_hook(self._inserted[-1]))
        what = repr(layers[0]) if len(set(map(repr, layers))) == 1 else f"{layers[0]!r} ... {layers[-1]!r}"
        return [(what, name) for name in chosen]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks once whether anything of it has run: a technique is never silently inert."""
        if self._inserted and not any(each.has_run for each in self._inserted):
            raise SettingError(
                f"include must name modules that the training step runs, but none of {len(self._inserted)} did; if "
                "torch.compile has compiled the module before, call torch.compiler.reset() before the fit"
            )
        self._inserted = []

    @override
    def release(self) -> None:
        super().release()
        self._inserted = []
