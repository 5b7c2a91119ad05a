"""Networks that aren't a stack of layers over features: convolutions, recurrence, attention, variational."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.nn import ConcreteDropout
from tests.foreign.project import BATCH_SIZE, Network, Project, SomebodysClassifier, features, labels


def images():
    images = features()[:, :3, None, None] + 0.1 * torch.arange(64.0).view(1, 1, 8, 8)
    return DataLoader(TensorDataset(images, labels()), batch_size=BATCH_SIZE)


class Convolutions(SomebodysClassifier):
    def __init__(self):
        super().__init__()
        self.network = nn.ModuleDict(
            {
                "first": nn.Conv2d(3, 4, 3, padding=1),
                "norm": nn.BatchNorm2d(4),
                "act": nn.ReLU(inplace=True),
                "second": nn.Conv2d(4, 4, 3, padding=1, groups=2),
                "drop": nn.Dropout2d(0.2),
                "hidden": nn.Linear(4, 12),
                "head": nn.Linear(12, 3),
            }
        )

    def forward(self, inputs):
        parts = self.network
        maps = parts["act"](parts["norm"](parts["first"](inputs)))
        maps = maps + parts["drop"](parts["second"](maps))
        return parts["head"](torch.tanh(parts["hidden"](maps.mean((2, 3)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(1, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 7, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.act = nn.GELU()
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, inputs):
        tokens = self.first(inputs.unsqueeze(2))
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed
        return self.head(self.hidden(self.act(self.encoder(tokens)[:, 0])))


class Transformer(SomebodysClassifier):
    def __init__(self):
        super().__init__()
        self.network = Attention()


class CarriesState(SomebodysClassifier):
    """Truncated back-propagation by hand: the hidden state of a batch is where the next one begins."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.first = nn.LSTM(2, 12, batch_first=True)
        self.act = nn.ReLU()
        self.hidden = nn.Linear(12, 12)
        self.head = nn.Linear(12, 3)
        self.network = None
        self.state = None

    def unrolled(self, inputs, state):
        outputs, state = self.first(inputs, state)
        return self.head(self.hidden(self.act(outputs[:, -1]))), state

    def forward(self, inputs):
        return self.unrolled(inputs.view(len(inputs), 3, 2), None)[0]

    def on_train_epoch_start(self):
        self.state = None

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for chunk in batch[0].view(-1, 3, 2).split([2, 1], dim=1):
            logits, state = self.unrolled(chunk, self.state)
            self.state = tuple(part.detach() for part in state)
            loss = F.cross_entropy(logits, batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)


class CarriesStateAutomatically(CarriesState):
    """Likewise, a step a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = True

    def training_step(self, batch, batch_idx):
        logits, state = self.unrolled(batch[0].view(-1, 3, 2), self.state)
        self.state = tuple(part.detach() for part in state)
        loss = F.cross_entropy(logits, batch[1])
        self.log("train_loss", loss)
        return loss


class Variational(SomebodysClassifier):
    """Draws in its forward pass, and returns a dictionary with more than the loss."""

    def __init__(self):
        super().__init__()
        self.network = Network(outputs=4)
        self.decoder = nn.Linear(2, 6)

    def step(self, batch):
        mean, log_var = self.network(batch[0]).chunk(2, dim=1)
        drawn = mean + torch.randn_like(mean) * (log_var / 2).exp()
        divergence = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1).mean()
        return {"loss": F.mse_loss(self.decoder(drawn), batch[0]) + 0.1 * divergence, "latent": drawn.detach()}

    def training_step(self, batch, batch_idx):
        outputs = self.step(batch)
        self.log_dict({"train_loss": outputs["loss"]}, prog_bar=True)
        return outputs

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch)["loss"])


class Focal(SomebodysClassifier):
    """Its loss isn't linear in the one that torch computes."""

    def training_step(self, batch, batch_idx):
        losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
        loss = ((1 - (-losses).exp()) ** 2 * losses).mean()
        self.log("train_loss", loss)
        return loss


class LearnsItsDropout(SomebodysClassifier):
    """Uses a layer of ours."""

    def __init__(self):
        super().__init__()
        self.network.head = ConcreteDropout(self.network.head, p=0.3)


PROJECTS = {
    "convolutions": Project(Convolutions, images, images),
    "transformer": Project(Transformer),
    "carries recurrent state": Project(CarriesState),
    "carries recurrent state, automatic": Project(CarriesStateAutomatically),
    "variational": Project(Variational),
    "focal loss": Project(Focal),
    "concrete dropout": Project(LearnsItsDropout),
}
