"""Several optimizers that take turns under manual optimization."""

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn

from tests.foreign.project import Network, Project


class Gan(LightningModule):
    """Toggles the optimizer whose turn it is, as GAN tutorials do."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 6))
        self.discriminator = Network(outputs=1)
        self.register_buffer("noise", torch.randn(8, 4))

    def configure_optimizers(self):
        return [
            torch.optim.Adam(part.parameters(), lr=0.01, betas=(0.5, 0.9))
            for part in (self.generator, self.discriminator)
        ]

    def verdict(self, inputs, is_real):
        logits = self.discriminator(inputs)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(is_real)))

    def training_step(self, batch, batch_idx):
        real, _ = batch
        of_generator, of_discriminator = self.optimizers()

        self.toggle_optimizer(of_generator)
        loss = self.verdict(self.generator(self.noise), is_real=True)
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)

        self.toggle_optimizer(of_discriminator)
        fake = self.generator(self.noise).detach()
        loss = (self.verdict(real, is_real=True) + self.verdict(fake, is_real=False)) / 2
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.verdict(batch[0], is_real=True))


class CriticManyTimes(Gan):
    """Five steps of the critic for one of the generator, with weights that are cut off, as the first WGAN has it."""

    def training_step(self, batch, batch_idx):
        of_generator, of_critic = self.optimizers()
        for _ in range(2):
            fake = self.generator(self.noise).detach()
            loss = self.discriminator(fake).mean() - self.discriminator(batch[0]).mean()
            of_critic.zero_grad()
            self.manual_backward(loss)
            of_critic.step()
            for parameter in self.discriminator.parameters():
                parameter.data.clamp_(-0.3, 0.3)
        if batch_idx % 2:
            of_generator.zero_grad()
            self.manual_backward(-self.discriminator(self.generator(self.noise)).mean())
            of_generator.step()
        self.log("train_loss", loss)


class SharedTrunk(LightningModule):
    """Two tasks with an optimizer each, and a trunk that both of them move."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.network = Network()
        self.second_head = nn.Linear(12, 6)

    def configure_optimizers(self):
        trunk = [parameter for name, parameter in self.network.named_parameters() if not name.startswith("head")]
        heads = (self.network.head, self.second_head)
        return [torch.optim.SGD([*trunk, *head.parameters()], lr=0.05) for head in heads]

    def losses(self, batch):
        features = self.network.features(batch[0])
        yield F.cross_entropy(self.network.head(features), batch[1])
        yield F.mse_loss(self.second_head(self.network.features(batch[0])), batch[0])

    def training_step(self, batch, batch_idx):
        for optimizer, loss in zip(self.optimizers(), self.losses(batch), strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", sum(self.losses(batch)))


PROJECTS = {
    "GAN that toggles": Project(Gan),
    "critic that steps more often": Project(CriticManyTimes),
    "shared trunk": Project(SharedTrunk),
}
