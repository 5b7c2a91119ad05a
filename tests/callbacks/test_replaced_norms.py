"""What replaced norms have to do with the rest of the module: torch's encoders, hooks and shared parameters."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import ReplaceNorm
from tests.callbacks.somebodys import Somebodys, fit, sequential
from tests.helpers import quiet_trainer


class Scaled(nn.Module):
    """A norm of somebody's own, with all the attributes of a LayerNorm."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), 1e-5

    def forward(self, inputs):
        return inputs * (inputs.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


class Encodes(LightningModule):
    """Sequences of tokens, of which some end in padding, through torch's encoder."""

    def __init__(self, norm_first=False):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.embedding, self.head = nn.Embedding(9, 8), nn.Linear(8, 3)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

    def forward(self, tokens):
        padding = tokens == 0
        return self.head(self.encoder(self.embedding(tokens), src_key_padding_mask=padding)[:, 0])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


TOKENS = 1 + torch.arange(48).view(8, 6) % 8
TOKENS[::2, 4:] = 0


@pytest.mark.parametrize("norm", ["rms", "none", "layer", Scaled])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("include", ["*", "encoder.layers.1.norm2"])
def test_torchs_encoders_compute_with_new_norms_in_every_mode(norm, norm_first, include):
    module, batches = Encodes(norm_first), DataLoader(TensorDataset(TOKENS, torch.arange(8) % 3), batch_size=8)
    replacing = ReplaceNorm(norm=norm, types=("LayerNorm",), include=(include,))
    quiet_trainer(replacing, max_epochs=2).fit(module, batches, batches)
    expected = module.train()(TOKENS)  # there is no dropout
    for encoder in (module.encoder, copy.deepcopy(module.encoder), pickle.loads(pickle.dumps(module.encoder))):
        module.encoder = encoder
        module.eval()
        torch.testing.assert_close(module(TOKENS), expected)
        for without_gradients in (torch.no_grad(), torch.inference_mode()):
            with without_gradients:
                torch.testing.assert_close(module(TOKENS), expected)


@pytest.mark.parametrize("register", ["register_full_backward_pre_hook", "register_full_backward_hook"])
def test_hooks_of_the_backward_pass_go_on_with_the_new_norm(register):
    module, called_with = Somebodys(sequential), []
    handle = getattr(module.net[1], register)(lambda norm, *_: called_with.append(norm))
    fit(None, ReplaceNorm(norm="group"), module=module)
    assert called_with == [module.net[1]] * 2
    handle.remove()
    fit(None, ReplaceNorm(norm="group"), module=module)
    assert len(called_with) == 2


@pytest.mark.parametrize("norm", ["group", "ghost_batch", "rms"])
def test_norms_that_share_a_scale_share_the_new_one(norm):
    module = Somebodys(sequential)
    module.net.insert(3, nn.BatchNorm2d(16))
    module.net[3].weight = module.net[1].weight
    fit(None, ReplaceNorm(norm=norm), module=module)
    assert module.net[1].weight is module.net[3].weight
    assert norm == "rms" or module.net[1].bias is not module.net[3].bias
    assert not torch.equal(module.net[1].weight, torch.ones(16))  # it is trained


def test_norms_in_compiled_networks_are_seen_to_run():
    torch.compiler.reset()
    module = Somebodys(sequential)
    module.net = torch.compile(module.net, backend="eager")
    for _ in range(2):
        fit(None, ReplaceNorm(norm="group"), module=module)  # warnings are errors
        (norm,) = (part for part in module.modules() if isinstance(part, nn.GroupNorm))
        assert not norm._forward_hooks
        assert not torch.equal(norm.weight, torch.ones(16))  # it is trained
