"""Dropout in a network that was built without."""

from collections.abc import Sequence
from typing import Literal

from typing_extensions import override

from lightning_reg.callbacks.forward.insertion import StochasticSession, check_insertion, inserted
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.step import Run
from lightning_reg.nn import Dropout, GaussianDropout, SpatialDropout
from lightning_reg.settings import check_choice

__all__ = ["InsertDropout"]

_KINDS: dict[str, type[Dropout | SpatialDropout | GaussianDropout]] = {
    "standard": Dropout,
    "spatial": SpatialDropout,
    "gaussian": GaussianDropout,
}


class InsertDropout(Surgery):
    """Puts dropout behind modules of an existing network, without a change of its code.

    What it does: in training, what the chosen modules return goes through dropout. Nothing is added to the module's
    children or its checkpoints, which load with and without it. When training ends, it is gone; in evaluation it has no
    effect anyway.

    When to use: where a network overfits and has none, or too little: behind fully connected layers and activations,
    and, as ``kind="spatial"``, behind convolutions. When not: right before BatchNorm, whose statistics in training then
    aren't those of evaluation.

    Cost: one pass over each of these outputs in the forward and in the backward pass, and a mask of each. No state.

    Interacts with: torch.compile, which recompiles what it had compiled before. Its random numbers depend on seed,
    rank, epoch and batch, so that resumed runs are exact and processes differ. ``DropoutSchedule`` moves its rate,
    ``monte_carlo_predict`` turns it on. Where a module returns several tensors, the first one is dropped from.

    Args:
        p: Drop probability, in [0, 1]; below 1 for ``"gaussian"``.
        include: Globs over names of modules behind which dropout is inserted; where empty, ``types`` alone choose.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names, such as ``"ReLU"``; all that ``include`` chooses where empty.
        kind: ``"standard"``, ``"spatial"`` (whole channels) or ``"gaussian"`` (multiplied by noise).
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If ``p`` is out of its range, nothing is chosen, or a pattern matches nothing.

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014.

    >>> InsertDropout(p=0.2, include=("classifier.*",), types=("ReLU",)).p
    0.2
    """

    usual_ranges = (Linear("p", 0.05, 0.5),)

    def __init__(
        self,
        *,
        p: float = 0.1,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
        kind: Literal["standard", "spatial", "gaussian"] = "standard",
        seed: int | None = None,
    ) -> None:
        check_choice("kind", kind, list(_KINDS))
        check_insertion(p, seed, include, types)
        _KINDS[kind](p)  # Gaussian noise has no rate of 1
        super().__init__(include=include or ("*",), exclude=exclude, types=types)
        self.p = p
        self.seed = seed
        self.kind = kind

    @override
    def new_session(self, run: Run) -> StochasticSession:
        return inserted(self, run, lambda *_: _KINDS[self.kind](self.p), seed=self.seed)
