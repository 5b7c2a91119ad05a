"""What a module holds, so that a step can be run again and everything but gradients be as if it had run once."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_reg.core.copies.copying import WRITTEN, silent_stand_in
from lightning_reg.core.copies.holders import VALUES, Holder, holders_of, is_unknown
from lightning_reg.core.gradients import local

__all__ = ["Copied", "HeldState", "Moment", "mark", "size_of"]

_NONE: Mapping[int, Any] = MappingProxyType({})


class _Node:
    """A holder with what is in it that could change."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.children: list[_Node] = []
        self.tensors: list[tuple[str, Tensor]] = []
        self.writers: list[tuple[Any, Any]] = []  # loggers and files: key, silent stand-in


@dataclass(frozen=True)
class Copied:
    """A tensor with a copy of what was in it."""

    name: str
    tensor: Tensor
    memory: Tensor  # shares it, whatever the tensor is given later
    copy: Tensor
    mark: tuple[int, int]


@dataclass(frozen=True)
class Moment:
    """What there was at some moment.

    Attributes:
        contents: Holders, with what was in them, and with silent stand-ins of what is written to.
        copied: Tensors that were copied.
    """

    contents: list[tuple[Holder, Any, list[tuple[Any, Any]]]]
    copied: list[Copied]

    @torch.no_grad()
    def put_back(self, moving: Set[str], *, silently: bool = False, is_looked_at: bool = False) -> None:
        """Puts it back with its loggers silent, whatever is remembered of other moments.

        Args:
            moving: Names of tensors that may have changed without a sign.
            silently: Whether autograd isn't to know, so that graphs which hold on to a tensor stay usable.
            is_looked_at: Whether nothing can have changed since all was last looked at, and set aside.
        """
        for holder, kept, writers in self.contents:
            latest = holder.kept
            if is_looked_at and latest is kept:
                continue
            holder.kept = kept
            if not holder.is_same():
                holder.put_back()
            holder.kept = latest
            for key, stand_in in writers:
                holder.owner[key] = stand_in
        _write(
            (
                copied
                for copied in self.copied
                if copied.name in moving or copied.tensor.is_inference() or _is_changed(copied)
            ),
            silently=silently,
        )


class HeldState:
    """All Python objects and tensors that are reachable from some, remembered and put back.

    Containers, attributes, closures and random streams are compared with what was in them. Tensors are recognized as
    changed by their version counters and their memory; those that were copied are put back.

    Args:
        roots: The objects to begin at, by name. Callbacks by their attributes.
        leave_out: Returns the ``id`` of tensors that somebody else looks after.
    """

    def __init__(self, roots: Mapping[str, Any], leave_out: Callable[[], set[int]] = set) -> None:
        self._roots = roots
        self._leave_out = leave_out
        self._table: dict[int, tuple[Any, list[_Node]]] = {}  # by id, with what has it
        self._order: list[_Node] = []
        self._changing: list[_Node] = []  # those of them whose holder can have changed
        self._seen: set[_Node] = set()
        self._tensors: dict[int, tuple[str, Tensor]] = {}
        self._copied: list[Copied] = []
        self._watched: list[tuple[str, Tensor, Any]] = []
        self._grads: list[tuple[Tensor, Tensor | None]] = []
        self._warned: set[str] = set()

    def look(self) -> list[tuple[str, Tensor]]:
        """Looks at everything that is reachable now; returns the tensors, with names."""
        if not self._order or not self._looked_again():
            self._look_around()
        left_out = self._leave_out()
        return [entry for key, entry in self._tensors.items() if key not in left_out]

    def _looked_again(self) -> bool:
        """Looks into what has changed; returns whether all holders are still there, as is usual from step to step."""
        are_new = False
        for node in list(self._changing):
            if not node.holder.is_same():
                children, tensors = node.children, node.tensors
                self._look_into(node)
                if node.children != children:
                    if not set(children).issubset(node.children):
                        return False
                    self._walk(node.children)
                    are_new = True
                are_new = are_new or len(tensors) != len(node.tensors) or any(map(_differ, tensors, node.tensors))
        if are_new:
            self._find_tensors()
        return True

    def _look_around(self) -> None:
        self._order, self._changing, self._seen = [], [], set()
        self._walk([node for name, root in self._roots.items() for node in self._nodes(root, name)])
        # Forget what can't be reached anymore.
        if len(self._seen) < sum(len(nodes) for _, nodes in self._table.values()):
            self._table = {key: entry for key, entry in self._table.items() if entry[1][0] in self._seen}
        self._find_tensors()

    def _walk(self, nodes: Iterable[_Node]) -> None:
        """Looks into nodes, and what can be reached from them, that haven't been seen."""
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node in self._seen:
                continue
            self._seen.add(node)
            self._order.append(node)
            holder = node.holder
            if holder.can_change:
                self._changing.append(node)
            if holder.is_new or not holder.is_same():
                self._look_into(node)
            stack.extend(node.children)

    def _find_tensors(self) -> None:
        self._tensors = {id(tensor): (name, tensor) for node in self._order for name, tensor in node.tensors}

    def _look_into(self, node: _Node) -> None:
        holder = node.holder
        if not holder.is_new:
            holder.kept = holder.read()
        holder.is_new = False
        node.children, node.tensors, node.writers = [], [], []
        for key, name, value in holder.entries():
            if isinstance(value, Tensor):
                node.tensors.append((name, value))
                continue
            if type(value) in VALUES:
                continue
            found = self._nodes(value, name)
            node.children += found
            if found:
                continue
            stand_in = silent_stand_in(value)
            if stand_in is not WRITTEN and key is not None:
                node.writers.append((key, stand_in))
            elif is_unknown(value):
                self._warn(f"{name}, a {type(value).__name__}, can't be put back")

    def _nodes(self, value: Any, name: str) -> list[_Node]:
        found = self._table.get(id(value))
        if found is None:
            nodes = [_Node(holder) for holder in holders_of(value, name)]
            if not nodes:
                return nodes
            found = self._table[id(value)] = value, nodes
        return found[1]

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            rank_zero_warn(f"{text} when a step is run again: it is changed twice where the step changes it")

    @torch.no_grad()
    def keep(self, is_copied: Callable[[str, Tensor], bool], known: Mapping[int, Copied] = _NONE) -> None:
        """Remembers everything as it is now.

        Args:
            is_copied: Given name and tensor, whether to copy it; else it is only watched.
            known: As for :meth:`moment`.
        """
        for name, tensor in self.look():
            if tensor.is_inference() or is_copied(name, tensor):
                self._copied.append(_copied(name, tensor, known))
            else:
                self._watched.append((name, tensor, mark(tensor)))

    @torch.no_grad()
    def moment(
        self, tensors: list[tuple[str, Tensor]], is_copied: Callable[[str], bool], known: Mapping[int, Copied]
    ) -> Moment:
        """Returns what there was when it was last looked at.

        Args:
            tensors: What :meth:`look` returned.
            is_copied: Given the name of a tensor, whether to copy it; else it stays as it will be.
            known: Copies that are taken where the tensor hasn't changed since, by its ``id``.
        """
        copied = [_copied(name, tensor, known) for name, tensor in tensors if tensor.is_inference() or is_copied(name)]
        return Moment([(node.holder, node.holder.kept, node.writers) for node in self._changing], copied)

    def set_aside(self) -> None:
        """Takes gradients off tensors that nobody else looks after, and silences loggers, after :meth:`keep`."""
        tensors = [*(copied.tensor for copied in self._copied), *(tensor for _, tensor, _ in self._watched)]
        for tensor in tensors:
            if tensor.requires_grad and tensor.is_leaf:
                self._grads.append((tensor, tensor.grad))
                tensor.grad = None
        for node in self._changing:
            for key, stand_in in node.writers:
                node.holder.owner[key] = stand_in

    def changed(self) -> list[str]:
        """Returns the names of watched tensors that have changed since :meth:`keep`."""
        return [name for name, tensor, before in self._watched if mark(tensor) != before]

    def changed_copies(self) -> list[str]:
        """Returns the names of copied tensors that have changed since :meth:`keep`."""
        return [copied.name for copied in self._copied if _is_changed(copied)]

    @torch.no_grad()
    def put_back(self, *, silently: bool = False) -> None:
        """Puts back everything, as often as wanted.

        Args:
            silently: Whether autograd isn't to know, so that graphs which hold on to a tensor stay usable.
        """
        for node in self._changing:
            if not node.holder.is_same():
                node.holder.put_back()
        _write(self._copied, silently=silently)
        for tensor, grad in self._grads:
            tensor.grad = grad

    def forget(self) -> None:
        """Lets go of copies."""
        self._copied, self._watched, self._grads = [], [], []


def _differ(one: tuple[str, Tensor], other: tuple[str, Tensor]) -> bool:
    return one[1] is not other[1] or one[0] != other[0]


def _copied(name: str, tensor: Tensor, known: Mapping[int, Copied]) -> Copied:
    there = known.get(id(tensor))
    if there is not None and not tensor.is_inference() and not _is_changed(there):
        return there
    memory = tensor.detach()
    return Copied(name, tensor, memory, _dense(memory).clone(), mark(tensor))


def _is_changed(copied: Copied) -> bool:
    return mark(copied.tensor) != copied.mark


def _write(copies: Iterable[Copied], *, silently: bool) -> None:
    to, of = [], []
    for copied in copies:
        tensor = copied.tensor
        if tensor.is_inference():
            with torch.inference_mode():
                _dense(tensor).copy_(copied.copy)
            continue
        if _address(tensor) != _address(copied.memory):
            tensor.data = copied.memory
        memory = local(_dense(copied.memory))  # shards are written each by its own process
        to.append(memory.data if silently else memory)  # of which a version is counted apart
        of.append(local(copied.copy))
    if to:
        torch._foreach_copy_(to, of)


def mark(tensor: Tensor) -> tuple[int, int]:
    """Returns what changes when a tensor is written to, or given other memory."""
    return 0 if tensor.is_inference() else tensor._version, _address(tensor)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a sparse one, one without memory, one that is made of others
        return 0


def _dense(tensor: Tensor) -> Tensor:
    """Returns a view in which every entry of an expanded tensor's memory is once."""
    for dimension, stride in enumerate(tensor.stride() if tensor.layout == torch.strided else ()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def size_of(tensor: Tensor) -> int:
    """Returns how many bytes a tensor takes."""
    return tensor.numel() * tensor.element_size()
