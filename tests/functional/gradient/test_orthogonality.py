"""The orthogonal penalty, estimated from random vectors."""

import pytest
import torch

from lightning_reg.functional.gradient.orthogonality import (
    add_probed_orthogonal_gradient_,
    orthogonal_penalty,
    probed_orthogonal_penalty,
)

SHAPES = [(3, 5), (5, 3), (4, 2, 3, 3), (2, 1)]


def matrix_of(shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()


def size_of(matrix):
    return min(len(matrix), matrix[0].numel())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_all_directions_together_are_the_penalty_itself(shape, dtype):
    """Σ over an orthonormal basis of ‖A v‖² is ‖A‖², so √s times its vectors, averaged, give it exactly."""
    matrix = matrix_of(shape, dtype)
    basis = size_of(matrix) ** 0.5 * torch.eye(size_of(matrix), dtype=dtype)
    torch.testing.assert_close(probed_orthogonal_penalty([matrix], [basis], 0.3), orthogonal_penalty([matrix], 0.3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradient_is_autograds(shape, dtype):
    matrix = matrix_of(shape, dtype)
    vectors = torch.randn(size_of(matrix), 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(probed_orthogonal_penalty([matrix], [vectors], 0.3), matrix)
    gradient = torch.ones_like(matrix)
    add_probed_orthogonal_gradient_([gradient], [matrix], [vectors], torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(gradient, 1 + expected)


def test_mean_over_draws_is_the_penalty():
    matrix = matrix_of((3, 5)).detach()
    generator = torch.Generator().manual_seed(2)
    found = torch.stack(
        [
            probed_orthogonal_penalty([matrix], [torch.randn(3, 8, dtype=torch.float64, generator=generator)], 1.0)
            for _ in range(2000)
        ]
    )
    error = found.std() / len(found) ** 0.5
    assert abs(found.mean() - orthogonal_penalty([matrix], 1.0)) < 4 * error
