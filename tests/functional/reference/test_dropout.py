from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from lightning_reg.functional.reference import inverted_dropout, original_dropout
from lightning_reg.settings import SettingError

FORMS = [inverted_dropout, original_dropout]


def random_case(p=0.3):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    mask = torch.empty(4, 6).bernoulli_(1 - p, generator=generator)
    return inputs, mask


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_inverted_dropout_is_torchs(p):
    torch.manual_seed(0)
    inputs = torch.randn(20, 30, dtype=torch.float64, requires_grad=True)
    grad_outputs = torch.randn(20, 30, dtype=torch.float64)
    theirs = F.dropout(inputs, p)
    ours = inverted_dropout(inputs, theirs != 0, p, training=True)  # no input is 0, so a 0 was dropped
    # One division or multiplication by the same factor: a few roundings of 1e-16.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad(outputs, inputs, grad_outputs)[0] for outputs in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_inverted_dropout_is_the_identity_in_evaluation():
    inputs, mask = random_case()
    outputs = inverted_dropout(inputs, mask, 0.3, training=False)
    grad_outputs = torch.randn_like(outputs)
    assert torch.equal(outputs, inputs)
    assert torch.equal(torch.autograd.grad(outputs, inputs, grad_outputs)[0], grad_outputs)


def test_original_dropout_masks_in_training_and_scales_in_evaluation():
    inputs, mask = random_case()
    assert torch.equal(original_dropout(inputs, mask, 0.3, training=True), inputs * mask)
    assert torch.equal(original_dropout(inputs, mask, 0.3, training=False), inputs * (1 - 0.3))


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_is_the_expectation_of_training(form):
    """Over every mask there is, each with its probability."""
    p = 0.3
    inputs = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    expectation = torch.zeros_like(inputs)
    for mask in product([0.0, 1.0], repeat=3):
        probability = p ** mask.count(0.0) * (1 - p) ** mask.count(1.0)
        expectation += probability * form(inputs, torch.tensor(mask), p, training=True)
    torch.testing.assert_close(form(inputs, torch.ones(3), p, training=False), expectation, rtol=1e-12, atol=0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_right_twice(form, training):
    inputs, mask = random_case()
    # The cube makes the second derivative something else than zero.
    assert gradcheck(lambda values: form(values, mask, 0.3, training=training).pow(3), inputs)
    assert gradgradcheck(lambda values: form(values, mask, 0.3, training=training).pow(3), inputs)


@pytest.mark.parametrize("form", FORMS)
def test_bad_dropout_is_refused(form):
    with pytest.raises(SettingError, match=r"p must be in \[0, 1\), but is 1"):
        form(torch.ones(3), torch.ones(3), 1, training=True)
    with pytest.raises(SettingError, match=r"mask must have the shape \(2, 3\), but has \(3,\)"):
        form(torch.ones(2, 3), torch.ones(3), 0.5, training=True)
