"""Saving and restoring a module's state, so that a step run again leaves all but gradients as if it had run once."""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_reg.core.batches import is_dense
from lightning_reg.core.copies.copying import WRITTEN, silent_stand_in
from lightning_reg.core.copies.holders import VALUES, Holder, holders_of, is_unknown
from lightning_reg.core.gradients import local
from lightning_reg.core.lightning import set_versions

__all__ = ["Copied", "HeldState", "Moment", "mark", "size_of"]

_NONE: Mapping[int, Any] = MappingProxyType({})
_COMPRESSED = frozenset({torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc})


class _Node:
    """A holder with its mutable contents."""

    def __init__(self, holder: Holder) -> None:
        self.holder = holder
        self.children: list[_Node] = []
        self.tensors: list[tuple[str, Tensor]] = []
        self.writers: list[tuple[Any, Any]] = []  # loggers and files: key, silent stand-in


@dataclass(frozen=True)
class Copied:
    """A tensor with a copy of its values."""

    name: str
    tensor: Tensor
    memory: Tensor  # a view of the memory that the tensor had, in case it is given another
    copy: Tensor
    mark: tuple[int, int]


@dataclass(frozen=True)
class Moment:
    """The state at one moment.

    Attributes:
        contents: Holders with their contents and with silent stand-ins for loggers and files.
        copied: Tensors that were copied.
    """

    contents: list[tuple[Holder, Any, list[tuple[Any, Any]]]]
    copied: list[Copied]

    @torch.no_grad()
    def put_back(self, moving: Set[str], *, silently: bool = False, is_looked_at: bool = False) -> None:
        """Restores this state with its loggers silent, and leaves the saved state of other moments as it is.

        Args:
            moving: Names of tensors that may have changed unnoticed by their version counters.
            silently: Whether to leave version counters as they are, so that graphs that saved a tensor stay usable.
            is_looked_at: Whether nothing can have changed since the latest look and :meth:`HeldState.set_aside`.
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
    """All Python objects and tensors that are reachable from given roots, saved and restored.

    Containers, attributes, closures and random number generators are compared with their saved contents. Changed
    tensors are recognized by their version counters and their memory; those that were copied are restored.

    Args:
        roots: Objects to start from, by name. Of a callback, its attributes.
        leave_out: Function that returns the ``id`` of tensors that are restored elsewhere.
    """

    def __init__(self, roots: Mapping[str, Any], leave_out: Callable[[], set[int]] = set) -> None:
        self._roots = roots
        self._leave_out = leave_out
        self._table: dict[int, tuple[Any, list[_Node]]] = {}  # by id, with the object
        self._order: list[_Node] = []
        self._changing: list[_Node] = []  # those whose holder can change
        self._seen: set[_Node] = set()
        self._tensors: dict[int, tuple[str, Tensor]] = {}
        self._copied: list[Copied] = []
        self._watched: list[tuple[str, Tensor, Any]] = []
        self._memories: dict[int, list[Copied]] = {}  # by address of a copied tensor's storage
        self._grads: list[tuple[Tensor, Tensor | None]] = []
        self._warned: set[str] = set()

    def look(self) -> list[tuple[str, Tensor]]:
        """Traverses everything that is reachable now; returns the tensors with their names."""
        if not self._order or not self._looked_again():
            self._look_around()
        left_out = self._leave_out()
        return [entry for key, entry in self._tensors.items() if key not in left_out]

    def _looked_again(self) -> bool:
        """Updates holders that have changed; returns whether all are still there, as is usual from step to step."""
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
        """Visits nodes that haven't been seen, and those that can be reached from them."""
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
        """Saves the present state.

        Args:
            is_copied: Function of a name and a tensor that returns whether to copy the tensor; others are only watched.
            known: Copies to reuse, as for :meth:`moment`.
        """
        for name, tensor in self.look():
            if tensor.is_inference() or is_copied(name, tensor):
                self._copied.append(_copied(name, tensor, known))
            else:
                self._watched.append((name, tensor, mark(tensor)))

    def aside(self, tensor: Tensor, moving: Set[str]) -> Tensor:
        """Returns a copy of a tensor that a graph saves, if :meth:`put_back` will write to its memory, else itself.

        Args:
            moving: Names of tensors that may have changed unnoticed by their version counters.
        """
        if not self._memories:
            for copied in self._copied:
                self._memories.setdefault(_storage(copied.tensor), []).append(copied)
        address = _storage(tensor)
        there = self._memories.get(address, ()) if address else ()
        return tensor.clone() if any(copied.name in moving or _is_changed(copied) for copied in there) else tensor

    @torch.no_grad()
    def moment(
        self, tensors: list[tuple[str, Tensor]], is_copied: Callable[[str], bool], known: Mapping[int, Copied]
    ) -> Moment:
        """Returns the state at the latest :meth:`look`.

        Args:
            tensors: Return value of :meth:`look`.
            is_copied: Function of a tensor's name that returns whether to copy it; others aren't restored.
            known: Copies by ``id`` of the tensor, which are reused if the tensor hasn't changed since.
        """
        copied = [_copied(name, tensor, known) for name, tensor in tensors if tensor.is_inference() or is_copied(name)]
        return Moment([(node.holder, node.holder.kept, node.writers) for node in self._changing], copied)

    def set_aside(self) -> None:
        """Sets aside the gradients of the saved tensors, and silences loggers; called after :meth:`keep`."""
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
        """Restores the saved state; may be called several times.

        Args:
            silently: Whether to set version counters back, too, so that graphs that have saved a tensor stay usable.
        """
        for node in self._changing:
            if not node.holder.is_same():
                node.holder.put_back()
        _write(self._copied, silently=silently)
        if silently:
            changed = [copied for copied in self._copied if not copied.tensor.is_inference() and _is_changed(copied)]
            set_versions([copied.tensor for copied in changed], [copied.mark[0] for copied in changed])
        for tensor, grad in self._grads:
            tensor.grad = grad

    def forget(self) -> None:
        """Releases the copies."""
        self._copied, self._watched, self._grads = [], [], []
        self._memories = {}


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
        if tensor.layout == torch.sparse_coo:  # a detached one isn't a view
            tensor.data = copied.copy.clone()
            continue
        if tensor.layout in _COMPRESSED:  # whose number of entries may have changed
            tensor.data.resize_as_sparse_(copied.copy).copy_(copied.copy)
            continue
        if _address(tensor) != _address(copied.memory):
            tensor.data = copied.memory
        memory = local(_dense(copied.memory))  # each process writes its own shard
        memory = memory.data if silently else memory  # .data has a version counter of its own
        if tensor.is_nested:  # which foreach operations don't take
            memory.copy_(copied.copy)
            continue
        to.append(memory)
        of.append(local(copied.copy))
    if to:
        with torch._C.DisableTorchFunction():  # which subclasses such as torchvision's don't know of a mixed list
            torch._foreach_copy_(to, of)


def mark(tensor: Tensor) -> tuple[int, int]:
    """Returns a tensor's version and address, which change when it is written to or given other memory."""
    return 0 if tensor.is_inference() else tensor._version, _address(tensor)


def _address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except RuntimeError:  # a sparse tensor, one without memory, a wrapper of others
        return 0


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or local(tensor).untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # as for its address
        return 0


def _dense(tensor: Tensor) -> Tensor:
    """Returns a view of an expanded tensor that has every entry of its memory once."""
    for dimension, stride in enumerate(tensor.stride() if is_dense(tensor) else ()):
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def size_of(tensor: Tensor) -> int:
    """Returns the size of a tensor in bytes."""
    return tensor.numel() * tensor.element_size()
