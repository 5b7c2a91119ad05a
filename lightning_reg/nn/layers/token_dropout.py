"""Dropout of whole tokens."""

from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.forward.tokens import gathered, kept_tokens
from lightning_reg.nn.layers.dropout import RatedLayer
from lightning_reg.nn.layers.stochastic import check_rank, uniform_from
from lightning_reg.nn.layers.tracing import traced_whole
from lightning_reg.settings import check_count

__all__ = ["TokenDropout"]


class TokenDropout(RatedLayer):
    """Removes tokens at random in training, so that what comes behind is computed of fewer; PatchDropout.

    Every sample keeps max(1, ⌊L(1 − p)⌋) of its L tokens, in their order, and the prefix. It has to come after
    positions are added. Nothing is rescaled. Inputs are (N, T, E), outputs (N, K, E); in evaluation all tokens stay.

    When to use: in transformers with many tokens whose neighbors are similar, such as patches of images: it saves time
    in training, and regularizes. When not: where every token has its own output.

    Args:
        p: Share of tokens that is dropped, in [0, 1].
        num_prefix_tokens: Number of tokens at the start that always stay, such as a class token.

    Raises:
        SettingError: If an argument is out of range, or the inputs have another rank.

    Reference:
        Yue Liu, Christos Matsoukas, Fredrik Strand, Hossein Azizpour, Kevin Smith: PatchDropout: Economizing Vision
        Transformers Using Patch Dropout, WACV 2023, arXiv:2208.07220.

    >>> import torch
    >>> layer = TokenDropout(0.5, num_prefix_tokens=1)
    >>> layer(torch.zeros(2, 9, 8)).shape, layer.eval()(torch.zeros(2, 9, 8)).shape
    (torch.Size([2, 5, 8]), torch.Size([2, 9, 8]))
    """

    def __init__(self, p: float = 0.5, *, num_prefix_tokens: int = 0) -> None:
        super().__init__(p)
        check_count("num_prefix_tokens", num_prefix_tokens, low=0)
        self.num_prefix_tokens = num_prefix_tokens

    @override
    @traced_whole
    def forward(self, inputs: Tensor, padding: Tensor | None = None) -> Any:
        """Returns the tokens that stay; with ``padding``, a pair of them and their entries of it.

        Args:
            inputs: (N, T, E).
            padding: (N, T), True where a token is padding, which doesn't count toward L.
        """
        kept = self.kept(inputs, padding) if self.training and not self.is_idle else None
        tokens = inputs if kept is None else gathered(inputs, kept)
        if padding is None:
            return tokens
        return tokens, padding if kept is None else gathered(padding, kept)

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        return gathered(inputs, self.kept(inputs))

    def kept(self, inputs: Tensor, padding: Tensor | None = None) -> Tensor:
        """Draws the tokens that stay, and returns their positions (N, K).

        Args:
            inputs: (N, T, E).
            padding: (N, T), True where a token is padding; None for no padding.
        """
        check_rank(self, inputs, "(N, T, E)", least=3, most=3)
        prefix = min(self.num_prefix_tokens, inputs.shape[1])
        uniform = uniform_from(self.stream, inputs, (len(inputs), inputs.shape[1] - prefix))
        behind = None if padding is None else padding[:, prefix:]
        return kept_tokens(uniform, self.p, prefix=prefix, padding=behind)

    @override
    def extra_repr(self) -> str:
        return f"p={self.p:.4g}, num_prefix_tokens={self.num_prefix_tokens}"
