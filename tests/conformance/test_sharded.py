"""Weights that are sharded over processes: what works by entry works on shards, the rest is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from lightning_reg.core.gradients import refuse_sharded
from lightning_reg.settings import SettingError
from tests.conformance.by_hand import (
    averaged_or_trained,
    l2,
    l2_sp,
    lookahead,
    moving_average,
    sharpness,
    soft_threshold,
)
from tests.conformance.problem import Setting, Textbook, textbook_loop, trainable


@pytest.mark.slow
def test_techniques_on_shards_equal_the_textbooks_loop(tmp_path):
    command = [sys.executable, "-m", "tests.conformance.sharded", str(tmp_path / "whole.pt")]
    subprocess.run(command, check=True, timeout=200, cwd=Path(__file__).parents[2])
    weights, resumed, logged = torch.load(tmp_path / "whole.pt")
    norms = []

    def penalize_and_clip(model, *_):
        (l2(model) + l2_sp(model)).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(trainable(model), 0.1).item())

    def after_step(model, share):
        for change in (soft_threshold, lookahead, moving_average):
            change(model, share)

    by_hand = textbook_loop(
        Setting(),
        Textbook(
            sharpen=sharpness(0.2),
            on_gradients=penalize_and_clip,
            after_step=after_step,
            evaluated=averaged_or_trained,
        ),
        processes=2,
    )
    torch.testing.assert_close(weights, by_hand.weights[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(resumed, by_hand.weights[1], rtol=0, atol=1e-6)
    assert logged["val_loss"] == pytest.approx(by_hand.val_losses[0], abs=1e-6)
    assert "ema_2/val_loss" in logged
    assert logged["grad/norm"] == pytest.approx(norms[5], rel=1e-5)
    assert logged["grad/norm_clipped"] == pytest.approx(0.1, rel=1e-4)


@pytest.mark.slow
def test_a_norm_is_one_collective_and_what_acts_entry_by_entry_sends_nothing(tmp_path):
    path, only = (
        tmp_path / "sent.json",
        "Penalty|ExponentialMovingAverage|GradientNoise|GradientClipping(norm)|Lookahead",
    )
    command = [sys.executable, "-m", "benchmarks.communication", str(path), only]
    subprocess.run(command, check=True, timeout=200, cwd=Path(__file__).parents[2])
    found = json.loads(path.read_text())
    calls, size = found.pop("")
    assert calls == 2  # weights are gathered, gradients are shared out
    tensors = 6
    assert found.pop("GradientClipping(norm)") == [calls + 1, size + 8 * tensors]
    refused = {name: said for name, said in found.items() if isinstance(said, str)}
    assert refused.keys() == {
        *("GroupLassoPenalty", "OrthogonalPenalty", "OrthogonalPenalty(probes=8)"),
        *("InputGradientPenalty", "JacobianPenalty"),
    }
    assert all("network.0.weight is sharded over processes; use DDP" in said for said in refused.values())
    entrywise = {name: sent for name, sent in found.items() if name not in refused}
    assert len(entrywise) >= 10
    assert all(sent == [calls, size] for sent in entrywise.values())


def test_what_needs_whole_weights_is_refused():
    class Shard(DTensor):
        def __new__(cls):
            return torch.Tensor._make_subclass(cls, torch.zeros(2, 2))

        def __init__(self):
            pass

    with pytest.raises(SettingError, match="strategy must keep weights whole with MaxNorm, but head is sharded"):
        refuse_sharded({Shard(): "head"}, "MaxNorm")
