"""Time and memory to read a table into tensors, compared with DuckDB alone.

``python -m benchmarks tabular`` writes a table of 17 numeric columns, two text columns and a target, reads it once with
DuckDB alone (as text, then each numeric column as float32) and once with ``TabularData``, in two processes, and reports
the time and the peak growth of memory, in multiples of the size of the resulting tensors.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.tables import Options, Table

__all__ = ["tables"]

_ROWS, _QUICK_ROWS, _SMALLEST_ROWS = 2_000_000, 200_000, 1_000
_NUMBERS = 17


def tables(options: Options) -> Iterator[Table]:
    """Yields one table."""
    rows = _SMALLEST_ROWS if options.smallest else _QUICK_ROWS if options.quick else _ROWS
    table = Table(
        f"A table of {rows:,} rows and {_NUMBERS + 3} columns, read from CSV",
        ["read by", "seconds", "peak / tensors"],
        note="Peak: growth of the process's memory by the end of the imports, by that of the tensors.",
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        _write(path, rows)
        for name in READERS:
            command = [sys.executable, "-m", "benchmarks.tabular", name, str(path)]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            table.add(name, result["seconds"], result["peak"] / result["tensors"])
    yield table


def _write(path: Path, rows: int) -> None:
    import duckdb

    numbers = [f"printf('%.6f', random() * 100) AS x{column}" for column in range(_NUMBERS)]
    texts = ["'c' || CAST(random() * 30 AS INT) AS few", "'d' || CAST(random() * 1000 AS INT) AS many"]
    columns = ", ".join([*numbers, *texts, "CAST(random() * 2 AS INT) AS y"])
    duckdb.execute(f"COPY (SELECT {columns} FROM range({rows})) TO '{path}' (HEADER)")


def _by_engine(path: Path) -> Any:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"CREATE TABLE t AS FROM read_csv('{path}', all_varchar = true)")
        names = [f"x{column}" for column in range(_NUMBERS)]
        return [connection.execute(f"SELECT CAST({name} AS FLOAT) AS v FROM t").fetchnumpy()["v"] for name in names]


def _by_tabular_data(path: Path) -> Any:
    from lightning_reg.data import TabularData

    data = TabularData(path=path, target="y", categorical="embed")
    data.setup("fit")
    return data


READERS: dict[str, Callable[[Path], Any]] = {"DuckDB": _by_engine, "TabularData": _by_tabular_data}


def _peak() -> int:
    """Returns the peak memory of the process in bytes."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024


def _measure(name: str, path: Path) -> None:
    import duckdb
    import sklearn.model_selection

    import lightning_reg.data  # noqa: F401  # imported before timing

    del duckdb, sklearn
    begin, before = time.perf_counter(), _peak()
    kept = READERS[name](path)
    seconds, peak = time.perf_counter() - begin, _peak() - before
    with path.open() as file:
        rows = sum(1 for _ in file) - 1
    tensors = rows * (4 * _NUMBERS + 8 * 3)  # float32; int64 codes and targets
    print(json.dumps({"seconds": seconds, "peak": peak, "tensors": tensors}))
    del kept


if __name__ == "__main__":
    _measure(sys.argv[1], Path(sys.argv[2]))
