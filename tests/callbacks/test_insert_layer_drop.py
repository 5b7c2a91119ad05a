"""Blocks of somebody else's network that are left out for a whole batch."""

import pytest
import torch
from torch import nn

from lightning_reg.callbacks import InsertLayerDrop
from lightning_reg.settings import SettingError
from tests.callbacks.somebodys import Somebodys, fit, sequential, vit
from tests.conformance.draws import kept
from tests.conformance.problem import Textbook
from tests.conformance.technique import Technique


class LeftOut(nn.Module):
    """An activation as a residual block that counts for a batch or doesn't."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]

    def forward(self, inputs):
        is_kept = not self.training or kept("InsertLayerDrop", self.model[0], inputs, (), 0.4) == 1
        return torch.tanh(inputs) if is_kept else inputs


def left_out_activation(model):
    model.act = LeftOut(model)


CONFORMANCE = {
    "InsertLayerDrop": Technique(
        lambda: InsertLayerDrop(p=0.4, include=("network.act",), seed=3),
        lambda: InsertLayerDrop(p=0.0, include=("network.act",)),
        Textbook(change=left_out_activation),
    ),
}


def test_a_block_is_left_out_or_stays_to_the_bit():
    module, outcomes = Somebodys(vit), []
    block = module.net.encoder.layers[1]

    class Look(InsertLayerDrop):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            if not outcomes:
                block.register_forward_hook(self.note)

        def note(self, block, args, output):
            outcomes.append((output.equal(args[0]), output.equal(block.forward(args[0]))))

    fit(None, Look(p=0.5, types=("EncoderBlock",), seed=0), module=module, max_epochs=8)
    assert {(True, False), (False, True)} == set(outcomes)
    assert not any(part._forward_hooks for part in module.modules() if part is not block)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "include or types must say"),
        ({"p": 1.5, "include": ("net.0",)}, r"p must be in \[0, 1\]"),
        ({"include": ("net.0",)}, "include must name residual blocks, .* but net.0 makes"),
        ({"include": ("net.block*",)}, "matches no module"),
    ],
)
def test_what_is_no_block_is_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        fit(sequential, InsertLayerDrop(**settings))
