"""Operations that a technique dispatches in a step, and host syncs: costs on a GPU, counted on the CPU.

``python -m benchmarks kernels`` trains networks with few and with many tensors, and counts the operations that torch's
profiler records beyond a bare step, in a step that doesn't log. Views and memory allocations aren't counted, nor are
operations within one over a list of tensors. A count that grows shows that a technique loops over tensors.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from benchmarks.overhead import NEEDS_IMAGES, TECHNIQUES, TOGETHER
from benchmarks.tables import Options, Table
from benchmarks.timing import quiet
from benchmarks.workloads import Endless, Workload

__all__ = ["WAITS", "beyond_bare", "operations"]

STEP = 3  # the step that is counted, after warm-up
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")
_FREE = {
    *("view", "reshape", "_unsafe_view", "view_as", "expand", "expand_as", "as_strided", "slice", "select", "narrow"),
    *("t", "transpose", "permute", "unsqueeze", "squeeze", "flatten", "unflatten", "split", "chunk", "unbind"),
    *("split_with_sizes", "alias", "detach", "detach_", "lift_fresh", "view_as_real", "resolve_conj", "movedim"),
    *("mH", "mT", "adjoint", "diagonal", "promote_types", "result_type", "is_nonzero", "item"),
    *("empty", "empty_like", "empty_strided", "new_empty"),
}


class _Begins(Callback):
    def __init__(self, counted: profile) -> None:
        self.counted = counted

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEP:
            self.counted.start()


class _Ends(Callback):
    def __init__(self, counted: profile) -> None:
        self.counted = counted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == STEP:
            self.counted.stop()


def deep(layers: int) -> Workload:
    """Returns a network of many small tensors: a weight and a bias per layer, 8 wide, on batches of 4."""
    blocks = [layer for _ in range(layers) for layer in (nn.Linear(8, 8), nn.ReLU())]
    return Workload(nn.Sequential(*blocks, nn.Linear(8, 10)), (8,), 4)


def operations(make: Callable[[], list[Callback]], workload: Workload) -> Counter[str]:
    """Counts the operations that a step dispatches, by name, in a step that doesn't log.

    Args:
        make: Function that creates the callbacks.
        workload: Network to train.
    """
    counted = profile(activities=[ProfilerActivity.CPU])
    with quiet():
        trainer = Trainer(
            accelerator="cpu",
            max_steps=STEP + 1,
            callbacks=[_Begins(counted), *make(), _Ends(counted)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1_000_000,
        )
        trainer.fit(workload, DataLoader(Endless(workload.batch), batch_size=None))
    events: list[Any] = counted.events()  # type: ignore[no-untyped-call]
    return Counter(event.name for event in events if _counts(event))


def _counts(event: Any) -> bool:
    if not event.name.startswith("aten::"):
        return False
    if event.name in WAITS:
        return True
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("aten::"):
            return False
        parent = parent.cpu_parent
    if event.name == "aten::to" and not event.cpu_children:
        return False  # a conversion without effect
    return event.name.removeprefix("aten::") not in _FREE


def beyond_bare(make: Callable[[], list[Callback]], layers: int) -> Counter[str]:
    """Counts the operations that callbacks add to a bare step.

    Args:
        make: Function that creates the callbacks.
        layers: Number of hidden layers of the network.
    """
    found, bare = operations(make, deep(layers)), operations(list, deep(layers))
    return Counter({name: found[name] - bare[name] for name in {*found, *bare} if found[name] != bare[name]})


def tables(options: Options) -> Iterator[Table]:
    """Yields one table."""
    few, many = (2, 4) if options.smallest else (10, 40)
    tensors = [2 * (layers + 1) for layers in (few, many)]
    table = Table(
        "Operations that techniques dispatch in a step that doesn't log",
        ["technique", *(f"{count} tensors" for count in tensors), "for each tensor more", "waits"],
        note="Beyond a bare step. A wait is a result that the host asks for; on a GPU it would have to be waited for.",
    )
    for name, make in TECHNIQUES.items():
        if options.only.lower() not in name.lower() or name.startswith("  ") or name in NEEDS_IMAGES:
            continue
        if options.smallest and name not in ("L2Penalty", TOGETHER):
            continue
        counts = [beyond_bare(make, layers) for layers in (few, many)]
        totals = [sum(count for op, count in found.items() if op not in WAITS) for found in counts]
        growth = (totals[1] - totals[0]) / (tensors[1] - tensors[0])
        table.add(name, *map(str, totals), f"{growth:.2f}", str(sum(counts[1][op] for op in WAITS)))
    yield table
