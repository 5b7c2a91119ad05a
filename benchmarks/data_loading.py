"""Data loading: our batched loader and augmentation compared with the usual per-sample ones.

``python -m benchmarks data_loading`` times an epoch without augmentation, epochs with ``basic`` and ``advanced``, one
of photographs with ``advanced``, epochs of photographs from disk, and the share of a training epoch of
``configs/cifar10_cnn.yaml`` that is spent waiting for data. The usual loader follows torchvision's documentation, with
one worker process per core. Images are random, unless ``--data`` names a folder for the last table; their content
doesn't affect the times.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from typing_extensions import override

from benchmarks.tables import Options, Table
from benchmarks.timing import alternate, median_ratio, quartiles, quiet, wait
from lightning_reg.data import DatasetData, ImageData
from lightning_reg.data.loader import ResumableLoader, SampleDataset, ShuffledSampler, as_fetched
from lightning_reg.data.pipeline import ImagePipeline
from lightning_reg.models import CNN
from lightning_reg.transforms import AdvancedAugmentation, BasicAugmentation, CutMix, Mixing, Mixup
from lightning_reg.transforms.augmentation import kernel_size

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH_SIZE = 128
PHOTOGRAPH, PHOTOGRAPHS = 224, 32  # width, and batch size
BASIC = (
    v2.RandomHorizontalFlip(),
    v2.RandomVerticalFlip(),
    v2.RandomRotation(15),
    v2.RandomCrop(32, padding=4),
    v2.ColorJitter(0.2, 0.2, 0.2, 0.1),
    v2.RandomGrayscale(0.1),
)


def advanced_of(size: int) -> tuple[v2.Transform, ...]:
    """Returns torchvision's equivalent of ``advanced``, up to normalization.

    Args:
        size: Width of the images, in pixels.
    """
    return (
        v2.RandomResizedCrop(size),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(kernel_size(size, size), (0.1, 2.0))]),
    )


CONFIG = Path(__file__).parents[1] / "configs" / "cifar10_cnn.yaml"


class UsualDataset(Dataset[tuple[Tensor, int]]):
    """A data set with per-sample transforms, as in torchvision's documentation.

    Args:
        images: Images (N, C, H, W), uint8.
        labels: Labels (N,).
        transforms: Transforms before conversion to float and normalization.
        as_pil: Whether images are PIL images, as in torchvision's data sets, rather than tensors.
        after: Transforms after normalization.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, transforms: Iterable[Any], *, as_pil: bool, after: Sequence[Any] = ()
    ) -> None:
        arrays = images.permute(0, 2, 3, 1).squeeze(3).numpy() if as_pil else ()
        self.images: list[Any] = [Image.fromarray(array) for array in arrays] if as_pil else list(images)
        self.labels = labels.tolist()
        channels = images.shape[1]
        end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN[:channels], STD[:channels])]
        self.transform = v2.Compose([*transforms, *end, *after])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def usual_epoch(dataset: UsualDataset, workers: int, device: str, batch_size: int = BATCH_SIZE) -> Callable[[], float]:
    """Returns a function that loads an epoch with the usual loader.

    Args:
        dataset: Data set to load.
        workers: Number of worker processes.
        device: Device of the batches.
        batch_size: Number of samples in a batch.
    """
    loader = DataLoader(
        dataset, batch_size=batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: summed(images.to(device, non_blocking=True) for images, _ in loader)


def our_epoch(
    images: Tensor, labels: Tensor, pipeline: ImagePipeline, device: str, batch_size: int = BATCH_SIZE
) -> Callable[[], float]:
    """Returns a function that loads an epoch with our loader, including augmentation on the device.

    Args:
        images: Images (N, C, H, W), uint8.
        labels: Labels (N,).
        pipeline: Augmentation and normalization.
        device: Device of the batches.
        batch_size: Number of samples in a batch.
    """
    dataset = SampleDataset(images, labels)
    loader = ResumableLoader(
        dataset,
        sampler=ShuffledSampler(dataset, num_replicas=1, rank=0, seed=0),
        batch_size=batch_size,
        collate_fn=as_fetched,
    )
    streams = Random(0)
    return lambda: summed(pipeline(images.to(device), lambda _: streams) for images, _ in loader)


def summed(batches: Iterable[Tensor]) -> float:
    """Sums all batches of an epoch, so that all pending work is done."""
    return float(torch.stack([batch.sum(dtype=torch.float64) for batch in batches]).sum())


class Waiting(Callback):
    """Measures how long training waits for its next batch: from the end of a step to the beginning of the next.

    This includes loading, transfer, augmentation and mixing. The first steps, in which memory is allocated and kernels
    are selected, aren't counted.

    Args:
        warm_up: Number of steps that aren't counted.
    """

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.waited = self.trained = self.last = 0.0

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        wait(str(pl_module.device))
        now = time.perf_counter()
        if batch_idx > self.warm_up:
            self.waited += now - self.last
        self.last = now

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        wait(str(pl_module.device))
        now = time.perf_counter()
        if batch_idx > self.warm_up:
            self.trained += now - self.last
        self.last = now


def tables(options: Options) -> Iterator[Table]:
    """Yields the times of epochs, then the share of time spent waiting for data."""
    count = 256 if options.smallest else 4_000 if options.quick else 50_000
    workers = 0 if options.smallest else os.cpu_count() or 1
    generator = torch.Generator().manual_seed(0)
    gray = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    colored = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    usual, ours = partial(usual_epoch, device=options.device), partial(our_epoch, labels=labels, device=options.device)

    plain = ImagePipeline(None)
    grays = UsualDataset(gray, labels, [], as_pil=True)
    plain.mean_and_std = torch.tensor(MEAN[:1]), torch.tensor(STD[:1])
    yield _epochs(
        options,
        f"An epoch of {count:,} gray images of 28×28 without augmentation",
        {
            "ours": ours(images=gray, pipeline=plain),
            "torchvision, PIL": usual(grays, workers=0),
            f"torchvision, PIL, {workers} workers": usual(grays, workers=workers),
        },
        count,
    )
    basic = ImagePipeline(BasicAugmentation())
    basic.mean_and_std = torch.tensor(MEAN), torch.tensor(STD)
    pils, tensors = (UsualDataset(colored, labels, BASIC, as_pil=as_pil) for as_pil in (True, False))
    yield _epochs(
        options,
        f"An epoch of {count:,} color images of 32×32, augmented as basic does",
        {
            "ours": ours(images=colored, pipeline=basic),
            f"torchvision, PIL, {workers} workers": usual(pils, workers=workers),
            f"torchvision, tensors, {workers} workers": usual(tensors, workers=workers),
        },
        count,
    )
    photographs = torch.randint(
        0, 256, (max(count // 25, 16), 3, PHOTOGRAPH, PHOTOGRAPH), dtype=torch.uint8, generator=generator
    )
    for images, batch_size in ((colored, BATCH_SIZE), (photographs, PHOTOGRAPHS)):
        count, size = len(images), images.shape[-1]
        advanced = ImagePipeline(AdvancedAugmentation())
        advanced.mean_and_std = torch.tensor(MEAN), torch.tensor(STD)
        erasing = (v2.RandomErasing(0.25),)
        pils = UsualDataset(images, labels[:count], advanced_of(size), as_pil=True, after=erasing)
        yield _epochs(
            options,
            f"An epoch of {count:,} color images of {size}×{size}, augmented as advanced does",
            {
                "ours": our_epoch(images, labels[:count], advanced, options.device, batch_size),
                f"torchvision, PIL, {workers} workers": usual_epoch(pils, workers, options.device, batch_size),
            },
            count,
            batch_size,
        )
    yield _from_disk(options, workers)
    yield _waiting(options)


def _epochs(
    options: Options,
    title: str,
    members: dict[str, Callable[[], float]],
    count: int,
    batch_size: int = BATCH_SIZE,
) -> Table:
    table = Table(
        f"{title}, batches of {batch_size}", ["loader", "s", "quartiles", "images a second", "ours faster by"]
    )
    seconds = alternate(members, rounds=options.rounds(3, 1), device=options.device)
    for name, times in seconds.items():
        low, median, high = quartiles(times)
        ratio = None if name == "ours" else median_ratio(times, seconds["ours"])
        table.add(name, median, f"{low:.2f} to {high:.2f}", count / median, ratio)
    return table


class Pooled(LightningModule):
    """A linear classifier of the channel means: a network with negligible step time."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.head(batch[0].mean((2, 3))), batch[1])

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Pace(Callback):
    """Records when batches are finished.

    Attributes:
        times: Time at the end of each batch in seconds.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        wait(str(pl_module.device))
        self.times.append(time.perf_counter())


def _from_disk(options: Options, workers: int) -> Table:
    count = 64 if options.smallest else 640 if options.quick else 20_000
    batch_size = 16 if options.smallest else PHOTOGRAPHS
    table = Table(
        f"An epoch of {count:,} photographs of 500×400 from disk, made 224×224, by {workers} workers, batches of "
        f"{batch_size}",
        ["what is done", "images a second", "of decoding and resizing alone"],
    )
    transform = v2.Compose([v2.Resize((PHOTOGRAPH, PHOTOGRAPH)), v2.PILToTensor()])
    with tempfile.TemporaryDirectory() as folder, quiet():
        images = ImageFolder(str(_photographs(Path(folder), count)), transform=transform)
        loader = DataLoader(images, batch_size=batch_size, shuffle=True, num_workers=workers)
        times = [time.perf_counter() for _ in loader]
        alone = batch_size * (len(times) - 1) / (times[-1] - times[0])
        table.add("decoding and resizing alone", alone, "1.00")
        how: dict[str, tuple[str, Mixing | None]] = {
            "a Trainer's epoch": ("none", None),
            "  augmented as basic does, mixed by CutMix": ("basic", CutMix()),
            "  augmented as advanced does, mixed by CutMix": ("advanced", CutMix()),
        }
        for name, (augment, mix) in how.items():
            data = DatasetData(
                train=images,
                val=Subset(images, [0]),
                batch_size=batch_size,
                num_workers=workers,
                augment=augment,
                mean=MEAN,
                std=STD,
                mix=mix,
            )
            pace = Pace()
            _fit(Pooled(), data, pace, options)
            rate = batch_size * (len(pace.times) - 1) / (pace.times[-1] - pace.times[0])
            table.add(name, rate, f"{rate / alone:.2f}")
    return table


def _fit(
    network: LightningModule,
    data: LightningDataModule,
    watching: Callback,
    options: Options,
    batches: int | None = None,
) -> None:
    """Trains for an epoch, or for its first batches, with a single callback that measures."""
    Trainer(
        accelerator="gpu" if options.device.startswith("cuda") else "cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=batches,
        limit_val_batches=0,
        callbacks=[watching],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(network, datamodule=data)


def _photographs(folder: Path, count: int) -> Path:
    """Writes smooth random images as JPEG files in two classes: at most 500, the others are hard links to them."""
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        place = folder / f"class_{index % 2}"
        place.mkdir(exist_ok=True)
        path = place / f"{index:06}.jpg"
        if index >= 500:
            path.hardlink_to(folder / f"class_{index % 2}" / f"{index % 500:06}.jpg")
            continue
        coarse = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(coarse.numpy()).resize((500, 400), Image.Resampling.BICUBIC).save(path, quality=90)
    return folder


def _waiting(options: Options) -> Table:
    config = yaml.safe_load(CONFIG.read_text())
    model = {key: value for key, value in config["model"]["init_args"].items() if "optimizer" not in key}
    model.pop("lr_scheduler", None)
    if options.smallest:
        model["channels"] = [4]
    mixing = config["data"]["init_args"]["mix"]["init_args"]
    steps = options.rounds(40, 4) + 2
    table = Table(
        f"What part of an epoch of {CONFIG.name} is spent waiting for data, in {steps - 2} steps of {BATCH_SIZE}",
        ["augmentation", "step, ms", "waiting, ms", "waiting, %"],
    )
    with tempfile.TemporaryDirectory() as folder, quiet():
        root = Path(options.data) if options.data else _written(Path(folder), (steps + 1) * BATCH_SIZE)
        for augment in ("none", "basic", "advanced"):
            data = ImageData(
                dataset="image_folder",
                root=root,
                image_size=32,
                batch_size=BATCH_SIZE,
                augment=augment,
                mix=Mixup(**mixing),
            )
            network = CNN(input_shape=data.input_shape, num_classes=data.num_classes, **model)
            waiting = Waiting(warm_up=2)
            _fit(network, data, waiting, options, batches=steps + 1)  # batches are counted from 0
            trained, waited = (1e3 * time / (steps - 2) for time in (waiting.trained, waiting.waited))
            table.add(augment, trained, waited, 100 * waited / (trained + waited))
    return table


def _written(folder: Path, count: int) -> Path:
    """Writes random images, one folder per class: as many as the steps need, and some for validation."""
    generator = torch.Generator().manual_seed(0)
    for index in range(int(count * 1.2)):
        place = folder / "train" / f"class_{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        image = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(image.numpy()).save(place / f"{index:06}.png", compress_level=0)
    return folder
