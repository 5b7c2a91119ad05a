"""The image of a training batch: what is shown, when, and of whose batch."""

from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch.utils.data import DataLoader

from lightning_reg.callbacks import BatchImages, BatchMixing
from lightning_reg.core.streams import random_stream
from lightning_reg.data import ImageData
from lightning_reg.monitors import batch_images
from lightning_reg.monitors.image_grid import captioned_grid
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.helpers import quiet_trainer

Pair = namedtuple("Pair", "image label")


@dataclass
class Sample:
    image: torch.Tensor
    label: torch.Tensor


class Module(LightningModule):
    """Remembers its first batch; knows where images are in it."""

    def __init__(self, of=lambda batch: batch[0]):
        super().__init__()
        self.of = of
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(self.of(batch).clone())
        return (self.of(batch).float() * self.weight).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def drawn(monkeypatch):
    """What would be drawn: images and captions."""
    calls = []

    def remember(images, captions):
        calls.append((images, captions))
        return captioned_grid(images, captions)

    monkeypatch.setattr(batch_images, "captioned_grid", remember)
    return calls


def logged(trainer):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(trainer.logger.log_dir, size_guidance={"images": 0}).Reload()
    return events.Images("batch/training") if "batch/training" in events.Tags()["images"] else []


def fit(callback, batches, tmp_path, of=lambda batch: batch[0], others=(), **settings):
    module = Module(of)
    trainer = quiet_trainer(callback, *others, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1, **settings)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return module, trainer


def batch(channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, channels, 8, 8, generator=generator), torch.tensor([0, 1, 2, 1])


def test_image_in_the_event_file_is_what_the_network_saw(tmp_path, drawn):
    class Validates(Module):
        def validation_step(self, batch, batch_idx):
            pass

    data = ImageData(augment="basic", mix=Mixup(alpha=1.0), batch_size=32, train_size=96)
    module = Validates()
    trainer = quiet_trainer(BatchImages(max_samples=9), logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(module, datamodule=data)
    ((images, captions),) = drawn
    mean, std = data.mean_and_std
    # Normalization and back: three roundings of numbers up to 3.
    torch.testing.assert_close(images, (module.seen[0][:9] * std + mean).clamp(0, 1), rtol=0, atol=1e-6)
    assert all(1 <= len(lines) <= 2 for lines in captions)
    assert any(len(lines) == 2 for lines in captions)
    (event,) = logged(trainer)
    (tmp_path / "a.png").write_bytes(event.encoded_image_string)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(captioned_grid(images, captions)))


@pytest.mark.parametrize(("every", "steps"), [(None, [0]), (1, [0, 2, 4, 6, 8]), (2, [0, 4, 8])])
def test_once_a_fit_or_every_so_many_epochs(every, steps, tmp_path):
    _, trainer = fit(BatchImages(every_n_epochs=every), [batch()] * 2, tmp_path, max_epochs=5)
    assert [event.step for event in logged(trainer)] == steps


@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_it_changes_nothing_and_lets_go(fails, tmp_path):
    class Fails(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if fails:
                raise InterruptedError

    weights = []
    for callback in (BatchImages(every_n_epochs=1), Callback()):
        given = batch()
        before, state = given[0].clone(), torch.get_rng_state()
        module = Module()
        trainer = quiet_trainer(
            callback, Fails(), logger=TensorBoardLogger(tmp_path), log_every_n_steps=1, max_epochs=2
        )
        with pytest.raises(InterruptedError) if fails else nullcontext():
            trainer.fit(module, DataLoader([given], batch_size=None, generator=torch.Generator()))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(given[0], before)
        assert "training_step" not in vars(module)
        weights.append(module.weight.detach())
    assert torch.equal(*weights)


def test_every_fit_of_a_trainer_is_shown(tmp_path, drawn):
    callback = BatchImages()
    for _ in range(2):
        fit(callback, [batch()], tmp_path)
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("make", "keys"),
    [
        (lambda x, y: [x, y], {}),
        (lambda x, y: (y, x), {"input_key": 1, "target_key": 0}),
        (lambda x, y: {"image": x, "label": y}, {"input_key": "image", "target_key": "label"}),
        (Pair, {"input_key": "image", "target_key": "label"}),
        (Sample, {"input_key": "image", "target_key": "label"}),
        (lambda *parts: parts[0], {}),
    ],
    ids=["list", "tuple", "dict", "namedtuple", "dataclass", "tensor"],
)
def test_batches_of_any_kind(make, keys, tmp_path, drawn):
    images, labels = batch()
    fit(BatchImages(**keys, class_names=["cat", "dog"]), [make(images, labels)], tmp_path, of=lambda _: images)
    ((images, captions),) = drawn
    low, high = images.aminmax()
    torch.testing.assert_close(images, (images - low) / (high - low))
    assert captions == ([[]] * 4 if make(1, 2) == 1 else [["cat"], ["dog"], ["2"], ["dog"]])


@pytest.mark.parametrize(
    ("targets", "captions"),
    [
        (torch.tensor([[0.0, 0.25, 0.75]] * 4), [["0.75 2", "0.25 1"]] * 4),
        (torch.tensor([[0.0, 1.0, 0.0]] * 4), [["1.00 1"]] * 4),
        (torch.tensor([0.5, 1.25, -3.0, 10000.0]), [["0.5"], ["1.25"], ["-3"], ["1e+04"]]),
        (torch.tensor([[0.5]] * 4), [["0.5"]] * 4),
        (torch.tensor([[1], [0], [2], [0]]), [["1"], ["0"], ["2"], ["0"]]),
        (
            torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 0]]),
            [["1.00 1", "1.00 2"], ["1.00 2"], [], ["1.00 0"]],
        ),
        (torch.ones(4, 8, 8, dtype=torch.long), [[]] * 4),
    ],
    ids=["soft", "one-hot", "values", "column", "column of labels", "several labels", "maps"],
)
def test_targets_of_any_kind(targets, captions, tmp_path, drawn):
    fit(BatchImages(), [(batch()[0], targets)], tmp_path)
    assert drawn[0][1] == captions


class Classifies(Module):
    def training_step(self, batch, batch_idx):
        logits = (batch[0].float() * self.weight).flatten(1)[:, :3]
        return torch.nn.functional.cross_entropy(logits, batch[1])


def test_labels_that_a_callback_mixes_in_are_named(tmp_path, drawn):
    mixing = BatchMixing(Mixup(per_sample=True), seed=0)
    trainer = quiet_trainer(BatchImages(max_samples=3), mixing, logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(Classifies(), DataLoader([batch()], batch_size=None))
    stream = random_stream(0, 0, 0, 0, "BatchMixing", 0)
    stream.random()
    minor = [min(weight, 1 - weight) for weight in (stream.betavariate(1, 1) for _ in range(4))]
    labels = batch()[1].tolist()
    # Everybody's partner is the one before it, the first one's the last.
    expected = [[f"{1 - minor[i]:.2f} {labels[i]}", f"{minor[i]:.2f} {labels[i - 1]}"] for i in range(3)]
    assert drawn[0][1] == expected


def test_what_others_put_around_the_step_is_seen(tmp_path, drawn):
    """Whatever the order of callbacks."""
    from lightning_reg.core.wrapping import around

    class Doubles(Callback):
        def on_fit_start(self, trainer, pl_module):
            around(
                pl_module, "training_step", lambda step, pair, index: step((torch.zeros(4, 1, 2, 2), pair[1]), index)
            )

    for others in ([Doubles()], []):
        callback = BatchImages()
        settings = {"others": others} if others else {"others": (), "callbacks": [Doubles(), callback]}
        fit(callback, [batch()], tmp_path, **settings)
    assert [images.shape for images, _ in drawn] == [(4, 1, 2, 2)] * 2


@pytest.mark.parametrize(
    ("shape", "shown"), [((4, 6), (1, 1, 6)), ((4, 5, 6), (1, 5, 6)), ((4, 7, 5, 6), (1, 5, 6))], ids=str
)
def test_what_is_no_image_is_drawn_as_gray_values(shape, shown, tmp_path, drawn):
    fit(BatchImages(), [(torch.arange(float(torch.Size(shape).numel())).view(shape), batch()[1])], tmp_path)
    assert drawn[0][0].shape[1:] == shown


def test_numbers_that_are_not_finite_are_drawn():
    inputs = torch.tensor([float("nan"), float("inf"), 1.0, 0.0]).view(1, 1, 2, 2)
    shown = batch_images._shown(inputs, None)
    assert torch.isfinite(shown).all()


def test_without_a_logger_that_takes_images_it_says_so(tmp_path, caplog):
    with caplog.at_level("INFO"):
        trainer = quiet_trainer(BatchImages(), logger=CSVLogger(tmp_path), log_every_n_steps=1)
        trainer.fit(Module(), DataLoader([batch()], batch_size=None))
    assert any("no logger that takes images" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (
            {"x": torch.ones(2, 3)},
            {},
            "input_key must be one of 'x', the batch's keys, but is 0",
        ),
        ([torch.ones(2, 3)], {}, "target_key must be an index below 1, the number of the batch's parts, but is 1"),
        (
            Pair(torch.ones(2, 3), 1),
            {"input_key": "photo"},
            r"'image', 'label', the batch's fields, .* but is 'photo'",
        ),
        (torch.ones(2), {}, r"input_key must give images .* but those are \(2,\)"),
    ],
    ids=["mapping", "list", "namedtuple", "shape"],
)
def test_batch_without_what_is_asked_for_is_refused(given, settings, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        fit(BatchImages(**settings), [given], tmp_path, of=lambda _: torch.ones(2, 3))


@pytest.mark.parametrize("setting", ["every_n_epochs", "max_samples"])
def test_bad_settings_are_refused_at_once(setting):
    with pytest.raises(SettingError, match=f"{setting} must be a whole number of at least 1, but is 0"):
        BatchImages(**{setting: 0})


def test_grid_keeps_pixels_square_and_cuts_captions_off():
    images = torch.zeros(2, 1, 8, 8)
    images[0, 0, 0, 0] = 1
    grid = np.asarray(captioned_grid(images, [["a name that is much too long for its image"], ["b"]]))
    white = (grid[8:120, 8:120] == 255).all(-1)
    assert white.sum() == 14 * 14
    assert white[:14, :14].all()
    assert (grid[:, 120:128] == 255).all()  # nothing is written between images


def test_large_images_are_made_smaller():
    assert captioned_grid(torch.zeros(1, 3, 500, 1000), [[]]).size == (224 + 16, 112 + 16)
