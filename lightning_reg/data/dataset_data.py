"""Data module for your own torch Datasets."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset, default_collate
from typing_extensions import override

from lightning_reg.core.hyperparameters import save_plain_hyperparameters
from lightning_reg.data.in_memory import InMemoryData
from lightning_reg.data.pipeline import Augment, ImagePipeline, chosen_augmentation
from lightning_reg.data.splits import chosen_count, stratified_split
from lightning_reg.data.targets import Task
from lightning_reg.settings import SettingError, check_choice, check_count, check_range
from lightning_reg.transforms import Augmentation, Mixing

__all__ = ["DatasetData"]

_MOST_CLASSES = 10**7
"""Largest number of classes that class indices alone are believed; larger ones are mostly keys of something."""


class DatasetData(InMemoryData):
    """Torch Datasets whose samples are (inputs, target): the order, the resuming and the mixing of our data modules.

    The first training sample decides what is predicted: an integer target is a class, a float a number, a vector
    several labels or numbers. Inputs aren't scaled: the network reads what a dataset returns, unless ``augment`` or
    ``mean`` and ``std`` are given; then images must be bytes or floats on [0, 1].

    Args:
        train: Training dataset, with samples (inputs, target).
        val: Validation dataset; None holds out a part of ``train``.
        test: Dataset to test and predict on; None for none.
        task: ``classification``, ``regression``, ``multilabel``, or ``auto``: multilabel where the target is a vector
            of 0 and 1, regression where it is another vector or a float, else classification.
        num_classes: Number of classes, at least 2; may be left out where the dataset has ``classes`` or ``targets``, as
            torchvision's datasets do; a ``target_transform`` that it has is applied to these ``targets``.
        batch_size: Samples per batch and process.
        val_size: Part of ``train`` to hold out where ``val`` is None: a number of samples or a fraction. Stratified
            where the dataset has ``targets``.
        augment: Random augmentation of every training image, on the device, before normalization and mixing: none,
            basic, advanced, randaugment, trivialaugment or augmix (see :func:`lightning_reg.transforms.preset`), an
            ``Augmentation``, or a list of transforms that are applied to one sample at a time.
        mean: Mean of images on [0, 1], one value or one per channel, subtracted on the device; given together with
            ``std``.
        std: Standard deviation likewise, by which images are divided.
        mix: Mixing of every training batch, on the device, such as ``Mixup``; None for none.
        mix_epochs: Number of epochs with mixing, after which samples stay as they are; None mixes in all epochs.
        num_workers: Worker processes that fetch batches; 0 fetches in the main process.
        pin_memory: Whether to put batches into pinned memory, for faster transfer to a GPU.
        seed: Seed of the split, the order, augmentation and mixing.

    Raises:
        SettingError: If a dataset has no length or no samples, its samples aren't pairs of numbers, or they aren't
            images on [0, 1] where these are asked for.

    >>> from torch.utils.data import TensorDataset
    >>> train = TensorDataset(torch.randn(40, 3), torch.arange(40) % 4)
    >>> data = DatasetData(train=train, num_classes=4)
    >>> data.task, data.num_classes, data.input_shape
    ('classification', 4, (3,))
    """

    def __init__(
        self,
        *,
        train: Dataset[Any],
        val: Dataset[Any] | None = None,
        test: Dataset[Any] | None = None,
        task: Literal["auto", "classification", "regression", "multilabel"] = "auto",
        num_classes: int | None = None,
        batch_size: int = 128,
        val_size: int | float = 0.1,
        augment: str | Augmentation | list[nn.Module | Callable[[Tensor], Tensor]] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        mix: Mixing | None = None,
        mix_epochs: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            mix=mix,
            mix_epochs=mix_epochs,
            num_workers=num_workers,
            pin_memory=pin_memory,
            seed=seed,
        )
        check_choice("task", task, ["auto", "classification", "regression", "multilabel"])
        if num_classes is not None:
            check_count("num_classes", num_classes, low=2)
        named = (("val", val), ("test", test))
        given = {"train": train, **{name: dataset for name, dataset in named if dataset is not None}}
        samples = {name: _first(name, dataset) for name, dataset in given.items()}
        inputs, target = samples["train"]
        for name, (others, other) in samples.items():
            if (others.shape, other.shape) != (inputs.shape, target.shape):
                raise SettingError(
                    f"{name} must have samples as train has, {_shown(inputs, target)}, but has {_shown(others, other)}"
                )
        for name, dataset in given.items():
            _check_finite(name, dataset, samples[name])
        self.input_shape = tuple(inputs.shape)
        self._pipeline = _pipeline_of(inputs, augment, mean, std)
        self.task = _task_of(target) if task == "auto" else task
        self.num_targets = None if self.task == "classification" else target.numel()
        self.classes = _class_names(train, target, self.task, num_classes)
        self._splits = given if val is not None else {**given, **_held_out(train, val_size, seed, self.classes)}
        # The model saves these too, perhaps with other values, and Lightning refuses two values of one name.
        save_plain_hyperparameters(self, ignore=["task", "num_classes"])

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if not isinstance(batch, Tensor):  # else a model's example input
            inputs, targets = batch
            if self._pipeline is not None:
                trains = self.trainer is not None and self.trainer.training
                inputs = self._pipeline(inputs, self._stream if trains else None)
            dtype = self._float_dtype()
            # numpy's floats and Python's are of 64 bits, which layers of 32 bits don't take.
            batch = inputs.to(dtype) if inputs.dtype == torch.float64 else inputs, self._as_targets(targets, dtype)
        return super().on_after_batch_transfer(batch, dataloader_idx)

    def _float_dtype(self) -> torch.dtype:
        """Returns the dtype that the model computes with; torch's default without a model."""
        model = self.trainer.lightning_module if self.trainer else None
        parameters = () if model is None else model.parameters()
        return next((each.dtype for each in parameters if each.is_floating_point()), torch.get_default_dtype())

    def _as_targets(self, targets: Tensor, dtype: torch.dtype) -> Tensor:
        """Returns targets as losses take them: class indices (N,), int64, or floats."""
        if self.task == "classification":
            return targets.reshape(len(targets)).long()
        return targets.to(dtype) if targets.dtype == torch.float64 or not targets.is_floating_point() else targets

    @override
    def training_targets(self) -> Tensor:
        targets = super().training_targets()
        return self._as_targets(targets, targets.dtype if targets.is_floating_point() else torch.get_default_dtype())

    @override
    def _collate(self, batch: Any) -> Any:
        inputs, targets = default_collate(batch)
        if self.task == "classification" and targets.device.type == "cpu" and targets.max() >= len(self.classes):
            raise SettingError(
                f"num_classes must be above every class index, but is {len(self.classes)} where a sample has class "
                f"{int(targets.max())}"
            )
        return inputs, targets

    @override
    def sample_names(self, split: Literal["train", "val", "test"]) -> list[str]:
        """Returns each sample's index in its dataset."""
        dataset: Any = self._splits[split]
        return [str(index) for index in (dataset.indices if isinstance(dataset, Subset) else range(len(dataset)))]

    @override
    def _without(self, split: str) -> str:
        return f"{split} must be given where there is something to {split}"


def _first(name: str, dataset: Any) -> tuple[Tensor, Tensor]:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise SettingError(
            f"{name} must be a dataset with a length and an index, but is {type(dataset).__name__}; data that streams "
            "needs a LightningDataModule of its own"
        )
    if not len(dataset):
        raise SettingError(f"{name} must have samples, but has none")
    sample = dataset[0]
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise SettingError(f"{name} must have samples (inputs, target), but its first is a {type(sample).__name__}")
    try:
        inputs, target = (torch.as_tensor(entry) for entry in sample)
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = ", ".join(type(entry).__name__ for entry in sample)
        raise SettingError(
            f"{name} must have samples of tensors or numbers, but its first is ({kinds}); give the dataset a transform "
            "such as torchvision's ToImage and ToDtype"
        ) from error
    return inputs, target


def _check_finite(name: str, dataset: Any, first: tuple[Tensor, Tensor]) -> None:
    """Raises if there is a NaN or an infinite number in a dataset of tensors, or in the first sample of another."""
    tensors = dataset.tensors if type(dataset) is TensorDataset else first
    for kind, tensor in zip(("inputs", "targets"), tensors, strict=True):
        if not tensor.isfinite().all():
            odd = "NaN" if tensor.isnan().any() else "infinite numbers"
            raise SettingError(
                f"{name} must have finite {kind}, but has {odd}: leave such samples out, or fill them in"
            )


def _pipeline_of(
    sample: Tensor, augment: Augment | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> ImagePipeline | None:
    """Returns the processing of images on the device; None where the network reads samples as they are."""
    if augment is None and mean is None and std is None:
        return None
    if mean is None or std is None:
        if mean is not None or std is not None:
            raise SettingError("mean and std must be given together")
        mean, std = [0.0], [1.0]
    if sample.ndim != 3:
        raise SettingError(
            "augment, mean and std must be left out where samples aren't images (channels, height, width), but the "
            f"first has the shape {tuple(sample.shape)}"
        )
    low, high = sample.min().item(), sample.max().item()
    if sample.dtype != torch.uint8 and not (sample.is_floating_point() and low >= 0 and high <= 1):
        raise SettingError(
            "train must have images of bytes or of floats on [0, 1] with augment, mean and std, but its first has "
            f"{sample.dtype} from {low:.4g} to {high:.4g}; leave what normalizes out of the dataset's transform"
        )
    channels, height, width = sample.shape
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Iterable):
            raise SettingError(f"{name} must have {channels} values, one a channel, but is {values!r}")
        if len(values) not in (1, channels):
            raise SettingError(f"{name} must have {channels} values, one a channel, but has {len(values)}")
        for value in values:
            check_range(name, value, low=0, high=1, low_open=name == "std")
    augmentation, _ = chosen_augmentation(
        augment, input_shape=(channels, height, width), flips=("horizontal", "vertical")
    )
    pipeline = ImagePipeline(augmentation)
    pipeline.mean_and_std = torch.tensor(list(mean)), torch.tensor(list(std))
    return pipeline


def _shown(inputs: Tensor, target: Tensor) -> str:
    return f"inputs {tuple(inputs.shape)} and a target {tuple(target.shape)}"


def _task_of(target: Tensor) -> Task:
    if target.numel() > 1:
        return "multilabel" if bool(((target == 0) | (target == 1)).all()) else "regression"
    return "regression" if target.is_floating_point() else "classification"


def _class_names(train: Any, target: Tensor, task: str, num_classes: int | None) -> tuple[str, ...]:
    if task == "regression":
        return ()
    if task == "multilabel":
        return tuple(str(label) for label in range(target.numel()))
    if target.numel() != 1 or target.is_floating_point():
        raise SettingError(f"train must have class indices for targets, but its first is {target.tolist()}")
    transformed = getattr(train, "target_transform", None) is not None
    named = None if transformed else getattr(train, "classes", None)  # names of what the transform reads
    labels = _labels(train)
    if labels is not None and labels.min() < 0:
        raise SettingError(f"train must have class indices of at least 0 for targets, but has {int(labels.min())}")
    if num_classes is None and named is None and labels is None:
        raise SettingError(
            "num_classes must be given for a dataset that has neither classes nor targets"
            + (", or has classes before a target_transform" if transformed else "")
        )
    found = int(labels.max()) + 1 if labels is not None else 0
    if num_classes is None and found > _MOST_CLASSES:
        raise SettingError(f"num_classes must be given for class indices as large as {found - 1:,}, if they are that")
    count = num_classes or (len(named) if named is not None else found)
    if found > count:
        raise SettingError(f"num_classes must be at least {found}, as train has it, but is {count}")
    fits = isinstance(named, Sequence) and len(named) == count
    return tuple(str(name) for name in named) if named is not None and fits else tuple(map(str, range(count)))


def _labels(dataset: Any) -> Tensor | None:
    """Returns the class indices of all samples, if the dataset has them without loading the samples."""
    targets = getattr(dataset, "targets", None)
    transform = getattr(dataset, "target_transform", None)
    if transform is not None and targets is not None:  # torchvision's datasets keep targets as they were before it
        before = targets.tolist() if hasattr(targets, "tolist") else targets
        after = [torch.as_tensor(transform(target)) for target in before]
        targets = torch.stack(after) if len({target.shape for target in after}) == 1 else None
    if targets is None and isinstance(getattr(dataset, "tensors", None), tuple):
        targets = dataset.tensors[-1]  # torch's TensorDataset
    if targets is None or len(targets) != len(dataset):
        return None
    labels = torch.as_tensor(targets)
    return labels.flatten() if labels.numel() == len(labels) and not labels.is_floating_point() else None


def _held_out(train: Any, size: int | float, seed: int, classes: Sequence[str]) -> dict[str, Any]:
    labels = _labels(train) if classes else None
    if labels is not None:
        chosen, rest = stratified_split(labels.long(), size, seed=seed, name="val_size", classes=classes)
    else:
        count = chosen_count(size, len(train), name="val_size")
        if count == len(train):
            raise SettingError(f"val_size must leave samples to train on, but is {size}: all {count}")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
        chosen, rest = order[:count].sort().values, order[count:].sort().values
    return {"train": Subset(train, rest.tolist()), "val": Subset(train, chosen.tolist())}
