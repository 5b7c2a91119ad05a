"""Images for a classifier: a data set by name or a folder of one's own."""

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
from lightning_reg.data.pipeline import ImagePipeline, chosen_augmentation
from lightning_reg.data.row_splits import RowSplitter
from lightning_reg.data.targets import Targets, Task
from lightning_reg.functional.preparation import channel_mean_and_std
from lightning_reg.settings import SettingError, check_choice
from lightning_reg.transforms import Augmentation, Mixing

__all__ = ["ImageData"]

Batch = tuple[Tensor, Tensor]


class ImageData(InMemoryData):
    """Labeled images, held in memory as bytes and normalized on the device.

    Batches are (images, labels): images (N, C, H, W), normalized floats; labels (N,), class indices, or (N, classes)
    probabilities where ``mix`` is at work.

    Args:
        dataset: digits (1,797 of 8×8, ships with scikit-learn), mnist, fashion_mnist, cifar10, cifar100, or
            image_folder: images of your own, as ``root/train/<class>/*`` and perhaps ``root/val`` and ``root/test``,
            or anywhere below ``root``, as a table says (``labels``).
        root: Folder that the images lie in, or are downloaded to.
        labels: For an image folder, a table (CSV or parquet) with a column ``file`` that says where each image lies
            below ``root``, and the columns of ``target``: for several labels an image, numbers, or classes. Where it
            has a column ``part``, that says train, val or test.
        target: The column of that table to predict, or several.
        task: ``classification``, ``regression``, ``multilabel``, or ``auto``: for one target classes where it is text,
            truth values, or at most 20 different whole numbers; for several labels where all are 0 and 1; else
            regression.
        group_column: A column of that table whose equal values are never in two parts: a patient, say.
        batch_size: Images in a batch, for each process.
        val_size: Part of the training images that is held out for validation, stratified by class: a number of
            images or a fraction. Not used where an image folder has a ``val`` of its own.
        train_size: How many of the remaining training images to use, stratified by class: a number, a fraction, or
            all where None.
        folds: For cross-validation: in how many parts the training images are split, of which one is for
            validation, instead of by ``val_size``.
        fold: Which of the folds, from 0.
        repeat: Which of all such partitions into folds.
        image_size: Height and width in pixels for an image folder; has to be set where its images differ in size.
        cache: Whether decoded images of a folder, from a thousand on, are kept in ``$XDG_CACHE_HOME`` or ``~/.cache``;
            a file of another size or time of change is decoded anew.
        normalization: Where mean and standard deviation per channel come from: ``known`` constants of the data set,
            the ``train`` images that are used, ``none``, or ``auto``: known ones where there are any. Which it was
            is said when training starts, and checkpoints keep them.
        augment: Changes every training image at random, on the device, before it is normalized and mixed: none,
            basic, advanced, randaugment, trivialaugment or augmix (see :func:`lightning_reg.transforms.preset`; flips
            that would make another thing of a known data set's images are off), an ``Augmentation``, or a list of
            transforms such as those of ``torchvision.transforms.v2``, which are applied to one sample after the other.
        mix: Mixes every training batch, on the device: ``Mixup``, ``CutMix``, ``MixupOrCutMix`` (targets become
            probabilities), ``Cutout``, ``RandomErasing``.
        mix_epochs: How many epochs are mixed, before images stay as they are; all where None.
        download: Whether a data set that isn't in ``root`` may be downloaded.
        num_workers: Processes that fetch batches; 0 is the fastest for images in memory.
        pin_memory: Whether batches are put into pinned memory, for faster transfer to a GPU.
        seed: Of splits, subsets, shuffling and mixing. The same on every rank and in every run.

    Raises:
        SettingError: If a name isn't known, a number is out of its range, or the folder isn't as it has to be.

    >>> data = ImageData(dataset="digits", batch_size=64)
    >>> data.input_shape, data.num_classes
    ((1, 8, 8), 10)
    """

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
        self.root = Path(root)
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
        targets = [target] if isinstance(target, str) else list(target or ())
        self._folder: ClassFolders | ImageTable | None = None
        if labels is not None and dataset == "image_folder" and targets:
            self._folder = ImageTable(
                self.root,
                Path(labels),
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
        # What the model says, too, and may say otherwise: Lightning refuses two values of one name.
        save_plain_hyperparameters(self, ignore=["task"])

    @property
    def mean_and_std(self) -> tuple[Tensor, Tensor] | None:
        """What images are normalized by, per channel on the scale of [0, 1]; None before setup."""
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
        # A folder's all at once, so that a broken image is found before training and not after it.
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
            split: train, val or test.
        """
        if self._folder is not None:
            # What is held out for validation is among the training images.
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
        # What the precision asks of inputs was settled before the transfer, when these were still bytes.
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
            raise SettingError(
                f"dataset must have the checkpoint's classes, {', '.join(state_dict['classes'][:10]) or 'none'}, but "
                f"has {', '.join(self.classes[:10]) or 'none'}"
            )
        self._warn_of_another_split(state_dict["split"], self._split_settings())
        # A model belongs with the constants that it was trained with, whatever is measured today.
        if "mean" in state_dict and self.normalization != "none":
            mean, std = torch.tensor(state_dict["mean"]), torch.tensor(state_dict["std"])
            self._pipeline.mean_and_std = mean, std
            self._say_constants("of the checkpoint", mean, std)

    def _split_settings(self) -> dict[str, Any]:
        return {"dataset": self.dataset, **self._splitter.settings}

    def _say_constants(self, origin: str, mean: Tensor, std: Tensor) -> None:
        numbers = [", ".join(f"{value:.4f}" for value in values.tolist()) for values in (mean, std)]
        self._say(f"Images are normalized by the mean {numbers[0]} and standard deviation {numbers[1]} {origin}")
