"""Weights that are made late, complex, computed, moved or frozen, and buffers that share their memory."""

import math
import warnings

import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn

from tests.foreign.project import Network, Project, SomebodysClassifier


class MadeLate(SomebodysClassifier):
    """Has no layers before the Trainer asks for them."""

    def __init__(self):
        super().__init__()
        self.network = None

    def configure_model(self):
        if self.network is None:
            self.network = Network()


class Fourier(nn.Module):
    """Multiplies the lowest frequencies by complex weights, as Fourier neural operators do."""

    def __init__(self, width, modes):
        super().__init__()
        self.modes = modes
        self.weights = nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)

    def forward(self, inputs):  # (N, C, L)
        spectrum = torch.fft.rfft(inputs)
        out = torch.zeros_like(spectrum)
        out[..., : self.modes] = torch.einsum("ncl,cdl->ndl", spectrum[..., : self.modes], self.weights)
        return torch.fft.irfft(out, n=inputs.shape[-1])


class FourierNetwork(Network):
    def __init__(self):
        super().__init__()
        self.lift = nn.Conv1d(1, 4, 1)
        self.spectral = Fourier(4, 3)

    def forward(self, inputs):
        lifted = self.lift(inputs.unsqueeze(1))
        return super().forward((lifted + self.spectral(lifted)).mean(1))


class ComplexWeights(SomebodysClassifier):
    def __init__(self):
        super().__init__()
        self.network = FourierNetwork()


class LowRankLinear(nn.Linear):
    """A frozen Linear and a trained update of low rank, in a subclass of Linear."""

    def __init__(self, inputs, outputs, rank=2):
        super().__init__(inputs, outputs)
        self.weight.requires_grad = False
        self.lora_A = nn.Parameter(torch.randn(rank, inputs) / math.sqrt(inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, inputs):
        return F.linear(inputs, self.weight + self.lora_B @ self.lora_A, self.bias)


class Adapted(SomebodysClassifier):
    def __init__(self):
        super().__init__()
        self.network.first = LowRankLinear(6, 12)
        self.network.hidden = LowRankLinear(12, 12)

    def configure_optimizers(self):
        return torch.optim.SGD([parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.1)


class Thaws(BaseFinetuning):
    """Trains the head alone in the first epoch, and everything afterwards."""

    def freeze_before_training(self, pl_module):
        self.freeze([pl_module.network.first, pl_module.network.norm])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group([pl_module.network.first, pl_module.network.norm], optimizer, lr=0.01)


class Finetuned(SomebodysClassifier):
    def configure_optimizers(self):
        return torch.optim.SGD([parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.1)


class FreezesByTurns(SomebodysClassifier):
    """One layer is frozen and another thawed as the epochs go on."""

    def on_train_epoch_start(self):
        self.network.first.requires_grad_(self.current_epoch % 2 == 0)
        self.network.hidden.requires_grad_(self.current_epoch % 2 == 1)


class Expanded(SomebodysClassifier):
    """Buffers whose rows share one memory, as position ids and masks do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("position", torch.arange(6.0).expand(8, -1))
        self.register_buffer("scale", torch.ones(1).expand(6), persistent=False)

    def forward(self, inputs):
        return self.network(inputs * self.scale + 0.01 * self.position[:1])


class MovesData(SomebodysClassifier):
    """Gives a weight other storage after each step, as projections and quantizers do."""

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        weight = self.network.hidden.weight
        weight.data = weight.data / weight.data.norm(dim=1, keepdim=True).clamp(min=1.0)


class FromAVector(SomebodysClassifier):
    """Flattens all its weights and reads them back at the starts of epochs."""

    def on_train_epoch_start(self):
        vector = nn.utils.parameters_to_vector(self.parameters())
        nn.utils.vector_to_parameters(0.99 * vector, self.parameters())


class Tied(SomebodysClassifier):
    """Two layers share one weight, and a bare parameter scales the logits."""

    def __init__(self):
        super().__init__()
        self.network.second = nn.Linear(12, 12, bias=False)
        self.network.second.weight = self.network.hidden.weight
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs):
        features = self.network.second(self.network.features(inputs))
        return self.logit_scale.exp() * self.network.head(features)


class Grows(SomebodysClassifier):
    """Its hidden layer gets more units in the second epoch, and an optimizer that knows them."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            hidden, head = nn.Linear(12, 16), nn.Linear(16, 3)
            with torch.no_grad():
                hidden.weight[:12] = self.network.hidden.weight
                head.weight[:, :12] = self.network.head.weight
            self.network.hidden, self.network.head = hidden, head
            self.trainer.optimizers = [self.configure_optimizers()]


class Scripted(SomebodysClassifier):
    """Has a part that torch.jit has compiled, as older projects do."""

    def __init__(self):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):
            self.gate = torch.jit.script(nn.Sequential(nn.Linear(12, 12), nn.Sigmoid()))

    def forward(self, inputs):
        features = self.network.features(inputs)
        return self.network.head(features * self.gate(features))


class Unlisted(SomebodysClassifier):
    """Trains parameters that are registered nowhere: prompts in a list."""

    def __init__(self):
        super().__init__()
        self.prompts = [torch.zeros(6, requires_grad=True) for _ in range(2)]

    def forward(self, inputs):
        return self.network(inputs + self.prompts[0] - self.prompts[1])

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), *self.prompts], lr=0.1)


PROJECTS = {
    "configure_model": Project(MadeLate),
    "complex weights": Project(ComplexWeights),
    "low-rank adapters": Project(Adapted),
    "finetuning callback": Project(Finetuned, callbacks=lambda: [Thaws()]),
    "frozen by turns": Project(FreezesByTurns),
    "expanded buffers": Project(Expanded),
    "weights by .data": Project(MovesData),
    "weights from a vector": Project(FromAVector),
    "tied weights": Project(Tied),
    "growing layers": Project(Grows),
    "scripted part": Project(Scripted),
    "unregistered parameters": Project(Unlisted),
}
