import pytest
import torch

from lightning_reg.nn import DropBlock, DropBlock1d, DropBlock2d, DropBlock3d
from lightning_reg.settings import SettingError

LAYERS = [(DropBlock1d, (4, 3, 20)), (DropBlock2d, (4, 3, 12, 10)), (DropBlock3d, (2, 3, 5, 6, 7))]
LAYERS += [(DropBlock, shape) for _, shape in LAYERS]
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@every_layer
def test_evaluation_and_rate_zero_are_the_identity_to_the_bit(make, shape):
    inputs = torch.randn(shape)
    assert make(0.3).eval()(inputs) is inputs
    assert make(0.0).train()(inputs) is inputs
    assert not torch.equal(make(0.3, block_size=3)(inputs), inputs)


@every_layer
@pytest.mark.parametrize("per_channel", [True, False])
def test_share_is_p_in_every_dtype_and_survivors_keep_the_expectation(make, shape, per_channel):
    layer = make(0.2, block_size=3, per_channel=per_channel)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        out = layer(torch.ones(2000, 1, *shape[2:], dtype=dtype))
        assert out.dtype == dtype
        shares = (out == 0).double().flatten(1).mean(1)
        means = out.double().flatten(1).mean(1)
        assert abs(shares.mean() - 0.2) <= 4 * shares.std() / 2000**0.5
        # Survivors have few values, so they are all rounded alike: by at most half of the dtype's resolution.
        assert abs(means.mean() - 1) <= 4 * means.std() / 2000**0.5 + torch.finfo(dtype).eps / 2


def test_blocks_are_each_channels_own_or_the_same_for_all():
    inputs = torch.ones(8, 16, 10, 10)
    own = DropBlock2d(0.3, block_size=3)(inputs) == 0
    shared = DropBlock2d(0.3, block_size=3, per_channel=False)(inputs) == 0
    assert not torch.equal(own[:, :1].expand_as(own), own)
    assert torch.equal(shared[:, :1].expand_as(shared), shared)
    assert not torch.equal(shared[:1].expand_as(shared), shared)  # but not for all samples


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_channel", [True, False])
def test_channels_last_is_kept(dtype, per_channel):
    inputs = torch.randn(4, 3, 12, 10).to(dtype, memory_format=torch.channels_last)
    layer = DropBlock2d(0.3, block_size=3, per_channel=per_channel)
    assert layer(inputs).is_contiguous(memory_format=torch.channels_last)
    assert layer(inputs.contiguous()).is_contiguous()


@every_layer
def test_compiles_without_a_graph_break_for_maps_of_any_size(make, shape):
    torch._dynamo.reset()
    layer = make(0.25, block_size=2)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for more in (0, 1, 3):
        sizes = [size + more for size in shape[2:]]
        out = compiled(torch.ones(500, 2, *sizes))
        shares = (out == 0).double().flatten(2).mean(2).flatten()
        assert abs(shares.mean() - 0.25) <= 4 * shares.std() / 1000**0.5
    torch._dynamo.reset()


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8)])
def test_empty_inputs_stay_empty(shape):
    assert DropBlock2d(0.2)(torch.ones(shape)).shape == shape


def test_rate_may_be_changed():
    layer = DropBlock2d(0.1, block_size=3)
    layer.p = 0.4
    shares = (layer(torch.ones(2000, 1, 8, 8)) == 0).double().flatten(1).mean(1)
    assert abs(shares.mean() - 0.4) <= 4 * shares.std() / 2000**0.5


def test_autocast_leaves_what_comes_in():
    with torch.autocast("cpu", torch.bfloat16):
        assert DropBlock2d(0.2)(torch.ones(2, 3, 8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: DropBlock2d(0.1)(torch.ones(2, 3, 4)),
            r"DropBlock2d must have the shape \(N, C, H, W\), but have \(2,",
        ),
        (lambda: DropBlock1d(0.1)(torch.ones(2, 3)), r"DropBlock1d must have the shape \(N, C, L\), but have \(2, 3\)"),
        (lambda: DropBlock3d(0.1)(torch.ones(2, 3, 4, 4)), r"shape \(N, C, D, H, W\), but have \(2, 3, 4, 4\)"),
        (lambda: DropBlock(0.1)(torch.ones(2, 3)), r"\(N, C, L\), \(N, C, H, W\) or .* but have \(2, 3\)"),
        (lambda: DropBlock2d(1.1), r"p must be in \[0, 1\], but is 1.1"),
        (lambda: DropBlock2d(0.1, block_size=0), "block_size must be a whole number of at least 1, but is 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(SettingError, match=message):
        call()
