"""Proximal L1 gives exact zeros where its subgradient gives none, at little cost in accuracy."""

import pytest

from benchmarks.sparsity import trained
from lightning_reg.callbacks import L1Penalty


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*GPU available")
def test_proximal_l1_leaves_four_of_five_weights_exactly_zero():
    plain, _ = trained(None, seed=0, epochs=60)
    accuracy, zeros = trained(L1Penalty(weight=0.007, proximal=True), seed=0, epochs=60)
    _, zeros_of_subgradient = trained(L1Penalty(weight=0.007), seed=0, epochs=60)
    assert zeros >= 0.8
    assert zeros_of_subgradient == 0
    assert accuracy >= plain - 0.01
