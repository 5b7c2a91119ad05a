"""Data module for images: a data set by name, or your own folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.core.hyperparameters import save_plain_hyperparameters
from lightning_reg.data.images.folders import ClassFolders
from lightning_reg.data.images.image_table import ImageTable
from lightning_reg.data.images.parts import image_splits
from lightning_reg.data.images.sources import SOURCES
from lightning_reg.data.in_memory import InMemoryData
from lightning_reg.data.loader import SampleDataset
from lightning_reg.data.paths import as_path
from lightning_reg.data.pipeline import ImagePipeline, chosen_augmentation
from lightning_reg.data.row_splits import RowSplitter
from lightning_reg.data.tables.sources import as_columns
from lightning_reg.data.targets import Targets, Task
from lightning_reg.functional.preparation import channel_mean_and_std
from lightning_reg.settings import SettingError, check_choice
from lightning_reg.transforms import Augmentation, Mixing

__all__ = ["ImageData"]

Batch = tuple[Tensor, Tensor]


class ImageData(InMemoryData):
    """Labeled images, held in memory as bytes and normalized on the device.

    Batches are (images, labels): images (N, C, H, W), normalized floats; labels (N,), class indices, or (N, classes)
    probabilities where ``mix`` mixes targets; with a table of labels also (N,) or (N, T) numbers or labels, float32.

    Args:
        dataset: digits (1,797 images of 8×8, ships with scikit-learn), mnist, fashion_mnist, cifar10, cifar100, or
            image_folder: your own images, as ``root/train/<class>/*`` and optionally ``root/val`` and ``root/test``, or
            anywhere below ``root``, as listed in a table (``labels``).
        root: Folder of the images, or folder to download them to.
        labels: For an image folder, a table (CSV or parquet) with a column ``file``, the path of each image below
            ``root``, and the columns of ``target``: for several labels per image, numbers, or classes. An optional
            column ``part`` is train, val or test.
        target: Column of that table to predict, or several.
        task: ``classification``, ``regression``, ``multilabel``, or ``auto``: for one target classification where it is
            text, boolean, or has at most 20 distinct whole numbers; for several multilabel where all are 0 and 1; else
            regression.
        group_column: Column of that table whose equal values are never in two parts, such as a patient.
        batch_size: Images per batch and process.
        val_size: Part of the training images to hold out for validation, stratified by class: a number of images or a
            fraction. Not used where an image folder has its own ``val``.
        train_size: Number or fraction of the remaining training images to use, stratified by class; None uses all.
        folds: Number of folds of the training images for cross-validation, one of which replaces the validation images
            of ``val_size``; None for no folds.
        fold: Index of the validation fold, from 0.
        repeat: Index of the partition into folds, for repeated cross-validation.
        image_size: Height and width in pixels to resize an image folder to; required where its images differ in size.
        cache: Whether to cache the decoded images of a folder of at least 1,000 in ``$XDG_CACHE_HOME`` or ``~/.cache``;
            a file of another size or modification time is decoded again.
        normalization: Source of the mean and standard deviation per channel: ``known`` constants of the data set, the
            ``train`` images in use, ``none``, or ``auto``: known constants where there are any, else the training
            images. The source is printed when training starts, and checkpoints keep the constants.
        augment: Random augmentation of every training image, on the device, before normalization and mixing: none,
            basic, advanced, randaugment, trivialaugment or augmix (see :func:`lightning_reg.transforms.preset`; flips
            that change the meaning of a known data set's images are off), an ``Augmentation``, or a list of transforms
            such as those of ``torchvision.transforms.v2``, which are applied to one sample at a time.
        mix: Mixing of every training batch, on the device: ``Mixup``, ``CutMix``, ``MixupOrCutMix`` (targets become
            probabilities), ``Cutout``, ``RandomErasing``.
        mix_epochs: Number of epochs with mixing, after which images stay as they are; None mixes in all epochs.
        download: Whether to download a data set that isn't in ``root``.
        num_workers: Worker processes that fetch batches; 0 is the fastest for images in memory.
        pin_memory: Whether to put batches into pinned memory, for faster transfer to a GPU.
        seed: Seed of splits, subsets, shuffling, augmentation and mixing; splits are equal on every rank and in every
            run.

    Raises:
        SettingError: If a name is unknown, a number is out of range, or the folder doesn't have the expected layout.

    >>> data = ImageData(dataset="digits", batch_size=64)
    >>> data.input_shape, data.num_classes
    ((1, 8, 8), 10)
    """

    _input_kind = "images"
    _splits: dict[str, SampleDataset]

    def __init__(
        self,
        *,
        dataset: str = "digits",
        root: str | Path = "data",
        labels: str | Path | None = None,
        target: str | list[str] | None = None,
        task: Literal["auto", "classification", "regression", "multilabel"] = "auto",
        group_column: str | None = None,
        batch_size: int = 128,
        val_size: int | float = 0.1,
        train_size: int | float | None = None,
        folds: int | None = None,
        fold: int = 0,
        repeat: int = 0,
        image_size: int | None = None,
        cache: bool = True,
        normalization: Literal["auto", "known", "train", "none"] = "auto",
        augment: str | Augmentation | list[nn.Module | Callable[[Tensor], Tensor]] | None = None,
        mix: Mixing | None = None,
        mix_epochs: int | None = None,
        download: bool = True,
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
        check_choice("dataset", dataset, [*SOURCES, "image_folder"])
        check_choice("normalization", normalization, ["auto", "known", "train", "none"])
        check_choice("task", task, ["auto", "classification", "regression", "multilabel"])
        self.dataset = dataset
        self.root = as_path("root", root)
        self.val_size = val_size
        self.train_size = train_size
        self.normalization = normalization
        self.download = download
        self._splitter = RowSplitter(
            val_size=val_size,
            test_size=None,
            train_size=train_size,
            folds=folds,
            fold=fold,
            repeat=repeat,
            seed=seed,
        )
        targets = as_columns("target", target)
        self._folder: ClassFolders | ImageTable | None = None
        if labels is not None and dataset == "image_folder" and targets:
            self._folder = ImageTable(
                self.root,
                as_path("labels", labels),
                targets,
                task=task,
                group_column=group_column,
                image_size=image_size,
                cache=cache,
            )
        elif labels is not None or targets or group_column is not None or task not in ("auto", "classification"):
            raise SettingError(
                "labels, target, task and group_column must be given for an image_folder with a table of labels: "
                "labels and target at least, and none of them for anything else"
            )
        elif dataset == "image_folder":
            self._folder = ClassFolders(self.root, image_size, cache)
        if self._folder is None and image_size is not None:
            raise SettingError(f"image_size must be left out for {dataset}, whose images have one size")
        if normalization == "known" and (self._folder or SOURCES[dataset].mean is None):
            raise SettingError(f"normalization must be auto, train or none for {dataset}, which has no known constants")
        source = self._folder or SOURCES[dataset]
        self.task: Task = "classification" if self._folder is None else self._folder.task
        self.num_targets = None if self._folder is None else self._folder.num_targets
        self.classes: tuple[str, ...] = source.classes
        self.input_shape: tuple[int, int, int] = source.input_shape
        augmentation, self._off = chosen_augmentation(augment, input_shape=self.input_shape, flips=source.flips)
        self.augment = augment
        self._pipeline = ImagePipeline(augmentation)
        # The model saves it too, perhaps with another value, and Lightning refuses two values of one name.
        save_plain_hyperparameters(self, ignore=["task"])

    @property
    def mean_and_std(self) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation of normalization, per channel on the scale of [0, 1]; None before setup."""
        return self._pipeline.mean_and_std

    @override
    def prepare_data(self) -> None:
        fetch = None if self._folder else SOURCES[self.dataset].fetch
        if fetch and not self._splits:
            fetch(self.root, self.download)

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        # A folder is loaded whole, so that a broken image is found before training and not after it.
        if self._folder:
            train, val, test = self._folder.load()
        else:
            (train, test), val = SOURCES[self.dataset].load(self.root), None
        self._splits = image_splits(
            train,
            val,
            test,
            targets=Targets(self.task, self.classes, train.labels),
            splitter=self._splitter,
            groups=None if self._folder is None else self._folder.groups,
        )
        if self._pipeline.mean_and_std is None:
            self._pipeline.mean_and_std = self._measured()
        if stage == "fit" and self._off:
            self._say(f"augment {self.augment} is without {', '.join(self._off)} for the images of {self.dataset}")

    def _measured(self) -> tuple[Tensor, Tensor] | None:
        train = self._splits["train"]
        if self.normalization == "none":
            return torch.zeros(self.input_shape[0]), torch.ones(self.input_shape[0])
        source = None if self._folder else SOURCES[self.dataset]
        if source is not None and source.mean and source.std and self.normalization != "train":
            origin, mean, std = f"known for {self.dataset}", torch.tensor(source.mean), torch.tensor(source.std)
        else:
            origin = f"of the {len(train)} training images"
            mean, std = channel_mean_and_std(train.tensors[0], train.indices)
        self._say_constants(origin, mean, std)
        return mean, std

    @override
    def sample_names(self, split: Literal["train", "val", "test"]) -> list[str]:
        """Returns a name for each image of a split, in the order of its evaluation loader.

        Args:
            split: ``train``, ``val`` or ``test``.
        """
        if self._folder is not None:
            # Held-out validation images are among the training images.
            where = split if self._folder.has(split) else "train"
            files = [path.relative_to(self.root).as_posix() for path in self._folder.files(where)]
            return [files[index] for index in self._splits[split].indices.tolist()]
        return [str(index) for index in self._splits[split].indices.tolist()]

    @override
    def _without(self, split: str) -> str:
        if isinstance(self._folder, ImageTable):
            return f"labels must have a column part with rows that are {split!r} for this, but has none"
        return f"root {str(self.root)!r} must have a folder {split!r} for this, but has none"

    @override
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if isinstance(batch, Tensor):  # a model's example input, which Lightning sends through here too
            return self.trainer.precision_plugin.convert_input(batch) if self.trainer else batch
        images, labels = batch
        trains = self.trainer is not None and self.trainer.training
        images = self._pipeline(images, self._stream if trains else None)
        if self.trainer is None:
            return images, labels
        if self._mixes():
            images, labels = self._mixed(images, labels)
        # Lightning applied the precision before the transfer, when images were still bytes.
        converted: Batch = self.trainer.precision_plugin.convert_input((images, labels))
        return converted

    @override
    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {"classes": list(self.classes), "split": self._split_settings()}
        if self._pipeline.mean_and_std is not None:
            mean, std = self._pipeline.mean_and_std
            state |= {"mean": mean.tolist(), "std": std.tolist()}
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["classes"] != list(self.classes):
            known = ", ".join(map(str, state_dict["classes"][:10]))
            raise SettingError(
                f"dataset must have the checkpoint's classes, {known or 'none'}, but has "
                f"{', '.join(self.classes[:10]) or 'none'}"
            )
        self._warn_of_another_split(state_dict["split"], self._split_settings())
        # A model keeps the constants that it was trained with, whatever the data are now.
        if "mean" in state_dict and self.normalization != "none":
            mean, std = torch.tensor(state_dict["mean"]), torch.tensor(state_dict["std"])
            wanted = (self.input_shape[0],)
            if mean.shape != wanted or std.shape != wanted or not (mean.isfinite().all() and (std > 0).all()):
                raise SettingError(
                    f"ckpt_path must hold a mean and a positive standard deviation for each of {wanted[0]} channels, "
                    f"but holds {state_dict['mean']} and {state_dict['std']}"
                )
            self._pipeline.mean_and_std = mean, std
            self._say_constants("of the checkpoint", mean, std)

    def _split_settings(self) -> dict[str, Any]:
        return {"dataset": self.dataset, **self._splitter.settings}

    def _say_constants(self, origin: str, mean: Tensor, std: Tensor) -> None:
        numbers = [", ".join(f"{value:.4f}" for value in values.tolist()) for values in (mean, std)]
        self._say(f"Images are normalized by the mean {numbers[0]} and standard deviation {numbers[1]} {origin}")
