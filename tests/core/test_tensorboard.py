"""What arrives at which logger: read back from TensorBoard's files, and seen by stand-ins for other loggers."""

import re

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lightning_reg.audit.chart_layout import charts_for
from lightning_reg.audit.inventory import technique_settings
from lightning_reg.callbacks import (
    GeneralizationGap,
    GradientMonitor,
    L2Penalty,
    NonNegative,
    RegularizationAudit,
    SnapshotEnsemble,
    StrengthSchedule,
    UnitNorm,
)
from lightning_reg.core.facts import Chart
from lightning_reg.core.tensorboard import Histogram, log_histograms, log_image, log_layout, log_text, write_scalars
from tests.helpers import quiet_trainer
from tests.monitors.gap import fit


def watched(logger, *others, **settings):
    callbacks = [RegularizationAudit(), GeneralizationGap(), GradientMonitor(layers=("*",), update_ratio=True), *others]
    return fit(*callbacks, logger=logger, log_every_n_steps=1, **settings)


def events(folder):
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0}).Reload()
    return found.Tags(), found


@pytest.mark.filterwarnings("ignore:.*np.fromstring.*|.*distutils.*:DeprecationWarning")
def test_everything_is_in_tensorboards_files(tmp_path):
    penalty = L2Penalty(weight=1e-4, schedule=StrengthSchedule(kind="cosine"))
    watched(TensorBoardLogger(tmp_path, "run", 0, default_hp_metric=False), penalty)
    tags, found = events(tmp_path / "run" / "version_0")
    assert {"gap/loss", "gap/train_loss", "gap/val_acc", "final/gap_loss", "final/val_loss"} <= set(tags["scalars"])
    assert tags["images"] == ["gap/curves"]
    assert {"audit/regularization/text_summary", "gap/signals/text_summary"} <= set(tags["tensors"])
    (audit,) = found.Tensors("audit/regularization/text_summary")
    assert "| gradient | L2Penalty | weight 0.0001" in audit.tensor_proto.string_val[0].decode()
    layout = layout_pb2.Layout()
    layout.ParseFromString(found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == [
        "Generalization",
        "Training",
        "Penalties",
        "Gradients",
        "Schedules",
    ]


@pytest.mark.filterwarnings("ignore:.*np.fromstring.*|.*distutils.*:DeprecationWarning")
def test_every_chart_has_curves(tmp_path):
    """And each curve of a chart is a scalar that was logged."""
    penalty = L2Penalty(weight=1e-4, schedule=StrengthSchedule(kind="cosine"))
    watched(TensorBoardLogger(tmp_path, "run", 0), penalty)
    tags, _ = events(tmp_path / "run" / "version_0")
    charts = charts_for([GeneralizationGap(), GradientMonitor(layers=("*",), update_ratio=True), penalty])
    # The module logs no training loss or accuracy; those of validation are there.
    for category, within in charts.items():
        for title, (pattern,) in within.items():
            assert any(re.match(pattern, tag) for tag in tags["scalars"]), (category, title)
    assert "norm by layer" not in charts_for([GradientMonitor()])["Gradients"]


def test_a_chart_of_a_category_of_its_own_comes_last():
    class Somebodys(Callback):
        charts = (Chart("Attention", "entropy", "attention/entropy"),)

    charts = charts_for([Somebodys(), SnapshotEnsemble(cycles=3)])
    assert list(charts) == ["Training", "Schedules", "Attention"]
    assert charts["Attention"] == {"entropy": ["attention/entropy"]}


def test_hyperparameters_tell_techniques_apart():
    second = L2Penalty(weight=0.2, include=("head.*",))
    callbacks = [L2Penalty(weight=0.1), UnitNorm(), NonNegative(), second, GeneralizationGap()]
    assert technique_settings(quiet_trainer(*callbacks)) == {
        "L2Penalty/weight": 0.1,
        "UnitNorm/group": "output",
        "NonNegative": True,
        "L2Penalty_2/weight": 0.2,
        "L2Penalty_2/include": "head.*",
    }


def test_scalars_arrive_in_a_csv_file(tmp_path):
    watched(CSVLogger(tmp_path, "run", 0))
    header = (tmp_path / "run" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"gap/loss", "gap/train_loss", "grad/norm", "val_loss"} <= set(header)


def test_nothing_breaks_without_a_logger(capsys):
    watched(False)
    assert "Regularization of" in capsys.readouterr().out


class Silent(Logger):
    """Takes scalars alone."""

    name, version, experiment = "silent", 0, None

    def __init__(self):
        super().__init__()
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls += [("scalar", name) for name in metrics]

    def log_hyperparams(self, params, *args, **kwargs):
        """Kept elsewhere."""


class LikeWandb(Silent):
    def log_text(self, key, columns=None, data=None, dataframe=None, step=None):
        self.calls.append(("text", key, columns, data))

    def log_image(self, key, images, step=None, **kwargs):
        self.calls.append(("image", key, [image.shape for image in images]))


class LikeMlflow(Silent):
    run_id = "17"

    class Client:
        def __init__(self, calls):
            self.calls = calls

        def log_text(self, run_id, text, artifact_file):
            self.calls.append(("text", run_id, text, artifact_file))

        def log_image(self, run_id, image, artifact_file):
            self.calls.append(("image", run_id, image.shape, artifact_file))

    @property
    def experiment(self):
        return self.Client(self.calls)


class LikeComet(LikeMlflow):
    run_id = None

    class Client(LikeMlflow.Client):
        def log_text(self, text, step=None, metadata=None):
            self.calls.append(("text", text, metadata))

        def log_image(self, image_data, name=None, step=None):
            self.calls.append(("image", name, image_data.shape, step))


@pytest.mark.parametrize(
    ("logger", "expected"),
    [
        (LikeWandb(), [("text", "audit", ["text"], [["a table"]]), ("image", "gap/curves", [(4, 5, 3)])]),
        (LikeMlflow(), [("text", "17", "a table", "audit.md"), ("image", "17", (4, 5, 3), "gap/curves/7.png")]),
        (LikeComet(), [("text", "a table", {"tag": "audit"}), ("image", "gap/curves", (4, 5, 3), 7)]),
        (Silent(), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_text_and_images_go_where_a_logger_takes_them(logger, expected):
    trainer = quiet_trainer(logger=logger)
    log_text(trainer, "audit", "a table")
    log_image(trainer, "gap/curves", torch.zeros(4, 5, 3, dtype=torch.uint8), 7)
    log_layout(trainer, charts_for([]))
    assert logger.calls == expected


def test_scalars_arrive_at_any_logger():
    logger = LikeWandb()
    watched(logger)
    assert {("scalar", "gap/loss"), ("scalar", "grad/norm")} <= {call[:2] for call in logger.calls}
    assert [call[1] for call in logger.calls if call[0] in ("text", "image")] == [
        "audit/regularization",
        "gap/signals",
        "gap/curves",
    ]


VALUES = {"a/b": 0.1, "c d": -3.0, "big": 1e30, "none": float("nan")}


def scalars(logger, folder):
    logger.save()
    _, found = events(folder)
    return {
        tag: [(scalar.step, repr(scalar.value)) for scalar in found.Scalars(tag)] for tag in found.Tags()["scalars"]
    }


@pytest.mark.filterwarnings("ignore:.*np.fromstring.*|.*distutils.*:DeprecationWarning")
def test_scalars_at_once_are_those_that_the_logger_writes_one_by_one(tmp_path):
    ours, lightnings = (TensorBoardLogger(tmp_path, name, 0) for name in ("ours", "lightnings"))
    for step in (3, 5):
        write_scalars(ours, VALUES, step)
        lightnings.log_metrics(VALUES, step)
    found = scalars(ours, tmp_path / "ours" / "version_0")
    assert found == scalars(lightnings, tmp_path / "lightnings" / "version_0")
    assert len(found) == len(VALUES)


def test_hundreds_of_scalars_or_histograms_are_one_event(tmp_path, monkeypatch):
    added = []
    monkeypatch.setattr(EventFileWriter, "add_event", lambda _, event: added.append(len(event.summary.value)))
    logger = TensorBoardLogger(tmp_path, "run", 0)
    _ = logger.experiment  # which says hello first
    added.clear()
    write_scalars(logger, {str(index): 0.0 for index in range(300)}, 0)
    histogram = Histogram(torch.tensor([2, 0]), torch.tensor([0.0, 1.0, 2.0]), 1.0, 1.0)
    trainer = quiet_trainer(logger=logger)
    log_histograms(trainer, {str(index): histogram for index in range(200)}, 0)
    log_histograms(trainer, {}, 0)
    assert added == [300, 200]


@pytest.mark.filterwarnings("ignore:.*np.fromstring.*|.*distutils.*:DeprecationWarning")
def test_a_prefix_and_what_a_kind_of_ones_own_does_are_kept(tmp_path):
    class Theirs(TensorBoardLogger):
        def log_metrics(self, metrics, step=None):
            super().log_metrics({f"{name}/theirs": value for name, value in metrics.items()}, step)

    prefixed, theirs = TensorBoardLogger(tmp_path, "prefixed", 0, prefix="p"), Theirs(tmp_path, "theirs", 0)
    for logger in (prefixed, theirs):
        write_scalars(logger, {"a": 1.0}, 0)
    assert list(scalars(prefixed, tmp_path / "prefixed" / "version_0")) == ["p-a"]
    assert list(scalars(theirs, tmp_path / "theirs" / "version_0")) == ["a/theirs"]


def test_an_image_has_bytes():
    with pytest.raises(TypeError, match="image must be of bytes"):
        log_image(quiet_trainer(), "gap/curves", torch.zeros(4, 5, 3), 0)
