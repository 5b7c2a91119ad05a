"""Communication between processes that techniques add to a training step with sharded weights (FSDP2).

``python -m benchmarks communication`` trains a small network in two processes on the CPU, and counts the calls of
torch's collectives, and the bytes that a process passes to them, in a step that doesn't log. Elementwise techniques
send nothing; a norm sends one number. Techniques that need whole matrices raise an error on sharded weights.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks.overhead import NEEDS_IMAGES, TECHNIQUES
from benchmarks.tables import Options, Table
from benchmarks.timing import quiet
from benchmarks.workloads import Endless, Workload
from lightning_reg.settings import SettingError

__all__ = ["sent"]

STEP = 3  # the step that is counted, after warm-up
WIDTH = 64
REFUSED = "refused"
_SENDS_NOTHING = ("barrier", "wait_tensor", "_wrap_tensor_autograd")


class Counted(TorchDispatchMode, Callback):
    """Counts the calls of collectives in one step, and the bytes passed to them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.calls = self.bytes = 0
        self.counts = False

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its operation on the local shard is dispatched here next
        namespace, _, name = func.name().partition("::")
        is_collective = namespace in ("c10d", "_c10d_functional") and name not in _SENDS_NOTHING
        if self.counts and is_collective:
            self.calls += 1
            tensors = [leaf for leaf in tree_leaves(_handed_over(name, args)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return func(*args, **(kwargs or {}))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.counts = batch_idx == STEP

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.counts = False


def _handed_over(name: str, args: tuple[Any, ...]) -> Any:
    """Returns the input of a collective among its arguments; some collectives take their output first."""
    writes_first = ("_allgather_base_", "allgather_", "_reduce_scatter_base_", "reduce_scatter_", "alltoall_base_")
    return args[1] if name.startswith(writes_first) else args[0]


class Sharded(Workload):
    """An MLP of three layers, with one half of the weights in each process."""

    def __init__(self) -> None:
        layers = [nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10)]
        super().__init__(nn.Sequential(*layers), (WIDTH,), 8)

    @override
    def configure_model(self) -> None:
        mesh: Any = self.device_mesh
        fully_shard(self.network, mesh=mesh["data_parallel"])


def sent(make: Callable[[], list[Callback]]) -> tuple[int, int] | str:
    """Returns the number of collective calls in a step and the bytes that a process sends; or the error message.

    Args:
        make: Function that creates the callbacks.
    """
    torch.manual_seed(0)
    counted, module = Counted(), Sharded()
    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=STEP + 1,
        callbacks=[counted, *make()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1_000_000,
        use_distributed_sampler=False,
    )
    try:
        with counted:
            trainer.fit(module, DataLoader(Endless(module.batch), batch_size=None))
    except SettingError as error:
        return f"{REFUSED}: {error}"
    return counted.calls, counted.bytes


def tables(options: Options) -> Iterator[Table]:
    """Yields one table."""
    table = Table(
        "What a step of sharded weights sends beyond a bare one, in two processes (FSDP2)",
        ["technique", "collectives", "bytes"],
        note="What one process hands over, in a step that doesn't log.",
    )
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        only = "L2Penalty" if options.smallest else options.only
        command = [sys.executable, "-m", "benchmarks.communication", str(results), only]
        subprocess.run(command, check=True, timeout=600, stdout=subprocess.DEVNULL)
        found = json.loads(results.read_text())
    calls, size = found.pop("")
    table.add("a bare step", str(calls), f"{size:,}")
    for name, result in found.items():
        if isinstance(result, str):
            table.add(name, REFUSED, "")
        else:
            table.add(name, str(result[0] - calls), f"{result[1] - size:,}")
    yield table


def _main(path: str, only: str) -> None:
    """Counts in two processes, the first of which writes the results.

    Args:
        path: Path of the results file.
        only: Text that the names of techniques must contain, or several alternatives separated by ``|``.
    """
    torch.set_num_threads(1)
    chosen = {
        name: make
        for name, make in TECHNIQUES.items()
        if any(text in name.lower() for text in only.lower().split("|"))
        and not name.startswith("  ")
        and name not in NEEDS_IMAGES
    }
    found: dict[str, Any] = {}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in {"": list, **chosen}.items():
            found[name] = sent(make)
    if torch.distributed.get_rank() == 0:
        Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
    os._exit(0)  # as the interpreter ends, torch may abort in gloo's threads, which still free tensors
