import copy
import pickle
from random import Random

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lightning_reg.functional.forward.noise import NoiseStream, draw, mixed_seed
from lightning_reg.settings import SettingError


def started(seed):
    stream = NoiseStream()
    stream.start(seed)
    return stream


@pytest.mark.parametrize("kind", ["bernoulli", "uniform", "normal"])
def test_a_seed_and_a_count_decide(kind):
    like = torch.zeros(4, 3)
    one, same, other = started(5), started(5), started(6)
    first, second = (one.draw(kind, like, (100,), 0.5) for _ in range(2))
    assert torch.equal(same.draw(kind, like, (100,), 0.5), first)
    assert torch.equal(same.draw(kind, like, (100,), 0.5), second)
    assert not torch.equal(first, second)
    assert not torch.equal(other.draw(kind, like, (100,), 0.5), first)


def test_the_global_stream_is_left_alone():
    before = torch.get_rng_state()
    started(1).draw("normal", torch.zeros(1), (10,))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["bernoulli", "uniform", "normal"])
def test_mean_and_variance(kind):
    count = 100_000
    mean, variance = {"bernoulli": (0.3, 0.21), "uniform": (0.5, 1 / 12), "normal": (0.0, 1.0)}[kind]
    numbers = started(0).draw(kind, torch.zeros((), dtype=torch.float64), (count,), 0.3)
    # Standard errors of a mean, and of a variance (for a normal, whose fourth moment is the largest of the three).
    assert abs(numbers.mean() - mean) <= 4 * (variance / count) ** 0.5
    assert abs(numbers.var() - variance) <= 4 * variance * (2 / count) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_and_memory_format_are_those_of_the_model_tensor(dtype):
    like = torch.zeros(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    noise = draw("normal", like, like.shape)
    assert noise.dtype == dtype
    assert noise.is_contiguous(memory_format=torch.channels_last)


def test_compiled_code_draws_the_same_without_a_graph_break_and_without_compiling_anew():
    torch._dynamo.reset()
    stream = NoiseStream()
    layer = torch.nn.Linear(4, 4)

    def step(inputs):
        hidden = layer(inputs)
        return hidden * stream.draw("bernoulli", hidden, hidden.shape, 0.5) + stream.draw("normal", hidden, (4,))

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    for seed in range(4):
        inputs = torch.ones(3, 4, requires_grad=True)
        results = []
        for call in (step, compiled):
            stream.start(seed)
            output = call(inputs)
            results.append([output, *torch.autograd.grad(output.sum(), [inputs, layer.weight])])
        for eager, from_graph in zip(*results, strict=True):
            torch.testing.assert_close(eager, from_graph)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_the_draw(reentrant):
    """Else the gradient would be that of another mask than the output's."""
    stream = started(2)
    inputs = torch.ones(50, requires_grad=True)
    output = checkpoint(lambda x: x * stream.draw("bernoulli", x, x.shape, 0.5), inputs, use_reentrant=reentrant)
    output.sum().backward()
    assert torch.equal(inputs.grad, output.detach())


def test_as_many_seeds_as_there_are_make_as_many_masks():
    """torch's generator for the CPU looks at 32 bits of a seed, so they have to depend on all of ours."""
    seeds = [random.getrandbits(62) for random in [Random(0)] for _ in range(5000)]
    assert len({mixed_seed(seed, index) % 2**32 for seed in seeds for index in range(2)}) >= 2 * len(seeds) - 1
    assert len({mixed_seed(seed << 32, 0) % 2**32 for seed in range(5000)}) >= 5000 - 1


def test_checkpointing_of_what_draws_twice_is_refused():
    stream = started(2)
    inputs = torch.ones(5, requires_grad=True)
    twice = lambda x: x * stream.draw("bernoulli", x, (5,), 0.5) * stream.draw("bernoulli", x, (5,), 0.5)  # noqa: E731
    output = checkpoint(twice, inputs, use_reentrant=False)
    with pytest.raises(SettingError, match="several times in a step"):
        output.sum().backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_a_copy_goes_on_by_itself(copied):
    stream = started(3)
    other = copied(stream)
    assert torch.equal(*(source.draw("normal", torch.zeros(1), (4,)) for source in (stream, other)))
