"""A small problem, a foreign module for it, and the training loop that a textbook would write."""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.helpers import quiet_trainer

EPOCHS = 3
BATCHES = 6  # with accumulation over 4 the last window has 2
BATCH_SIZE = 8
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 3))


def samples(count=BATCHES * BATCH_SIZE):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


class SomebodysModule(LightningModule):
    """Knows nothing of us: a tuple batch, its own loss, its own logging."""

    def __init__(self, compiled=False):
        super().__init__()
        self.network = network()
        if compiled:
            self.network.compile(backend="aot_eager")

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@dataclass
class Setting:
    """One cell of the matrix."""

    precision: str = "32-true"
    accumulate: int = 1
    clip: str | None = None
    compiled: bool = False

    def trainer(self, callbacks, **settings):
        plugins = []
        precision = self.precision
        if precision == "16-mixed":  # by name alone it would become bfloat16 on a CPU
            plugins = [MixedPrecision("16-mixed", "cpu", scaler())]
            precision = None
        return quiet_trainer(
            *callbacks,
            **{
                "max_epochs": EPOCHS,
                "accumulate_grad_batches": self.accumulate,
                "gradient_clip_val": 0.1 if self.clip else None,
                "gradient_clip_algorithm": self.clip,
                "precision": precision,
                "plugins": plugins,
                **settings,
            },
        )

    def tolerance(self, start, end):
        """Largest difference of two weights that rounding explains.

        In 32 bits 1e-6 of the weights. In mixed precision the sums are made in another order too, so that weights
        differ in their last bits, and an activation that lies at a border is rounded to the other side: each step
        may differ by the dtype's resolution, and so may the way from start to end.
        """
        if self.precision == "32-true":
            return 1e-6 * max(weight.abs().max().item() for weight in end)
        way = max((b - a).abs().max().item() for a, b in zip(start, end, strict=True))
        return torch.finfo(DTYPES[self.precision]).eps * way


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


@dataclass
class Result:
    """What training leaves: weights at the end of each epoch, and validation losses."""

    weights: list[list[torch.Tensor]] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)


def loader(batch_size=BATCH_SIZE):
    return DataLoader(samples(), batch_size=batch_size)


class Resumable(DataLoader):
    """Goes on after the batches that it handed out before the checkpoint was written."""

    handed_out = 0

    def __iter__(self):
        skipped, self.handed_out = self.handed_out, 0
        for index, batch in enumerate(super().__iter__()):
            if index >= skipped:
                self.handed_out = index + 1
                yield batch
        self.handed_out = 0

    def state_dict(self):
        return {"handed_out": self.handed_out % BATCHES}

    def load_state_dict(self, state):
        self.handed_out = state["handed_out"]


def resumable_loader():
    return Resumable(samples(), batch_size=BATCH_SIZE)


def textbook_loop(setting, penalty):
    """Trains by hand, with ``penalty(network)`` written into the loss."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dtype = DTYPES[setting.precision]
    scale = scaler() if dtype == torch.float16 else torch.amp.GradScaler("cpu", enabled=False)
    result = Result()
    for _ in range(EPOCHS):
        model.train()
        for index, (inputs, labels) in enumerate(loader()):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                loss = F.cross_entropy(model(inputs), labels) + penalty(model)
            scale.scale(loss / setting.accumulate).backward()
            if (index + 1) % setting.accumulate == 0 or index + 1 == BATCHES:
                scale.unscale_(optimizer)
                if setting.clip == "norm":
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                if setting.clip == "value":
                    nn.utils.clip_grad_value_(model.parameters(), 0.1)
                scale.step(optimizer)
                scale.update()
                optimizer.zero_grad()
        result.weights.append(copy.deepcopy([parameter.detach() for parameter in model.parameters()]))
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            losses = [F.cross_entropy(model(inputs), labels) for inputs, labels in loader()]
        result.val_losses.append(torch.stack(losses).mean().item())
    return result
