import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_reg.nn import (
    Attention,
    FeedForward,
    StochasticDepth,
    TransformerBlock,
    monte_carlo_predict,
    transformer_network,
)
from lightning_reg.nn.networks.tokens import TokenEmbedding
from lightning_reg.settings import SettingError

EVERY_RATE = {"drop_prob": 0.2, "attention_drop_prob": 0.2, "stochastic_depth_prob": 0.2}


def tokens(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def block(**settings):
    torch.manual_seed(0)
    return TransformerBlock(**{"embed_dim": 12, "num_heads": 3, "hidden_dim": 20, **settings}).double()


def network(**settings):
    torch.manual_seed(0)
    return transformer_network(
        **{"input_shape": (1, 8, 8), "num_outputs": 3, "embed_dim": 12, "depth": 2, "num_heads": 3, **settings}
    )


def attention_by_hand(attention, inputs, heads):
    width = inputs.shape[-1] // heads
    layers = (attention.query, attention.key, attention.value)
    query, key, value = (inputs @ layer.weight.T + layer.bias for layer in layers)
    outputs = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
        outputs.append(scores.softmax(-1) @ value[..., part])
    return torch.cat(outputs, -1) @ attention.proj.weight.T + attention.proj.bias


def norm_by_hand(kind, layer, inputs):
    if kind == "none":
        return inputs
    if kind == "rms":
        eps = torch.finfo(inputs.dtype).eps if layer.eps is None else layer.eps
        return inputs / (inputs.square().mean(-1, keepdim=True) + eps).sqrt() * layer.weight
    centered = inputs - inputs.mean(-1, keepdim=True)
    return centered / (centered.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
def test_block_is_the_textbooks(norm):
    module = block(norm=norm)
    inputs = tokens(2, 5, 12)
    between = inputs + attention_by_hand(module.attention, norm_by_hand(norm, module.attention_norm, inputs), 3)
    hidden = norm_by_hand(norm, module.feed_forward_norm, between)
    hidden = hidden @ module.feed_forward.expand.weight.T + module.feed_forward.expand.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    expected = between + hidden @ module.feed_forward.contract.weight.T + module.feed_forward.contract.bias
    torch.testing.assert_close(module(inputs), expected, rtol=1e-12, atol=1e-12)


def test_block_is_torchs_encoder_layer_with_its_gradients():
    module = block()
    oracle = nn.TransformerEncoderLayer(
        12, 3, 20, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    pairs = {
        **{f"self_attn.out_proj.{kind}": f"attention.proj.{kind}" for kind in ("weight", "bias")},
        **{f"linear1.{kind}": f"feed_forward.expand.{kind}" for kind in ("weight", "bias")},
        **{f"linear2.{kind}": f"feed_forward.contract.{kind}" for kind in ("weight", "bias")},
        **{f"norm1.{kind}": f"attention_norm.{kind}" for kind in ("weight", "bias")},
        **{f"norm2.{kind}": f"feed_forward_norm.{kind}" for kind in ("weight", "bias")},
    }
    state = {theirs: module.get_parameter(ours) for theirs, ours in pairs.items()}
    stacked = {kind: [f"attention.{part}.{kind}" for part in ("query", "key", "value")] for kind in ("weight", "bias")}
    for kind, parts in stacked.items():
        state[f"self_attn.in_proj_{kind}"] = torch.cat([module.get_parameter(part) for part in parts])
    oracle.load_state_dict(state)
    inputs = tokens(2, 5, 12)
    torch.testing.assert_close(module(inputs), oracle(inputs), rtol=1e-12, atol=1e-12)
    for encoder in (module, oracle):
        encoder(inputs).pow(3).sum().backward()
    for theirs, ours in pairs.items():
        expected = oracle.get_parameter(theirs).grad
        torch.testing.assert_close(module.get_parameter(ours).grad, expected, rtol=1e-10, atol=1e-10)
    for kind, parts in stacked.items():
        expected = oracle.get_parameter(f"self_attn.in_proj_{kind}").grad
        gradient = torch.cat([module.get_parameter(part).grad for part in parts])
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)


def test_attention_weights_are_dropped_at_their_rate_and_rescaled():
    """With equal scores and one-hot values the outputs are the attention weights."""
    count, p = 64, 0.3
    attention = Attention(count, 1, attention_drop_prob=p).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        for layer in (attention.value, attention.proj):
            layer.weight.copy_(torch.eye(count))
    inputs = torch.eye(count).double().expand(8, -1, -1)
    torch.manual_seed(0)
    out = attention(inputs)
    kept = out > 1e-6
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / count / (1 - p)))
    # Standard error of a fraction of independent draws: √(p(1 − p)/n).
    assert abs((~kept).double().mean().item() - p) <= 4 * math.sqrt(p * (1 - p) / out.numel())
    torch.testing.assert_close(attention.eval()(inputs), torch.full_like(out, 1 / count))


def test_stochastic_depth_rises_linearly_to_its_rate():
    rates = [
        module.p
        for module in network(depth=4, stochastic_depth_prob=0.4).modules()
        if isinstance(module, StochasticDepth)
    ]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])


def test_stochastic_depth_leaves_samples_as_they_are():
    module = block(stochastic_depth_prob=0.5)
    inputs = tokens(2000, 2, 12)
    untouched = (module(inputs) == inputs).all(2).all(1)
    # Both branches are dropped with probability 1/4; standard error of the fraction √(1/4 · 3/4 / n).
    assert abs(untouched.double().mean().item() - 0.25) <= 4 * math.sqrt(0.25 * 0.75 / 2000)


@pytest.mark.parametrize("rate", EVERY_RATE)
def test_monte_carlo_passes_drop_at_every_rate(rate):
    module = network(init="xavier_normal", **{rate: 0.5}).eval()
    assert monte_carlo_predict(module, torch.randn(2, 1, 8, 8)).std.all()


@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_evaluation_ignores_every_rate_to_the_bit(pool):
    plain, dropping = network(pool=pool), network(pool=pool, **EVERY_RATE)
    dropping.load_state_dict(plain.state_dict())
    inputs = torch.randn(4, 1, 8, 8)
    assert torch.equal(plain(inputs), plain.eval()(inputs))
    assert torch.equal(dropping.eval()(inputs), plain(inputs))
    assert not torch.equal(dropping.train()(inputs), plain(inputs))


def test_a_token_is_a_linear_map_of_its_patch():
    embedding = TokenEmbedding((3, 8, 4), 6, patch_size=2).double()
    images = tokens(2, 3, 8, 4)
    patches = F.unfold(images, 2, stride=2).transpose(1, 2)  # (N, 4·2, 3·2·2)
    expected = patches @ embedding.project.weight.flatten(1).T + embedding.project.bias + embedding.position.weight
    torch.testing.assert_close(embedding(images), expected)


def test_class_token_comes_first_and_is_the_same_for_all():
    embedding = TokenEmbedding((5, 4), 6, class_token=True)
    out = embedding(torch.randn(3, 5, 4))
    assert out.shape == (3, 6, 6)
    assert torch.equal(out[:, 0], (embedding.class_token.weight + embedding.position.weight[:1]).expand(3, -1))


def test_only_positions_tell_the_order_of_steps():
    module = network(input_shape=(5, 4), init="xavier_normal").double()
    inputs = tokens(2, 5, 4)
    assert (module(inputs) - module(inputs.flip(1))).abs().max() > 1e-6
    nn.init.zeros_(module.embedding.position.weight)
    torch.testing.assert_close(module(inputs), module(inputs.flip(1)))


def test_auto_initialization_is_the_guide_for_transformers():
    module = network(embed_dim=96, depth=1, pool="class_token")
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            # Standard error of a variance of n normal numbers: σ²√(2/n).
            error = 0.02**2 * math.sqrt(2 / parameter.numel())
            assert abs(parameter.square().mean().item() - 0.02**2) <= 4 * error, name


def test_scheme_by_name_is_used():
    assert not network(init="zeros").head.weight.any()


@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("aot_eager", {"norm": "layer"}),
        ("aot_eager", {"norm": "rms", "pool": "class_token", "dropout": "variational"}),
        # Without torch's decompositions, which inductor has, its BatchNorm can't go back through a transposition.
        ("aot_eager_decomp_partition", {"norm": "batch"}),
    ],
)
def test_compiles_without_graph_breaks(backend, settings):
    module = network(**settings, **EVERY_RATE)
    compiled = torch.compile(module, backend=backend, fullgraph=True)
    inputs = torch.randn(4, 1, 8, 8)
    compiled(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    module.eval()
    # Two orders of the same sums of less than 64 terms near 1.
    torch.testing.assert_close(compiled(inputs), module(inputs), rtol=1e-5, atol=64 * torch.finfo(torch.float32).eps)
    torch._dynamo.reset()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_autocast_leaves_gradients_in_full_precision(norm):
    module = network(norm=norm, **EVERY_RATE)
    with torch.autocast("cpu", torch.bfloat16):
        logits = module(torch.randn(4, 1, 8, 8))
    logits.float().sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    assert network(**EVERY_RATE).to(dtype)(torch.randn(4, 1, 8, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide embed_dim, which is 12, but is 5"),
        ({"patch_size": 3}, "patch_size must divide height and width, which are 8 and 8, but is 3"),
        ({"patch_size": 0}, "patch_size must be a whole number of at least 1, but is 0"),
        ({"input_shape": (64,)}, r"input_shape must be \(channels, height, width\) .* but is \(64,\)"),
        ({"depth": 0}, "depth must be a whole number of at least 1, but is 0"),
        ({"num_heads": 0}, "num_heads must be a whole number"),
        ({"embed_dim": 0}, "embed_dim must be a whole number"),
        ({"mlp_ratio": 0}, r"mlp_ratio must be in \(0, ∞\), but is 0"),
        ({"pool": "last"}, "pool must be one of mean, class_token"),
        ({"norm": "layr"}, "norm must be one of .* did you mean 'layer'"),
        ({"activation": "gello"}, "activation must be one of"),
        ({"dropout": "concrete"}, "dropout must be a layer of its own"),
        ({"drop_prob": 1.5}, r"drop_prob must be in \[0, 1\]"),
        ({"attention_drop_prob": 1.5}, r"attention_drop_prob must be in \[0, 1\]"),
        ({"stochastic_depth_prob": -0.1}, r"stochastic_depth_prob must be in \[0, 1\], but is -0.1"),
        ({"init": "xavier"}, "init must be one of"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        network(**settings)


@pytest.mark.parametrize("shape", [(2, 64), (2, 8, 8), (2, 1, 8, 16), (2, 3, 8, 8)])
def test_inputs_of_another_shape_are_refused_with_it(shape):
    wanted = rf"\(N, 1, 8, 8\), but have \({', '.join(map(str, shape))}\)"
    with pytest.raises(SettingError, match=wanted):
        network()(torch.zeros(shape))


def test_feed_forward_works_on_each_token_by_itself():
    module = FeedForward(4, 8, activation="silu", drop_prob=0.5).double().eval()
    inputs = tokens(2, 5, 4)
    alone = torch.stack([module(token) for token in inputs.unbind(1)], 1)
    torch.testing.assert_close(module(inputs), alone)
