"""Terms of the outputs of modules in a training step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.loss.loss_term import TermSession
from lightning_reg.core.bypasses import all_had_a_turn, warn_of_unrun
from lightning_reg.core.hooks import add_forward_hook, is_transformed
from lightning_reg.core.selection import listed, select_modules
from lightning_reg.settings import SettingError

__all__ = ["ActivationsSession", "activations_of"]

_ACTIVATIONS = tuple(
    getattr(nn.modules.activation, name)
    for name in nn.modules.activation.__all__
    if name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin")
)


def activations_of(pl_module: LightningModule, include: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Module]:
    """Returns the modules whose outputs are penalized, by name.

    Args:
        include: Globs over module names; where empty, all activation modules are chosen.
        exclude: Globs over module names that are left out.
    """
    if include:
        return select_modules(pl_module, include=include, exclude=exclude)
    chosen = select_modules(pl_module, include=("*",), exclude=exclude)
    activations = {name: module for name, module in chosen.items() if isinstance(module, _ACTIVATIONS)}
    if not activations:
        raise SettingError(
            "include must name modules, because there is no activation module such as torch.nn.ReLU among "
            + listed(list(chosen))
        )
    return activations


@dataclass(eq=False)
class ActivationsSession(TermSession):
    """One fit of a term of activations.

    Attributes:
        choose: Returns the modules whose outputs are penalized, of the network as it is now, by name.
        expects_all: Whether those that never run are to be warned of, as modules that the user has named.
        watched: Modules that were hooked, with their names.
        is_watching: Whether a training step runs.
        run_once: Names of the modules that have run in any training step.
        is_learned: Whether an output has depended on a weight that was trained.
        seen: Outputs, each with the name of its module, what :meth:`noted` returned, and its version counter.
    """

    choose: Callable[[], Mapping[str, nn.Module]]
    expects_all: bool
    watched: dict[nn.Module, str] = field(default_factory=dict, init=False)
    is_watching: bool = field(default=False, init=False)
    run_once: set[str] = field(default_factory=set, init=False)
    is_learned: bool = field(default=False, init=False)
    seen: list[tuple[str, Tensor, Any, int | None]] = field(default_factory=list, init=False)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self._watch()

    @override
    def batch_starts(self, batch_idx: int) -> None:
        if batch_idx == 0:
            self._watch()  # layers may have been replaced since the last epoch

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        """Warns once of modules that never run."""
        trainer = self.run.trainer
        if not self.expects_all or not self.run_once or not all_had_a_turn(trainer, batch_idx):
            return
        if self.strength.now(trainer) == 0:  # then training steps aren't watched
            return
        self.expects_all = False
        containers = (nn.ModuleList, nn.ModuleDict)  # which are never called
        names = [name for module, name in self.watched.items() if not isinstance(module, containers)]
        unrun = [name for name in dict.fromkeys(names) if name not in self.run_once]
        warn_of_unrun(self.technique, unrun, "with gradients in the training step")

    @override
    def train_ends(self) -> None:
        if self.is_checked and not self.is_learned:
            rank_zero_warn(
                f"{type(self.technique).__name__} had no effect: its term depends on no weight that was trained"
            )

    def _watch(self) -> None:
        for name, module in self.choose().items():
            if module not in self.watched:
                self.watched[module] = name
                self.run.until_end(add_forward_hook(module, partial(self.collect, name)))

    def noted(self, module: nn.Module, output: Any, activations: Tensor) -> Any:
        """Returns what the term needs to know about an output besides its first tensor.

        Args:
            output: The module's whole output.
            activations: First tensor of the output.
        """
        return None

    def value(self, activations: Tensor, noted: Any) -> Tensor:
        """Returns the term of one output, at full strength.

        Args:
            activations: First tensor of the output, in at least 32 bits.
            noted: Return value of :meth:`noted`.
        """
        raise NotImplementedError

    def collect(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Records the output of a module."""
        # Not in evaluation, a checkpointed layer that is recomputed in the backward pass, or a part without gradients.
        if not self.is_watching or not torch.is_grad_enabled():
            return
        # Only recorded here: a checkpointed layer has to compute the same thing both times.
        activations = _first_tensor(output, name)
        if is_transformed(activations):
            return
        self.is_learned |= activations.requires_grad
        noted = self.noted(module, output, activations)
        compiling = torch.compiler.is_compiling()  # then nothing is changed in place
        self.seen.append((name, activations, noted, None if compiling else activations._version))

    @override
    @contextmanager
    def watching(self) -> Iterator[None]:
        self.seen.clear()
        self.is_watching = True
        try:
            yield
        finally:
            self.is_watching = False

    @override
    def term(self) -> Tensor:
        if not self.seen:
            raise SettingError(
                "include must name modules that the training step runs, but none of them did; what "
                "torch.compile has run before the fit, or torch.func or reentrant checkpointing runs, can't be watched"
            )
        term = torch.stack([self._term_of(*record) for record in self.seen]).sum()
        if self.expects_all:
            self.run_once.update(name for name, *_ in self.seen)
        self.seen.clear()
        return term

    def _term_of(self, name: str, activations: Tensor, noted: Any, version: int | None) -> Tensor:
        if version is not None and activations._version != version:
            raise SettingError(
                f"include must name modules whose outputs are left as they are, but that of {name} is changed in place "
                "by what comes behind it, such as ReLU(inplace=True); name that module instead"
            )
        try:
            # Cast once, so that gradients meet before they are rounded to 16 bits.
            return self.value(activations.to(torch.promote_types(activations.dtype, torch.float32)), noted)
        except SettingError as error:
            raise SettingError(f"{error}, in the output of {name}") from error


def _first_tensor(output: Any, name: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (tuple, list)) and output:
        return _first_tensor(output[0], name)
    raise SettingError(f"include must name modules that return tensors, but {name} returns {type(output).__name__}")
