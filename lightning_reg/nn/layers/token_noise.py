"""Noise on token embeddings."""

from torch import Tensor
from typing_extensions import override

from lightning_reg.functional.forward.token_noise import embedding_noise
from lightning_reg.nn.layers.stochastic import StochasticLayer, check_rank
from lightning_reg.settings import check_range

__all__ = ["TokenNoise"]


class TokenNoise(StochasticLayer):
    """Adds uniform noise to token embeddings, scaled by their number and their width (NEFTune).

    Inputs are (N, T, E) or (T, E).

    Args:
        alpha: Strength α, at least 0: the noise is α/√(L·E) times a uniform number in [-1, 1].

    Attributes:
        lengths: (N,), number of tokens L of each sample; T where None.

    Raises:
        SettingError: If ``alpha`` is out of range, or inputs have fewer dimensions.

    Reference:
        Neel Jain et al.: NEFTune: Noisy Embeddings Improve Instruction Finetuning, ICLR 2024, arXiv:2310.05914.

    >>> TokenNoise(5.0)
    TokenNoise(alpha=5.0)
    """

    def __init__(self, alpha: float = 5.0) -> None:
        super().__init__()
        check_range("alpha", alpha, low=0)
        self.alpha = alpha
        self.lengths: Tensor | None = None

    @property
    @override
    def is_idle(self) -> bool:
        return self.alpha == 0

    @override
    def perturb(self, inputs: Tensor) -> Tensor:
        check_rank(self, inputs, "(N, T, E) or (T, E)", least=2)
        return embedding_noise(inputs, self.draw("uniform", inputs, inputs.shape), self.alpha, lengths=self.lengths)

    @override
    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
