import pytest
import torch

from lightning_reg.functional.batch.mixing import mix_with_previous, soft_targets
from lightning_reg.settings import SettingError


@pytest.mark.parametrize("shape", [(2, 3), (5, 3, 4, 4), (7,)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_mixes_each_sample_with_the_one_before(shape, per_sample):
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.rand(shape[0] if per_sample else 1, generator=generator, dtype=torch.float64)
    by_hand = torch.stack(
        [(1 - weight[i % len(weight)]) * batch[i] + weight[i % len(weight)] * batch[i - 1] for i in range(shape[0])]
    )
    before = batch.clone()
    mixed = mix_with_previous(batch, weight if per_sample else weight[0])
    torch.testing.assert_close(mixed, by_hand, rtol=1e-14, atol=1e-14)
    assert torch.equal(batch, before)


def test_inputs_may_require_gradients():
    batch = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, dtype=torch.float64)
    torch.testing.assert_close(mix_with_previous(batch, weight), mix_with_previous(batch.detach(), weight))
    assert torch.autograd.gradcheck(mix_with_previous, (batch, weight))


def test_weight_zero_is_the_identity_to_the_bit():
    batch = torch.randn(6, 3)
    assert torch.equal(mix_with_previous(batch, torch.tensor(0.0)), batch)


def test_channels_last_stays_channels_last():
    batch = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    assert mix_with_previous(batch, torch.tensor(0.3)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_that_is_none_of_a_class_is_named_with_its_sample(label):
    with pytest.raises(SettingError, match=rf"labels must be in \[0, 2\), but sample 1 of the batch has {label}"):
        soft_targets(torch.tensor([0, label, 1]), 2)


def test_no_labels_are_none_of_a_class():
    assert soft_targets(torch.empty(0, dtype=torch.long), 2).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_ones_and_zeros_of_whole_numbers_are_probabilities_already(dtype):
    targets = torch.tensor([[0, 1, 0], [1, 0, 1]])
    found = soft_targets(targets.to(dtype), 3)
    assert found.dtype == torch.float32
    assert torch.equal(found, targets.float())


@pytest.mark.parametrize("shape", [(4, 1), (4, 2), (4, 3, 3), ()])
def test_whole_numbers_of_another_shape_are_refused(shape):
    with pytest.raises(
        SettingError, match=r"class indices \(N,\) or one-hot \(N, 3\) for 3 classes, but have the shape"
    ):
        soft_targets(torch.zeros(shape, dtype=torch.long), 3)


def test_probabilities_pass_through():
    targets = torch.tensor([[0.3, 0.7]])
    assert soft_targets(targets, 2) is targets
