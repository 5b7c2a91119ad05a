"""Generated signals, and Datasets that somebody else has written."""

import numpy as np
import pytest
import torch
import torchvision.datasets
import torchvision.models
import torchvision.transforms.v2
from lightning.pytorch import Callback
from sklearn.linear_model import LogisticRegression
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from lightning_reg.callbacks import L2Penalty
from lightning_reg.data import DatasetData, Mnist1DData
from lightning_reg.data.mnist1d import mnist1d
from lightning_reg.models import CNN, MLP, RNN, Classifier
from lightning_reg.settings import SettingError
from lightning_reg.transforms import BasicAugmentation, CutMix, Mixup
from tests.helpers import quiet_trainer


def test_without_difficulty_and_noise_a_class_is_one_signal():
    signals, classes = mnist1d(40, difficulty=0, noise=0)
    assert torch.equal(classes, torch.arange(40) % 10)
    for label in range(10):
        assert (signals[classes == label] == signals[label]).all()
    assert torch.cdist(signals[:10], signals[:10]).fill_diagonal_(9).min() > 0.5


def test_noise_is_as_large_as_it_says():
    quiet, noisy = (mnist1d(4000, difficulty=0, noise=noise)[0] for noise in (0.0, 0.3))
    # The standard deviation of 160,000 draws is within 0.3 / sqrt(2 · 160,000), five times over.
    assert abs(float((noisy - quiet).std()) - 0.3) < 5 * 0.3 / (2 * 160_000) ** 0.5


def test_difficulty_makes_a_linear_model_fail():
    scores = []
    for difficulty in (0.05, 1.0):
        signals, classes = mnist1d(2000, difficulty=difficulty)
        model = LogisticRegression(max_iter=300).fit(signals[:1500], classes[:1500])
        scores.append(model.score(signals[1500:], classes[1500:]))
    assert scores[0] > 0.95
    assert 0.12 < scores[1] < 0.4  # chance is 0.1


@pytest.mark.parametrize(
    ("shape", "make"),
    [
        ("flat", lambda shape: MLP(input_shape=shape, num_classes=10, hidden_sizes=[64])),
        ("sequence", lambda shape: RNN(input_shape=shape, num_classes=10, hidden_size=8)),
        ("image", lambda shape: CNN(input_shape=shape, num_classes=10, channels=[8])),
    ],
)
def test_signals_train_any_of_the_models(shape, make):
    data = Mnist1DData(samples=300, shape=shape, mix=Mixup(alpha=1.0), batch_size=64)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(make(data.input_shape), datamodule=data)
    assert "val/loss" in trainer.callback_metrics


def test_signals_are_split_and_standardized_by_the_training_part(tmp_path):
    data = Mnist1DData(samples=500, folds=5, fold=2)
    data.setup("fit")
    parts = {name: data._splits[name].indices for name in ("train", "val", "test")}
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(500))
    train = data._splits["train"].tensors[0][parts["train"]]
    torch.testing.assert_close(torch.stack([train.mean(), train.std()]), torch.tensor([0.0, 1.0]), rtol=0, atol=1e-5)
    torch.save(data.state_dict(), tmp_path / "state")
    other = Mnist1DData(samples=500, folds=5, fold=3)
    with pytest.warns(UserWarning, match="trained with fold 2, not 3: among the samples held out now"):
        other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(other._splits["train"].tensors[0], data._splits["train"].tensors[0])
    with pytest.raises(SettingError, match=r"difficulty must be 1\.0, as in the checkpoint, but is 0\.5"):
        Mnist1DData(samples=500, difficulty=0.5).load_state_dict(data.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 3}, "samples must be a whole number of at least 10"),
        ({"difficulty": -1}, r"difficulty must be in \[0, 2\]"),
        ({"noise": -0.1}, r"noise must be in \[0, ∞\)"),
        ({"shape": "round"}, "shape must be one of flat, sequence, image"),
        ({"samples": 50, "folds": 6}, "folds must be at most 5, the samples of class '0', but is 6"),
    ],
)
def test_bad_settings_of_signals(settings, message):
    with pytest.raises(SettingError, match=message):
        Mnist1DData(**settings)


class Own(Dataset):
    """Somebody's dataset, without anything but samples."""

    def __init__(self, count=40, target=lambda index: index % 3, shape=(4,), **attributes):
        self.count, self.target, self.shape = count, target, shape
        self.__dict__.update(attributes)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError
        return torch.full(self.shape, float(index)), self.target(index)


def test_own_datasets_are_trained_on_validated_and_tested_in_any_order_that_can_be_resumed():
    data = DatasetData(train=Own(), val=Own(9), test=Own(6), num_classes=3, batch_size=8)
    assert (data.task, data.num_classes, data.num_targets, data.input_shape) == ("classification", 3, None, (4,))
    trainer = quiet_trainer(max_epochs=1)
    model = MLP(input_shape=data.input_shape, num_classes=3, hidden_sizes=[8])
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    first, second = ([batch[0][:, 0].tolist() for batch in data.train_dataloader()] for _ in range(2))
    assert first == second
    assert sorted(index for batch in first for index in batch) == list(range(40))
    assert data.sample_names("test") == [str(index) for index in range(6)]


def test_validation_part_is_taken_from_the_training_dataset():
    labels = torch.arange(60) % 3
    for train in (TensorDataset(torch.randn(60, 2), labels), Own(60, targets=labels.tolist())):
        data = DatasetData(train=train, val_size=12)
        held = [int(name) for name in data.sample_names("val")]
        assert torch.bincount(labels[held]).tolist() == [4, 4, 4]
        assert sorted(held + [int(name) for name in data.sample_names("train")]) == list(range(60))
    held = DatasetData(train=Own(60), num_classes=3, val_size=0.25).sample_names("val")
    assert len(set(held)) == 15


@pytest.mark.parametrize(
    ("target", "task", "classes", "targets"),
    [
        (lambda index: index / 7, "regression", None, 1),
        (lambda index: torch.tensor([index / 7, 2.0]), "regression", None, 2),
        (lambda index: torch.tensor([index % 2, 1, 0]), "multilabel", 3, 3),
    ],
)
def test_task_is_told_by_the_first_sample(target, task, classes, targets):
    data = DatasetData(train=Own(target=target))
    assert (data.task, data.num_classes, data.num_targets) == (task, classes, targets)


@pytest.mark.parametrize("mix", [None, Mixup()])
@pytest.mark.parametrize(
    ("task", "convert"),
    [
        ("classification", torch.Tensor.int),
        ("classification", torch.Tensor.short),
        ("classification", torch.Tensor.byte),
        ("classification", torch.Tensor.bool),
        ("classification", lambda labels: labels.unsqueeze(1)),
        ("multilabel", lambda labels: torch.stack([labels, 1 - labels], 1)),
        ("multilabel", lambda labels: torch.stack([labels, 1 - labels], 1) > 0),
        ("regression", lambda labels: labels),
        ("regression", torch.Tensor.double),
    ],
)
def test_targets_of_any_dtype_are_trained_on_as_losses_take_them(task, convert, mix):
    inputs = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.arange(40) % 2
    train = TensorDataset(inputs.double(), convert(expected))
    data = DatasetData(train=train, val=train, task=task, batch_size=40, mix=mix)
    seen = Inputs()
    classes = data.num_classes if task == "classification" else None
    model = MLP(input_shape=(4,), num_classes=classes, num_targets=data.num_targets, task=task, hidden_sizes=[4])
    quiet_trainer(seen, max_epochs=1).fit(model, datamodule=data)
    read, targets = seen.validated[0]
    assert torch.equal(read, inputs)
    if task == "classification":
        assert torch.equal(targets, expected)
        assert data.num_classes == 2
        assert torch.equal(data.training_targets(), expected)
    else:
        assert torch.equal(targets, train.tensors[1].float())
        assert data.training_targets().is_floating_point()


def test_numpys_integers_are_classes():
    labels = np.arange(40, dtype=np.int32) % 3
    data = DatasetData(train=Own(target=lambda index: labels[index], targets=labels), batch_size=8)
    model = MLP(input_shape=(4,), num_classes=data.num_classes, hidden_sizes=[4])
    quiet_trainer(max_epochs=1).fit(model, datamodule=data)
    assert data.num_classes == 3


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
def test_models_of_64_bits_read_64_bits(precision):
    train = TensorDataset(torch.randn(40, 4, dtype=torch.float64), torch.rand(40, dtype=torch.float64))
    data = DatasetData(train=train, val=train, batch_size=40)
    seen = Inputs()
    model = MLP(input_shape=(4,), task="regression", num_targets=1, hidden_sizes=[4]).double()
    quiet_trainer(seen, max_epochs=1, precision=precision).fit(model, datamodule=data)
    for read, expected in zip(seen.validated[0], train.tensors, strict=True):
        assert torch.equal(read, expected)
        assert read.dtype == torch.float64


def test_class_beyond_the_number_of_classes_is_one_sentence():
    samples = [(torch.zeros(4), index % 4) for index in range(40)]
    data = DatasetData(train=samples, num_classes=3)
    with pytest.raises(SettingError, match=r"num_classes must be above every class index, but is 3 .* has class 3"):
        next(iter(data.train_dataloader()))


def test_names_of_classes_are_the_datasets():
    assert DatasetData(train=Own(classes=["a", "b", "c"])).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("transform", "task", "classes"),
    [
        (lambda label: int(label > 4), "classification", ("0", "1")),
        (lambda label: torch.tensor(label // 2), "classification", tuple(map(str, range(5)))),
        (lambda label: 9 - label, "classification", tuple(map(str, range(10)))),  # the names would be swapped
        (lambda label: torch.eye(10)[label], "multilabel", tuple(map(str, range(10)))),
        (float, "regression", ()),
    ],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_classes_are_those_behind_the_datasets_target_transform(transform, task, classes, as_tensor):
    labels = torch.arange(100) % 10
    own = Own(
        100, target=lambda index: transform(int(labels[index])), target_transform=transform, classes=list("abcdefghij")
    )
    own.targets = labels if as_tensor else labels.tolist()
    data = DatasetData(train=own, val_size=20)
    assert (data.task, data.classes) == (task, classes)
    if task == "classification":
        held = torch.tensor([transform(int(labels[int(name)])) for name in data.sample_names("val")])
        whole = torch.tensor([transform(int(label)) for label in labels])
        assert torch.equal(torch.bincount(held) * 5, torch.bincount(whole))  # stratified
        assert DatasetData(train=own, num_classes=len(classes)).num_classes == len(classes)


def byte_images(count=24):
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(count) % 3)


class Inputs(Callback):
    """Keeps what the network reads in the first epoch's steps."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trained.append(batch)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.validated.append(batch)


def test_images_are_augmented_normalized_and_mixed_behind_their_transfer():
    bytes_, mean, std = byte_images(), [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    plain = ((bytes_.tensors[0] / 255) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    seen = {}
    for name, settings in {
        "plain": {},
        "augmented": {"augment": "basic"},
        "again": {"augment": "basic"},
        "mixed": {"augment": BasicAugmentation(), "mix": CutMix()},
    }.items():
        data = DatasetData(train=bytes_, val=bytes_, batch_size=24, mean=mean, std=std, **settings)
        inputs = Inputs()
        model = CNN(input_shape=data.input_shape, num_classes=3, channels=[4])
        quiet_trainer(inputs, max_epochs=1).fit(model, datamodule=data)
        torch.testing.assert_close(inputs.validated[0][0], plain, rtol=1e-5, atol=1e-5)
        seen[name] = inputs.trained[0]
    order = (seen["plain"][0].flatten(1).unsqueeze(1) - plain.flatten(1)).abs().sum(2).argmin(1)
    torch.testing.assert_close(seen["plain"][0], plain[order], rtol=1e-5, atol=1e-5)
    assert torch.equal(seen["augmented"][0], seen["again"][0])
    assert not torch.equal(seen["augmented"][0], seen["plain"][0])
    assert torch.equal(seen["augmented"][1], seen["plain"][1])
    assert seen["mixed"][1].shape == (24, 3)


def test_bytes_that_are_not_augmented_become_fractions():
    data = DatasetData(train=byte_images(), val=byte_images(), augment="none")
    images, _ = data.on_after_batch_transfer(byte_images()[:4], 0)
    torch.testing.assert_close(images, byte_images().tensors[0][:4] / 255)


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train": Streamed()}, "train must be a dataset with a length and an index, but is Streamed"),
        ({"train": 5}, "train must be a dataset with a length and an index, but is int"),
        ({"train": TensorDataset(torch.zeros(0, 2), torch.zeros(0))}, "train must have samples, but has none"),
        ({"train": TensorDataset(torch.zeros(3, 2))}, r"train must have samples \(inputs, target\)"),
        ({"train": Own(target=lambda _: "cat")}, r"must have samples of tensors or numbers, .* \(Tensor, str\)"),
        ({"train": Own()}, "num_classes must be given for a dataset that has neither classes nor targets"),
        (
            {"train": Own(classes=["a", "b"], target_transform=lambda label: label)},
            "num_classes must be given for .* neither classes nor targets, or has classes before a target_transform",
        ),
        ({"train": Own(targets=[-1, 2] * 20)}, "train must have class indices of at least 0 .* but has -1"),
        (
            {"train": Own(targets=[0, 10**9] * 20)},
            "num_classes must be given for class indices as large as",
        ),
        ({"train": Own(targets=[0, 5] * 20), "num_classes": 3}, "num_classes must be at least 6, as train has it"),
        (
            {"train": Own(), "val": Own(shape=(5,)), "num_classes": 3},
            r"val must have samples as train has, inputs \(4,\)",
        ),
        (
            {"train": TensorDataset(torch.full((9, 2), torch.nan), torch.arange(9) % 3)},
            "train must have finite inputs, but has NaN: leave such samples out, or fill them in",
        ),
        (
            {"train": TensorDataset(torch.zeros(9, 2), torch.tensor([0.5] * 8 + [torch.inf]))},
            "train must have finite targets, but has infinite numbers",
        ),
        (
            {"train": Own(target=float), "val": Own(target=lambda index: torch.nan + index)},
            "val must have finite targets, but has NaN",
        ),
        (
            {"train": Own(), "num_classes": 3, "pin_memory": "no"},
            "pin_memory must be true or false, but is the text 'no'",
        ),
        ({"train": Own(), "num_classes": 3, "val_size": 1.0}, "val_size must leave samples to train on"),
        ({"train": Own(), "num_classes": 3, "augment": "basic"}, r"where samples aren't images .* the shape \(4,\)"),
        (
            {"train": TensorDataset(torch.full((9, 3, 4, 4), -2.0), torch.arange(9) % 3), "augment": "basic"},
            r"floats on \[0, 1\] .* torch\.float32 from -2 to -2; leave what normalizes out",
        ),
        ({"train": byte_images(), "augment": "strong"}, "augment must be one of none, basic"),
        ({"train": byte_images(), "mean": [0.5]}, "mean and std must be given together"),
        (
            {"train": byte_images(), "mean": [0.5, 0.5], "std": [0.2]},
            "mean must have 3 values, one a channel, but has 2",
        ),
        ({"train": byte_images(), "mean": 0.5, "std": 0.2}, "mean must have 3 values, one a channel, but is 0.5"),
        ({"train": byte_images(), "mean": [0.5], "std": [0.0]}, r"std must be in \(0, 1\], but is 0\.0"),
    ],
)
def test_bad_datasets_are_one_sentence(settings, message):
    with pytest.raises(SettingError, match=message) as error:
        DatasetData(**settings)
    assert "\n" not in str(error.value)


def test_torchvisions_resnet_on_torchvisions_images_of_the_shape_of_cifar10(tmp_path):
    """Nothing of the two is ours: what is logged is what their own parts say when they are asked by hand."""
    to_floats = torchvision.transforms.v2.Compose(
        [torchvision.transforms.v2.ToImage(), torchvision.transforms.v2.ToDtype(torch.float32, scale=True)]
    )
    images = torchvision.datasets.FakeData(24, (3, 32, 32), num_classes=10, transform=to_floats)
    data = DatasetData(
        train=Subset(images, range(16)), val=Subset(images, range(16, 24)), num_classes=10, batch_size=8, mix=CutMix()
    )
    torch.manual_seed(0)
    model = Classifier(torchvision.models.resnet18(num_classes=10), num_classes=10)
    trainer = quiet_trainer(L2Penalty(weight=1e-4), max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(model, datamodule=data)
    network = model.network.eval()
    with torch.no_grad():
        logits = network(torch.stack([images[index][0] for index in range(16, 24)]))
    labels = torch.tensor([int(images[index][1]) for index in range(16, 24)])
    by_hand = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(trainer.callback_metrics["val/loss"], by_hand, rtol=1e-4, atol=1e-5)
    assert trainer.callback_metrics["val/accuracy"] == (logits.argmax(1) == labels).float().mean()
