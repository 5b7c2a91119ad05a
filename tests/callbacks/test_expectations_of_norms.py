"""Ways in which a module asks what class its norm has, read from its source before anything is replaced."""

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import ReplaceNorm
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer


class Block(nn.Module):
    """Passes maps through its norm in two ways; both run it, so that nothing would be seen to be inert."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, inputs):
        maps = self.conv(inputs)
        return self.norm(maps) if self.is_batch_norm() else self.norm(maps) / 2

    def is_batch_norm(self):
        return True


class ByType(Block):
    def is_batch_norm(self):
        return type(self.norm) is nn.BatchNorm2d


class ByEqualType(Block):
    def is_batch_norm(self):
        return nn.BatchNorm2d == type(self.norm)  # noqa: E721


class ByTypes(Block):
    def is_batch_norm(self):
        return type(self.norm) in [nn.BatchNorm1d, nn.BatchNorm2d]


class ByItsClass(Block):
    def is_batch_norm(self):
        return self.norm.__class__ is not nn.GroupNorm


class BySubclass(Block):
    def is_batch_norm(self):
        return issubclass(type(self.norm), nn.modules.batchnorm._BatchNorm)


class ByUnion(Block):
    def is_batch_norm(self):
        return isinstance(self.norm, nn.BatchNorm1d | nn.BatchNorm2d)


class ByName(Block):
    def is_batch_norm(self):
        return type(self.norm).__name__ == "BatchNorm2d"


class ByPartOfAName(Block):
    def is_batch_norm(self):
        return "BatchNorm" in self.norm.__class__.__name__


class ByMatch(Block):
    def is_batch_norm(self):
        match self.norm:
            case nn.BatchNorm2d():
                return True
            case _:
                return False


class ByProperty(Block):
    @property
    def normalizes_batches(self):
        return isinstance(self.norm, nn.BatchNorm2d)

    def is_batch_norm(self):
        return self.normalizes_batches


KINDS = torch.zeros(2)  # no class


class ByNothing(Block):
    """Asks what either answers alike, and of what isn't a class."""

    kinds = None

    def is_batch_norm(self):
        self.norm.momentum = 0.2  # which is no reading
        takes_maps = type(self.conv) is nn.Conv2d and isinstance(self.norm, nn.Module | nn.Sequential)
        return takes_maps and type(self.norm) is not nn.LayerNorm and type(self.norm) not in (self.kinds, KINDS)


class Theirs(LightningModule):
    def __init__(self, block):
        super().__init__()
        self.block, self.head = block, nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.head(self.block(batch[0]).mean((2, 3))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(make):
    module = Theirs(make())
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 8, 8), torch.arange(4) % 3), batch_size=2)
    quiet_trainer(ReplaceNorm(norm="group"), max_epochs=1).fit(module, loader)
    return module


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (ByType, "nn.BatchNorm2d"),
        (ByEqualType, "nn.BatchNorm2d"),
        (ByTypes, r"\[nn.BatchNorm1d, nn.BatchNorm2d\]"),
        (ByItsClass, "nn.GroupNorm"),
        (BySubclass, "nn.modules.batchnorm._BatchNorm"),
        (ByUnion, r"nn.BatchNorm1d \| nn.BatchNorm2d"),
        (ByName, "'BatchNorm2d'"),
        (ByPartOfAName, "'BatchNorm'"),
        (ByMatch, "nn.BatchNorm2d"),
        (ByProperty, "nn.BatchNorm2d"),
    ],
)
def test_a_question_that_a_new_norm_answers_otherwise_is_refused(make, kind):
    with pytest.raises(SettingError, match=rf"exclude must name block\.norm, .* asks whether it is a {kind}$"):
        fitted(make)


@pytest.mark.parametrize("make", [Block, ByNothing])
def test_what_a_new_norm_answers_alike_is_no_obstacle(make):
    assert isinstance(fitted(make).block.norm, nn.GroupNorm)
