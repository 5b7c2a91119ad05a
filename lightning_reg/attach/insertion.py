"""Stochastic layers inserted into somebody else's module for as long as a trainer runs."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.attach.streams import base_seed, random_stream
from lightning_reg.attach.surgery import Change, Surgery
from lightning_reg.attach.technique import instance_number
from lightning_reg.functional.noise import NoiseStream
from lightning_reg.nn.drop_connect import DropConnect
from lightning_reg.nn.insertion import Insertion, insertions
from lightning_reg.nn.stochastic import StochasticLayer
from lightning_reg.optim import is_normalization
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["LayerInsertion", "StochasticSurgery"]

# Batches after which something must have run: there are modules that are trained in turns.
_PATIENCE = 100


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
        self._watched: dict[str, Insertion | DropConnect] = {}

    def watch(self, name: str, acting: Insertion | DropConnect) -> None:
        """Sees to it that it is said if something that should act doesn't.

        Args:
            name: Of the module.
            acting: What acts there.
        """
        self._watched[name] = acting

    def stream(self) -> NoiseStream:
        """Returns a new stream, which starts anew with every batch."""
        stream = NoiseStream()
        stream.start(random_stream(base_seed(self.seed), type(self).__name__, len(self._streams)).getrandbits(62))
        self._streams.append(stream)
        return stream

    def _restart(self, trainer: Trainer, *position: int | str) -> None:
        number = instance_number(trainer, self)
        seeds = random_stream(base_seed(self.seed), trainer.global_rank, *position, type(self).__name__, number)
        for stream in self._streams:
            stream.start(seeds.getrandbits(62))

    @override
    def begin_batch(self, trainer: Trainer, batch_idx: int) -> None:
        self._restart(trainer, trainer.current_epoch, batch_idx)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        for stream in self._streams:
            stream.rewind()

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for stream in self._streams:
            stream.go_on()

    # Nothing is dropped in evaluation, unless somebody asks for it: monte_carlo_predict.

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._restart(trainer, "validation", trainer.current_epoch, batch_idx, dataloader_idx)

    @override
    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._restart(trainer, "test", batch_idx, dataloader_idx)

    @override
    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._restart(trainer, "predict", batch_idx, dataloader_idx)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks once whether all of it has run: a technique is never silently inert."""
        if not self._watched or not (trainer.is_last_batch or batch_idx >= _PATIENCE):
            return
        inert = [name for name, each in self._watched.items() if not each.has_run]
        if len(inert) == len(self._watched):
            raise SettingError(
                "include must name modules that the training step runs, in training mode, but none of "
                f"{len(inert)} did; first is {inert[0]}"
            )
        if inert:
            rank_zero_warn(
                f"{type(self).__name__} does nothing to what wasn't run in training mode: {', '.join(inert)}"
            )
        self._watched = {}

    @override
    def release(self) -> None:
        self._streams = []
        self._watched = {}


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
        _forget_compiled(pl_module)
        holders = {child: parent for parent in pl_module.modules() for child in parent.children()}
        layers = [self.make(module, index, len(chosen)) for index, module in enumerate(chosen.values())]
        for layer, (name, module) in zip(layers, chosen.items(), strict=True):
            layer.stream = self.stream()
            # A norm that is frozen in evaluation mode says nothing about what stands behind it.
            mode_of = holders[module] if is_normalization(module) else None
            inserted = Insertion(layer, name, residual=self._residual, mode_of=mode_of)
            self.watch(name, inserted)
            self.handles.append(module.register_forward_hook(inserted, with_kwargs=True))
        what = repr(layers[0]) if len(set(map(repr, layers))) == 1 else f"{layers[0]!r} ... {layers[-1]!r}"
        return [(what, name) for name in chosen]

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().attach(trainer, pl_module)
        there = set(insertions(pl_module))
        for name, inserted in self._watched.items():
            if inserted not in there:
                raise SettingError(
                    f"include must leave {name} out, which was replaced after something had been put behind it, as "
                    "Trainer(sync_batchnorm=True) does; name the module that holds it"
                )


def _forget_compiled(pl_module: LightningModule) -> None:
    """Has torch.compile look at modules anew: code that it made before a hook was there doesn't run it."""
    compiled = any(
        each._compiled_call_impl is not None or type(each).__name__ == "OptimizedModule"  # importing it is slow
        for each in pl_module.modules()
    )
    if compiled or pl_module._compiler_ctx is not None:
        torch.compiler.reset()
