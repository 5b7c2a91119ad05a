"""Targets of every pixel: CutMix pastes them with the pixels, Mixup interpolates their loss."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import BatchMixing
from lightning_reg.settings import SettingError
from lightning_reg.transforms import CutMix, Mixup, MixupOrCutMix
from tests.helpers import quiet_trainer

COUNT, SIDE = 6, 8
MASKS = torch.randint(0, 2, (COUNT, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
IMAGES = 2.0 * MASKS[:, None] - 1  # the sign of a pixel is its class
MAPS = {
    "indices": (MASKS, F.cross_entropy),
    "one-hot": (F.one_hot(MASKS, 2).movedim(-1, 1).float(), F.cross_entropy),
    "numbers": (IMAGES, lambda out, targets: F.mse_loss((out[:, 1:] - out[:, :1]) / 18, targets)),
    "by hand": (MASKS, lambda out, targets: 1 - out.softmax(1).gather(1, targets[:, None]).mean()),
}


class Segmenter(LightningModule):
    """Tells the class of each pixel by its sign, and so is never wrong."""

    def __init__(self, loss):
        super().__init__()
        self.network = nn.Conv2d(1, 2, 1)
        nn.init.zeros_(self.network.bias)
        self.network.weight.data = torch.tensor([-9.0, 9.0]).view(2, 1, 1, 1)
        self.loss, self.losses, self.batches = loss, [], []

    def training_step(self, batch, batch_idx):
        value = self.loss(self.network(batch[0]), batch[1])
        self.losses.append(value.detach())
        self.batches.append(batch)
        return value

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def segmented(mix, targets, loss, *others, epochs=4):
    module = Segmenter(loss)
    loader = DataLoader(TensorDataset(IMAGES, targets, *others), batch_size=COUNT)
    quiet_trainer(BatchMixing(mix, seed=0), max_epochs=epochs).fit(module, loader)
    return module


@pytest.mark.parametrize("mix", [CutMix(), CutMix(per_sample=True), CutMix(prob=0.5)], ids=repr)
@pytest.mark.parametrize("kind", MAPS)
def test_who_is_right_about_every_pixel_stays_right(mix, kind):
    targets, loss = MAPS[kind]
    kept = targets.clone()
    module = segmented(mix, targets, loss)
    assert max(module.losses) < 1e-7
    assert any(not torch.equal(inputs, IMAGES) for inputs, *_ in module.batches)
    assert torch.equal(targets, kept)


def test_any_loss_will_do_even_before_the_first_batch_that_is_mixed():
    module = segmented(CutMix(prob=0.0), *MAPS["by hand"])
    assert all(torch.equal(inputs, IMAGES) for inputs, _ in module.batches)


def test_between_mixup_and_cutmix_each_batch_has_the_loss_of_its_own():
    module = segmented(MixupOrCutMix(), MASKS, F.cross_entropy, epochs=8)
    for (inputs, targets), loss in zip(module.batches, module.losses, strict=True):
        if inputs.abs().min() == 1:  # pasted
            assert torch.equal(targets, (inputs[:, 0] > 0).long())
            assert loss < 1e-7
        else:
            share = ((inputs[:, 0] - IMAGES[:, 0]) / (IMAGES.roll(1, 0) - IMAGES)[:, 0]).nanmean()
            scores = module.network(inputs)
            expected = (1 - share) * F.cross_entropy(scores, MASKS) + share * F.cross_entropy(scores, MASKS.roll(1, 0))
            torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)


def test_mixup_goes_on_to_interpolate_the_loss():
    module = segmented(Mixup(), MASKS, F.cross_entropy, epochs=1)
    assert torch.equal(module.batches[0][1], MASKS)
    assert module.losses[0] > 0.1


def test_a_label_of_the_image_beside_its_map_is_warned_of():
    class Both(Segmenter):
        def training_step(self, batch, batch_idx):
            scores = self.network(batch[0])
            return self.loss(scores, batch[1]) + F.cross_entropy(scores.mean((2, 3)), batch[2])

    loader = DataLoader(TensorDataset(IMAGES, MASKS, MASKS[:, 0, 0]), batch_size=COUNT)
    with pytest.warns(UserWarning, match="also computes cross_entropy of another part of the batch, which isn't mixed"):
        quiet_trainer(BatchMixing(CutMix(), seed=0)).fit(Both(F.cross_entropy), loader)


def test_maps_of_another_size_are_refused():
    targets = F.avg_pool2d(IMAGES, 2)
    with pytest.raises(SettingError, match=r"mix must be Mixup or erase where .* \(6, 1, 4, 4\) for \(6, 1, 8, 8\)"):
        segmented(CutMix(), targets, lambda out, targets: F.mse_loss(F.avg_pool2d(out[:, 1:], 2), targets))


def test_a_vector_in_the_shape_of_an_image_is_none():
    targets = IMAGES.mean((2, 3), keepdim=True)
    module = segmented(CutMix(), targets, lambda out, targets: F.mse_loss(out[:, 1:].mean((2, 3), True), targets))
    assert torch.equal(module.batches[0][1], targets)
