"""Steps that change their batch."""

import torch.nn.functional as F
from torch.utils.data import DataLoader

from tests.foreign.project import BATCH_SIZE, Project, SomebodysClassifier, features, labels


def dicts():
    samples = [{"inputs": inputs, "labels": target} for inputs, target in zip(features() * 255, labels(), strict=True)]
    return DataLoader(samples, batch_size=BATCH_SIZE)


class InPlace(SomebodysClassifier):
    """Normalizes where the batch lies."""

    def training_step(self, batch, batch_idx):
        inputs = batch["inputs"].div_(255)
        loss = F.cross_entropy(self(inputs), batch["labels"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch["inputs"].div_(255)), batch["labels"]))


class Pops(SomebodysClassifier):
    """Takes the labels out before the rest goes to the model, as with Hugging Face's models."""

    def step(self, batch):
        targets = batch.pop("labels")
        batch["inputs"] = batch["inputs"] / 255
        return F.cross_entropy(self(**batch), targets)

    def training_step(self, batch, batch_idx):
        loss = self.step(batch)
        self.log("train_loss", loss, batch_size=BATCH_SIZE)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch), batch_size=BATCH_SIZE)


PROJECTS = {
    name: Project(make, dicts, dicts, input_key="inputs", target_key="labels")
    for name, make in (("batch changed in place", InPlace), ("labels popped", Pops))
}
