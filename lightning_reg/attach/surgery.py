"""Changing layers of somebody else's module, before optimizers, checkpoints and compilers see it."""

import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_reg.attach.selection import as_patterns, plain_name, select_modules, select_names
from lightning_reg.attach.technique import Technique
from lightning_reg.core.facts import Place
from lightning_reg.core.wrapping import around
from lightning_reg.settings import SettingError
from lightning_reg.text import table

__all__ = ["Change", "Surgery", "as_types"]

Change = tuple[str, str]
"""What stands there now, and where."""


class Surgery(Technique):
    """Changes layers when the module is complete: after its ``setup``, or its ``configure_model`` where it has one.

    That is before a checkpoint is loaded and before optimizers are made, and in every stage: what was saved with the
    change is loaded with it, too.

    Args:
        include: Globs over names of modules.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names; all where empty.
    """

    place = Place.FORWARD
    suited: ClassVar[str] = ""
    lasts: ClassVar[bool] = False

    def __init__(
        self, *, include: str | Sequence[str], exclude: str | Sequence[str], types: str | Sequence[str | type]
    ) -> None:
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.types = as_types(types)
        self._is_printed = False
        self._made: set[nn.Parameter] = set()

    @abstractmethod
    def operate(self, trainer: Trainer, pl_module: LightningModule) -> list[Change]:
        """Changes the module.

        Args:
            trainer: That runs.
            pl_module: The module, complete, perhaps not yet on its device.

        Returns:
            A row a change for the table; none where all was done before.
        """

    def selected(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Returns the modules that the settings choose.

        Args:
            pl_module: The module.

        Raises:
            SettingError: If there are none.
        """
        chosen = select_modules(pl_module, include=self.include, exclude=self.exclude, types=self.types)
        suited = {name: each for name, each in chosen.items() if self.suits(each)}
        if not suited:
            kinds = sorted({type(each).__name__ for each in chosen.values()})
            raise SettingError(f"include must choose modules of type {self.suited}, but chooses {', '.join(kinds)}")
        for pattern in self.include:
            matching = select_names(list(chosen), include=(pattern,), exclude=(), kind="module")
            if not any(name in suited for name in matching):
                kinds = sorted({type(chosen[name]).__name__ for name in matching})
                raise SettingError(
                    f"include pattern {pattern!r} must choose modules of type {self.suited}, but chooses "
                    + ", ".join(kinds)
                )
        return suited

    def suits(self, module: nn.Module) -> bool:
        """Whether the technique knows what to do with a module that the settings choose.

        Args:
            module: That is asked about.
        """
        return True

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        has_late_layers = type(pl_module).configure_model is not LightningModule.configure_model
        name = "configure_model" if has_late_layers else "setup"
        wrapper = around(pl_module, name, lambda call, *args, **kwargs: self._run(call, args, kwargs, trainer))
        self.handles.append(wrapper)  # in case that setup fails
        if self.lasts and isinstance(trainer.strategy.launcher, _MultiProcessingLauncher) and stage == "fit":
            rank_zero_warn(
                f"{type(self).__name__} changes the module in the processes that the strategy forks or spawns, and not "
                "in this one, which won't get all of its weights back; save a checkpoint and load it with the "
                "callback, or use strategy='ddp'"
            )

    def _run(self, call: Callable[..., Any], args: Any, kwargs: Any, trainer: Trainer) -> None:
        call(*args, **kwargs)
        self.handles.pop().remove()
        pl_module = trainer.lightning_module
        before = set(pl_module.parameters())
        changes = self.operate(trainer, pl_module)
        self._made = set(pl_module.parameters()) - before
        if changes and not self._is_printed:
            rank_zero_info(_table(type(self).__name__, changes))
            self._is_printed = True

    @override
    def _let_go(self) -> None:
        super()._let_go()
        self._made = set()

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says so where the optimizers were made of a list of parameters from before."""
        trained = {each for one in trainer.optimizers for group in one.param_groups for each in group["params"]}
        forgotten = [
            plain_name(name)
            for name, each in pl_module.named_parameters()
            if each.requires_grad and each in self._made and each not in trained
        ]
        if forgotten and trainer.optimizers:
            rank_zero_warn(
                f"{type(self).__name__} has made new parameters that no optimizer trains: {', '.join(forgotten[:8])}. "
                "Let configure_optimizers ask the module for its parameters when it is called"
            )


def as_types(value: str | type | Sequence[str | type]) -> tuple[str | type, ...]:
    """Returns classes or names of classes as a tuple; a single one may be given by itself.

    Args:
        value: What was written.

    Raises:
        SettingError: If it is something else.

    >>> as_types("Conv2d")
    ('Conv2d',)
    """
    kinds = (value,) if isinstance(value, (str, type)) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(each, (str, type)) for each in kinds):
        raise SettingError(f"types must be classes or names of classes, but is {value!r}")
    return tuple(_imported(each) if isinstance(each, str) and "." in each else each for each in kinds)


def _imported(path: str) -> type:
    try:
        kind = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"types must be classes or names of classes, but {path!r} can't be imported") from error
    if not isinstance(kind, type):
        raise SettingError(f"types must be classes or names of classes, but {path!r} is a {type(kind).__name__}")
    return kind


def _table(title: str, changes: Sequence[Change]) -> str:
    """Lists changes by what stands there now."""
    by_kind: dict[str, list[str]] = {}
    for what, where in changes:
        by_kind.setdefault(what, []).append(where)
    rows = [("what", "where", "how many")]
    rows += [(what, _shortened(names), str(len(names))) for what, names in by_kind.items()]
    return "\n".join([title, *table(rows, right=[2], indent="  ")])


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]}"
