"""One run of a search from Python: built by a user's function, trained and evaluated."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelSummary, ProgressBar

from lightning_reg.core.lightning import callbacks_of, random_states, set_callbacks, set_random_states, twins
from lightning_reg.core.messages import quiet
from lightning_reg.search.overlay import class_of
from lightning_reg.search.spaces.space import Cocktail, Space
from lightning_reg.search.step_timer import StepTimer
from lightning_reg.search.trials.running import STEP_SECONDS
from lightning_reg.settings import SettingError
from lightning_reg.studies.runs import Measured, Run

__all__ = ["Built", "Make", "SearchTrial", "build", "made_of", "perform", "seeded"]


@dataclass(frozen=True)
class SearchTrial:
    """The trial that a run belongs to, for the function that builds the run.

    Attributes:
        name: The trial's name.
        split: Number of the split, or repetition, from 0; -1 in the confirmation.
        seed: Seed of the split, for random splits of the data; it has also been set globally.
    """

    name: str
    split: int
    seed: int


Make = Callable[[list[Callback], SearchTrial], Sequence[Any]]
"""Function that builds a run with the given callbacks: returns the Trainer, the module and, unless the module has its
own loaders, the data module, or loaders for training and validation."""


@dataclass(frozen=True)
class Built:
    """A run that is ready to train.

    Attributes:
        trainer: Trainer with the trial's callbacks.
        module: Module to train.
        loaders: Data as keyword arguments of the trainer's ``fit``.
    """

    trainer: Trainer
    module: LightningModule
    loaders: dict[str, Any]

    @property
    def validated(self) -> dict[str, Any]:
        """Data as keyword arguments of the trainer's ``validate``."""
        if "datamodule" in self.loaders or not self.loaders:
            return self.loaders
        return {"dataloaders": self.loaders["val_dataloaders"]}

    @property
    def tested(self) -> dict[str, Any]:
        """Data as keyword arguments of the trainer's ``test``; empty for loaders, which have no test split."""
        return self.loaders if "datamodule" in self.loaders else {}


def build(make: Make, callbacks: list[Callback], trial: SearchTrial) -> Built:
    """Calls the user's function.

    Raises:
        SettingError: If it returns something else than a run, or the trainer lacks one of the callbacks.
    """
    with quiet():
        returned = make(list(callbacks), trial)
    if not isinstance(returned, (tuple, list)) or len(returned) not in (2, 3, 4):
        raise SettingError(f"make must return (trainer, module, data), but returned {type(returned).__name__}")
    trainer, module, *data = returned
    is_module = isinstance(getattr(module, "_orig_mod", module), twins(LightningModule))  # it may be compiled
    if not isinstance(trainer, twins(Trainer)) or not is_module:
        found = f"{type(trainer).__name__}, {type(module).__name__}"
        raise SettingError(f"make must return (trainer, module, data), but returned ({found}, ...)")
    missing = [type(callback).__name__ for callback in callbacks if callback not in callbacks_of(trainer)]
    if missing:
        raise SettingError(
            f"make must give the Trainer the callbacks that it is given, but {', '.join(missing)} is missing"
        )
    if len(data) == 1 and isinstance(data[0], (tuple, list)):
        data = list(data[0])
    if len(data) == 1 and not isinstance(data[0], LightningDataModule) and not hasattr(data[0], "train_dataloader"):
        raise SettingError(f"make must return a data module, or two loaders, but returned {type(data[0]).__name__}")
    names = {0: (), 1: ("datamodule",), 2: ("train_dataloaders", "val_dataloaders")}.get(len(data))
    if names is None:
        raise SettingError(f"make must return a data module, or two loaders, but returned {len(data)} of them")
    return Built(trainer, module, dict(zip(names, data, strict=True)))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Sets the global seeds, and restores the previous random state on exit."""
    states = random_states()
    environment = {name: os.environ.get(name) for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    try:
        seed_everything(seed, verbose=False)
        yield
    finally:
        set_random_states(states)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def perform(run: Run, _: Path) -> Measured:
    """Performs a run that a user's function builds.

    Args:
        run: The run, whose arguments contain the function and the configured callbacks.
        _: Folder of the run, which isn't used.
    """
    arguments = run.arguments
    timer = StepTimer()
    with seeded(run.seed):
        callbacks = [_made(entry) for entry in arguments["callbacks"]]
        built = build(arguments["make"], callbacks, SearchTrial(run.variant, arguments["split"], run.seed))
        trainer = built.trainer
        shown = twins(ModelSummary, ProgressBar)  # the search has a progress bar of its own
        kept = [callback for callback in callbacks_of(trainer) if not isinstance(callback, shown)]
        set_callbacks(trainer, [*kept, timer])
        with quiet():
            trainer.fit(built.module, **built.loaders)
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
            # With the final weights, after all callbacks have finished: averaged ones, or the best ones.
            measured = trainer.validate(built.module, **built.validated, verbose=False)
            if arguments.get("test"):
                measured = [*measured, *trainer.test(built.module, **built.tested, verbose=False)]
    metrics |= {name: float(value) for found in measured for name, value in found.items()}
    if timer.seconds is not None:
        metrics[STEP_SECONDS] = timer.seconds
    return Measured(metrics)


def made_of(space: Space, cocktail: Cocktail) -> list[Callback]:
    """Instantiates a cocktail's callbacks."""
    return [_made(entry) for entry in space.callbacks_of(cocktail)]


def _made(entry: Any) -> Any:
    if isinstance(entry, Mapping) and "class_path" in entry:
        kind = class_of(entry)
        if kind is None:
            raise SettingError(f"class_path must be a class that can be imported, but is {entry['class_path']!r}")
        return kind(**{name: _made(value) for name, value in (entry.get("init_args") or {}).items()})
    if isinstance(entry, list):
        return [_made(value) for value in entry]
    return entry
