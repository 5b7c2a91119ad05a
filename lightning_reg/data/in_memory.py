"""Base class of the data modules: loaders, and the position within an epoch."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from random import Random
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from lightning_reg.core.streams import check_seed, random_stream
from lightning_reg.data.loader import Batch, ResumableLoader, SampleDataset, ShuffledSampler, as_fetched
from lightning_reg.data.targets import Task
from lightning_reg.functional.batch.mixing import soft_targets
from lightning_reg.settings import SettingError, check_count, check_flags
from lightning_reg.transforms import Mixing

__all__ = ["InMemoryData"]


class InMemoryData(LightningDataModule, ABC):
    """Loads batches from memory, in an order that depends on the seed and the epoch alone and can be resumed.

    Attributes:
        task: ``classification``, ``regression``, or ``multilabel``, where a sample has any number of labels.
        classes: Names of the classes or labels, by index; none where targets are numbers.
        batch_size: Samples per batch and process.
        num_workers: Worker processes that fetch batches.
        pin_memory: Whether batches are put into pinned memory.
        mix: Mixing of training batches; None for none.
        mix_epochs: Number of epochs with mixing; None for all.
        seed: Seed of the order and of random numbers.
    """

    task: Task
    classes: tuple[str, ...]
    batch_size: int
    num_workers: int
    pin_memory: bool
    mix: Mixing | None
    mix_epochs: int | None
    seed: int
    _input_kind: ClassVar[Literal["any", "images", "rows"]] = "any"
    """Inputs of the network, as far as they are known of all instances."""
    _splits: Mapping[str, Dataset[Any]]

    def __init__(
        self,
        *,
        batch_size: int,
        mix: Mixing | None,
        mix_epochs: int | None,
        num_workers: int,
        pin_memory: bool,
        seed: int,
    ) -> None:
        super().__init__()
        check_count("batch_size", batch_size)
        if mix is not None and not isinstance(mix, Mixing):
            raise SettingError(f"mix must be a transform such as Mixup(), but is {mix!r}")
        if mix is not None and self._input_kind != "any" and mix.input_kind not in ("any", self._input_kind):
            raise SettingError(f"mix must be for {self._input_kind}, but is {mix!r}, which is for {mix.input_kind}")
        if mix_epochs is not None:
            check_count("mix_epochs", mix_epochs, low=0)
        check_count("num_workers", num_workers, low=0)
        check_seed(seed)
        self.batch_size = batch_size
        self.mix = mix
        self.mix_epochs = mix_epochs
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        check_flags(self)
        self.seed = seed
        self._splits = {}
        self._said: set[str] = set()

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or of labels for multilabel; None for regression."""
        return len(self.classes) or None

    def _collate(self, batch: Any) -> Any:
        """Returns a batch from what the dataset returned."""
        return as_fetched(batch)

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        trainer: Any = self.trainer
        if self._mixes():
            inputs, targets = batch
            batch = self._mixed(inputs, targets)
        return batch if trainer is None else trainer.precision_plugin.convert_input(batch)

    @abstractmethod
    def sample_names(self, split: Literal["train", "val", "test"]) -> list[str]:
        """Returns a name for each sample of a split, in the order of its evaluation loader.

        Args:
            split: train, val or test.
        """

    def training_targets(self) -> Tensor:
        """Returns the targets of the training samples, after setup, in no particular order."""
        dataset: Any = self._splits["train"]
        if isinstance(dataset, SampleDataset):
            targets: Tensor = dataset.tensors[-1][dataset.indices]
            return targets
        return torch.stack([torch.as_tensor(dataset[index][1]) for index in range(len(dataset))])

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        trainer = self.trainer
        dataset = self._splits["train"]
        sampler = ShuffledSampler(
            dataset,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            seed=self.seed,
            position=self._batches_trained,
        )
        # Worker processes read ahead before Lightning sets the epoch of a resumed run. Its counter of processed epochs
        # is right already, current_epoch isn't yet.
        if trainer:
            progress = trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)  # type: ignore[attr-defined]  # Lightning types it too narrowly
        return ResumableLoader(
            dataset,
            sampler=sampler,
            batch_size=self.batch_size,
            drop_last=self._drops_last(len(sampler)),
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            collate_fn=self._collate,
            persistent_workers=self.num_workers > 0,
        )

    def _drops_last(self, samples: int) -> bool:
        """Whether the last batch would have one sample, which BatchNorm can't be trained on."""
        model = self.trainer.lightning_module if self.trainer else None
        has_batch_norm = model and any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())
        if not has_batch_norm or samples % self.batch_size != 1 or samples == 1:
            return False
        self._say(
            f"The last of {samples} training samples would make a batch of one (batch_size {self.batch_size}), which "
            "BatchNorm can't be trained on: each epoch leaves out one sample, always another"
        )
        return True

    def _batches_trained(self) -> int:
        if self.trainer is None:
            return 0
        loop = self.trainer.fit_loop
        progress = loop.epoch_loop.batch_progress.current
        processed: int = progress.processed  # type: ignore[attr-defined]  # Lightning types it too narrowly
        return processed if processed < loop.max_batches else 0  # a complete epoch is followed by a new one

    def evaluation_dataloader(self, split: Literal["train", "val", "test"]) -> DataLoader[Batch] | None:
        """Returns a split's samples in order, never mixed; None where there is no such split.

        Args:
            split: train, val or test.
        """
        if split not in self._splits:
            return None
        return DataLoader(
            self._splits[split],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            collate_fn=self._collate,
        )

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        return self._required("val")

    @override
    def test_dataloader(self) -> DataLoader[Batch]:
        return self._required("test")

    @override
    def predict_dataloader(self) -> DataLoader[Batch]:
        return self._required("test")

    def _required(self, split: Literal["val", "test"]) -> DataLoader[Batch]:
        loader = self.evaluation_dataloader(split)
        if loader is None:
            raise SettingError(self._without(split))
        return loader

    @abstractmethod
    def _without(self, split: str) -> str:
        """Returns the error message for a split that is needed and missing."""

    def _mixes(self) -> bool:
        """Whether the current batch is mixed."""
        if self.mix is None or self.trainer is None or not self.trainer.training:
            return False
        return self.mix_epochs is None or self.trainer.current_epoch < self.mix_epochs

    def _mixed(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the current batch, mixed: class indices become probabilities where targets are mixed, too."""
        if self.mix is None:
            return inputs, targets
        if self.mix.needs_partner and self.task == "classification":
            targets = soft_targets(targets, len(self.classes))
        return self._fitted(self.mix)(inputs, targets, stream=self._stream("mix"))

    def _fitted(self, mix: Mixing) -> Mixing:
        """Returns the mixing, adapted to the data."""
        return mix

    def _stream(self, name: str) -> Random:
        """Returns a random stream for the current training batch."""
        trainer: Any = self.trainer
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        return random_stream(self.seed, trainer.global_rank, trainer.current_epoch, progress.ready, name)

    def _warn_of_another_split(self, trained: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Warns if a checkpoint's samples were split differently; settings that it lacks count as equal."""
        for name, value in now.items():
            before = trained.get(name, value)
            if before != value:
                rank_zero_warn(
                    f"The checkpoint was trained with {name} {before}, not {value}: among the samples held out now may "
                    "be some that it was trained on"
                )

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            rank_zero_info(message)
