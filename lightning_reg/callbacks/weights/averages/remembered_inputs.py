"""Remembered training inputs of modules with BatchNorm."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torchmetrics import Metric
from typing_extensions import Self

from lightning_reg.core.copies.copying import deep_copy
from lightning_reg.core.hooks import add_forward_hook, add_forward_pre_hook
from lightning_reg.core.lightning import compiled_call, is_compiled
from lightning_reg.core.step import Run

__all__ = ["Call", "RememberedInputs", "batch_norms", "networks_of", "shapes_of"]

_MOST_BYTES = 2**29  # 43,000 images of CIFAR's size in 32 bits, or 890 of ImageNet's
_PLAIN = (type(None), bool, int, float, str)


def batch_norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Returns the BatchNorm layers with running statistics, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.running_mean is not None
    }


@dataclass
class Call:
    """One call of a module by the training step.

    Attributes:
        name: Name of the module; empty for the LightningModule's own ``forward``.
        args: Copies of the positional arguments; ``kwargs`` of the keyword arguments.
        moved: Indices of the tensors, counted through both, that are moved back to an accelerator.
        chained: Indices of the tensors that are outputs of an earlier call, with the number of the call and of the
            output.
        shapes: Shapes of the outputs, counted without their containers; None for what is no tensor.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    moved: list[int] = field(default_factory=list)
    chained: dict[int, tuple[int, int]] = field(default_factory=dict)
    shapes: list[tuple[int, ...] | None] = field(default_factory=list)

    @property
    def leaves(self) -> list[Any]:
        """All arguments, without their containers."""
        return tree_leaves((self.args, self.kwargs))


class RememberedInputs:
    """Inputs of the modules that the training step called in the epoch so far; the latest up to a limit of memory.

    Only outermost calls are remembered: of the whole module, or of networks that it consists of, where the output of
    one may be the input of the next. So BatchNorm's statistics can be computed for other weights without the training
    step, which may count, log, update a teacher or take labels out of the batch. The inputs are on the host; hooks are
    registered only where the module has BatchNorm.
    """

    def __init__(self, run: Run) -> None:
        self.steps: deque[list[Call]] = deque()
        self._bytes = 0
        self.norms: list[str] = []  # those that were trained in the latest step
        self.epoch = -1
        self._run = run
        self._wanted = self._recording = self._is_skipped = False
        self._depth = 0
        self._names: dict[nn.Module, str] = {}
        self._norms_in: dict[str, list[tuple[str, _BatchNorm]]] = {}  # by name of a module that is called
        self._calls: list[Call | None] = []  # None where it can't be repeated
        self._outputs: dict[int, tuple[Tensor, int, int, int]] = {}  # tensor, its version, call, number
        self._estimated: set[str] = set()
        self._warned: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Returns itself: copies of the module, whose hooks refer to it, don't copy the inputs."""
        return self

    def watch(self) -> None:
        """Registers hooks, before anything is compiled; none where there is no BatchNorm."""
        module, norms = self._run.module, batch_norms(self._run.module)
        if not norms:
            return
        # Those of torch.jit take no hooks.
        modules = {name: part for name, part in module.named_modules() if not isinstance(part, torch.jit.ScriptModule)}
        before, after = torch.compiler.disable(self._before), torch.compiler.disable(self._after)  # type: ignore[no-untyped-call]
        for name in filter(modules.__contains__, _called(module, norms)):  # a module that is shared has one name
            self._names[modules[name]] = name
            self._norms_in[name] = [(layer, norm) for layer, norm in norms.items() if _is_within(layer, name)]
            if compiled := compiled_call(modules[name]):
                self._run.around(modules[name], compiled, self._around(name))
                continue
            self._run.until_end(add_forward_pre_hook(modules[name], before, prepend=True, with_kwargs=True))
            self._run.until_end(add_forward_hook(modules[name], after, with_kwargs=True, always_call=True))
        if not is_compiled(module):
            self._run.around(module, "forward", self._forward)
        self._run.around_step("training_step", self._training_step)

    def batch_starts(self, *, wanted: bool) -> None:
        """Begins a batch, and forgets the inputs of another epoch.

        Args:
            wanted: Whether the batch's inputs are remembered.
        """
        self._wanted = wanted
        if wanted and self.epoch != self._run.trainer.current_epoch:
            self.epoch = self._run.trainer.current_epoch
            self.steps.clear()
            self._bytes = 0

    def batch_ends(self) -> None:
        """Keeps the calls of the batch that BatchNorm's inputs depend on."""
        calls, self._calls = _needed(self._calls, self._norms_in), []
        self._outputs = {}
        if not calls:
            if not self._is_skipped:
                self._warn_of_none()
            return
        self.norms = [name for name, norm in self._norms_in[""] if norm.training]
        self.steps.append(calls)
        self._bytes += _size(calls)
        while len(self.steps) > 1 and self._bytes > _MOST_BYTES:
            self._bytes -= _size(self.steps.popleft())
        if self._estimated - self._warned:
            self._warned |= self._estimated
            rank_zero_warn(
                f"BatchNorm's statistics in {', '.join(sorted(self._estimated))} are only estimated for averaged "
                "weights: training_step computes inputs from outputs of other modules, which can't be repeated; do so "
                "in forward, or choose buffers='average'"
            )

    def _warn_of_none(self) -> None:
        missed = {name for name, norm in self._norms_in.get("", []) if norm.training} if self._wanted else set()
        if missed - self._warned:
            self._warned |= missed
            rank_zero_warn(
                f"BatchNorm's statistics in {', '.join(sorted(missed))} are those of the trained weights: "
                "training_step calls no module that they are in; do so, or choose buffers='average'"
            )

    # What is seen

    def _training_step(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        self._calls, self._outputs, self._depth = [], {}, 0  # of a batch that runs again, the latest
        self._recording = self._wanted
        try:
            output = inner(*args, **kwargs)
        finally:
            self._recording = False
        self._is_skipped = output is None and self._run.module.automatic_optimization
        return output

    def _around(self, name: str) -> Any:
        def call(inner: Any, *args: Any, **kwargs: Any) -> Any:
            self._enter(name, args, kwargs)
            output = None
            try:
                output = inner(*args, **kwargs)
            finally:
                self._leave(output)
            return output

        return call

    def _forward(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        """Sees a ``forward`` of the module that its step calls by that name, past all hooks."""
        call = inner if self._depth else partial(self._around(""), inner)
        return call(*args, **kwargs)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module in self._names:  # not so in a copy of the module
            self._enter(self._names[module], args, kwargs)

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module in self._names:
            self._leave(output)

    def _enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._recording:
            return
        self._depth += 1
        if self._depth == 1:
            self._calls.append(self._call(name, args, kwargs))

    def _leave(self, output: Any) -> None:
        if not self._recording:
            return
        self._depth -= 1
        call = self._calls[-1]
        if self._depth == 0 and call is not None:
            call.shapes = shapes_of(output)
            for number, leaf in enumerate(tree_leaves(output)):
                if isinstance(leaf, Tensor) and not leaf.is_inference():  # those have no version
                    self._outputs[id(leaf)] = leaf, leaf._version, len(self._calls) - 1, number

    def _call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        call = Call(name)
        leaves, spec = tree_flatten((args, kwargs))
        has_norms = any(norm.training for _, norm in self._norms_in[name])
        for index, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                leaves[index] = leaf if isinstance(leaf, _PLAIN) else deep_copy(leaf, {})
                continue
            found = self._outputs.get(id(leaf))
            if found is not None and found[1] == leaf._version:
                call.chained[index] = found[2:]
                leaves[index] = None
                continue
            if _is_of_weights(leaf):
                if not has_norms:
                    return None
                self._estimated.add(name or "forward")
            if leaf.device.type != "cpu":
                call.moved.append(index)
            leaves[index] = _aside(leaf)
        call.args, call.kwargs = tree_unflatten(leaves, spec)
        return call

    # Checkpoints

    def kept(self) -> dict[str, Any]:
        """Returns the state for a checkpoint within an epoch; between epochs no inputs are needed."""
        steps = (
            [] if self._run.trainer.is_last_batch else [[dict(vars(call)) for call in calls] for calls in self.steps]
        )
        if not all(_is_plain(call) for calls in steps for call in calls):
            steps = []  # objects of the user's; a checkpoint has to load with weights_only
        if steps and torch.cuda.is_available():
            torch.cuda.synchronize()  # copies to the host are under way
        return {"epoch": self.epoch, "norms": list(self.norms), "steps": steps}

    def load(self, kept: Mapping[str, Any]) -> None:
        """Restores what :meth:`kept` returned."""
        self.epoch, self.norms = kept["epoch"], list(kept["norms"])
        self.steps = deque([Call(**call) for call in calls] for calls in kept["steps"])
        self._bytes = sum(map(_size, self.steps))


# Which calls


def _is_of_weights(tensor: Tensor) -> bool:
    """Whether a tensor was computed from parameters, rather than from inputs that have gradients of their own."""
    seen, left = set(), [tensor.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        seen.add(node)
        left += [before for before, _ in node.next_functions]
    return False


def _called(module: nn.Module, norms: Mapping[str, _BatchNorm]) -> list[str]:
    """Returns the names of modules that a training step may call: networks, and whatever has BatchNorm in it."""
    names = {"", *networks_of(module)}
    if is_compiled(module):  # as little as possible in the midst of what is compiled
        return sorted(names)
    for name in norms:
        parts = name.split(".")
        names |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    compiled = [name for name, part in module.named_modules() if name and is_compiled(part)]
    # What is within something compiled is a part of its code, and never outermost.
    return sorted(name for name in names if not any(name != outer and _is_within(name, outer) for outer in compiled))


def networks_of(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Yields the names of the networks that a module consists of: its children, in lists and dicts, too; no metrics."""
    for name, child in module.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from networks_of(child, f"{prefix}{name}.")
        elif not isinstance(child, Metric):
            yield f"{prefix}{name}"


def _is_within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")


def _needed(calls: list[Call | None], norms_in: Mapping[str, list[tuple[str, _BatchNorm]]]) -> list[Call]:
    """Returns the calls that BatchNorm's inputs depend on, in order."""
    needed: set[int] = set()
    for index in reversed(range(len(calls))):
        call = calls[index]
        if call is not None and (index in needed or any(norm.training for _, norm in norms_in[call.name])):
            needed |= {index, *(source for source, _ in call.chained.values())}
    places = {index: place for place, index in enumerate(sorted(needed))}
    chosen = [call for index, call in enumerate(calls) if index in needed and call is not None]
    for call in chosen:
        call.chained = {leaf: (places[source], number) for leaf, (source, number) in call.chained.items()}
    return chosen


# Tensors


def shapes_of(output: Any) -> list[tuple[int, ...] | None]:
    """Returns the shapes of the tensors in an output, without their containers; None for what is no tensor."""
    return [tuple(leaf.shape) if isinstance(leaf, Tensor) else None for leaf in tree_leaves(output)]


def _aside(tensor: Tensor) -> Tensor:
    """Returns a copy on the host, without waiting for it."""
    plain = tensor.detach()
    if plain.device.type != "cuda" or plain.layout != torch.strided:
        return plain.clone() if plain.device.type == "cpu" else plain.to("cpu")
    return torch.empty_like(plain, device="cpu", pin_memory=True).copy_(plain, non_blocking=True)


def _size(calls: list[Call]) -> int:
    tensors = (leaf for call in calls for leaf in call.leaves if isinstance(leaf, Tensor))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return isinstance(value, _PLAIN) or type(value) is Tensor
