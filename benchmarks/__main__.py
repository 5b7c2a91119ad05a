"""Runs benchmarks, and prints and saves their results.

``python -m benchmarks`` runs all of them, ``python -m benchmarks overhead scaling`` some. ``--quick`` gives rough
results within minutes. ``--device cuda`` runs them on a GPU. ``--json`` and ``--markdown`` name files for the tables;
an existing JSON file is updated: rows that are measured again replace the old ones.
"""

import argparse
import importlib
import json
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.tables import Options, Table, machine

BENCHMARKS = {
    "startup": "imports, and the command line up to its first step",
    "models": "our models beside a bare Lightning module",
    "step": "a training step of a small network",
    "overhead": "what each technique adds to a training step",
    "scaling": "cost by the number of weights and tensors",
    "small": "what techniques add to a step of many small tensors, beside foreach calls alone",
    "mixing": "Mixup and CutMix of images",
    "memory": "what techniques hold in memory",
    "monitors": "all monitors at their default cadence",
    "inspection": "logging weights and reading activations",
    "layers": "layers that drop something",
    "kernels": "operations that each technique dispatches, and waits for results",
    "communication": "what techniques send between processes that share out weights",
    "data_loading": "images from memory to the network, augmented",
    "tabular": "a table from a file to tensors, beside the engine's own read",
}


def main(args: list[str] | None = None) -> int:
    """Runs the selected benchmarks.

    Args:
        args: Command-line arguments; ``sys.argv[1:]`` if None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    listed = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{listed}; all where none is named")
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, and of training steps those of the first workload alone"
    )
    parser.add_argument("--smallest", action="store_true", help="only to see that everything runs")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU")
    parser.add_argument("--compile", action="store_true", help="compile the networks that are trained")
    parser.add_argument("--only", default="", metavar="TEXT", help="techniques whose name contains it")
    parser.add_argument("--workload", nargs="+", default=["mlp", "cnn"], metavar="NAME", help="mlp, cnn or resnet50")
    parser.add_argument("--threads", type=int, help="that torch computes with")
    parser.add_argument("--data", metavar="FOLDER", help="images to load, in train/<class>/; else random ones")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(args)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    where = f"{machine(options.device)}; {date.today().isoformat()}"
    print(where, flush=True)
    how = Options(
        device=options.device,
        quick=options.quick or options.smallest,
        smallest=options.smallest,
        compiled=options.compile,
        only=options.only,
        workloads=options.workload,
        data=options.data,
    )
    measured: dict[str, list[Table]] = {}
    for name in options.names or BENCHMARKS:
        measured[name] = []
        for table in importlib.import_module(f"benchmarks.{name}").tables(how):
            print(f"\n{table.text()}", flush=True)
            measured[name].append(table)
            _write(options.json, options.markdown, where, measured)  # at once, in case a later one fails
    return 0


def _write(data: Path | None, page: Path | None, where: str, measured: dict[str, list[Table]]) -> None:
    if data:
        tables = {name: [table.data() for table in result] for name, result in measured.items()}
        before = json.loads(data.read_text(encoding="utf-8"))["benchmarks"] if data.exists() else {}
        merged = {
            "machine": where,
            "benchmarks": {**before, **{n: _merged(before.get(n, []), tables[n]) for n in tables}},
        }
        data.write_text(json.dumps(merged, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if page:
        sections = [
            f"## {name}: {BENCHMARKS[name]}\n\n" + "\n".join(table.markdown() for table in result)
            for name, result in measured.items()
        ]
        page.write_text("\n".join([f"# Measurements\n\n{where}\n", *sections]))


def _merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merges the tables of two runs; rows of the newer run replace those of the older one."""
    by_title = {table["title"]: table for table in before}
    for table in now:
        old = by_title.get(table["title"])
        if old is not None and old["columns"] == list(table["columns"]):
            rows = {row[0]: row for row in old["rows"]} | {row[0]: row for row in table["rows"]}
            table["rows"] = list(rows.values())
        by_title[table["title"]] = table
    return list(by_title.values())


if __name__ == "__main__":
    raise SystemExit(main())
