import math

import pytest
import torch
from torch import nn

from lightning_reg.init.fans import layer_weights
from lightning_reg.init.initialization import VarianceScaling, initialize_

# Counted by hand: (layer, inputs that reach an output, outputs that an input reaches, rows and columns of one block).
LAYERS = {
    "linear": (lambda: nn.Linear(300, 200), 300, 200, (200, 300)),
    "conv1d": (lambda: nn.Conv1d(60, 50, 5), 300, 250, (50, 300)),
    "conv2d": (lambda: nn.Conv2d(40, 80, 3), 360, 720, (80, 360)),
    "conv3d": (lambda: nn.Conv3d(20, 40, 3), 540, 1080, (40, 540)),
    "conv1d_strided": (lambda: nn.Conv1d(60, 50, 6, stride=3), 360, 100, (50, 360)),
    "conv2d_of_patches": (lambda: nn.Conv2d(3, 64, 16, stride=16), 768, 64, (64, 768)),
    "conv2d_grouped": (lambda: nn.Conv2d(80, 160, 3, groups=4), 180, 360, (40, 180)),
    "conv2d_depthwise": (lambda: nn.Conv2d(500, 1000, 5, groups=500), 25, 50, (2, 25)),
    "transposed1d": (lambda: nn.ConvTranspose1d(60, 50, 5), 300, 250, (50, 300)),
    "transposed2d_strided": (lambda: nn.ConvTranspose2d(40, 30, 4, stride=2), 160, 480, (30, 160)),
    "transposed2d_grouped": (lambda: nn.ConvTranspose2d(80, 160, 3, groups=4), 180, 360, (40, 180)),
    "transposed3d_grouped": (
        lambda: nn.ConvTranspose3d(32, 64, 4, stride=(1, 2, 4), groups=2),
        16 * 4 * 2 * 1,
        32 * 64,
        (32, 128),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_fans_are_those_that_are_counted_by_hand(kind):
    make, fan_in, fan_out, (rows, columns) = LAYERS[kind]
    (weight,) = layer_weights(make())
    assert (weight.fan_in, weight.fan_out) == (fan_in, fan_out)
    assert all((len(block), block[0].numel()) == (rows, columns) for block in weight.blocks)


def test_layers_that_mix_nothing_have_no_weights_here():
    assert not any(map(layer_weights, (nn.Embedding(3, 3), nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 3)))))


def is_orthonormal(matrix):
    matrix = matrix.detach().double()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    # Decomposed in float32: an entry of the Gram matrix is off by a few roundings.
    return torch.allclose(gram, torch.eye(len(gram), dtype=gram.dtype), rtol=0, atol=1e-5)


def blocks_by_hand(layer):
    """Matrices from all inputs that one output sees to the outputs that see them, one for each group and phase."""
    weight, groups = layer.weight, layer.groups
    if not layer.transposed:
        return [group.flatten(1) for group in weight.chunk(groups)]
    taps = torch.cartesian_prod(*map(torch.arange, layer.kernel_size)).view(-1, len(layer.kernel_size))
    phases = taps % torch.tensor(layer.stride)
    return [
        group.flatten(2)[:, :, (phases == phase).all(1)].transpose(0, 1).flatten(1)
        for group in weight.chunk(groups)
        for phase in phases.unique(dim=0)
    ]


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "linear"])
def test_orthogonal_holds_in_every_group_and_phase(kind):
    torch.manual_seed(0)
    make, _, _, shape = LAYERS[kind]
    layer = make().to(memory_format=torch.channels_last) if "2d" in kind else make()
    initialize_(layer, "orthogonal", nn.ReLU())
    blocks = blocks_by_hand(layer)
    assert all(block.shape == shape and is_orthonormal(block) for block in blocks)
    assert sum(block.numel() for block in blocks) == layer.weight.numel()


def tolerance(layer, outputs):
    """Four standard errors of an output variance of 1, by the sizes of the two samples in it.

    That of the weights is off by √(2/n). For given weights W the outputs y = Wx of normal x are a quadratic form, whose
    relative standard error is √(2 tr((WᵀW)²)) / tr(WᵀW), at most √(2λ/n) for n outputs and λ the largest eigenvalue of
    WᵀW: (1 + √r)² by Marchenko and Pastur, with r outputs for each input.
    """
    channels = [layer.weight.shape[0], layer.weight.shape[1] * getattr(layer, "groups", 1)]
    largest = (1 + math.sqrt(max(channels) / min(channels))) ** 2
    return 4 * (math.sqrt(2 / layer.weight.numel()) + math.sqrt(2 * largest / outputs.numel()))


@pytest.mark.parametrize("scheme", ["lecun_normal", "orthogonal", nn.init.orthogonal_, "uniform_of_users"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(64, 48),
        lambda: nn.Conv2d(32, 48, 3, stride=2),
        lambda: nn.Conv2d(64, 96, 3, groups=2),
        lambda: nn.ConvTranspose1d(48, 48, 4, stride=2),
        lambda: nn.ConvTranspose2d(48, 32, 4, stride=2),
        lambda: nn.ConvTranspose2d(64, 48, 2, stride=2, groups=2),
    ],
)
def test_output_variance_is_kept_where_variance_is_one_over_the_inputs(make, scheme):
    """Measured away from borders. Orthonormal rows, of no more than their length, keep the variance, too."""
    torch.manual_seed(0)
    layer = make()
    if scheme == "uniform_of_users":  # asks the tensor's shape, as functions of torch.nn.init do
        initialize_(layer, lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="linear"), nn.ReLU())
    else:
        initialize_(layer, scheme, nn.ReLU())
    if isinstance(layer, nn.Linear):
        outputs = layer(torch.randn(4096, 64))
    else:
        dims = layer.weight.ndim - 2
        outputs = layer(torch.randn(32, layer.in_channels, *[24] * dims))
        outputs = outputs[(..., *[slice(4, -4)] * dims)]
    assert abs(outputs.var().item() - 1) <= tolerance(layer, outputs)


def test_average_fan_holds_where_the_stride_does_not_divide_the_kernel():
    """Then outputs have different numbers of inputs, and the variance is right on the average over positions."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose1d(100, 100, 3, stride=2)
    initialize_(layer, "lecun_normal", nn.ReLU())
    outputs = layer(torch.randn(64, 100, 100))[..., 4:-4]  # 2 positions of 3/2 inputs on the average
    assert abs(outputs.var().item() - 1) <= tolerance(layer, outputs)
    # Of either, the tolerance is less than √3 times that of the few, which have a third of the weights.
    many, few = outputs[..., ::2], outputs[..., 1::2]
    assert many.var().item() / few.var().item() == pytest.approx(2, rel=2 * math.sqrt(3) * tolerance(layer, few))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Conv2d(24, 48, 4, stride=2),
        lambda: nn.Conv2d(24, 48, 4, stride=2, groups=2),
        lambda: nn.ConvTranspose2d(24, 48, 4, stride=2),
        lambda: nn.ConvTranspose2d(24, 48, 4, stride=2, groups=3),
    ],
)
def test_fan_out_keeps_the_variance_of_gradients(make):
    torch.manual_seed(0)
    layer = make()
    initialize_(layer, VarianceScaling(1.0, "fan_out"), nn.ReLU())
    inputs = torch.randn(8, 24, 32, 32, requires_grad=True)
    outputs = layer(inputs)
    (gradient,) = torch.autograd.grad(outputs, inputs, torch.randn_like(outputs))
    gradient = gradient[..., 4:-4, 4:-4]
    assert abs(gradient.var().item() - 1) <= tolerance(layer, gradient)
