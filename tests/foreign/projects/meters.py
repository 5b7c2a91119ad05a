"""Counting by one's own means: lists, numpy, little classes, torchmetrics."""

import numpy as np
import torch
import torch.nn.functional as F
from torchmetrics import MaxMetric, MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from tests.foreign.project import Project, SomebodysClassifier


class AverageMeter:
    """The one that many projects copy from one another."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.value = self.average = self.sum = 0.0
        self.count = 0

    def update(self, value, n=1):
        self.value = value
        self.sum += value * n
        self.count += n
        self.average = self.sum / self.count


class OwnMeters(SomebodysClassifier):
    def __init__(self):
        super().__init__()
        self.meter = AverageMeter()
        self.matrix = np.zeros((3, 3), dtype=np.int64)
        self.history = {"train": [], "val": []}
        self.samples_seen = 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.meter.update(loss.item(), len(batch[0]))
        self.samples_seen += len(batch[0])
        return loss

    def on_train_epoch_end(self):
        self.history["train"].append(self.meter.average)
        self.meter.reset()

    def on_validation_epoch_start(self):
        self.val_meter, self.matrix[:] = AverageMeter(), 0

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.val_meter.update(loss.item(), len(logits))
        np.add.at(self.matrix, (batch[1].numpy(), logits.argmax(1).numpy()), 1)
        return loss

    def on_validation_epoch_end(self):
        self.history["val"].append(self.val_meter.average)
        self.log("val_loss", self.val_meter.average)
        self.log("val_accuracy", float(np.trace(self.matrix) / self.matrix.sum()))


class OutputsInLists(SomebodysClassifier):
    """As Lightning's guide to 2.0 says: what epoch ends were handed is kept in a list."""

    def __init__(self):
        super().__init__()
        self.training_outputs, self.validation_outputs, self.lengths = [], [], []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.training_outputs.append({"loss": loss.detach(), "size": len(batch[0])})
        return loss

    def on_train_epoch_end(self):
        self.lengths.append(len(self.training_outputs))
        self.log("train_mean", torch.stack([output["loss"] for output in self.training_outputs]).mean())
        self.training_outputs.clear()

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.validation_outputs.append((logits, batch[1]))
        return F.cross_entropy(logits, batch[1])

    def on_validation_epoch_end(self):
        logits, targets = (torch.cat(parts) for parts in zip(*self.validation_outputs, strict=True))
        self.lengths.append(len(self.validation_outputs))
        self.log("val_loss", F.cross_entropy(logits, targets))
        self.validation_outputs.clear()


class Torchmetrics(SomebodysClassifier):
    """A collection for training and one for validation, and the best accuracy so far."""

    def __init__(self):
        super().__init__()
        metrics = MetricCollection({"accuracy": MulticlassAccuracy(3), "matrix": MulticlassConfusionMatrix(3)})
        self.train_metrics = metrics.clone(prefix="train_")
        self.val_metrics = metrics.clone(prefix="val_")
        self.val_mean = MeanMetric()
        self.best = MaxMetric()

    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.log("train_accuracy", self.train_metrics(logits, batch[1])["train_accuracy"])
        return F.cross_entropy(logits, batch[1])

    def on_train_epoch_end(self):
        self.log("train_matrix_trace", self.train_metrics.compute()["train_matrix"].trace().float())
        self.train_metrics.reset()

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.val_mean(F.cross_entropy(logits, batch[1]))
        self.val_metrics.update(logits, batch[1])
        self.log("val_loss", self.val_mean, on_epoch=True)

    def on_validation_epoch_end(self):
        self.best(self.val_metrics.compute()["val_accuracy"])
        self.log("val_best", self.best.compute())
        self.val_metrics.reset()


PROJECTS = {
    "own meters": Project(OwnMeters),
    "outputs in lists": Project(OutputsInLists),
    "torchmetrics": Project(Torchmetrics),
}
