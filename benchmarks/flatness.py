"""Test accuracy with and without techniques that average weights or look for flat minima.

``python -m benchmarks.flatness`` trains an MLP 64-256-128-10 on 300 of the 1,797 handwritten digits, five seeds each.
``python -m benchmarks.flatness --data images`` trains a CNN on 5,000 images of a folder with ``train/<class>/`` and
``test/<class>/`` in it, three seeds each; the docs report CIFAR-10. Learning rates are the same for all, and constant,
so that the last weights are noisy enough for averages to help. It prints the mean accuracy on the whole test split with
its standard error over seeds, each of which determines the subset, the initial weights and the order of batches.
"""

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lightning_reg.callbacks import (
    ExponentialMovingAverage,
    Lookahead,
    SharpnessAwareMinimization,
    StochasticWeightAverage,
)
from lightning_reg.data import ImageData
from lightning_reg.models import CNN, MLP, Supervised

__all__ = ["VARIANTS", "trained"]

# Variants differ from the default only in their callbacks.
VARIANTS: dict[str, Callable[[], list[Callback]]] = {
    "none": list,
    "ExponentialMovingAverage": lambda: [ExponentialMovingAverage(half_life=3.0, half_life_unit="epoch")],
    "StochasticWeightAverage": lambda: [StochasticWeightAverage(start=0.75)],
    "SharpnessAwareMinimization": lambda: [SharpnessAwareMinimization()],
    "SharpnessAwareMinimization adaptive": lambda: [SharpnessAwareMinimization(rho=0.5, adaptive=True)],
    "Lookahead": lambda: [Lookahead()],
    "Lookahead, ExponentialMovingAverage": lambda: [
        Lookahead(),
        ExponentialMovingAverage(half_life=3.0, half_life_unit="epoch"),
    ],
}


@dataclass(frozen=True)
class Task:
    """A data set and a model to train on it.

    Attributes:
        title: Description of data and model.
        seeds: Number of seeds per variant.
        epochs: Number of epochs.
        data: Function that creates the data module of a seed.
        model: Function that creates the model.
    """

    title: str
    seeds: int
    epochs: int
    data: Callable[[int], ImageData]
    model: Callable[[], Supervised]


def digits() -> Task:
    """Returns the task of 300 handwritten digits and an MLP."""
    return Task(
        "300 digits, MLP 64-256-128-10 with BatchNorm",
        seeds=5,
        epochs=60,
        data=lambda seed: ImageData(dataset="digits", batch_size=32, train_size=300, seed=seed),
        model=lambda: MLP(
            input_shape=(1, 8, 8),
            num_classes=10,
            norm="batch",
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        ),
    )


def images(root: str) -> Task:
    """Returns the task of 5,000 images of 32×32 and a small CNN.

    Args:
        root: Folder with ``train/<class>/`` and ``test/<class>/``.
    """
    return Task(
        "5,000 images, CNN of 16-32-64 channels with BatchNorm",
        seeds=3,
        epochs=12,
        data=lambda seed: ImageData(
            dataset="image_folder", root=root, image_size=32, batch_size=64, train_size=5000, val_size=0.1, seed=seed
        ),
        model=lambda: CNN(
            input_shape=(3, 32, 32),
            num_classes=10,
            channels=(16, 32, 64),
            layers_per_stage=1,
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4),
        ),
    )


def trained(task: Task, data: ImageData, callbacks: list[Callback]) -> float:
    """Trains a model and returns its test accuracy.

    Args:
        task: Task that provides model and epochs.
        data: Data module of one seed, which also seeds the weights.
        callbacks: Callbacks of the trainer.
    """
    seed_everything(data.seed, verbose=False)
    model = task.model()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=task.epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    return float(trainer.test(model, data, verbose=False)[0]["test/accuracy"])


def main() -> None:
    """Prints a line per variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", help="folder of images; the digits where it is left out")
    parser.add_argument("--only", default="", help="train the variants whose name contains this")
    parser.add_argument("--seeds", type=int, help="how many times each variant trains")
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    task = images(options.data) if options.data else digits()
    seeds, epochs = options.seeds or task.seeds, options.epochs or task.epochs
    task = Task(task.title, seeds, epochs, task.data, task.model)
    print(f"{task.title}, {epochs} epochs, {seeds} seeds", flush=True)
    parts = [task.data(seed) for seed in range(seeds)]  # read once
    for name, make in VARIANTS.items():
        if options.only.lower() not in name.lower():
            continue
        start = time.perf_counter()
        accuracies = [trained(task, data, make()) for data in parts]
        error = statistics.stdev(accuracies) / seeds**0.5 if seeds > 1 else float("nan")
        seconds = (time.perf_counter() - start) / seeds
        mean = statistics.mean(accuracies)
        print(f"  {name:<40} {mean:7.2%} ± {error:.2%}   {seconds:6.1f} s a fit", flush=True)


if __name__ == "__main__":
    main()
