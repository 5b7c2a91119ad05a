"""What a user writes; tests/test_typing.py has mypy check it in the strictest way."""

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_reg import (
    MLP,
    BatchMixing,
    BestWeightsEarlyStopping,
    ImageData,
    L2Penalty,
    Mixup,
    StrengthSchedule,
    Supervised,
    make_norm,
    weight_decay_groups,
)
from lightning_reg.callbacks import ExponentialMovingAverage


def trainer() -> Trainer:
    return Trainer(
        callbacks=[
            L2Penalty(weight=1e-4, schedule=StrengthSchedule(kind="linear", start=0, end=5)),
            BatchMixing(Mixup(alpha=0.4)),
            BestWeightsEarlyStopping(monitor="val/loss", patience=3),
            ExponentialMovingAverage(decay=0.99),
        ],
        max_epochs=1,
    )


def train(rate: float) -> torch.Tensor:
    data = ImageData(dataset="digits", augment="basic", mix=Mixup(alpha=0.2))
    model = MLP(input_shape=(1, 8, 8), num_classes=10, drop_prob=rate, norm=nn.LayerNorm, weight_decay=0.01)
    trainer().fit(model, datamodule=data)
    outputs: torch.Tensor = model(torch.zeros(2, 1, 8, 8))
    return outputs


def optimizer(network: nn.Module) -> torch.optim.Optimizer:
    network.append_module = make_norm("batch", 4)
    module = Supervised(network, num_classes=3, label_smoothing=0.1)
    return torch.optim.AdamW(weight_decay_groups(module, 0.05))
