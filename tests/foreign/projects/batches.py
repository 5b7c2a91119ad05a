"""Batches of every container."""

from collections import namedtuple
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.foreign.project import BATCH_SIZE, Network, Project, SomebodysClassifier, features, labels

Pair = namedtuple("Pair", ["inputs", "labels"])


@dataclass
class Sample:
    inputs: Tensor
    labels: Tensor


class Encoded:
    """Like a tokenizer's output: an object of its own that can be moved."""

    def __init__(self, inputs, labels):
        self.inputs, self.labels = inputs, labels

    def to(self, device, non_blocking=False):
        return Encoded(self.inputs.to(device), self.labels.to(device))


class Graphs:
    """Several graphs as one: nodes, edges between them, and which graph a node belongs to."""

    def __init__(self, x, edge_index, batch, y):
        self.x, self.edge_index, self.batch, self.y = x, edge_index, batch, y
        self.num_graphs = len(y)

    def to(self, device, non_blocking=False):
        return Graphs(*(part.to(device) for part in (self.x, self.edge_index, self.batch, self.y)))


def as_list(inputs, targets):
    return [inputs, targets]


def as_tuple(inputs, targets):
    return inputs, targets


def as_dict(inputs, targets):
    return {"inputs": inputs, "labels": targets, "name": [f"sample {index}" for index in range(len(inputs))]}


def as_nested_dict(inputs, targets):
    return {"data": {"inputs": inputs}, "target": {"labels": targets}, "meta": None}


def as_sparse(inputs, targets):
    return inputs.relu().to_sparse_csr(), targets


def as_ragged(inputs, targets, layout=torch.jagged):
    """Sequences of one to three steps, as a nested tensor."""
    sequences = [row.repeat(1 + index % 3, 1) for index, row in enumerate(inputs)]
    return torch.nested.nested_tensor(sequences, layout=layout), targets


def means_of_ragged(batch):
    return torch.stack([sequence.mean(0) for sequence in batch[0].unbind()]), batch[1]


def as_graphs(inputs, targets):
    """A graph a sample: its features at three nodes in a ring."""
    nodes = inputs.repeat_interleave(3, dim=0)
    start = torch.arange(len(nodes))
    end = start - start % 3 + (start + 1) % 3
    return Graphs(nodes, torch.stack([start, end]), start // 3, targets)


def loader(container):
    """Collates into the container, as a project's own collate function does."""

    def collate(samples):
        inputs, targets = zip(*samples, strict=True)
        return container(torch.stack(inputs), torch.stack(targets))

    def make():
        samples = list(zip(features(), labels(), strict=True))
        return DataLoader(samples, batch_size=BATCH_SIZE, collate_fn=collate)

    return make


class AnyBatch(SomebodysClassifier):
    def __init__(self, unpack):
        super().__init__()
        self.unpack = unpack

    def loss(self, batch):
        inputs, targets = self.unpack(batch)
        return F.cross_entropy(self(inputs), targets)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, batch_size=BATCH_SIZE)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), batch_size=BATCH_SIZE)


class MessagePassing(nn.Module):
    def __init__(self):
        super().__init__()
        self.network = Network()
        self.message = nn.Linear(6, 6)

    def forward(self, graphs):
        start, end = graphs.edge_index
        received = torch.zeros_like(graphs.x).index_add(0, end, self.message(graphs.x[start]))
        pooled = torch.zeros(graphs.num_graphs, 6).index_add(0, graphs.batch, graphs.x + received)
        return self.network(pooled / 3)


class OnGraphs(AnyBatch):
    def __init__(self):
        super().__init__(lambda graphs: (graphs, graphs.y))
        self.network = MessagePassing()


class Reconstructs(SomebodysClassifier):
    """An autoencoder, whose batch is one tensor."""

    def __init__(self):
        super().__init__()
        self.network = Network(outputs=6)

    def training_step(self, batch, batch_idx):
        loss = F.mse_loss(self(batch), batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.mse_loss(self(batch), batch))


def project(container, unpack, input_key=0, target_key=1):
    make = loader(container)
    return Project(lambda: AnyBatch(unpack), make, make, input_key=input_key, target_key=target_key)


def by_attribute(batch):
    return batch.inputs, batch.labels


def nested(outer, inner):
    """A getter and a setter, which returns another batch."""
    return lambda batch: batch[outer][inner], lambda batch, value: {**batch, outer: {**batch[outer], inner: value}}


PROJECTS = {
    "batch a list": project(as_list, tuple),
    "batch a tuple": project(as_tuple, lambda batch: batch),
    "batch a namedtuple": project(Pair, by_attribute, "inputs", "labels"),
    "batch a dict": project(as_dict, lambda batch: (batch["inputs"], batch["labels"]), "inputs", "labels"),
    "batch a nested dict": project(
        as_nested_dict,
        lambda batch: (batch["data"]["inputs"], batch["target"]["labels"]),
        nested("data", "inputs"),
        nested("target", "labels"),
    ),
    "batch a dataclass": project(Sample, by_attribute, "inputs", "labels"),
    "batch an object": project(Encoded, by_attribute, "inputs", "labels"),
    "batch of graphs": Project(OnGraphs, loader(as_graphs), loader(as_graphs), input_key="x", target_key="y"),
    "batch sparse": project(as_sparse, lambda batch: (batch[0].to_dense(), batch[1])),
    "batch ragged": project(as_ragged, means_of_ragged),
    "batch ragged, without strides": project(partial(as_ragged, layout=torch.strided), means_of_ragged),
    "batch a tensor": Project(
        Reconstructs,
        lambda: DataLoader(features(), batch_size=BATCH_SIZE),
        lambda: DataLoader(features(), batch_size=BATCH_SIZE),
    ),
}
