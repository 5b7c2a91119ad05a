"""Numbers that change in the course of training, beside torch's own."""

import pytest
import torch
from torch.optim.swa_utils import SWALR

from lightning_reg.functional.annealing import annealed, cyclic


@pytest.mark.parametrize(("kind", "theirs"), [("cosine", "cos"), ("linear", "linear")])
def test_rate_is_annealed_as_torchs_scheduler_does(kind, theirs):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=4, anneal_strategy=theirs)
    for epoch in range(7):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(annealed(0.5, 0.05, epoch / 4, kind), rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_cycle_ends_at_its_lowest():
    rates = [cyclic(1.0, 0.1, step, 3) for step in range(6)]
    assert rates == pytest.approx([0.7, 0.4, 0.1] * 2)
