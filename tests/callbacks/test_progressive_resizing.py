"""Images that grow over training."""

import re

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import ProgressiveResizing
from lightning_reg.functional.batch.resizing import progressive_sides, resized
from lightning_reg.settings import SettingError
from tests.conformance.problem import EPOCHS, SomebodysModule, Textbook
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

# The problem's rows as images of one line, filled up with zeros where they are shorter.
AS_IMAGES = (
    lambda batch: batch[0].view(len(batch[0]), 1, 1, -1),
    lambda batch, images: [F.pad(images.flatten(1), (0, 6 - images.shape[-1])), *batch[1:]],
)
WIDTHS = (2, 4, 6)  # of the three epochs, from a third


def triangles(length, width):
    """What a filter without aliasing makes of a line: each pixel a mean, weighted by triangles as wide as two of it."""
    scale = length / width
    weights = [
        [max(0.0, 1 - abs(pixel + 0.5 - (place + 0.5) * scale) / scale) for pixel in range(length)]
        for place in range(width)
    ]
    return torch.tensor([[weight / sum(row) for weight in row] for row in weights])


def smaller(model, inputs, labels):
    width = WIDTHS[model.epoch]
    rows = inputs if width == 6 else inputs @ triangles(6, width).T
    return F.pad(rows, (0, 6 - width)), lambda logits: F.cross_entropy(logits, labels)


CONFORMANCE = {
    "ProgressiveResizing": Technique(
        lambda: ProgressiveResizing(start=1 / 3, stages=EPOCHS, input_key=AS_IMAGES),
        lambda: ProgressiveResizing(start=1.0, input_key=AS_IMAGES),
        Textbook(mix=smaller),
    ),
}


def test_images_shrink_by_triangles_and_stay_where_they_have_the_size():
    images = torch.rand(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows, columns = triangles(8, 3).double(), triangles(6, 4).double()
    torch.testing.assert_close(resized(images, (3, 4)), rows @ images @ columns.T, rtol=1e-5, atol=1e-6)
    assert resized(images, (8, 6)) is images


def test_sides_are_those_of_the_stages():
    def sides(done):
        return progressive_sides((40, 20), done, start=0.5, stages=3, multiple_of=4)

    assert [sides(done) for done in (0, 0.3, 0.34, 0.6, 0.67, 0.99)] == [
        (20, 8),
        (20, 8),
        (32, 16),
        (32, 16),
        (40, 20),
        (40, 20),
    ]
    assert progressive_sides((2, 2), 0.0, start=0.01, stages=2, multiple_of=4) == (2, 2)


class Pools(SomebodysModule):
    """Takes images of any size, or of one alone."""

    def __init__(self, head):
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), *head)
        self.seen, self.validated = [], set()

    def training_step(self, batch, batch_idx):
        self.seen.append(tuple(batch[0].shape[2:]))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated.add(tuple(batch[0].shape[2:]))
        super().validation_step(batch, batch_idx)


class Asserts(nn.Module):
    """Takes 8 × 8 pixels alone, and says so or doesn't."""

    def __init__(self, *words):
        super().__init__()
        self.words = words

    def forward(self, maps):
        if maps.shape[2:] != (8, 8):
            raise AssertionError(*self.words)
        return maps.mean((2, 3))


def images(**settings):
    return DataLoader(TensorDataset(torch.rand(8, 1, 8, 8, **settings), torch.arange(8) % 3), batch_size=8)


def test_training_alone_sees_small_images():
    module = Pools((nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))
    trainer = quiet_trainer(ProgressiveResizing(stages=2), max_epochs=4, log_every_n_steps=1)
    trainer.fit(module, images(), images())
    assert module.seen == [(4, 4), (4, 4), (8, 8), (8, 8)]
    assert module.validated == {(8, 8)}
    assert trainer.callback_metrics["schedule/image_side"] == 8


@pytest.mark.parametrize(
    ("head", "loader", "settings", "message"),
    [
        (
            (nn.Flatten(), nn.Linear(256, 3)),
            images,
            {"max_epochs": 2},
            "start must be 1 where .* 8 × 8, and of 4 × 4 it",
        ),
        (
            (nn.Flatten(), nn.Linear(256, 3)),
            images,
            {"max_epochs": -1},
            "max_epochs, or max_steps beside data of a known length",
        ),
        (
            (nn.Flatten(), nn.Linear(256, 3)),
            lambda: DataLoader(TensorDataset(torch.rand(8, 6), torch.arange(8) % 3), batch_size=8),
            {"max_epochs": 2},
            r"input_key must lead to images \(N, C, H, W\) of a floating dtype",
        ),
    ],
)
def test_what_has_no_sizes_is_refused_at_the_first_batch(head, loader, settings, message):
    trainer = quiet_trainer(ProgressiveResizing(), limit_val_batches=0, log_every_n_steps=1, **settings)
    with pytest.raises(SettingError, match=message):
        trainer.fit(Pools(head), loader(), loader())


@pytest.mark.parametrize("words", [("Input height (4) doesn't match model (8).",), ()])
def test_a_network_that_asserts_its_size_is_refused_in_a_sentence(words):
    trainer = quiet_trainer(ProgressiveResizing(), max_epochs=2)
    message = ": ".join(("and of 4 × 4 it fails with AssertionError", *words))
    with pytest.raises(SettingError, match=re.escape(message)):
        trainer.fit(Pools((Asserts(*words), nn.Linear(4, 3))), images(), images())


class Segments(LightningModule):
    """Predicts a mask of the images' size."""

    def __init__(self, resizes):
        super().__init__()
        self.network, self.resizes, self.sides = nn.Conv2d(1, 3, 1), resizes, []

    def training_step(self, batch, batch_idx):
        outputs = self.network(batch["image"])
        self.sides.append(outputs.shape[-1])
        if self.resizes:
            outputs = F.interpolate(outputs, batch["mask"].shape[1:])
        return F.cross_entropy(outputs, batch["mask"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_masks_of_the_images_size_are_told_of_where_the_step_does_not_resize_to_them():
    parts = {"image": torch.rand(8, 1, 8, 8), "mask": torch.randint(3, (8, 8, 8))}
    masks = DataLoader([{name: part[index] for name, part in parts.items()} for index in range(8)], batch_size=8)
    resizing = ProgressiveResizing(stages=2, input_key="image")
    resizes = Segments(resizes=True)
    quiet_trainer(resizing, max_epochs=2, log_every_n_steps=1).fit(resizes, masks)
    assert resizes.sides == [4, 8]
    with pytest.raises(SettingError, match=r"maps of the images' size, such as masks, .* of 4 × 4 it fails"):
        quiet_trainer(resizing, max_epochs=2, log_every_n_steps=1).fit(Segments(resizes=False), masks)


@pytest.mark.parametrize("settings", [{"multiple_of": 8}, {"multiple_of": 4, "start": 0.8}, {"start": 0.95}])
def test_sides_that_are_rounded_to_the_full_ones_in_every_stage_are_refused(settings):
    trainer = quiet_trainer(ProgressiveResizing(**settings), max_epochs=2, log_every_n_steps=1)
    with pytest.raises(SettingError, match=r"multiple_of must let .* of 8 × 8, rounded to multiples of \d, is the"):
        trainer.fit(Pools((nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))), images(), images())


def test_bad_settings_are_refused_at_once():
    with pytest.raises(SettingError, match=r"start must be in \(0, 1\], but is 0"):
        ProgressiveResizing(start=0)
    with pytest.raises(SettingError, match="stages must be"):
        ProgressiveResizing(stages=0)


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_module_that_collects_images_is_refused():
    class Collects(SomebodysModule):
        def configure_optimizers(self):
            return None

    loader = DataLoader(TensorDataset(torch.rand(4, 6), torch.zeros(4, dtype=torch.long)), batch_size=2)
    quiet_trainer(ProgressiveResizing(start=1.0, input_key=AS_IMAGES), max_epochs=3).fit(Collects(), loader, loader)
    with pytest.raises(SettingError, match="configure_optimizers must return an optimizer with ProgressiveResizing"):
        quiet_trainer(ProgressiveResizing(start=0.5, input_key=AS_IMAGES), max_epochs=3).fit(Collects(), loader, loader)
