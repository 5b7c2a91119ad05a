"""Stochastic layers that are inserted into an existing module for the length of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.forward.surgery import Surgery, WatchedSession
from lightning_reg.core.bypasses import warn_of_unrun
from lightning_reg.core.lightning import instance_number, is_compiled
from lightning_reg.core.step import Run
from lightning_reg.core.streams import base_seed, check_seed, random_stream
from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn.insertion import Insertion, insertions
from lightning_reg.nn.layers.drop_connect import DropConnect
from lightning_reg.nn.layers.stochastic import Lease, StochasticLayer
from lightning_reg.optim import is_normalization
from lightning_reg.settings import SettingError, check_range

__all__ = ["StochasticSession", "check_insertion", "check_stochastic", "inserted"]


def check_stochastic(p: float, seed: int | None) -> None:
    """Raises a SettingError if a drop probability or a seed is out of its range."""
    check_range("p", p, low=0, high=1)
    check_seed(seed)


def check_insertion(
    p: float, seed: int | None, include: str | Sequence[str], types: str | Sequence[str | type]
) -> None:
    """Raises a SettingError if no modules are named, or a drop probability or a seed is out of its range."""
    if not include and not types:
        raise SettingError("include or types must say behind which modules, but both are empty")
    check_stochastic(p, seed)


@dataclass(eq=False)
class StochasticSession(WatchedSession):
    """One run of a technique that drops something in training, with random numbers of its own.

    The random numbers depend on seed, rank, epoch and batch alone, so a resumed run drops what the uninterrupted one
    would have.

    Attributes:
        seed: Seed of the random numbers; that of ``seed_everything`` where None.
        streams: Random streams, one for each place where something is dropped.
        acting: Hooks and layers that drop something, by name of the module.
        lease: Lease of the layers, which ends with the run, also for copies of the module.
    """

    seed: int | None = None
    streams: list[NoiseStream] = field(default_factory=list)
    acting: dict[str, Insertion | DropConnect] = field(default_factory=dict)
    lease: Lease = field(default_factory=Lease)

    def new_stream(self) -> NoiseStream:
        """Returns a stream that restarts with every batch."""
        stream = NoiseStream()
        name = type(self.technique).__name__
        stream.start(random_stream(base_seed(self.seed), name, len(self.streams)).getrandbits(62))
        self.streams.append(stream)
        return stream

    def _restart(self, *position: int | str) -> None:
        trainer, technique = self.run.trainer, self.technique
        instance = (type(technique).__name__, instance_number(trainer, technique))
        seeds = random_stream(base_seed(self.seed), trainer.global_rank, *position, *instance)
        for stream in self.streams:
            stream.start(seeds.getrandbits(62))

    @override
    def fit_starts(self) -> None:
        super().fit_starts()
        there = set(insertions(self.run.module))
        for name, acting in self.acting.items():
            if isinstance(acting, Insertion) and acting not in there:
                raise SettingError(
                    f"include must leave {name} out, which was replaced after something had been put behind it, as "
                    "Trainer(sync_batchnorm=True) does; name the module that holds it"
                )

    @override
    def batch_starts(self, batch_idx: int) -> None:
        self._restart(self.run.trainer.current_epoch, batch_idx)

    # Layers that activation checkpointing runs again in the backward pass drop the same entries.

    @override
    def before_backward(self, loss: Tensor) -> None:
        for stream in self.streams:
            stream.rewind()

    @override
    def after_backward(self) -> None:
        for stream in self.streams:
            stream.go_on()

    # Nothing is dropped in evaluation, except by monte_carlo_predict.

    @override
    def validation_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        self._restart("validation", self.run.trainer.current_epoch, batch_idx, dataloader_idx)

    @override
    def test_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        self._restart("test", batch_idx, dataloader_idx)

    @override
    def predict_batch_starts(self, batch_idx: int, dataloader_idx: int) -> None:
        self._restart("predict", batch_idx, dataloader_idx)

    @override
    def found_inert(self, names: list[str]) -> None:
        if len(names) == len(self.acting):
            raise SettingError(
                "include must name modules that the training step runs, in training mode, but none of "
                f"{len(names)} did; first is {names[0]}"
            )
        warn_of_unrun(self.technique, names, "in training mode")

    @override
    def ends(self, exception: BaseException | None) -> None:
        self.lease.end()


def inserted(
    surgery: Surgery,
    run: Run,
    make: Callable[[int, int], StochasticLayer],
    *,
    seed: int | None,
    residual: bool = False,
    insertion: type[Insertion] = Insertion,
) -> StochasticSession:
    """Inserts stochastic layers behind the modules that a technique selects, until the run ends.

    Args:
        run: The run; its module must be complete.
        make: Function that makes a layer, given its index among all (in the order of the modules, from 0) and their
            number.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.
        residual: Whether the modules are whole residual blocks.
        insertion: Class of the hooks.
    """
    session = StochasticSession(surgery, run, seed=seed)
    chosen = surgery.selected(run.module)
    _forget_compiled(run.module)
    holders = {child: parent for parent in run.module.modules() for child in parent.children()}
    layers = [make(index, len(chosen)) for index in range(len(chosen))]
    for layer, (name, module) in zip(layers, chosen.items(), strict=True):
        layer.stream = session.new_stream()
        # A norm that is frozen in evaluation mode says nothing about the layer behind it.
        mode_of = holders[module] if is_normalization(module) else None
        hook = insertion(layer, name, residual=residual, mode_of=mode_of, lease=session.lease)
        session.acting[name] = hook
        run.until_end(hook.attach(module))
    what = repr(layers[0]) if len(set(map(repr, layers))) == 1 else f"{layers[0]!r} ... {layers[-1]!r}"
    session.changes = [(what, name) for name in chosen]
    return session


def _forget_compiled(pl_module: LightningModule) -> None:
    """Makes torch.compile compile again: code from before a hook was registered doesn't run it."""
    if any(is_compiled(module) for module in pl_module.modules()):
        torch.compiler.reset()
