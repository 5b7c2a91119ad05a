"""Decompositions against loops that are written out, and against the error that they are to sum to."""

import itertools

import pytest
import torch

from lightning_reg.functional.measures.generalization import decompose_squared_error, decompose_zero_one_error
from lightning_reg.settings import SettingError


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_squared_error_by_loops():
    predictions, truth = numbers(5, 7), numbers(7, seed=1)
    bias, variance = 0.0, 0.0
    for n in range(7):
        mean = sum(predictions[t, n] for t in range(5)) / 5
        spread = sum((predictions[t, n] - mean) ** 2 for t in range(5)) / 4
        bias += ((mean - truth[n]) ** 2 - spread / 5) / 7
        variance += spread / 7
    parts = decompose_squared_error(predictions, truth, noise=0.3)
    torch.testing.assert_close(parts.bias_squared, bias, rtol=0, atol=1e-14)
    torch.testing.assert_close(parts.variance, variance, rtol=0, atol=1e-14)
    assert parts.noise == 0.3


def test_parts_of_squared_error_sum_to_it_exactly():
    predictions, truth = numbers(4, 9) + 1, numbers(9, seed=1)
    parts = decompose_squared_error(predictions, truth)
    measured = ((predictions - truth) ** 2).mean()
    torch.testing.assert_close(sum(parts), measured, rtol=1e-14, atol=0)


def test_estimates_are_right_on_average_with_few_models():
    """Of predictions with bias 0.5 and variance 4, by three models at a time: means over 20,000, ± 5 errors."""
    count = 20_000
    predictions = 2 * numbers(3, count) + 0.5
    parts = decompose_squared_error(predictions, torch.zeros(count, dtype=torch.float64))
    # bias²: variance of (mean² - s²/3) is 4·0.25·4/3 + 2·(4/3)² + (2·16/2)/9; variance: 2·16/2.
    assert parts.bias_squared.item() == pytest.approx(0.25, abs=5 * ((4 / 3 + 2 * 16 / 9 + 16 / 9) / count) ** 0.5)
    assert parts.variance.item() == pytest.approx(4.0, abs=5 * (16 / count) ** 0.5)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_zero_one_error_by_loops(classes):
    generator = torch.Generator().manual_seed(classes)
    predictions = torch.randint(classes, (9, 40), generator=generator)
    targets = torch.randint(classes, (40,), generator=generator)
    bias = unbiased = biased = error = 0.0
    for n in range(40):
        answers = predictions[:, n].tolist()
        main = max(range(classes), key=lambda c: (answers.count(c), -c))
        right = answers.count(targets[n].item()) / 9
        error += (1 - right) / 40
        if main == targets[n]:
            unbiased += (1 - answers.count(main) / 9) / 40
        else:
            bias += 1 / 40
            biased += right / 40
    parts = decompose_zero_one_error(predictions, targets)
    for ours, by_hand in zip(parts, (bias, unbiased, biased, error), strict=True):
        assert ours.item() == pytest.approx(by_hand, abs=1e-14)
    assert (parts.bias + parts.variance).item() == pytest.approx(error, abs=1e-14)


def test_with_two_classes_biased_variance_is_how_often_models_differ_from_the_main_prediction():
    for answers in itertools.product([0, 1], repeat=3):
        parts = decompose_zero_one_error(torch.tensor(answers)[:, None], torch.tensor([0]))
        main = int(sum(answers) >= 2)
        differ = sum(answer != main for answer in answers) / 3
        assert parts.biased_variance.item() == pytest.approx(differ if main else 0.0)
        assert parts.unbiased_variance.item() == pytest.approx(0.0 if main else differ)


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        (torch.zeros(1, 3), torch.zeros(3), r"T ≥ 2 models, but have shape \(1, 3\)"),
        (torch.zeros(3), torch.zeros(3), r"have shape \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(2), r"must have shape \(3,\), but has \(2,\)"),
    ],
)
@pytest.mark.parametrize("decompose", [decompose_squared_error, decompose_zero_one_error])
def test_shapes_that_do_not_fit(decompose, predictions, targets, message):
    with pytest.raises(SettingError, match=message):
        decompose(predictions, targets)
