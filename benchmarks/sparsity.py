"""Sparsity of weights under an L1 penalty: by its subgradient, by its proximal step, and without it.

``python -m benchmarks.sparsity`` trains an MLP 64-256-128-10 on the 1,797 handwritten digits with each, for several
seeds, and prints test accuracy and the fraction of weights (without biases) that are exactly zero. The optimizer is SGD
with momentum 0.9, which multiplies the effect of a gradient by ten, but not that of a proximal step: a subgradient with
a tenth of the strength has the same effect.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything
from torch import nn

from lightning_reg.callbacks import L1Penalty
from lightning_reg.data import ImageData
from lightning_reg.models import MLP

__all__ = ["trained"]


def trained(penalty: L1Penalty | None, *, seed: int, epochs: int) -> tuple[float, float]:
    """Trains an MLP; returns its test accuracy and the fraction of weights that are exactly zero.

    Args:
        penalty: The penalty, or None.
        seed: Seed of the initial weights and of the data.
        epochs: Number of epochs.
    """
    seed_everything(seed, verbose=False)
    data = ImageData(dataset="digits", batch_size=64, seed=seed)
    model = MLP(
        input_shape=(1, 8, 8),
        num_classes=10,
        hidden_sizes=(256, 128),
        norm="none",
        drop_prob=0.0,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        lr_scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[penalty] if penalty else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    accuracy = trainer.test(model, data, verbose=False)[0]["test/accuracy"]
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    zeros = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
    return accuracy, zeros


def main() -> None:
    """Prints a line per variant."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weight", type=float, default=0.007, help="strength λ of the proximal step")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    variants: dict[str, Callable[[], L1Penalty | None]] = {
        "none": lambda: None,
        "subgradient, λ / 10": lambda: L1Penalty(weight=options.weight / 10),
        "subgradient, λ": lambda: L1Penalty(weight=options.weight),
        "proximal, λ": lambda: L1Penalty(weight=options.weight, proximal=True),
    }
    print(f"L1 with λ = {options.weight} on digits, 64-256-128-10, {options.epochs} epochs, {options.seeds} seeds")
    for name, make in variants.items():
        results = [trained(make(), seed=seed, epochs=options.epochs) for seed in range(options.seeds)]
        accuracy, zeros = (statistics.mean(values) for values in zip(*results, strict=True))
        print(f"  {name:<20} test accuracy {accuracy:6.2%}   exact zeros {zeros:6.2%}")


if __name__ == "__main__":
    main()
