"""Changes of an existing module's layers, before optimizers, checkpoints and compilers see it."""

import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from typing_extensions import override

from lightning_reg.core.bypasses import all_had_a_turn
from lightning_reg.core.facts import Place
from lightning_reg.core.lightning import callbacks_of, is_overridden, starts_processes, twins
from lightning_reg.core.selection import as_patterns, plain_name, select_modules, select_names
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.core.wrapping import around
from lightning_reg.settings import SettingError
from lightning_reg.text import table

__all__ = [
    "Change",
    "Surgery",
    "SurgeryResult",
    "SurgerySession",
    "WatchedSession",
    "as_types",
    "computes_itself",
    "refuse_lazy",
]

Change = tuple[str, str]
"""Description of the new layer, and its name."""


@dataclass(frozen=True)
class SurgeryResult:
    """Changes that a surgery made.

    Attributes:
        changes: One entry for each change; none where all was done before.
    """

    changes: tuple[Change, ...]


class Surgery(Technique):
    """Changes layers when the module is complete: after its ``setup``, or its ``configure_model`` where it has one.

    This is before a checkpoint is loaded and before optimizers are made, and in every stage, so that weights saved with
    the change are loaded with it. The session begins at that point, in evaluations as well.

    Attributes:
        suited: Types of modules that the settings have to select, for messages.
        by_default: Classes of modules that are changed where ``types`` is empty; all where this is empty, too.
        lasts: Whether the module keeps the change after training.
        renames_weights: Whether weights are parametrized, and so have other names.

    Args:
        include: Globs over names of modules.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names; all where empty.
    """

    place = Place.FORWARD
    suited: ClassVar[str] = ""
    by_default: ClassVar[tuple[type[nn.Module], ...]] = ()
    lasts: ClassVar[bool] = False
    renames_weights: ClassVar[bool] = False

    def __init__(
        self, *, include: str | Sequence[str], exclude: str | Sequence[str], types: str | Sequence[str | type]
    ) -> None:
        super().__init__()
        self.include = as_patterns("include", include)
        self.exclude = as_patterns("exclude", exclude)
        self.types = as_types(types)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        """Changes the module, which is complete, but perhaps not yet on its device, and returns the session."""
        raise NotImplementedError

    def selected(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Returns the modules that the settings choose, by name.

        Raises:
            SettingError: If there are none, or a pattern selects none of the right type.
        """
        chosen = select_modules(pl_module, include=self.include, exclude=self.exclude, types=self.types)
        suited = {name: module for name, module in chosen.items() if self.suits(module)}
        if not suited:
            kinds = self._kinds(chosen.values())
            raise SettingError(f"include must choose modules of type {self.suited}, but chooses {kinds}")
        for pattern in self.include:
            matching = select_names(list(chosen), include=(pattern,), exclude=(), kind="module")
            if not any(name in suited for name in matching):
                raise SettingError(
                    f"include pattern {pattern!r} must choose modules of type {self.suited}, but chooses "
                    + self._kinds(chosen[name] for name in matching)
                )
        return suited

    def _kinds(self, modules: Iterable[nn.Module]) -> str:
        """Returns the modules' classes; one that merely shares its name with a suited one, such as Linear, in full."""
        suited = self.suited.split(", ")
        names = {
            f"{type(module).__module__}.{name}" if (name := type(module).__name__) in suited else name
            for module in modules
        }
        return ", ".join(sorted(names))

    def suits(self, module: nn.Module) -> bool:
        """Whether the technique knows what to do with a module that the settings choose."""
        return bool(self.types) or not self.by_default or isinstance(module, self.by_default)

    def names_class_of(self, module: nn.Module) -> bool:
        """Whether ``types`` names the very class of a module, rather than one that it inherits from."""
        return any(kind in (type(module), type(module).__name__) for kind in self.types)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        known = self.last_result
        super().setup(trainer, pl_module, stage)
        if self.renames_weights:
            self._refuse_copies(trainer)
        if self.lasts and starts_processes(trainer) and stage == "fit":
            rank_zero_warn(
                f"{type(self).__name__} changes the module in the processes that the strategy forks or spawns, and not "
                "in this one, which won't get all of its weights back; save a checkpoint and load it with the "
                "callback, or use strategy='ddp'"
            )
        run = Run.begun(trainer, pl_module)

        def complete(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
            call(*args, **kwargs)
            handle.remove()
            self.begin(run)
            result = self.last_result
            if result.changes and result != known:  # each stage finds the same to change
                rank_zero_info(_table(type(self).__name__, result.changes))

        name = "configure_model" if is_overridden(pl_module, "configure_model") else "setup"
        handle = around(pl_module, name, complete)
        run.until_end(handle)  # in case that setup fails

    def _refuse_copies(self, trainer: Trainer) -> None:
        for callback in callbacks_of(trainer):
            if isinstance(callback, twins(StochasticWeightAveraging, WeightAveraging)):
                raise SettingError(
                    f"callbacks must not have {type(callback).__name__} with {type(self).__name__}: it copies the "
                    "module before its weights are reparametrized"
                )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(self.session, SurgerySession):  # it has begun when the module was complete
            self.session.fit_starts()


@dataclass(eq=False)
class SurgerySession(Session[Surgery]):
    """One run of a changed module.

    Attributes:
        changes: One entry for each change; none where all was done before.
        made: Parameters that the change added.
    """

    changes: list[Change] = field(default_factory=list)
    made: set[nn.Parameter] = field(default_factory=set)

    @override
    def result(self) -> SurgeryResult:
        return SurgeryResult(tuple(self.changes))

    def fit_starts(self) -> None:
        """Warns if the optimizers were made from a list of parameters from before the change."""
        optimizers = self.run.trainer.optimizers
        trained = {weight for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]}
        forgotten = [
            plain_name(name)
            for name, parameter in self.run.module.named_parameters()
            if parameter.requires_grad and parameter in self.made and parameter not in trained
        ]
        if forgotten and optimizers:
            rank_zero_warn(
                f"{type(self.technique).__name__} has made new parameters that no optimizer trains: "
                f"{', '.join(forgotten[:8])}. Let configure_optimizers ask the module for its parameters when it is "
                "called"
            )


@dataclass(eq=False)
class WatchedSession(SurgerySession):
    """One run that checks once, in its first epoch, that training runs what the surgery put in.

    Attributes:
        acting: Hooks and layers that were put in, by name of the module.
        unseen: Whether it is still unchecked that all of them run.
    """

    acting: dict[str, Any] = field(default_factory=dict)
    unseen: bool = True

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        if self.unseen and all_had_a_turn(self.run.trainer, batch_idx):
            self.check()

    def check(self) -> None:
        """Looks, for once, for what has not run."""
        self.unseen = False
        inert = [name for name, acting in self.acting.items() if not acting.has_run]
        if inert:
            self.found_inert(inert)

    def found_inert(self, names: list[str]) -> None:
        """Says which modules have not run: a technique is never silently inert."""
        raise NotImplementedError


def computes_itself(layer: nn.Module) -> bool:
    """Whether somebody's subclass has changed what its base class computes, as low-rank adapters do.

    Args:
        layer: An instance of a class of torch's or ours, or of a subclass.

    >>> computes_itself(nn.Linear(2, 2)), computes_itself(nn.SyncBatchNorm(2))
    (False, False)
    """
    homes = (
        next((kind for kind in type(layer).__mro__ if method in vars(kind)), nn.Module)
        for method in ("forward", "_conv_forward")
    )
    return any(not home.__module__.startswith(("torch.", "lightning_reg.nn.")) for home in homes)


def refuse_lazy(name: str, layer: nn.Module) -> None:
    """Raises a SettingError if a layer has no shape before it has run."""
    if isinstance(layer, LazyModuleMixin):
        raise SettingError(f"exclude must name {name}, or the module must be run once before the fit: it is lazy")


def as_types(value: str | type | Sequence[str | type]) -> tuple[str | type, ...]:
    """Returns classes or names of classes as a tuple, dotted names imported; a single one may be given by itself.

    Raises:
        SettingError: If an entry is neither, or can't be imported.

    >>> as_types("Conv2d")
    ('Conv2d',)
    """
    kinds = (value,) if isinstance(value, (str, type)) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(kind, (str, type)) for kind in kinds):
        raise SettingError(f"types must be classes or names of classes, but is {value!r}")
    return tuple(_imported(kind) if isinstance(kind, str) and "." in kind else kind for kind in kinds)


def _imported(path: str) -> type:
    try:
        kind = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"types must be classes or names of classes, but {path!r} can't be imported") from error
    if not isinstance(kind, type):
        raise SettingError(f"types must be classes or names of classes, but {path!r} is a {type(kind).__name__}")
    return kind


def _table(title: str, changes: Sequence[Change]) -> str:
    """Returns a table of changes, grouped by their description."""
    by_kind: dict[str, list[str]] = {}
    for what, where in changes:
        by_kind.setdefault(what, []).append(where)
    rows = [("what", "where", "how many")]
    rows += [(what, _shortened(names), str(len(names))) for what, names in by_kind.items()]
    return "\n".join([title, *table(rows, right=[2], indent="  ")])


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]}"
