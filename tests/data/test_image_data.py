import subprocess
import sys

import pytest
import torch
from lightning.pytorch import LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_reg.data import ImageData
from lightning_reg.models import MLP
from lightning_reg.settings import SettingError
from lightning_reg.transforms import AdvancedAugmentation, Augmentation, BasicAugmentation, Mixup, RowCutMix
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer


class Recorder(LightningModule):
    """Keeps the batches it is trained on."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
        self.batches = []
        self.stop_at = stop_at

    def training_step(self, batch, batch_idx):
        if self.stop_at == (self.current_epoch, batch_idx):
            raise InterruptedError
        self.batches.append([part.clone() for part in batch])
        return self.layer(batch[0].flatten(1)).logsumexp(1).mean()

    def validation_step(self, batch, batch_idx):
        if self.stop_at == (self.current_epoch, "validation") and not self.trainer.sanity_checking:
            raise InterruptedError
        assert not batch[1].is_floating_point()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fitted(data, **settings):
    module = Recorder()
    quiet_trainer(**settings).fit(module, datamodule=data)
    return module


def set_up(**settings):
    data = ImageData(**settings)
    data.prepare_data()
    data.setup("fit")
    return data


def split_labels(data, split):
    return torch.cat([labels for _, labels in data.evaluation_dataloader(split)])


def test_sizes_of_the_splits_are_the_asked_ones():
    data = set_up(val_size=100, train_size=0.5)
    assert len(split_labels(data, "val")) == 100
    assert len(split_labels(data, "train")) == round((1438 - 100) / 2)
    assert len(split_labels(data, "test")) == 359
    assert torch.bincount(split_labels(data, "val")).tolist() == [10] * 10


def test_subset_never_contains_validation_images():
    data = set_up(val_size=200, train_size=1238)
    parts = [data._splits[split].indices for split in ("train", "val")]
    assert torch.cat(parts).unique().numel() == 1438


def test_training_batches_are_normalized():
    data = ImageData(batch_size=2000)
    images, labels = fitted(data).batches[0]
    assert labels.dtype == torch.int64
    # Constants are of these very images; float32 rounding of a mean of 80,000 numbers.
    assert abs(images.mean().item()) < 1e-5
    assert abs(images.std(correction=0).item() - 1) < 1e-5


def test_origin_of_the_constants_is_said_once(caplog):
    with caplog.at_level("INFO"):
        data = set_up(train_size=200)
        data.setup("test")
    said = [record.message for record in caplog.records if "normalized" in record.message]
    assert len(said) == 1
    assert "of the 200 training images" in said[0]


def test_constants_travel_with_the_checkpoint():
    trained, other = set_up(train_size=100), ImageData()
    other.load_state_dict(trained.state_dict())
    other.setup("test")
    assert other.state_dict() == trained.state_dict() != set_up().state_dict()


def test_no_normalization_only_scales():
    images, _ = fitted(ImageData(normalization="none", batch_size=2000)).batches[0]
    assert images.min() == 0
    assert images.max() == 1


def test_mixing_is_for_training_alone_and_gives_probabilities():
    module = fitted(ImageData(mix=Mixup(alpha=1.0), batch_size=32))
    targets = module.batches[0][1]
    assert targets.shape == (32, 10)
    torch.testing.assert_close(targets.sum(1), torch.ones(32))
    assert ((targets > 0).sum(1) == 2).any()


RANDOM = [{}, {"mix": Mixup()}, {"augment": "advanced"}, {"augment": "randaugment"}]


@pytest.mark.parametrize("random", RANDOM, ids=["plain", "mixup", "batched", "per_sample"])
def test_same_seed_gives_the_same_batches_whatever_else_is_drawn(random):
    runs = []
    for seed in (1, 2):
        seed_everything(seed)
        runs.append(fitted(ImageData(**random, batch_size=256, train_size=512), max_epochs=2).batches)
    assert all(torch.equal(a, b) for one, two in zip(*runs, strict=True) for a, b in zip(one, two, strict=True))


class Marks(Augmentation):
    """Shows where it was, in pixels: 1 before normalization, -7 after it."""

    def __call__(self, images, *, stream):
        assert images.dtype == torch.uint8
        return torch.ones(images.shape)

    def after_normalization(self, images, *, stream):
        images = images.clone()
        images[:, :, 0] = -7
        return images


def test_augmentation_is_before_normalization_and_erasing_after_it():
    data = ImageData(augment=Marks(), batch_size=50, train_size=50)
    images, _ = fitted(data).batches[0]
    state = data.state_dict()
    expected = (1 - state["mean"][0]) / state["std"][0]
    torch.testing.assert_close(images[:, :, 1:], torch.full((50, 1, 7, 8), expected))
    assert images[:, :, 0].eq(-7).all()


def test_augmentation_is_for_training_alone():
    class Module(Recorder):
        def validation_step(self, batch, batch_idx):
            assert not batch[0].eq(-7).any()

        test_step = validation_step

    data = ImageData(augment=Marks(), train_size=100)
    trainer = quiet_trainer(num_sanity_val_steps=2)
    trainer.fit(Module(), datamodule=data)
    trainer.test(Module(), datamodule=data, verbose=False)
    images, _ = next(iter(data.evaluation_dataloader("train")))
    assert images.dtype == torch.uint8


def test_every_batch_and_epoch_is_augmented_in_another_way():
    data = ImageData(augment=BasicAugmentation(), batch_size=50, train_size=100, normalization="none")
    batches = fitted(data, max_epochs=2).batches
    # Which rows and columns are black at the border tells shifts apart.
    edges = {tuple(images.amax((1, 3)).eq(0).flatten().tolist()) for images, _ in batches}
    assert len(edges) == 4


def test_augmentation_is_mixed_afterwards():
    images, targets = fitted(ImageData(augment=Marks(), mix=Mixup(), batch_size=50, train_size=50)).batches[0]
    assert targets.shape == (50, 10)
    assert images[:, :, 0].eq(-7).all()


def test_what_is_off_for_known_data_is_said_once(caplog):
    with caplog.at_level("INFO"):
        fitted(ImageData(augment="basic", train_size=50))
    said = [record.message for record in caplog.records if "augment" in record.message]
    assert said == [
        "augment basic is without horizontal flips, vertical flips, saturation, hue and grayscale (one channel) for "
        "the images of digits"
    ]


@pytest.mark.parametrize(
    ("dataset", "horizontal", "vertical"),
    [("mnist", 0, 0), ("fashion_mnist", 0.5, 0), ("cifar10", 0.5, 0), ("image_folder", 0.5, 0.5)],
)
def test_flips_are_those_that_leave_an_image_what_it_is(dataset, horizontal, vertical, image_folder):
    root = image_folder() if dataset == "image_folder" else "data"
    augmentation = ImageData(dataset=dataset, root=root, augment="basic")._pipeline.augmentation
    assert augmentation.horizontal_flip_prob == horizontal
    assert augmentation.vertical_flip_prob == vertical


def test_augmentation_of_ones_own_is_taken_as_it_is():
    augmentation = AdvancedAugmentation(horizontal_flip_prob=1.0)
    assert ImageData(augment=augmentation)._pipeline.augmentation is augmentation


def test_transforms_of_torchvision_are_applied_to_each_sample():
    from torchvision.transforms import v2

    data = ImageData(augment=[v2.RandomInvert(1.0)], normalization="none", batch_size=50, train_size=50)
    images, _ = fitted(data).batches[0]
    plain, _ = fitted(ImageData(normalization="none", batch_size=50, train_size=50)).batches[0]
    torch.testing.assert_close(images, 1 - plain)


@pytest.mark.parametrize("stop_at", [(1, 0), (1, 2), (1, "validation")], ids=str)
def test_resumed_run_sees_the_batches_that_the_uninterrupted_one_sees(tmp_path, stop_at):
    settings = {"batch_size": 300, "mix": Mixup(), "augment": "advanced", "val_size": 0.1}
    whole = fitted(ImageData(**settings), max_epochs=3).batches
    first, interrupted = Recorder(stop_at), quiet_trainer(max_epochs=3)
    with pytest.raises(InterruptedError):
        interrupted.fit(first, datamodule=ImageData(**settings))
    interrupted.save_checkpoint(tmp_path / "last.ckpt")
    second = Recorder()
    quiet_trainer(max_epochs=3).fit(second, datamodule=ImageData(**settings), ckpt_path=tmp_path / "last.ckpt")
    both = first.batches + second.batches
    assert len(both) == len(whole)
    assert all(torch.equal(a[part], b[part]) for a, b in zip(both, whole, strict=True) for part in (0, 1))


@pytest.mark.parametrize(
    "settings", [{}, {"num_workers": 1}, {"limit_train_batches": 2}], ids=["plain", "workers", "limited"]
)
def test_run_resumed_from_the_end_of_an_epoch_sees_the_next_ones_batches(tmp_path, settings):
    """Where ModelCheckpoint saves by default."""
    workers = settings.pop("num_workers", 0)

    def data():
        return ImageData(batch_size=300, num_workers=workers)

    each_epoch = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    module, resumed = Recorder(), Recorder()
    quiet_trainer(each_epoch, max_epochs=3, enable_checkpointing=True, **settings).fit(module, datamodule=data())
    path = tmp_path / "epoch=0.ckpt"
    quiet_trainer(max_epochs=3, callbacks=[ModelCheckpoint(tmp_path)], enable_checkpointing=True, **settings).fit(
        resumed, datamodule=data(), ckpt_path=path
    )
    expected = module.batches[len(module.batches) // 3 :]
    assert len(resumed.batches) == len(expected)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(resumed.batches, expected, strict=True))


def test_a_few_batches_can_be_overfitted():
    with pytest.warns(UserWarning, match="overfit"):  # Lightning says that it stops shuffling
        module = fitted(ImageData(batch_size=100), overfit_batches=2, max_epochs=2)
    assert len(module.batches) == 4
    assert torch.equal(module.batches[0][0], module.batches[2][0])


@pytest.mark.slow
def test_two_processes_share_the_samples_and_draw_different_numbers(tmp_path):
    script = """
import sys, torch
torch.set_num_threads(1)
from lightning_reg.data import ImageData
from lightning_reg.transforms import Mixup
from tests.data.test_image_data import Recorder
from tests.conftest import REPOSITORY
from tests.helpers import quiet_trainer

class Saves(Recorder):
    def on_train_end(self):
        torch.save(self.batches, f"{sys.argv[1]}/rank{self.global_rank}.pt")

for name, mix in (("plain", None), ("mixed", Mixup())):
    trainer = quiet_trainer(devices=2, strategy="ddp_fork")
    sys.argv[1] = sys.argv[1].rpartition("/")[0] + "/" + name
    trainer.fit(Saves(), datamodule=ImageData(batch_size=100, train_size=400, mix=mix, normalization="none"))
"""
    for name in ("plain", "mixed"):
        (tmp_path / name).mkdir()
    command = [sys.executable, "-c", script, f"{tmp_path}/plain"]
    subprocess.run(command, check=True, timeout=120, cwd=REPOSITORY)
    plain, mixed = ([torch.load(tmp_path / name / f"rank{rank}.pt") for rank in (0, 1)] for name in ("plain", "mixed"))
    everything = torch.cat([images for rank in plain for images, _ in rank])
    alone = torch.cat([images for images, _ in fitted(ImageData(train_size=400, normalization="none")).batches])
    assert everything.shape == alone.shape
    assert torch.equal(*(torch.sort(images.flatten(1) @ torch.arange(64.0)).values for images in (everything, alone)))
    weights = [batches[0][1].max(1).values.min() for batches in mixed]
    assert weights[0] != weights[1]


def test_last_batch_of_one_is_left_out_for_batch_norm_and_said_once(caplog):
    module = MLP(input_shape=(1, 8, 8), num_classes=10, hidden_sizes=[8], norm="batch")
    data = ImageData(batch_size=16, val_size=0.1, train_size=33)
    with caplog.at_level("INFO"):
        fit = quiet_trainer(max_epochs=2)
        fit.fit(module, datamodule=data)
    assert fit.global_step == 4
    said = [record.message for record in caplog.records if "batch of one" in record.message]
    assert len(said) == 1
    assert "33 training samples" in said[0]


def test_last_batch_of_one_is_trained_on_without_batch_norm():
    assert len(fitted(ImageData(batch_size=16, train_size=33)).batches) == 3


def test_precision_reaches_the_batch():
    data = ImageData(batch_size=32, mix=Mixup())
    module = Recorder().double()
    quiet_trainer(precision="64-true").fit(module, datamodule=data)
    assert module.batches[0][0].dtype == torch.float64


def test_own_images_with_a_validation_folder(image_folder):
    data = set_up(dataset="image_folder", root=image_folder(("train", "val"), classes=3, count=4), val_size=0.5)
    assert data.num_classes == 3
    assert data.input_shape == (3, 8, 8)
    assert len(split_labels(data, "train")) == len(split_labels(data, "val")) == 12
    assert data.sample_names("val")[0] == "val/class_0/00.png"
    with pytest.raises(SettingError, match="must have a folder 'test'"):
        data.test_dataloader()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset": "digitz"}, "dataset must be one of digits.*did you mean 'digits'"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, but is 0"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0"),
        ({"normalization": "known"}, "normalization must be auto, train or none for digits"),
        ({"normalization": "knwon"}, "normalization must be one of"),
        ({"val_size": None}, "val_size must be a number of samples or a fraction, but is None"),
        ({"train_size": "abc"}, "train_size must be a number of samples or a fraction, but is 'abc'"),
        ({"root": 5}, "root must be a path, but is 5"),
        ({"mix": RowCutMix()}, "mix must be for images, but is RowCutMix.*, which is for rows"),
        ({"image_size": 9}, "image_size must be left out for digits"),
        ({"augment": "bassic"}, "augment must be one of none, basic, advanced.*did you mean 'basic'"),
        ({"augment": [3]}, "augment must be a list of callables, but entry 0 is 3"),
        ({"augment": 3}, "augment must be one of none, .*, an Augmentation or a list of transforms, but is 3"),
    ],
)
def test_bad_settings_are_refused_at_once(settings, message):
    with pytest.raises(SettingError, match=message):
        ImageData(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_size": 5}, "val_size must leave at least one sample of every class"),
        ({"train_size": 5000}, r"train_size must be in \[1, 1294\]"),
        ({"train_size": 5}, "train_size must leave at least one sample of every class"),
    ],
)
def test_sizes_that_the_data_does_not_allow_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        set_up(**settings)
