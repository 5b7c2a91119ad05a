"""Singular vectors and the stable rank, beside torch's decomposition."""

import math

import pytest
import torch

from lightning_reg.functional.spectrum import singular_vectors, stable_rank


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 6)])
def test_singular_vectors_are_those_of_the_decomposition(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, v = singular_vectors(matrix)
    assert (u @ matrix @ v).item() == pytest.approx(torch.linalg.svdvals(matrix)[0].item(), rel=1e-12)
    torch.testing.assert_close(torch.stack([u.norm(), v.norm()]), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (16, 4, 3, 3)])
def test_stable_rank_is_that_of_the_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(matrix.flatten(1).double())
    exact = (values.square().sum() / values[0] ** 2).item()
    found = stable_rank(matrix).item()
    # What k power iterations miss of the largest of n eigenvalues where none stands out: 0.87 ln n / (k - 1) of it
    # (Kuczyński and Woźniakowski, 1992).
    missed = 0.87 * math.log(len(values)) / 19
    assert exact * (1 - 1e-5) <= found <= exact / (1 - missed)


def test_stable_rank_of_zeros_and_of_one_direction():
    assert stable_rank(torch.zeros(3, 4)) == 0
    assert stable_rank(torch.ones(3, 4)).item() == pytest.approx(1, rel=1e-5)
