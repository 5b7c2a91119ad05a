"""What is shown is what a loop by hand sees in weights, gradients and updates."""

import csv
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from lightning_reg.callbacks import WeightDistribution
from lightning_reg.settings import SettingError
from tests.conformance.problem import LEARNING_RATE, Setting, SomebodysModule, loader, network, samples
from tests.helpers import quiet_trainer

KINDS = ("weight", "gradient", "update")


class Recorder(Callback):
    """What was shown in each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(
            {
                tag: callback_metric.item()
                for tag, callback_metric in trainer.callback_metrics.items()
                if tag.startswith(KINDS)
            }
        )


def watched(distribution, setting=None, module=None, **settings):
    recorder, setting = Recorder(), setting or Setting()
    trainer = setting.trainer([distribution, recorder], **{"max_epochs": 1, "log_every_n_steps": 1, **settings})
    module = module or setting.module()
    trainer.fit(module, loader(), loader())
    return recorder.seen, module


def first_step():
    """Network, gradients and updates of the first step, by hand."""
    model = network()
    inputs, labels = (part[:8] for part in samples().tensors)
    F.cross_entropy(model(inputs), labels).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return model, gradients


def assert_describes(shown, tag, tensor):
    exact = tensor.detach().double()
    expected = {
        "mean": exact.mean(),
        "std": exact.std(correction=0),
        "min": exact.min(),
        "max": exact.max(),
        "norm": exact.norm(),
        "zeros": (exact == 0).double().mean(),
    }
    for what, value in expected.items():
        assert shown[f"{tag}/{what}"] == pytest.approx(value.item(), rel=1e-4, abs=1e-7), what


def test_weights_gradients_and_updates_are_those_of_the_step():
    seen, module = watched(WeightDistribution(every_n_steps=1, gradients=True, updates=True), limit_train_batches=1)
    for name, weight in module.named_parameters():
        assert_describes(seen[0], f"weight/{name}", weight)
    _, gradients = first_step()
    assert {tag for tag in seen[0] if tag.startswith("gradient/") and tag.endswith("/mean")} == {
        f"gradient/network.{name}/mean" for name in gradients
    }
    for name, gradient in gradients.items():
        assert_describes(seen[0], f"gradient/network.{name}", gradient)
        assert_describes(seen[0], f"update/network.{name}", -LEARNING_RATE * gradient)
    assert seen[0]["update/network.unused.weight/zeros"] == 1


def test_a_sparse_gradient_is_shown_as_the_dense_one_is():
    class Looks(SomebodysModule):
        def __init__(self, sparse):
            super().__init__()
            self.table = nn.Embedding(40, 6, sparse=sparse)
            nn.init.ones_(self.table.weight)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0] + self.table(batch[1])), batch[1])

    def seen(sparse):
        distribution = WeightDistribution(every_n_steps=1, gradients=True)
        return watched(distribution, module=Looks(sparse), limit_train_batches=1)[0][0]

    sparse, dense = seen(True), seen(False)
    shown = {tag: value for tag, value in dense.items() if tag.startswith("gradient/table")}
    assert shown["gradient/table.weight/zeros"] > 0.9
    assert {tag: sparse[tag] for tag in shown} == pytest.approx(shown, rel=1e-5)


def test_a_gradient_scalers_scale_is_not_shown_and_accumulation_is_waited_for():
    for fused in (False, True):
        setting = Setting("16-mixed", accumulate=4, fused=fused)
        seen, _ = watched(WeightDistribution(every_n_steps=1, gradients=True, updates=True), setting)
        model = network()
        for inputs, labels in [*loader()][:4]:
            (F.cross_entropy(model(inputs), labels) / 4).backward()
        assert [bool(record) for record in seen] == [False, False, False, True, True, True]
        norm = model.head.weight.grad.norm().item()
        assert seen[3]["gradient/network.head.weight/norm"] == pytest.approx(norm, rel=2e-3)
        assert seen[3]["update/network.head.weight/norm"] == pytest.approx(norm * LEARNING_RATE, rel=2e-3)


@pytest.mark.parametrize(
    ("settings", "measured"),
    [({"every_n_steps": 4}, [4, 8, 12]), ({}, [6, 12]), ({"every_n_epochs": 2}, [12])],
)
def test_when_it_measures(settings, measured):
    seen, _ = watched(WeightDistribution(**settings), max_epochs=2)
    values = [shown.get("weight/network.head.weight/mean") for shown in seen]
    changed = [step for step, (before, now) in enumerate(pairwise([None, *values]), 1) if now != before]
    assert changed == measured


def test_stable_rank_and_groups_by_type():
    distribution = WeightDistribution(every_n_steps=1, stable_rank=True, by_type=True)
    seen, module = watched(distribution, limit_train_batches=1)
    values = torch.linalg.svdvals(module.network.head.weight.detach())
    rank = (values.square().sum() / values[0] ** 2).item()
    assert seen[0]["weight/network.head.weight/stable_rank"] == pytest.approx(rank, rel=0.05)
    assert "weight/network.head.bias/stable_rank" not in seen[0]
    linear = {
        id(parameter): parameter
        for part in module.modules()
        if isinstance(part, nn.Linear)
        for parameter in part.parameters()
    }
    together = torch.cat([weight.detach().flatten() for weight in linear.values()])
    assert_describes(seen[0], "weight_by_type/Linear", together)
    assert "weight_by_type/LayerNorm/std" in seen[0]


def test_a_budget_takes_the_largest():
    seen, _ = watched(WeightDistribution(every_n_steps=1, max_parameters=2), limit_train_batches=1)
    shown = {tag.split("/")[1] for tag in seen[0]}
    assert shown == {"network.hidden.weight", "network.first.weight"}


def test_what_is_not_finite_is_named_once_and_nothing_crashes(tmp_path):
    module = SomebodysModule()
    with torch.no_grad():
        module.network.unused.weight[0, 0] = torch.nan
        module.network.unused.bias[0] = 1e30  # its square is infinite; nothing is computed with it
        module.network.norm.weight.fill_(1.0)
    module.network.empty = nn.Parameter(torch.zeros(0, 3))
    with pytest.warns(UserWarning, match=r"The weight of network\.unused\.weight isn't finite") as said:
        seen, _ = watched(
            WeightDistribution(every_n_steps=1, stable_rank=True), module=module, logger=TensorBoardLogger(tmp_path)
        )
    assert sum("isn't finite" in str(warning.message) for warning in said) == 1
    assert not any("unused.weight" in tag for tag in seen[-1])
    assert "weight/network.head.weight/mean" in seen[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_what_float32_cannot_hold_is_said_to_be_out_of_its_range(dtype):
    module = SomebodysModule()
    module.large = nn.Parameter(torch.tensor([-1e100, 1e100], dtype=dtype))
    with pytest.warns(UserWarning, match=r"The weight of large isn't finite in float32, in which it is measured"):
        seen, _ = watched(WeightDistribution(every_n_steps=1), module=module)
    assert not any("large" in tag for tag in seen[-1])


def test_scalars_arrive_in_a_csv_and_histograms_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")]
    _, module = watched(WeightDistribution(histogram_bins=8), logger=loggers)
    with open(loggers[0].log_dir + "/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["weight/network.head.weight/mean"]]
    assert [row["step"] for row in rows] == ["5"]
    events = EventAccumulator(loggers[1].log_dir, size_guidance={"histograms": 0}).Reload()
    value = events.Histograms("weight/network.head.weight")[0].histogram_value
    weight = module.network.head.weight.detach()
    counts, edges = np.histogram(weight.double().numpy(), 8)
    assert sum(value.bucket) == weight.numel()
    # A weight that lies within rounding of a border may be counted on its other side.
    assert np.abs(np.array(value.bucket[-8:]) - counts).sum() <= 2
    assert np.allclose(value.bucket_limit[-8:], edges[1:])


def test_weights_are_computed_though_nobody_listens_but_no_histogram(monkeypatch):
    from lightning_reg.monitors import weight_distribution

    monkeypatch.setattr(weight_distribution, "linear_histogram", lambda *_: pytest.fail("needless"))
    seen, _ = watched(WeightDistribution(every_n_steps=1), limit_train_batches=1)
    assert "weight/network.head.weight/mean" in seen[0]


def test_two_instances_are_told_apart():
    trainer = quiet_trainer(WeightDistribution(), WeightDistribution(include=("*.bias",)))
    trainer.fit(SomebodysModule(), loader(), loader())
    assert "weight_1/network.head.weight/mean" in trainer.callback_metrics
    assert "weight_2/network.head.bias/mean" in trainer.callback_metrics
    assert "weight_2/network.head.weight/mean" not in trainer.callback_metrics


@pytest.mark.parametrize("setting", ["every_n_steps", "every_n_epochs", "max_parameters"])
def test_bad_settings_are_refused(setting):
    with pytest.raises(SettingError, match=f"{setting} must be a whole number of at least 1"):
        WeightDistribution(**{setting: 0})
    with pytest.raises(SettingError, match="histogram_bins must be a whole number of at least 0"):
        WeightDistribution(histogram_bins=-1)


def test_a_glob_that_matches_nothing_is_refused_with_what_there_is():
    message = r"include pattern 'network\.hed\.weight' matches no parameter; there are network\.head\.weight"
    with pytest.raises(SettingError, match=message):
        quiet_trainer(WeightDistribution(include=("network.hed.weight",))).fit(SomebodysModule(), loader(), loader())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_hundreds_of_scalars_dont_fill_the_pipe_between_processes():
    """Lightning hands callback_metrics back through a pipe that isn't read before the process ends."""
    torch.set_num_threads(1)
    module = SomebodysModule()
    module.more = nn.ModuleList([nn.Linear(1, 1) for _ in range(60)])
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True)
    settings = {"limit_train_batches": 1, "limit_val_batches": 0, "use_distributed_sampler": False}
    distribution = WeightDistribution(every_n_steps=1, updates=True)
    trainer = quiet_trainer(distribution, devices=2, strategy=strategy, log_every_n_steps=1, **settings)
    trainer.fit(module, loader(), loader())
    assert not [tag for tag in trainer.callback_metrics if tag.startswith(KINDS)]


class Rotates(SomebodysModule):
    """Has complex weights, whose gradients autograd leaves conjugated."""

    def __init__(self):
        super().__init__()
        self.phases = nn.Parameter(torch.randn(6, 6, dtype=torch.cfloat, generator=torch.Generator().manual_seed(3)))

    def training_step(self, batch, batch_idx):
        turned = (batch[0].to(torch.cfloat) @ self.phases.mH).abs()
        return F.cross_entropy(self.network(turned), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


def test_complex_weights_are_shown_by_their_real_and_imaginary_parts():
    distribution = WeightDistribution(
        include=("phases",), every_n_steps=1, gradients=True, updates=True, stable_rank=True
    )
    module = Rotates()
    started = module.phases.detach().clone()
    seen, module = watched(distribution, module=module, limit_train_batches=1)
    (shown,) = seen
    for tag, tensor in (
        ("weight/phases", module.phases.detach()),
        ("gradient/phases", (started - module.phases.detach()) / LEARNING_RATE),
        ("update/phases", module.phases.detach() - started),
    ):
        parts = torch.stack([tensor.real, tensor.imag])
        assert_describes(shown, tag, parts)
        assert shown[f"{tag}/norm"] == pytest.approx(tensor.abs().square().sum().sqrt().item(), rel=1e-5)
    assert not any("stable_rank" in tag for tag in shown)
