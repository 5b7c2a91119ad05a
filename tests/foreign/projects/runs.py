"""How a project is run: its length, its loaders, its logger."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, IterableDataset

from tests.foreign.project import BATCH_SIZE, BATCHES, Network, Project, SomebodysClassifier, features, labels, pairs


class NeverValidates(LightningModule):
    """Has no validation step at all, and no epoch either."""

    def __init__(self):
        super().__init__()
        self.network = Network()

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class ValidatesTwoSets(SomebodysClassifier):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log(("val_loss", "unseen_loss")[dataloader_idx], loss, add_dataloader_idx=False)


class Stream(IterableDataset):
    """Data without a length; without an end, too, where ``endless``."""

    def __init__(self, endless):
        self.endless = endless

    def __iter__(self):
        while True:
            yield from zip(features(), labels(), strict=True)
            if not self.endless:
                return


class FileLogger(Logger):
    """Writes by itself, and has no experiment to hand out."""

    def __init__(self):
        super().__init__()
        self.lines = []

    @property
    def name(self):
        return "lines"

    @property
    def version(self):
        return 0

    def log_hyperparams(self, *args, **kwargs):
        self.lines.append(args)

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))


class LogsToAll(SomebodysClassifier):
    """Writes to its loggers in validation."""

    def on_validation_epoch_end(self):
        for logger in self.loggers:
            logger.log_metrics({"seen": 1.0}, step=self.global_step)


def stream(endless=False):
    return lambda: DataLoader(Stream(endless), batch_size=BATCH_SIZE)


PROJECTS = {
    "plain": Project(SomebodysClassifier),
    "never validates": Project(NeverValidates, validation=None, watched="train_loss"),
    "max_steps alone": Project(SomebodysClassifier, settings={"max_epochs": -1, "max_steps": 2 * BATCHES}),
    "two validation loaders": Project(ValidatesTwoSets, validation=lambda: [pairs(), pairs()]),
    "iterable data": Project(SomebodysClassifier, stream(), stream()),
    "endless data": Project(
        SomebodysClassifier,
        stream(True),
        settings={
            "max_epochs": -1,
            "max_steps": 2 * BATCHES,
            "val_check_interval": BATCHES,
            "check_val_every_n_epoch": None,
        },
    ),
    "writes to its loggers": Project(LogsToAll),
    "logger without an experiment": Project(LogsToAll, logger=FileLogger),
    "validates every other epoch": Project(
        SomebodysClassifier, settings={"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}
    ),
    "validates within the epoch": Project(SomebodysClassifier, settings={"val_check_interval": 0.5}),
    "accumulates": Project(SomebodysClassifier, settings={"accumulate_grad_batches": 3}),
}
