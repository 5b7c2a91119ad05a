"""Both kinds of model learn a table in which one column says nearly everything."""

import pytest
import torch

from benchmarks.boosting import boosted, trained


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_both_are_measured_on_the_same_kind_of_table(tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(240, 3, generator=generator)
    lines = [",".join(f"{number:.4f}" for number in row) + f",{'high' if row[0] > 0 else 'low'}" for row in rows]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,c,class", *lines]))
    assert boosted(path, 0) > 0.9
    assert trained(path, 0, ["--trainer.max_epochs", "20"]) > 0.85
