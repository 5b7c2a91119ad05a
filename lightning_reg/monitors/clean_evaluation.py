"""Evaluation of a module on training and validation data alike, by its own ``validation_step``, during a fit."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence, Sized
from numbers import Number
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset
from torchmetrics import Metric, SumMetric

from lightning_reg.core.copies.isolation import isolated
from lightning_reg.core.lightning import prepared
from lightning_reg.core.metric_names import lower_is_better, short_names
from lightning_reg.core.streams import random_stream
from lightning_reg.monitors.clean_samples import are_alike, is_drawn_anew, without_augmentation
from lightning_reg.monitors.drawn_indices import drawn_indices, list_size, within_batches
from lightning_reg.settings import SettingError

__all__ = ["Measured", "clean_loaders", "differs_in_chance", "evaluate", "number_of_samples"]

Loader = DataLoader[Any]
_NO_BATCH_SIZE = 64  # where a loader's own batch sampler has none


class Measured(dict[str, float]):
    """Metrics by their names without the split.

    Args:
        lower: Whether lower is better, by name; kept as ``lower_is_better``.
        sums: Names of metrics that grow with the number of samples.
        samples: Number of samples.
    """

    def __init__(self, values: Mapping[str, float], lower: Mapping[str, bool], sums: set[str], samples: int) -> None:
        super().__init__(values)
        self.lower_is_better = dict(lower)
        self.sums = sums
        self.samples = samples


def clean_loaders(trainer: Trainer, max_samples: int | None) -> tuple[dict[str, Loader], int, bool]:
    """Returns loaders of clean training and validation samples, in a fixed order.

    They come from the data module's ``evaluation_dataloader(split)`` where it has one. Else they are made of what the
    samplers of the trainer's loaders draw from its data sets, without repetitions. Of either, samples that a limited
    number of batches never reaches are left out. Training data have the transforms of the validation data, as
    :func:`without_augmentation` finds them, and are loaded with the settings of the validation loader where both data
    sets are of one class. The user's data sets, loaders and samplers aren't touched.

    Args:
        trainer: Trainer in a fit, with its loaders.
        max_samples: Largest number of samples of each, always the same ones; all where None.

    Raises:
        SettingError: If the data can't be read twice.

    Returns:
        Loaders by ``train`` and ``validation``, each with this process's share, which is of equal size in all
        processes; how many of the training samples validation draws, too, and whether it draws no others.
    """
    make = getattr(getattr(trainer, "datamodule", None), "evaluation_dataloader", None)
    train, val = (make("train"), make("val")) if callable(make) else (None, None)
    train = _checked(trainer.train_dataloader if train is None else train, "training")
    val = _checked(_first(trainer.val_dataloaders) if val is None else val, "validation")
    of_train, of_val = drawn_indices(train, trainer, "training"), drawn_indices(val, trainer, "validation")
    of_train = within_batches(of_train, trainer.train_dataloader, trainer.num_training_batches)
    of_val = within_batches(of_val, _first(trainer.val_dataloaders), _first(trainer.num_val_batches))
    clean = without_augmentation(train.dataset, val.dataset)
    like = val if are_alike(train.dataset, val.dataset) else train
    loaders = {
        "train": _loader(clean, of_train, like, trainer, max_samples, "train"),
        "validation": _loader(val.dataset, of_val, val, trainer, max_samples, "validation"),
    }
    return loaders, *_overlap(train.dataset, of_train, val.dataset, of_val)


def _overlap(train: Any, of_train: Iterable[Any], val: Any, of_val: Iterable[Any]) -> tuple[int, bool]:
    (train, of_train), (val, of_val) = _origins(train, of_train), _origins(val, of_val)
    seen, measured = set(of_train), set(of_val)
    return (len(seen & measured), measured <= seen) if train is val else (0, False)


def _origins(dataset: Any, drawn: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Returns the data set that subsets are of, and the indices there."""
    while isinstance(dataset, Subset):
        dataset, drawn = dataset.dataset, [dataset.indices[index] for index in drawn]
    return dataset, drawn


def differs_in_chance(loaders: Mapping[str, Loader]) -> bool:
    """Whether the training samples are drawn anew at each reading, and those of validation aren't.

    Not known where workers read them, whose files mustn't be opened before they are forked.

    Args:
        loaders: Return value of :func:`clean_loaders`.
    """
    if any(loader.num_workers for loader in loaders.values()):
        return False
    return is_drawn_anew(loaders["train"].dataset) and not is_drawn_anew(loaders["validation"].dataset)


def number_of_samples(trainer: Trainer) -> int | None:
    """Returns the number of samples that training draws from; None if it isn't known.

    Args:
        trainer: Trainer in a fit. Its processes have to call this together.
    """
    loader = trainer.train_dataloader
    dataset = getattr(loader, "dataset", None)
    try:
        drawn = drawn_indices(_checked(loader, "training"), trainer, "training")
        return len(within_batches(drawn, loader, trainer.num_training_batches))
    except SettingError:
        return len(dataset) if isinstance(dataset, Sized) else None


def _first(loaders: Any) -> Any:
    return loaders[0] if isinstance(loaders, (list, tuple)) and loaders else loaders


def _checked(loader: Any, which: str) -> Loader:
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        over = "" if dataset is None else f" over {type(dataset).__name__}"
        raise SettingError(
            f"the {which} loader must be a DataLoader over a data set with a length and an index for "
            f"GeneralizationGap, but is {type(loader).__name__}{over}; or give the data module a method "
            "evaluation_dataloader(split) that returns one for 'train' and 'val'"
        )
    return loader


def _loader(
    dataset: Any, drawn: Sequence[Any], like: Loader, trainer: Trainer, max_samples: int | None, name: str
) -> Loader:
    total, processes = len(drawn), trainer.world_size
    if not total:
        raise SettingError(f"the {name} data must not be empty for GeneralizationGap")
    count = total if max_samples is None else min(max_samples, total)
    # A sample, because many data sets are sorted by class.
    chosen = sorted(random_stream(0, "generalization_gap", name).sample(range(total), count))
    # Equally many in every process, which may have to wait for one another in each batch.
    share = max(count // processes, 1)
    mine = [drawn[chosen[(index * processes + trainer.global_rank) % count]] for index in range(share)]
    unbatched = like.batch_sampler is None
    listed = list_size(like) if unbatched else None
    return DataLoader(
        Subset(dataset, mine),
        batch_size=None if unbatched else like.batch_size or getattr(like.batch_sampler, "batch_size", _NO_BATCH_SIZE),
        sampler=None if listed is None else BatchSampler(SequentialSampler(mine), listed, drop_last=False),
        num_workers=like.num_workers,
        collate_fn=like.collate_fn,
        pin_memory=like.pin_memory,
        worker_init_fn=like.worker_init_fn,
        multiprocessing_context=like.multiprocessing_context,
        generator=torch.Generator(),  # else it draws from the global stream
    )


def evaluate(trainer: Trainer, pl_module: LightningModule, loader: Loader, technique: str) -> Measured:
    """Measures what a module's ``validation_step`` logs, or returns, over a loader, on a copy of the module.

    The copy is in evaluation mode; nothing reaches the module, loggers or the trainer's metrics. Logged tensors are
    reduced by their ``reduce_fx``, means over samples; metric objects are computed over all samples.

    Raises:
        SettingError: If ``validation_step`` neither logs nor returns a number, or the module can't be copied.
    """
    record = _Record(pl_module)
    with isolated(trainer, pl_module, technique, record.log) as copied, torch.no_grad():
        # An item of the data set is a sample, however many rows a batch makes of it, as one of graphs does.
        makes_batches = isinstance(loader.batch_sampler or loader.sampler, BatchSampler)
        items = len(loader.dataset) if makes_batches and isinstance(loader.dataset, Sized) else None
        for index, batch in enumerate(loader):
            _run(copied, batch, index, record)
            record.samples += record.batch_size if items is None else 0
        record.samples += items or 0
        return record.measured(trainer)


def _run(module: LightningModule, batch: Any, index: int, record: _Record) -> None:
    batch = prepared(module.trainer, module, batch)
    record.begins(batch)
    # Lightning gives a loader's index where there are several, and the batch's where the step takes it.
    several = len(module.trainer.num_val_batches) > 1
    given = (batch, index, 0) if several else (batch, index)
    takes_index = is_param_in_hook_signature(module.validation_step, "batch_idx", min_args=2)
    module.on_validation_batch_start(*given)
    output = module.trainer.strategy.validation_step(*(given if takes_index else (batch, *given[2:])))
    record.returned(output)
    module.on_validation_batch_end(output, *given)


class _Reduced:
    """A logged value, reduced over batches as Lightning does it."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.value: Tensor | None = None
        self.weight = 0

    def add(self, value: Tensor, weight: int) -> None:
        if self.how == "mean":
            value = value * weight
        if self.value is None:
            self.value = value
        elif self.how in ("min", "max"):
            self.value = getattr(torch, f"{self.how}imum")(self.value, value)
        else:
            self.value = self.value + value
        self.weight += weight

    def over_processes(self, trainer: Trainer) -> Tensor:
        value = torch.zeros(()) if self.value is None else self.value
        if self.how != "mean":
            return torch.as_tensor(trainer.strategy.reduce(value, reduce_op=self.how))
        both = torch.stack([value, torch.as_tensor(float(self.weight), device=value.device)])
        both = torch.as_tensor(trainer.strategy.reduce(both, reduce_op="sum"))
        return both[0] / both[1]


def _is_sum(metric: Metric) -> bool:
    return isinstance(metric, SumMetric) or getattr(metric, "reduction", None) == "sum"


def _log_signature(kind: type) -> inspect.Signature:
    """Returns what ``log`` is given, of the nearest class that names it: many a module's own hands on ``*args``."""
    signatures = [inspect.signature(vars(base)["log"]) for base in kind.__mro__ if "log" in vars(base)]
    for signature in signatures:
        parameters = signature.parameters
        is_listed = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
        if {"name", "value"} <= parameters.keys() and not is_listed:
            return signature
    return signatures[-1]


class _Record:
    """Record of what a validation step logs."""

    def __init__(self, pl_module: LightningModule) -> None:
        self.samples = 0
        self._batch: Any = None
        self._batch_size: int | None = None
        self._signature = _log_signature(type(pl_module))
        self._values: dict[str, _Reduced] = {}
        self._metrics: dict[str, Metric] = {}
        self._is_returned = False

    def begins(self, batch: Any) -> None:
        """Takes the batch that the next step is about."""
        self._batch, self._batch_size = batch, None

    @property
    def batch_size(self) -> int:
        """Rows of the batch.

        Looked for only where nobody gives it, as Lightning does, which warns where it could be one of several.
        """
        if self._batch_size is None:
            try:
                self._batch_size = extract_batch_size(self._batch)
            except MisconfigurationException:  # there is none; the step has to log with batch_size itself
                self._batch_size = 1
        return self._batch_size

    def log(self, *args: Any, **kwargs: Any) -> None:
        """Replaces ``self.log``."""
        given = self._signature.bind(None, *args, **kwargs).arguments
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:  # a module's own method may hand on what it doesn't name
                given |= given.pop(parameter.name, {})
        reduce = given.get("reduce_fx", "mean")
        how = str(getattr(reduce, "__name__", reduce)).lower()  # torch's functions may be given, too
        self._add(given["name"], given["value"], given.get("batch_size"), how)

    def returned(self, output: Any) -> None:
        """Takes what the step returned, for modules that log nothing."""
        if (self._values or self._metrics) and not self._is_returned:
            return
        for name, value in (output if isinstance(output, Mapping) else {"loss": output}).items():
            if isinstance(value, Tensor) and value.numel() == 1:
                self._is_returned = True
                self._add(str(name), value, None, "mean")

    def _add(self, name: str, value: Any, batch_size: int | None, how: str) -> None:
        if isinstance(value, Metric):
            self._metrics[name] = value
        elif isinstance(value, (Tensor, Number)):
            reduced = self._values.setdefault(name, _Reduced("mean" if how == "avg" else how))
            weight = batch_size or (self.batch_size if reduced.how == "mean" else 1)
            reduced.add(torch.as_tensor(value).detach().float().squeeze(), weight)

    def measured(self, trainer: Trainer) -> Measured:
        """Returns everything, over all processes, with one transfer to the host."""
        if not self._values and not self._metrics:
            raise SettingError(
                "validation_step must log or return a number for GeneralizationGap, which runs it on training data, "
                "but does neither; metrics that on_validation_epoch_end logs can't be measured on other data"
            )
        values = {name: value.over_processes(trainer) for name, value in self._values.items()}
        lower = {name: lower_is_better(name) for name in self._values}
        for name, metric in self._metrics.items():
            computed = metric.compute()  # over all processes by itself
            if isinstance(computed, Tensor) and computed.numel() == 1:
                values[name] = computed.detach().float().squeeze()
                better = metric.higher_is_better
                lower[name] = lower_is_better(name) if better is None else not better
        sums = {name for name, value in self._values.items() if value.how == "sum"}
        sums |= {name for name, metric in self._metrics.items() if _is_sum(metric)}
        shorts = short_names(values)
        device = next(iter(values.values())).device if values else None
        numbers = torch.stack([value.to(device) for value in values.values()]).tolist() if values else []
        return Measured(
            dict(zip(shorts.values(), numbers, strict=True)),
            {shorts[name]: better for name, better in lower.items()},
            {shorts[name] for name in sums & shorts.keys()},
            self.samples * trainer.world_size,
        )
