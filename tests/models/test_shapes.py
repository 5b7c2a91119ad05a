import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_reg.models import Supervised
from lightning_reg.models.shapes import check_network
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer


def test_a_network_that_is_tried_stays_as_it_is():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(0)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    check_network(network, (4,), 2)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network] == [True, True, False, True]
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("network", "shape", "outputs", "message"),
    [
        (nn.Linear(3, 2), (4,), 2, r"inputs of the data's shape \(N, 4\), but Linear fails on them: mat1 and mat2"),
        (nn.Conv2d(3, 2, 3), (1, 8, 8), 2, r"\(N, 1, 8, 8\), but Conv2d fails on them: .*expected input.* 3 channels"),
        (nn.Linear(4, 1000), (4,), 10, r"must return outputs \(N, 10\), .*, but returns \(N, 1000\)"),
        (nn.Conv2d(1, 2, 3), (1, 8, 8), 2, r"must return outputs \(N, 2\), .*, but returns \(N, 2, 6, 6\)"),
        (nn.LSTM(3, 2), (5, 3), 2, r"must return outputs \(N, 2\), .*, but returns a tuple"),
    ],
)
def test_what_does_not_fit_is_said_with_both_shapes(network, shape, outputs, message):
    with pytest.raises(SettingError, match=message):
        check_network(network, shape, outputs)


class Records(nn.Module):
    """Keeps the outputs that it passes on."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, outputs):
        self.seen.append(outputs)
        return outputs


@pytest.mark.parametrize(
    ("network", "shape", "outputs"),
    [
        (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), (4,), 1),
        (nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(15, 2)), (5,), 2),
        (nn.Sequential(nn.LazyLinear(2)), (4,), 2),
        (nn.Linear(4, 2).double(), (4,), 2),
    ],
    ids=["one_number", "tokens", "lazy", "double"],
)
def test_what_fits_is_tried_with_two_samples_and_let_through(network, shape, outputs):
    records = Records()
    check_network(nn.Sequential(network, records), shape, outputs)
    (seen,) = records.seen
    assert seen.numel() == 2 * outputs
    assert seen.dtype == next(network.parameters()).dtype


def test_without_a_shape_outputs_are_looked_at_in_the_first_batch():
    module = Supervised(nn.Linear(4, 5), num_classes=3)
    batches = DataLoader([(torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64))], batch_size=None)
    with pytest.raises(SettingError, match=r"must return outputs \(N, 3\), .*, but returns \(N, 5\)"):
        quiet_trainer(num_sanity_val_steps=0).fit(module, batches, batches)
