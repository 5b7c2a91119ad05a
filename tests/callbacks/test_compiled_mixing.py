"""Mixing beside compiled networks, modules and losses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.callbacks import BatchMixing
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Mixup
from tests.callbacks.mixed import CLASSES, COUNT, LABELS, Theirs, inputs_of
from tests.helpers import quiet_trainer


def test_a_compiled_network_is_mixed_and_a_compiled_module_refused():
    loader = DataLoader(list(zip(inputs_of((4,)), LABELS, strict=True)), batch_size=COUNT)
    for whole in (False, True):
        module = Theirs(F.cross_entropy, tuple, (4,))
        mix = BatchMixing(Mixup())
        if whole:
            with pytest.raises(SettingError, match="must not be compiled as a whole with BatchMixing"):
                quiet_trainer(mix).fit(torch.compile(module, backend="eager"), loader, loader)
        else:
            module.network.compile(backend="aot_eager")
            quiet_trainer(mix).fit(module, loader, loader)
            assert len(module.losses) == 1  # and is what it has to be: that is in the conformance suite


@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_compiled_is_compiled_once(in_place):
    """Code that is made within a TorchFunctionMode would be made anew for every batch, until torch gives up."""
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    class Layer(nn.Linear):
        def forward(self, inputs):  # torch 2.6 compiles no forward of its own modules in place
            return super().forward(inputs)

    class Plain(Theirs):
        validation_step = None

        def __init__(self):
            super().__init__(F.cross_entropy, tuple, (4,))
            self.network = Layer(4, CLASSES)
            if in_place:
                self.network.compile(backend=backend)
            else:
                self.network = torch.compile(self.network, backend=backend)

    torch._dynamo.reset()
    module = Plain()
    before = sorted(vars(module.network))
    loader = DataLoader(list(zip(inputs_of((4,)), LABELS, strict=True)), batch_size=2)
    quiet_trainer(BatchMixing(Mixup()), BatchMixing(Mixup()), max_epochs=4).fit(module, loader)
    assert len(module.losses) == 12
    assert len(graphs) == 1
    assert sorted(vars(module.network)) == before


def test_a_loss_in_compiled_code_is_refused():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, inputs, targets):
            return F.cross_entropy(self.layer(inputs), targets)

    class Whole(Theirs):
        validation_step = None

        def __init__(self):
            super().__init__(F.cross_entropy, tuple, (4,))
            self.network = Inside()
            self.network.compile(backend="eager")

        def training_step(self, batch):
            return self.network(*batch)

    loader = DataLoader(list(zip(inputs_of((4,)), LABELS, strict=True)), batch_size=2)
    with pytest.raises(SettingError, match="called none of cross_entropy"):
        quiet_trainer(BatchMixing(Mixup())).fit(Whole(), loader)
