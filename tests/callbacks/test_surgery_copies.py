"""Copies and pickles of a module whose layers are changed: what was put in acts as long as the run, and no longer."""

import copy
import io
import pickle

import pytest
import torch
from lightning.pytorch import Callback

from lightning_reg.callbacks import (
    ActivityPenalty,
    BatchMixing,
    ConfidencePenalty,
    DropoutSchedule,
    FreezeBatchNorm,
    InsertDropBlock,
    InsertDropConnect,
    InsertDropout,
    InsertStochasticDepth,
    ReplaceNorm,
    SpectralNormalization,
    WeightStandardization,
)
from lightning_reg.transforms import Mixup
from tests.callbacks.somebodys import Somebodys, fit, loader, sequential
from tests.helpers import quiet_trainer

# Some of the modules have parts in evaluation mode on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")

DROPPING = {
    "InsertDropout": lambda: InsertDropout(p=0.5, types="ReLU"),
    "InsertDropBlock": lambda: InsertDropBlock(p=0.5, types="ReLU", block_size=2),
    "InsertDropConnect": lambda: InsertDropConnect(p=0.5),
    "InsertStochasticDepth": lambda: InsertStochasticDepth(p=0.5, include="net.2"),
}
PICKLED = {
    **DROPPING,
    "FreezeBatchNorm": FreezeBatchNorm,
    "ReplaceNorm": ReplaceNorm,
    "DropoutSchedule": lambda: [InsertDropout(p=0.5, types="ReLU"), DropoutSchedule()],
    "ActivityPenalty": lambda: ActivityPenalty(l1=0.1),
    "ConfidencePenalty": lambda: ConfidencePenalty(weight=0.1),
    "BatchMixing": lambda: BatchMixing(Mixup()),
}
WITHOUT_PICKLES = {"SpectralNormalization": SpectralNormalization, "WeightStandardization": WeightStandardization}


class InTheMiddle(Callback):
    def __init__(self, act):
        self.act = act
        self.made = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.made is None:
            self.made = self.act(pl_module)


def as_list(made):
    return made if isinstance(made, list) else [made]


def drops(module, inputs):
    """Whether two passes in training mode differ."""
    module.train()
    return not torch.equal(module.net(inputs), module.net(inputs))


@pytest.mark.parametrize("attach", DROPPING.values(), ids=DROPPING)
def test_a_copy_drops_as_long_as_the_run_and_then_no_more(attach):
    inputs = torch.randn(4, 3, 16, 16)

    def copied(module):
        made = copy.deepcopy(module)
        return made, drops(made, inputs)

    middle = InTheMiddle(copied)
    module, _ = fit(sequential, attach(), middle)
    made, dropped = middle.made
    assert dropped
    assert not drops(made, inputs)
    assert not drops(module, inputs)


@pytest.mark.parametrize("attach", PICKLED.values(), ids=PICKLED)
def test_a_module_is_saved_in_the_middle_of_a_fit_and_what_is_loaded_is_plain(attach):
    def saved(module):
        stream = io.BytesIO()
        torch.save(module, stream)
        stream.seek(0)
        return torch.load(stream, weights_only=False)

    middle = InTheMiddle(saved)
    with_it = as_list(attach())
    module, _ = fit(sequential, *with_it, middle)
    batch = next(iter(loader()))
    before = {name: value.clone() for name, value in middle.made.state_dict().items()}
    losses = [middle.made.training_step(batch, 0) for _ in range(2)]
    assert torch.equal(*losses)
    assert list(before) == list(module.state_dict())
    fit(None, module=middle.made)  # and it trains


@pytest.mark.parametrize("attach", [*PICKLED.values(), *WITHOUT_PICKLES.values()], ids=[*PICKLED, *WITHOUT_PICKLES])
def test_callbacks_are_values_before_in_and_after_a_fit(attach):
    """What a copy from any of these times trains is what the callback itself trained."""
    with_it = as_list(attach())
    copies = [copy.deepcopy(with_it)]
    middle = InTheMiddle(lambda _: [copy.deepcopy(with_it), pickle.loads(pickle.dumps(with_it))])
    module, _ = fit(sequential, *with_it, middle)
    copies += [*middle.made, pickle.loads(pickle.dumps(with_it))]
    for made in copies:
        again, _ = fit(sequential, *made)
        for name, value in again.state_dict().items():
            assert torch.equal(value, module.state_dict()[name]), name


@pytest.mark.parametrize("attach", [*PICKLED.values(), *WITHOUT_PICKLES.values()], ids=[*PICKLED, *WITHOUT_PICKLES])
def test_a_copy_of_a_module_in_training_trains_nobody_elses_weights(attach):
    middle = InTheMiddle(copy.deepcopy)
    with_it = as_list(attach())
    module, _ = fit(sequential, *with_it, middle)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    quiet_trainer(max_epochs=1).fit(middle.made, loader())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    assert isinstance(middle.made, Somebodys)
