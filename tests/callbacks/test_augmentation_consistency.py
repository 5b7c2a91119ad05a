"""Several views of each sample in one batch, which are to be predicted alike."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as T
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lightning_reg.callbacks import AugmentationConsistency, BatchMixing, RDrop, RegMixup
from lightning_reg.core.streams import random_stream
from lightning_reg.functional.loss.output_penalties import jensen_shannon_divergence
from lightning_reg.settings import SettingError
from lightning_reg.transforms import AdvancedAugmentation, Augmentation, BasicAugmentation, Mixup
from tests.conformance.problem import SomebodysModule, Textbook, loader
from tests.conformance.technique import Technique
from tests.helpers import quiet_trainer

KNOWN = ((0.5,), (1 / 32,))


class Fades(Augmentation):
    """Moves inputs of any kind toward the middle, by a share that it draws."""

    def __call__(self, images, *, stream):
        return 0.5 + (images - 0.5) * (0.4 + 0.5 * stream.random())


def faded(model, inputs):
    """Both other views."""
    stream = random_stream(0, model.rank, model.epoch, model.batch, "AugmentationConsistency", 0)
    return [inputs * (0.4 + 0.5 * stream.random()) for _ in range(2)]


def clean_loss(model, inputs, labels):
    return torch.cat([inputs, *faded(model, inputs)]), lambda logits: F.cross_entropy(logits[: len(labels)], labels)


def mean_loss(model, inputs, labels):
    return torch.cat([inputs, *faded(model, inputs)]), lambda logits: F.cross_entropy(logits, labels.repeat(3))


def divergence(weight):
    def term(model, inputs, logits):
        p = logits.float().softmax(1).view(3, -1, logits.shape[1])
        mean = p.mean(0)
        return weight * sum((view * (view / mean).log()).sum(1).mean() for view in p) / 3

    return term


CONFORMANCE = {
    "AugmentationConsistency": Technique(
        lambda: AugmentationConsistency(weight=3.0, augment=Fades(), normalization=KNOWN),
        lambda: AugmentationConsistency(weight=0.0, augment=Fades(), normalization=KNOWN),
        Textbook(mix=clean_loss, term=divergence(3.0)),
    ),
    "AugmentationConsistency of all": Technique(
        lambda: AugmentationConsistency(weight=0.0, loss_of="all", augment=Fades(), normalization=KNOWN),
        lambda: AugmentationConsistency(weight=0.0, augment=Fades(), normalization=KNOWN),
        Textbook(mix=mean_loss),
    ),
}


def logits_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, dtype=torch.float64, generator=generator).mul(3).requires_grad_() for _ in range(count)]


def test_of_two_views_it_is_scipys_distance_squared():
    one, other = logits_of(2)
    p, q = (logits.detach().softmax(1).numpy() for logits in (one, other))
    expected = np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    assert jensen_shannon_divergence([one, other], 2.0).item() == pytest.approx(2 * expected, rel=1e-12)


def test_value_and_gradient_are_those_of_the_authors_form_in_float64():
    views = logits_of(3)
    p = [logits.softmax(1) for logits in views]
    mixture = ((p[0] + p[1] + p[2]) / 3).clamp(1e-7, 1).log()
    expected = 12 * sum(F.kl_div(mixture, view, reduction="batchmean") for view in p) / 3
    value = jensen_shannon_divergence(views, 12.0)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, views), torch.autograd.grad(expected, views))


def test_masked_classes_and_ignored_positions_add_nothing():
    one = torch.tensor([[1.0, 0.0, -torch.inf], [5.0, 0.0, 1.0]])
    other = torch.tensor([[0.5, 0.0, -torch.inf], [0.0, 5.0, 1.0]])
    value = jensen_shannon_divergence([one, other], 1.0, counted=torch.tensor([True, False]))
    torch.testing.assert_close(value, jensen_shannon_divergence([one[:1, :2], other[:1, :2]], 1.0))


class Images(SomebodysModule):
    """Classifies images, and remembers its latest batch."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 3))

    def training_step(self, batch, batch_idx):
        self.batch = batch
        return super().training_step(batch, batch_idx)


class Sequences(SomebodysModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0].view(-1, 2, 3), batch[1]]

    def training_step(self, batch, batch_idx):
        return super().training_step([batch[0].flatten(1), batch[1]], batch_idx)


class Batches(SomebodysModule):
    """Remembers its latest batch."""

    def training_step(self, batch, batch_idx):
        self.batch = batch
        return super().training_step(batch, batch_idx)


def of_one(batch):
    return DataLoader([batch], batch_size=None)


def fit(module, *callbacks, train=None, **settings):
    trainer = quiet_trainer(*callbacks, **{"limit_train_batches": 1, "limit_val_batches": 0, **settings})
    trainer.fit(module, train or loader(), loader())
    return trainer.callback_metrics


@pytest.mark.parametrize("augment", ["augmix", "trivialaugment", [lambda image: 255 - image]])
def test_images_are_augmented_as_bytes_and_normalized_again(augment):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(256, (6, 3, 8, 8), generator=generator, dtype=torch.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    scale = [torch.tensor(numbers).view(3, 1, 1) for numbers in (mean, std)]
    images = (stored / 255 - scale[0]) / scale[1]
    module = Images()
    fit(
        module,
        AugmentationConsistency(augment=augment, normalization=(mean, std)),
        train=of_one((images, torch.arange(6) % 3)),
    )
    given, labels = module.batch
    assert given[:6].equal(images)
    assert labels.equal(torch.arange(6).remainder(3).repeat(3))
    views = (given[6:] * scale[1] + scale[0]) * 255
    torch.testing.assert_close(views, views.round(), rtol=0, atol=1e-3)
    if isinstance(augment, list):
        torch.testing.assert_close(views, 255 - stored.repeat(2, 1, 1, 1).float(), rtol=0, atol=1e-3)
    else:
        first, second = views.chunk(2)
        assert not first.equal(second)
        assert not first.equal(stored.float())


@pytest.mark.parametrize("first", [True, False], ids=["before mixing", "behind mixing"])
def test_all_views_are_mixed_alike_whatever_the_order(first):
    class Stays(Augmentation):
        def __call__(self, images, *, stream):
            return images

    module, mixing = Batches(), BatchMixing(Mixup(alpha=0.7), seed=3)
    views = AugmentationConsistency(augment=Stays(), normalization=KNOWN)
    metrics = fit(module, *((views, mixing) if first else (mixing, views)), log_every_n_steps=1)
    inputs, _ = module.batch
    for view in inputs.chunk(3):
        torch.testing.assert_close(view, inputs[:8])
    assert not inputs[:8].equal(next(iter(loader()))[0])
    torch.testing.assert_close(metrics["penalty/augmentation_consistency"], torch.tensor(0.0), rtol=0, atol=1e-6)
    alone = BatchMixing(Mixup(alpha=0.7), seed=3)
    torch.testing.assert_close(metrics["train_loss"], fit(Batches(), alone)["train_loss"])


class LeavesOneOut(SomebodysModule):
    """Predicts for all samples but one."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.network(batch[0])[1:], batch[1][1:])


class Checkpointed(SomebodysModule):
    """Computes its loss within activation checkpointing."""

    def training_step(self, batch, batch_idx):
        return checkpoint(lambda: F.cross_entropy(self.network(batch[0]), batch[1]), use_reentrant=False)


class OfNoLoss(SomebodysModule):
    """Has a loss of its own."""

    def training_step(self, batch, batch_idx):
        return self.network(batch[0]).square().mean()


@pytest.mark.parametrize(
    ("module", "others", "settings", "message"),
    [
        (LeavesOneOut, [], {}, "logits of all samples, .* but has 23, no multiple of 3"),
        (LeavesOneOut, [], {"loss_of": "all"}, "logits of all samples, .* but has 23, no multiple of 3"),
        (Checkpointed, [], {}, "outside of activation checkpointing"),
        (OfNoLoss, [], {}, "calls neither cross_entropy nor nll_loss"),
        (Batches, [], {"normalization": None}, "were normalized by, but they lie in .* rather than"),
        (Batches, [], {"normalization": ((0.5,), (1.0,))}, "but without it they lie in"),
        (Batches, [], {"normalization": ((0.5, 0.5), (1.0, 1.0))}, "a number for each of the 6 channels, but has 2"),
        (Batches, [RDrop(weight=1.0)], {}, "must not have RDrop .*: both repeat the batch"),
        (Batches, [RegMixup()], {}, "must not have RegMixup .*: both repeat the batch"),
        (Batches, [BatchMixing(Mixup(per_sample=True))], {}, "per_sample must be False with AugmentationConsistency"),
    ],
)
def test_what_can_not_be_followed_is_refused(module, others, settings, message):
    technique = AugmentationConsistency(**{"augment": Fades(), "normalization": KNOWN, **settings})
    with pytest.raises(SettingError, match=message):
        fit(module(), technique, *others)


class OfPixels(SomebodysModule):
    """Predicts the class of every pixel by its color."""

    def __init__(self, change=lambda logits, labels: (logits, labels)):
        super().__init__()
        self.network, self.change = nn.Conv2d(3, 2, 1), change

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(*self.change(self.network(batch[0]), batch[1]))
        self.log("train_loss", loss)
        return loss


PIXELS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = (PIXELS[:, 0] > 0.5).long()
SHAPES = {
    "map": OfPixels,
    "list": lambda: OfPixels(lambda logits, labels: (logits.movedim(1, -1).flatten(0, 2), labels.flatten())),
    "half": lambda: OfPixels(lambda logits, labels: (F.avg_pool2d(logits, 2), labels[:, ::2, ::2])),
}


@pytest.mark.parametrize("loss_of", ["clean", "all"])
@pytest.mark.parametrize("module", SHAPES)
@pytest.mark.parametrize("augment", ["augmix", [T.ColorJitter(0.5), T.RandomHorizontalFlip()]], ids=["augmix", "list"])
def test_predictions_for_pixels_that_the_augmentation_moves_are_refused(module, loss_of, augment):
    technique = AugmentationConsistency(augment=augment, loss_of=loss_of, weight=0.0 if loss_of == "all" else 12.0)
    with pytest.raises(SettingError, match=r"augment must leave pixels in place .* ColorJitter and GaussianBlur"):
        fit(SHAPES[module](), technique, train=of_one([PIXELS, MAPS]))


@pytest.mark.parametrize("loss_of", ["clean", "all"])
def test_predictions_for_pixels_that_stay_in_place_are_compared(loss_of):
    augment = [T.RandomApply([T.Compose([T.ColorJitter(0.9)])], p=1.0), T.RandomInvert(p=0.5)]
    metrics = fit(
        OfPixels(),
        AugmentationConsistency(augment=augment, loss_of=loss_of),
        train=of_one([PIXELS, MAPS]),
        log_every_n_steps=1,
    )
    assert metrics["penalty/augmentation_consistency"] > 0


def test_one_prediction_for_an_image_may_look_like_a_map():
    module = OfPixels(lambda logits, labels: (logits.mean((2, 3), keepdim=True), labels[:, :1, :1]))
    metrics = fit(module, AugmentationConsistency(), train=of_one([PIXELS, MAPS]), log_every_n_steps=1)
    assert metrics["penalty/augmentation_consistency"] > 0


@pytest.mark.parametrize("augment", ["augmix", BasicAugmentation(), AdvancedAugmentation()])
@pytest.mark.parametrize("module", [SomebodysModule, Sequences], ids=lambda module: module.__name__)
def test_inputs_that_are_no_images_need_an_augmentation_of_their_own(augment, module):
    """They lie outside of [0, 1], too, which is another matter."""
    with pytest.raises(SettingError, match=r"input_key must lead to images .* finds inputs of shape \(8, (6|2, 3)\)$"):
        fit(module(), AugmentationConsistency(augment=augment))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1}, r"weight must be in \[0, ∞\), but is -1"),
        ({"views": 1}, "views must be"),
        ({"augment": "basic"}, "augment must be one of augmix"),
        ({"augment": 3}, "augment must be one of augmix, .* but is 3"),
        ({"loss_of": "views"}, "loss_of must be"),
        ({"normalization": 0.5}, "normalization must be two lists of numbers"),
        ({"normalization": ((0.5,), (0.0,))}, "normalization's deviation must be"),
        ({"normalization": ((0.5,), (0.1, 0.2))}, "as many means as deviations"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        AugmentationConsistency(**settings)
