"""A transformer with pluggable normalization, activation, dropout and initialization."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from lightning_reg.models.supervised import Supervised
from lightning_reg.nn import transformer_network

__all__ = ["TransformerClassifier"]


class TransformerClassifier(Supervised):
    """A pre-norm transformer that classifies images, cut into patches, or sequences.

    Tokens with learned positions; blocks of multi-head attention and feed-forward, each with a norm before it and a
    residual connection around it; a last norm, pooling and a linear layer.

    Args:
        input_shape: (channels, height, width) of an image or (time, features) of a sequence; taken from the data
            module on the command line.
        patch_size: Height and width of a patch of an image; must divide those of the image. Sequences have none.
        embed_dim: Width of a token.
        depth: Number of transformer blocks.
        num_heads: Heads of each attention; must divide ``embed_dim``.
        mlp_ratio: Width inside the feed-forward parts, in multiples of ``embed_dim``, positive.
        norm: Normalization: layer, rms (each token by itself), none, batch, ghost_batch, group, instance,
            filter_response (over tokens, too), or any callable from the number of features to a module.
        activation: none, relu, leaky_relu, elu, selu, gelu, silu, mish, tanh, sigmoid, or any callable that returns a
            module.
        dropout: Kind of dropout of the embedding, at the end of each branch and inside the feed-forward parts:
            standard, variational (a feature is dropped from all tokens), alpha, gaussian, or any callable from the
            probability to a module.
        drop_prob: Probability of that dropout, in [0, 1].
        attention_drop_prob: Probability that an attention weight is dropped, in [0, 1].
        stochastic_depth_prob: Probability that a branch of the last block is dropped for a sample, in [0, 1]; those
            before it have less, linearly.
        token_drop_prob: Share of tokens that is dropped before the first block in training, in [0, 1]; a class token
            stays.
        layer_scale: Initial value of a learned factor for each feature at the end of each branch, above 0: 0.1 is usual
            for 12 blocks, 1e-4 for 24 and more; None for no factor.
        init: Initialization: auto (normal with σ = .02), default (torch's), zeros, uniform, normal, truncated_normal,
            small_normal, xavier_normal, xavier_uniform, kaiming_normal, kaiming_uniform, kaiming_normal_fan_out,
            kaiming_uniform_fan_out, lecun_normal, orthogonal, lsuv (orthogonal, scaled by the first training batch), or
            a function that fills a weight tensor in place.
        pool: Input of the last linear layer: the ``"mean"`` of all tokens, or a learned ``"class_token"``.
        settings: Arguments of :class:`Supervised` other than ``network``.

    Raises:
        SettingError: If a name is unknown, a number is out of range, sizes don't divide each other, or inputs have
            another shape than ``input_shape``.

    Reference:
        Ashish Vaswani et al.: Attention Is All You Need, NeurIPS 2017, arXiv:1706.03762. Pre-norm: Ruibin Xiong et
        al., ICML 2020, arXiv:2002.04745. Patches: Alexey Dosovitskiy et al., ICLR 2021, arXiv:2010.11929. Dropout of
        tokens: Yue Liu et al., WACV 2023, arXiv:2208.07220.

    >>> import torch
    >>> module = TransformerClassifier(input_shape=(1, 8, 8), num_classes=10, patch_size=2, depth=2, norm="rms")
    >>> module(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    structure = ("activation", "norm", "pool", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
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
        init: str | Callable[[Tensor], Any] = "auto",
        pool: Literal["mean", "class_token"] = "mean",
        **settings: Any,
    ) -> None:
        network: Any = partial(
            transformer_network,
            input_shape,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            norm=norm,
            activation=activation,
            dropout=dropout,
            drop_prob=drop_prob,
            attention_drop_prob=attention_drop_prob,
            stochastic_depth_prob=stochastic_depth_prob,
            token_drop_prob=token_drop_prob,
            layer_scale=layer_scale,
            init=init,
            pool=pool,
        )
        super().__init__(network, input_shape=input_shape, **settings)
