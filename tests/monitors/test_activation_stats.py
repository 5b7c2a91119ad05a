"""What is shown is what a loop by hand sees in the outputs of layers."""

import csv

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler

from lightning_reg.callbacks import ActivationStats, SharpnessAwareMinimization
from lightning_reg.monitors import activations
from lightning_reg.settings import SettingError
from tests.conformance.problem import Setting, SomebodysModule, loader, network, samples
from tests.conformance.resuming import RestoresAtOnce
from tests.helpers import quiet_trainer


class Recorder(Callback):
    """What was shown in each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(shown(trainer))


def shown(trainer):
    return {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("activation")}


class Yours(LightningModule):
    """One layer shown to every kind of network."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.net(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def watched(net, stats, **settings):
    recorder = Recorder()
    module = net if isinstance(net, LightningModule) else Yours(net)
    trainer = quiet_trainer(stats, recorder, **{"log_every_n_steps": 1, **settings})
    trainer.fit(module, loader(), loader())
    return recorder.seen


def outputs_by_hand(layers):
    """What the untrained network's layers return in its first step, by hand."""
    model, kept = network(), {}
    for name in layers:
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: kept.setdefault(name, out))
    model(samples()[:8][0])
    return {name: out.detach().double() for name, out in kept.items()}


def test_statistics_are_those_of_the_outputs():
    seen = watched(SomebodysModule(), ActivationStats(near_zero=0.1), limit_train_batches=1)[0]
    for name, out in outputs_by_hand(["first", "norm", "act", "head"]).items():
        tag = f"activation/network.{name}"
        assert seen[f"{tag}/mean"] == pytest.approx(out.mean().item(), rel=1e-5, abs=1e-7)
        assert seen[f"{tag}/std"] == pytest.approx(out.std(correction=0).item(), rel=1e-5)
        assert seen[f"{tag}/zeros"] == (out == 0).double().mean()
        assert seen[f"{tag}/near_zero"] == pytest.approx((out.abs() < 0.1).double().mean().item())
    assert seen["activation/network.act/saturated"] == (outputs_by_hand(["act"])["act"].abs() >= 0.98).double().mean()
    assert "activation/network.head/saturated" not in seen
    assert not any("unused" in tag for tag in seen)  # what doesn't run returns nothing
    assert not any(tag.startswith("activation/network/") for tag in seen)  # a container


@pytest.mark.parametrize(
    ("layer", "inputs", "saturated"),
    [
        (nn.Sigmoid(), [-9.0, 0.0, 9.0, 9.0], 0.75),
        (nn.Hardtanh(-2, 3), [-2.0, -1.9, 2.9, 3.0], 0.5),
        (nn.ReLU6(), [-1.0, 0.0, 5.9, 6.5], 0.25),
        (nn.Hardsigmoid(), [-4.0, 0.0, 1.0, 4.0], 0.5),
    ],
)
def test_saturation_of_bounded_activations(layer, inputs, saturated):
    class Bounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(6, 3)

        def forward(self, x):
            self.layer(torch.tensor([inputs]))
            return self.head(x)

    seen = watched(Bounded(), ActivationStats(types=(type(layer),)), limit_train_batches=1)[0]
    assert seen["activation/net.layer/saturated"] == saturated


class Silent(nn.Module):
    """Its second unit never fires, its third only in every fourth batch."""

    def __init__(self):
        super().__init__()
        self.act, self.head, self.calls = nn.ReLU(), nn.Linear(4, 3), 0

    def forward(self, x):
        scale = torch.tensor([1.0, 0.0, float(self.calls % 4 == 0), 1.0])
        self.calls += self.training
        return self.head(self.act(x[:, :4].abs() * scale))


def test_a_unit_is_dead_when_it_was_silent_over_the_window():
    seen = watched(Silent(), ActivationStats(types=("ReLU",), window=3))
    dead = [record.get("activation/net.act/dead") for record in seen]
    assert dead == [None, None, 0.25, 0.5, 0.25, 0.25]


def test_units_of_maps_are_channels():
    class Maps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.head = nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Linear(24, 3)
            nn.init.constant_(self.conv.weight, 0.0)
            self.conv.bias = nn.Parameter(torch.tensor([1.0, -1.0, -1.0, -1.0]))

        def forward(self, x):
            return self.head(self.act(self.conv(x.view(-1, 1, 2, 3))).flatten(1))

    stats = ActivationStats(types=("ReLU",), window=1)
    assert watched(Maps(), stats, limit_train_batches=1)[0]["activation/net.act/dead"] == 0.75


def test_layers_that_are_replaced_between_epochs_are_measured():
    class Replaces(Yours):
        def on_train_epoch_start(self):
            if self.current_epoch == 1:
                self.net[1] = nn.Sigmoid()

    seen = watched(Replaces(nn.Sequential(nn.Linear(6, 3), nn.ReLU())), ActivationStats(include="net.1"), max_epochs=2)
    assert [step["activation/net.1/zeros"] > 0 for step in (seen[0], seen[-1])] == [True, False]
    assert ["activation/net.1/saturated" in step for step in (seen[0], seen[-1])] == [False, True]


def test_recurrent_outputs_shared_modules_and_a_sample_of_the_batch():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.act, self.head = nn.GRU(3, 5, batch_first=True), nn.ReLU(), nn.Linear(5, 3)

        def forward(self, x):
            hidden = self.rnn(x.view(-1, 2, 3))[0]
            return self.head(self.act(hidden[:, 0]) + self.act(hidden[:, 1]))

    seen = watched(Mixed(), ActivationStats(sample=3), limit_train_batches=1)[0]
    hidden = Mixed().rnn(samples()[:8][0].view(-1, 2, 3))[0].double()[:3]
    assert seen["activation/net.rnn/mean"] == pytest.approx(hidden.mean().item(), rel=1e-5)
    assert seen["activation/net.act/zeros"] == pytest.approx((hidden <= 0).double().mean().item())


def test_accumulation_counts_all_micro_batches_of_a_step():
    trainer = Setting(accumulate=4).trainer([stats := ActivationStats()], max_epochs=1, log_every_n_steps=1)
    recorder = Recorder()
    trainer.callbacks.append(recorder)
    trainer.fit(SomebodysModule(), loader(), loader())
    model = network()
    first = torch.cat([model.first(x + model.frozen(x)) for x, _ in [*loader()][:4]]).detach().double()
    tag = "activation/network.first"
    assert not recorder.seen[2]
    assert recorder.seen[3][f"{tag}/mean"] == pytest.approx(first.mean().item(), rel=1e-4)
    assert recorder.seen[3][f"{tag}/std"] == pytest.approx(first.std(correction=0).item(), rel=1e-5)
    assert recorder.seen[5][f"{tag}/mean"] != recorder.seen[3][f"{tag}/mean"]  # the short window
    assert stats.every_n_steps is None


def counted(monkeypatch):
    """A list that grows with every output that is measured."""
    computed, original = [], activations.unit_sums

    def count(*args, **kwargs):
        computed.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(activations, "unit_sums", count)
    return computed


def test_every_n_steps_and_nothing_is_computed_between(monkeypatch):
    computed = counted(monkeypatch)
    seen = watched(SomebodysModule(), ActivationStats(include=("network.act",), every_n_steps=2), log_every_n_steps=3)
    assert len(computed) == 3
    assert [bool(record) for record in seen] == [False, False, True, True, True, True]
    assert seen[2] == seen[4] != seen[5]


class Checkpointed(SomebodysModule):
    use_reentrant = False

    def training_step(self, batch, batch_idx):
        features = checkpoint(self.network.features, batch[0], use_reentrant=self.use_reentrant)
        return F.cross_entropy(self.network.head(features), batch[1])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_is_computed_again_is_not_counted_again(reentrant, monkeypatch):
    computed = counted(monkeypatch)
    module = Checkpointed()
    module.use_reentrant = reentrant
    watched(module, ActivationStats(include=("network.act",)), limit_train_batches=2)
    assert len(computed) == 2


def graphs(*stats):
    """How many graphs a compiled network consists of in its first step, and what was shown."""
    torch._dynamo.reset()
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    module = SomebodysModule()
    module.network.compile(backend=backend)
    recorder = Recorder()
    trainer = quiet_trainer(*stats, recorder, log_every_n_steps=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(module, loader(), loader())
    return len(compiled), recorder.seen[0]


@pytest.mark.slow
def test_a_compiled_network_stays_one_graph_and_is_measured_right():
    assert graphs() == (1, {})
    count, seen = graphs(ActivationStats(quantiles=(0.5,), window=1))
    assert count == 1
    eager = watched(SomebodysModule(), ActivationStats(quantiles=(0.5,), window=1), limit_train_batches=1)[0]
    assert seen.keys() == eager.keys()
    for tag, value in eager.items():
        assert seen[tag] == pytest.approx(value, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_a_compiled_network_is_measured_in_later_steps_too():
    """Steps that aren't measured are one more variant of the compiled graph."""
    torch._dynamo.reset()
    module = SomebodysModule(compiled=True)
    seen = watched(module, ActivationStats(every_n_steps=3))
    eager = watched(SomebodysModule(), ActivationStats(every_n_steps=3))
    assert [bool(record) for record in seen] == [False, False, True, True, True, True]
    for tag, value in eager[5].items():
        assert seen[5][tag] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_validation_is_measured_on_its_first_batch():
    stats = ActivationStats(include=("network.first",), validation=True)
    trainer = quiet_trainer(stats, log_every_n_steps=1)
    module = SomebodysModule()
    trainer.fit(module, loader(), loader())
    inputs = samples()[:8][0]
    first = module.network.first(inputs + module.network.frozen(inputs)).detach()
    assert shown(trainer)["activation_val/network.first/mean"] == pytest.approx(first.mean().item(), rel=1e-4)


def test_quantiles_are_shown():
    stats = ActivationStats(include=("network.first",), quantiles=(0.9,))
    seen = watched(SomebodysModule(), stats, limit_train_batches=1)
    exact = torch.quantile(outputs_by_hand(["first"])["first"].flatten(), 0.9, interpolation="higher").item()
    assert seen[0]["activation/network.first/q0.9"] == pytest.approx(exact, rel=0.04)


class Recorded(torch.Tensor):
    """Keeps a record for each sample, and refuses what would part them from one another, as medical images do."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            raise ValueError("inconsistent records")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensors_that_keep_records_are_measured_as_others_are():
    class Records(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch[0].as_subclass(Recorded), *batch[1:]], batch_idx)

    stats = [ActivationStats(include=("network.first",), histogram_bins=4, sample=2) for _ in range(2)]
    kept, plain = watched(Records(), stats[0]), watched(SomebodysModule(), stats[1])
    assert kept == plain


def test_what_is_not_finite_is_named_once_rather_than_shown():
    class Bad(SomebodysModule):
        def training_step(self, batch, batch_idx):
            self.network.act(torch.tensor([[torch.nan]]))
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match=r"What network\.act returns isn't finite") as said:
        seen = watched(Bad(), ActivationStats(histogram_bins=4))
    assert sum("finite" in str(warning.message) for warning in said) == 1
    assert not any(tag.startswith("activation/network.act/") for tag in seen[-1])
    assert "activation/network.first/mean" in seen[-1]


def test_scalars_arrive_in_a_csv_and_histograms_and_the_image_in_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")]
    stats = [ActivationStats(histogram_bins=16), ActivationStats(types=("Tanh",))]
    trainer = quiet_trainer(*stats, logger=loggers, log_every_n_steps=2, max_epochs=2)
    trainer.fit(SomebodysModule(), loader(), loader())
    with open(loggers[0].log_dir + "/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    steps = [row["step"] for row in rows if row.get("activation_1/network.act/mean")]
    assert steps == ["1", "3", "5", "7", "9", "11"]
    events = EventAccumulator(loggers[1].log_dir, size_guidance={"histograms": 0, "images": 0}).Reload()
    histograms = events.Histograms("activation_1/network.act")
    assert [histogram.step for histogram in histograms] == [1, 3, 5, 7, 9, 11]
    value = histograms[0].histogram_value
    assert value.num == pytest.approx(96)
    assert sum(value.bucket) == pytest.approx(96)
    image = events.Images("activation_1/colorful_dimension")[-1]
    assert image.height > 100
    assert not [tag for tag in events.Tags()["histograms"] if tag.startswith("activation_2")]


def test_a_fit_that_is_hardly_longer_is_not_drawn_anew_but_its_end_is(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    stats = ActivationStats(include="network.act", histogram_bins=4)
    trainer = quiet_trainer(stats, logger=logger, log_every_n_steps=6, max_epochs=24)
    trainer.fit(SomebodysModule(), loader(), loader())
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    epochs = [image.step / 6 for image in events.Images("activation/colorful_dimension")]
    assert epochs[:10] == list(range(1, 11))
    assert epochs[-1] == 24
    assert len(epochs) < 20


def columns_of(module, tmp_path, **settings):
    stats = ActivationStats(include=("network.first", "network.act"), histogram_bins=4)
    trainer = quiet_trainer(stats, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1, **settings)
    trainer.fit(module, loader(), loader())
    return stats.state_dict()


def test_columns_of_a_long_fit_stay_equally_far_apart(tmp_path, monkeypatch):
    whole = columns_of(SomebodysModule(), tmp_path, max_epochs=2)
    monkeypatch.setattr("lightning_reg.monitors.activation_stats._MOST_COLUMNS", 4)
    monkeypatch.setattr("lightning_reg.monitors.activation_stats._MOST_PANELS", 1)
    few = columns_of(SomebodysModule(), tmp_path, max_epochs=2)
    assert whole["steps"] == list(range(1, 13))
    assert few["steps"] == [1, 5, 9]
    assert few["columns"].keys() == {"network.first"}
    assert torch.equal(few["columns"]["network.first"], whole["columns"]["network.first"][::4])


def test_a_batch_that_is_run_again_is_not_counted_again():
    alone = watched(SomebodysModule(), ActivationStats(), limit_train_batches=1)
    recorder = Recorder()
    callbacks = [SharpnessAwareMinimization(rho=2.0), ActivationStats(), recorder]
    quiet_trainer(*callbacks, log_every_n_steps=1, limit_train_batches=1).fit(SomebodysModule(), loader(), loader())
    assert recorder.seen == alone


@pytest.mark.filterwarnings("ignore:ActivationStats watches modules of which none ran")
def test_a_step_in_which_a_module_does_not_run_leaves_its_column_empty(tmp_path):
    class Sometimes(SomebodysModule):
        def training_step(self, batch, batch_idx):
            return self.network(batch[0]).square().mean() if batch_idx % 2 else self.network.head.weight.square().sum()

    state = columns_of(Sometimes(), tmp_path)
    assert state["steps"] == [1, 2, 3, 4, 5, 6]
    for columns in state["columns"].values():
        assert columns.float().sum(1).tolist() == pytest.approx([0, 1] * 3, abs=0.01)


def test_resumed_keeps_window_and_columns(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    stats = ActivationStats(window=2, histogram_bins=4)
    trainer = quiet_trainer(stats, logger=logger, log_every_n_steps=1)
    trainer.fit(SomebodysModule(), loader(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = ActivationStats(window=2, histogram_bins=4)
    quiet_trainer(again, logger=logger, log_every_n_steps=1, max_epochs=2).fit(
        SomebodysModule(), loader(), loader(), ckpt_path=tmp_path / "last.ckpt"
    )
    state = again.state_dict()
    assert state["steps"] == list(range(1, 13))
    assert {len(columns) for columns in state["columns"].values()} == {12}
    assert set(state["measured"].values()) == {12}


def test_restored_within_the_same_fit_keeps_columns(tmp_path):
    stats = ActivationStats(histogram_bins=4)
    logging = {"logger": TensorBoardLogger(tmp_path), "log_every_n_steps": 1}
    trainer = quiet_trainer(stats, RestoresAtOnce(tmp_path / "now.ckpt"), max_epochs=2, **logging)
    trainer.fit(SomebodysModule(), loader(), loader())
    state = stats.state_dict()
    assert state["steps"] == list(range(1, 13))
    assert {len(columns) for columns in state["columns"].values()} == {12}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be a whole number of at least 1"),
        ({"histogram_bins": -1}, "histogram_bins must be a whole number of at least 0"),
        ({"window": 0}, "window must be a whole number of at least 1"),
        ({"sample": 0}, "sample must be a whole number of at least 1"),
        ({"near_zero": 0.0}, r"near_zero must be in \[1e-15, ∞\)"),
        ({"saturation": 0.5}, r"saturation must be in \(0, 0.5\)"),
        ({"quantiles": 5}, "quantiles must be a list, but is 5"),
        ({"types": 5}, "types must be a list, but is 5"),
        ({"quantiles": (1.5,)}, r"quantiles must be in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        ActivationStats(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"include": ("network.frst",)},
            r"include pattern 'network\.frst' matches no module; there are network\.first",
        ),
        (
            {"types": ("ReLU",)},
            "types must be of modules that there are, LayerNorm, Linear, Network, Tanh, but is 'ReLU'",
        ),
        ({"types": ("Linea",)}, "LayerNorm, Linear, Network, Tanh, but is 'Linea'; did you mean 'Linear'"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(settings, message):
    with pytest.raises(SettingError, match=message):
        quiet_trainer(ActivationStats(**settings)).fit(SomebodysModule(), loader(), loader())


class Two(SomebodysModule):
    """Its second process runs a layer that the first doesn't."""

    def training_step(self, batch, batch_idx):
        if self.global_rank == 1:
            self.network.unused(batch[0][:, :4])
        return super().training_step(batch, batch_idx)

    def train_dataloader(self):
        sampler = DistributedSampler(samples(), 2, self.trainer.global_rank, shuffle=False)
        return DataLoader(samples(), batch_size=4, sampler=sampler)

    val_dataloader = train_dataloader


class Saves(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero:
            torch.save(shown(trainer), self.path)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_two_processes_are_added_up(tmp_path):
    torch.set_num_threads(1)
    strategy = DDPStrategy(start_method="fork", find_unused_parameters=True)
    trainer = quiet_trainer(
        ActivationStats(quantiles=(0.5,), window=1),
        Saves(tmp_path / "seen.pt"),
        devices=2,
        strategy=strategy,
        log_every_n_steps=1,
        limit_val_batches=0,
        limit_train_batches=1,
    )
    trainer.fit(Two())
    seen = torch.load(tmp_path / "seen.pt")
    alone = watched(SomebodysModule(), ActivationStats(quantiles=(0.5,), window=1), limit_train_batches=1)[0]
    assert seen.keys() - alone.keys() == {tag for tag in seen if "unused" in tag} != set()
    for tag, value in alone.items():
        assert seen[tag] == pytest.approx(value, rel=1e-5, abs=1e-7)
