"""Dropout by the fastest way to draw: the same function as torch's, of other masks."""

import math

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from lightning_reg.functional import bernoulli
from lightning_reg.functional.forward import dropout as maths
from lightning_reg.functional.forward.dropout import dropout, keep_and_rescale
from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn import Dropout

P = 0.3
SHAPES = [(100,), (5, 4000), (4, 16, 20, 32), (2, 32, 40, 50)]  # torch's own, a mask of floats, two bytes a unit


@pytest.fixture(autouse=True)
def _by_lanes(monkeypatch):
    """As on a CPU where torch draws one by one."""
    monkeypatch.setattr(bernoulli, "_draws_in_threads", lambda: False)
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_survives_is_divided_by_its_probability_and_so_is_its_gradient(shape, dtype):
    inputs = (torch.rand(shape) + 0.5).to(dtype).requires_grad_()
    upstream = torch.randn(shape).to(dtype)
    outputs = dropout(inputs, P)
    (gradient,) = torch.autograd.grad(outputs, inputs, upstream)
    keep = outputs != 0
    assert abs(keep.double().mean().item() - (1 - P)) <= 4 * math.sqrt(P * (1 - P) / keep.numel())
    rounding = 2 * torch.finfo(dtype).eps  # of 1 / (1 - p), and of the product
    if shape == (100,) and dtype in (torch.float32, torch.float64):
        rounding *= 2
    for value, start in ((outputs, inputs.detach()), (gradient, upstream)):
        assert value.dtype == dtype
        torch.testing.assert_close(value.double(), start.double() * keep / (1 - P), rtol=rounding, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sixteen_bits_are_rounded_without_a_bias(dtype, shape):
    """1 / (1 - p) itself, rounded to 8 digits, would be off by up to 0.4 %, in every unit to the same side."""
    inputs = (1 + torch.rand(shape)).to(dtype)
    outputs = dropout(inputs, 0.1)
    keep = outputs != 0
    relative = outputs[keep].double() / (inputs[keep].double() / 0.9) - 1
    # Rounding errors are at most half an eps, and uniform at most.
    assert abs(relative.mean().item()) <= 4 * torch.finfo(dtype).eps / 2 / math.sqrt(int(keep.sum()))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # of torch's forward mode itself
@pytest.mark.parametrize("few", [0, 2**16])
def test_gradients_of_any_order_and_way(few, monkeypatch):
    monkeypatch.setattr(maths, "_FEW", few)
    keep = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.int16)
    inputs = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def dropped(values):
        return keep_and_rescale(values, keep, P)

    torch.testing.assert_close(dropped(inputs), inputs * keep / (1 - P))
    torch.autograd.gradcheck(dropped, inputs, check_forward_ad=True, check_batched_grad=True)
    torch.autograd.gradgradcheck(dropped, inputs, check_fwd_over_rev=True)
    per_sample = vmap(grad(lambda row, mask: (keep_and_rescale(row, mask, P) ** 2).sum()))(inputs, keep)
    torch.testing.assert_close(per_sample, 2 * inputs * keep / (1 - P) ** 2)


@pytest.mark.parametrize(
    "arranged",
    [
        lambda values: values.contiguous(memory_format=torch.channels_last),
        lambda values: values.transpose(1, 3),
        lambda values: values[:, ::2],
        lambda values: values[:, :1].expand(-1, 32, -1, -1),
    ],
)
def test_units_are_independent_and_the_memory_format_is_torchs(arranged):
    inputs = arranged(torch.ones(2, 32, 40, 50)).requires_grad_()
    outputs = dropout(inputs, P)
    assert outputs.stride() == torch.nn.functional.dropout(inputs, P).stride()
    upstream = torch.randn(outputs.shape)
    (gradient,) = torch.autograd.grad(outputs, inputs, upstream)
    torch.testing.assert_close(gradient, upstream * outputs.detach())
    for dim in range(4):  # no two neighbors share a draw
        same = (outputs.narrow(dim, 1, outputs.shape[dim] - 1) != 0) == (
            outputs.narrow(dim, 0, outputs.shape[dim] - 1) != 0
        )
        agree = P**2 + (1 - P) ** 2
        assert abs(same.double().mean().item() - agree) <= 5 * math.sqrt(agree * (1 - agree) / same.numel() * 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_torchs_global_stream_decides_where_there_is_no_other(shape):
    def dropped(seed):
        torch.manual_seed(seed)
        return dropout(torch.ones(shape), P)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stream_decides_and_the_global_one_is_left_alone(shape):
    stream = NoiseStream()
    before = torch.get_rng_state()

    def dropped(seed):
        stream.start(seed)
        return dropout(torch.ones(shape), P, stream)

    assert torch.equal(dropped(1), dropped(1))
    assert not torch.equal(dropped(1), dropped(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_stream", [False, True])
def test_checkpointing_drops_the_same_again(shape, with_stream):
    inputs = torch.ones(shape, requires_grad=True)
    stream = NoiseStream() if with_stream else None
    outputs = checkpoint(lambda values: dropout(values, P, stream) * 2, inputs, use_reentrant=False)
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(gradient, outputs.detach())


@pytest.mark.parametrize("p", [P, 0.001])
def test_compiled_code_with_a_stream_of_its_own_drops_the_same_in_one_graph(p):
    torch._dynamo.reset()
    stream = NoiseStream()
    layer = Dropout(p)
    layer.stream = stream
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        inputs = torch.rand(4, 20_000, requires_grad=True)
        results = []
        for call in (layer, compiled):
            stream.start(seed)
            outputs = call(inputs)
            results.append([outputs, *torch.autograd.grad(outputs.sum(), inputs)])
        for eager, from_graph in zip(*results, strict=True):
            torch.testing.assert_close(eager, from_graph)
    torch._dynamo.reset()


def test_a_stream_for_the_cpu_alone_leaves_compiled_code_to_torch():
    torch._dynamo.reset()
    layer = Dropout(P)
    layer.stream = NoiseStream(on_cpu_only=True)
    layer.stream.start(1)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    inputs = torch.ones(4, 20_000)
    first, second = compiled(inputs), compiled(inputs)
    assert not torch.equal(first, second)
    layer.stream.start(1)
    eager = layer(inputs)
    layer.stream.start(1)
    assert torch.equal(layer(inputs), eager)
    torch._dynamo.reset()


@pytest.mark.parametrize("numel", [10, 20_000])
def test_torch_func_has_its_say_in_how_masks_are_drawn(numel):
    inputs = torch.ones(3, numel)
    same = vmap(lambda row: dropout(row, P), randomness="same")(inputs)
    different = vmap(lambda row: dropout(row, P), randomness="different")(inputs)
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    layer = Dropout(P)
    gradient = grad(lambda values: functional_call(layer, {}, (values,)).sum())(torch.ones(numel))
    assert set(gradient.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - P)).item()}


@pytest.mark.parametrize("numel", [10, 100_000])
def test_nothing_and_everything(numel):
    inputs = torch.randn(numel, requires_grad=True)
    layer = Dropout(0.0)
    assert layer(inputs) is inputs
    assert Dropout(P).eval()(inputs) is inputs
    outputs = Dropout(1.0)(torch.full((numel,), float("nan"), requires_grad=True))
    assert not outputs.any()


def test_empty_inputs_stay_empty():
    assert dropout(torch.ones(0, 3), P).shape == (0, 3)
    assert dropout(torch.ones(0, 3, dtype=torch.bfloat16), P).shape == (0, 3)
