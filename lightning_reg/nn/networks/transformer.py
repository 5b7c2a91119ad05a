"""Transformers over the patches of an image or over a sequence: pre-norm blocks of attention and feed-forward."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_reg.init.initialization import Initializer, initialize_
from lightning_reg.nn.factories import make_activation
from lightning_reg.nn.layers.dropout import StochasticDepth, linear_rates
from lightning_reg.nn.layers.layer_scale import LayerScale
from lightning_reg.nn.layers.token_dropout import TokenDropout
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.nn.networks.sequences import (
    SequencePool,
    make_sequence_dropout,
    make_sequence_norm,
    named_sequential,
)
from lightning_reg.nn.networks.tokens import TokenEmbedding
from lightning_reg.settings import SettingError, as_sequence, check_choice, check_count, check_range

__all__ = ["Attention", "FeedForward", "TransformerBlock", "transformer_network"]


class Attention(nn.Module):
    """Multi-head self-attention: every token gets a mean of all values, weighted by how well keys match its query.

    Each of the heads computes softmax(QKᵀ / √d) V with d = embed_dim / num_heads features of its own.

    Args:
        embed_dim: Width E of a token.
        num_heads: Number of heads; must divide ``embed_dim``.
        attention_drop_prob: Probability that an attention weight is dropped, in [0, 1].

    Raises:
        SettingError: If an argument is out of range, or the heads don't divide the width.

    Reference:
        Ashish Vaswani et al.: Attention Is All You Need, NeurIPS 2017, arXiv:1706.03762.

    >>> import torch
    >>> Attention(32, 4)(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(self, embed_dim: int, num_heads: int, *, attention_drop_prob: float = 0.0) -> None:
        super().__init__()
        check_count("embed_dim", embed_dim)
        check_count("num_heads", num_heads)
        check_range("attention_drop_prob", attention_drop_prob, low=0, high=1)
        if embed_dim % num_heads:
            raise SettingError(f"num_heads must divide embed_dim, which is {embed_dim}, but is {num_heads}")
        self.num_heads = num_heads
        self.attention_drop_prob = attention_drop_prob
        self.query = nn.Linear(embed_dim, embed_dim)
        self.key = nn.Linear(embed_dim, embed_dim)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)

    @override
    @traced_whole
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the transformed tokens.

        Args:
            inputs: Tokens (N, T, E).
        """
        query, key, value = (self._heads(layer(inputs)) for layer in (self.query, self.key, self.value))
        drop_prob = self.attention_drop_prob if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=drop_prob)  # (N, heads, T, d)
        outputs: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return outputs

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.view(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)  # (N, T, E) to (N, heads, T, d)

    @override
    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, attention_drop_prob={self.attention_drop_prob}"


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, for each token by itself.

    Args:
        embed_dim: Width of a token.
        hidden_dim: Width between the two layers.
        activation: Activation, see :func:`lightning_reg.nn.make_activation`.
        dropout: Dropout after the activation, see :func:`make_sequence_dropout`.
        drop_prob: Probability of that dropout, in [0, 1].

    Raises:
        SettingError: If an argument is out of range.

    >>> import torch
    >>> FeedForward(32, 128)(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        *,
        activation: str | Callable[[], nn.Module] = "gelu",
        dropout: str | Callable[[float], nn.Module] = "standard",
        drop_prob: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("embed_dim", embed_dim)
        check_count("hidden_dim", hidden_dim)
        self.expand = nn.Linear(embed_dim, hidden_dim)
        self.activation = make_activation(activation)
        self.dropout = make_sequence_dropout(dropout, drop_prob)
        self.contract = nn.Linear(hidden_dim, embed_dim)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the transformed tokens.

        Args:
            inputs: Tokens (N, T, E).
        """
        outputs: Tensor = self.contract(self.dropout(self.activation(self.expand(inputs))))
        return outputs


class TransformerBlock(nn.Module):
    """A pre-norm block: attention, then feed-forward, each on normalized tokens and each added to what came in.

    With the norm inside the branches, the residual path from the last block to the first is unobstructed, and training
    is stable without a warm-up of the learning rate.

    Args:
        embed_dim: Width E of a token.
        num_heads: Number of attention heads; must divide ``embed_dim``.
        hidden_dim: Width inside the feed-forward part.
        norm: Normalization at the beginning of each branch, see :func:`make_sequence_norm`.
        activation: Activation of the feed-forward part, see :func:`lightning_reg.nn.make_activation`.
        dropout: Dropout at the end of each branch and inside the feed-forward part, see
            :func:`make_sequence_dropout`.
        drop_prob: Probability of that dropout, in [0, 1].
        attention_drop_prob: Probability that an attention weight is dropped, in [0, 1].
        stochastic_depth_prob: Probability that a branch is dropped from a sample, in [0, 1].
        layer_scale: Initial value of a learned factor for each feature at the end of each branch, above 0, see
            :class:`lightning_reg.nn.LayerScale`; None for no factor.

    Raises:
        SettingError: If an argument is out of range, or the heads don't divide the width.

    Reference:
        Ruibin Xiong et al.: On Layer Normalization in the Transformer Architecture, ICML 2020, arXiv:2002.04745.

    >>> import torch
    >>> TransformerBlock(32, 4, hidden_dim=128, drop_prob=0.1)(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        hidden_dim: int,
        norm: str | Callable[[int], nn.Module] = "layer",
        activation: str | Callable[[], nn.Module] = "gelu",
        dropout: str | Callable[[float], nn.Module] = "standard",
        drop_prob: float = 0.0,
        attention_drop_prob: float = 0.0,
        stochastic_depth_prob: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_count("embed_dim", embed_dim)
        check_range("stochastic_depth_prob", stochastic_depth_prob, low=0, high=1)
        self.attention_norm = make_sequence_norm(norm, embed_dim)
        self.attention = Attention(embed_dim, num_heads, attention_drop_prob=attention_drop_prob)
        if layer_scale is not None:
            check_range("layer_scale", layer_scale, low=0, low_open=True)
        scale = None if layer_scale is None else (embed_dim, layer_scale)
        self.attention_end = _branch_end(dropout, drop_prob, stochastic_depth_prob, scale)
        self.feed_forward_norm = make_sequence_norm(norm, embed_dim)
        self.feed_forward = FeedForward(
            embed_dim, hidden_dim, activation=activation, dropout=dropout, drop_prob=drop_prob
        )
        self.feed_forward_end = _branch_end(dropout, drop_prob, stochastic_depth_prob, scale)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Returns the transformed tokens.

        Args:
            inputs: Tokens (N, T, E).
        """
        attended: Tensor = inputs + self.attention_end(self.attention(self.attention_norm(inputs)))
        outputs: Tensor = attended + self.feed_forward_end(self.feed_forward(self.feed_forward_norm(attended)))
        return outputs


def _branch_end(
    dropout: str | Callable[[float], nn.Module],
    drop_prob: float,
    stochastic_depth_prob: float,
    scale: tuple[int, float] | None,
) -> nn.Sequential:
    """Returns the end of a residual branch: dropout of features, their scale, then dropout of the whole branch."""
    layers: dict[str, nn.Module] = {"dropout": make_sequence_dropout(dropout, drop_prob)}
    if scale is not None:
        features, init_value = scale
        layers["layer_scale"] = LayerScale(features, init_value=init_value)
    layers["stochastic_depth"] = StochasticDepth(stochastic_depth_prob) if stochastic_depth_prob else nn.Identity()
    return named_sequential(layers)


def transformer_network(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    patch_size: int = 4,
    embed_dim: int = 64,
    depth: int = 4,
    num_heads: int = 4,
    mlp_ratio: float = 4.0,
    norm: str | Callable[[int], nn.Module] = "layer",
    activation: str | Callable[[], nn.Module] = "gelu",
    dropout: str | Callable[[float], nn.Module] = "standard",
    drop_prob: float = 0.0,
    attention_drop_prob: float = 0.0,
    stochastic_depth_prob: float = 0.0,
    token_drop_prob: float = 0.0,
    layer_scale: float | None = None,
    init: str | Initializer = "auto",
    pool: Literal["mean", "class_token"] = "mean",
) -> nn.Sequential:
    """Tokens with positions, pre-norm blocks, a last norm, pooling and one linear layer.

    Args:
        input_shape: (C, H, W) of one image or (T, F) of one sequence.
        num_outputs: Width of the last layer.
        patch_size: Height and width of a patch of an image; must divide those of the image.
        embed_dim: Width of a token.
        depth: Number of transformer blocks.
        num_heads: Number of heads of each attention; must divide ``embed_dim``.
        mlp_ratio: Width inside the feed-forward parts, in multiples of ``embed_dim``, positive.
        norm: Normalization, see :func:`make_sequence_norm`.
        activation: Activation of the feed-forward parts, see :func:`lightning_reg.nn.make_activation`.
        dropout: Dropout of the embedding, at the end of each branch and inside the feed-forward parts, see
            :func:`make_sequence_dropout`.
        drop_prob: Probability of that dropout, in [0, 1].
        attention_drop_prob: Probability that an attention weight is dropped, in [0, 1].
        stochastic_depth_prob: Probability that a branch of the last block is dropped, in [0, 1]; it rises linearly with
            depth.
        token_drop_prob: Share of tokens that is dropped before the first block, in [0, 1], see
            :class:`lightning_reg.nn.TokenDropout`; a class token stays.
        layer_scale: Initial value of a learned factor for each feature at the end of each branch, above 0, see
            :class:`lightning_reg.nn.LayerScale`; None for no factor.
        init: Initialization, see :func:`lightning_reg.init.initialization.initialize_`; ``"auto"`` is normal with σ =
            0.02.
        pool: Input of the last layer: the ``"mean"`` of all tokens, or a learned ``"class_token"``.

    Returns:
        A module from (N, *input_shape) to (N, num_outputs).

    Raises:
        SettingError: If a name is unknown, a number is out of range, or sizes don't divide each other.

    >>> import torch
    >>> network = transformer_network((1, 8, 8), 10, depth=2, norm="rms", stochastic_depth_prob=0.1)
    >>> network(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    input_shape = as_sequence("input_shape", input_shape)
    check_count("num_outputs", num_outputs)
    check_choice("pool", pool, ("mean", "class_token"))
    check_count("depth", depth)
    check_range("mlp_ratio", mlp_ratio, low=0, low_open=True)
    check_range("stochastic_depth_prob", stochastic_depth_prob, low=0, high=1)
    check_range("token_drop_prob", token_drop_prob, low=0, high=1)
    has_class_token = pool == "class_token"
    layers: dict[str, nn.Module] = {
        "embedding": TokenEmbedding(input_shape, embed_dim, patch_size=patch_size, class_token=has_class_token),
        "dropout": make_sequence_dropout(dropout, drop_prob),
    }
    if token_drop_prob:
        layers["token_dropout"] = TokenDropout(token_drop_prob, num_prefix_tokens=int(has_class_token))
    for index, rate in enumerate(linear_rates(stochastic_depth_prob, depth)):
        layers[f"block{index}"] = TransformerBlock(
            embed_dim,
            num_heads,
            hidden_dim=math.ceil(embed_dim * mlp_ratio),
            norm=norm,
            activation=activation,
            dropout=dropout,
            drop_prob=drop_prob,
            attention_drop_prob=attention_drop_prob,
            stochastic_depth_prob=rate,
            layer_scale=layer_scale,
        )
    layers["norm"] = make_sequence_norm(norm, embed_dim)
    layers["pool"] = SequencePool("mean" if pool == "mean" else "first")
    layers["head"] = nn.Linear(embed_dim, num_outputs)
    network = named_sequential(layers)
    initialize_(network, "small_normal" if init == "auto" else init, make_activation(activation))
    return network
