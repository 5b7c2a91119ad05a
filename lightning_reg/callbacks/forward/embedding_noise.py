"""Noise on the token embeddings of an existing network."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.forward.insertion import StochasticSession, inserted
from lightning_reg.callbacks.forward.surgery import Surgery
from lightning_reg.core.facts import Linear
from lightning_reg.core.step import Run
from lightning_reg.core.streams import check_seed
from lightning_reg.nn.insertion import Insertion
from lightning_reg.nn.layers.token_noise import TokenNoise
from lightning_reg.settings import SettingError, check_count, check_range

__all__ = ["EmbeddingNoise"]


class EmbeddingNoise(Surgery):
    """Adds uniform noise to the token embeddings of an existing network in training (NEFTune).

    What it does: what the chosen embedding layers return becomes e + α/√(L·d)·U(−1, 1), with L the number of a sample's
    tokens and d their width. Where the layer has a ``padding_idx``, or ``padding`` is given, tokens of padding don't
    count for L. Nothing is added to the module's children or its checkpoints; evaluation is left alone.

    When to use: in fine-tuning language models on small sets of instructions or texts. When not: on position
    embeddings, which ``exclude`` leaves out; in pretraining on much data, where it has not been seen to help.

    Cost: one pass over the embeddings, and as many random numbers. No state.

    Interacts with: ``InsertDropout`` behind the same layers: both act. Its random numbers depend on seed, rank, epoch
    and batch, so that resumed runs are exact and processes differ.

    Args:
        alpha: Strength α of the noise, at least 0; 5 to 15 is usual.
        include: Globs over names of modules that return (N, T, d) or (T, d); all ``nn.Embedding`` where empty.
        exclude: Globs over names of modules that are left out.
        padding: Index of the padding token; each embedding layer's ``padding_idx``, if it has one, where None.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If ``alpha`` is out of its range, a pattern matches nothing, there is no embedding layer, or a
            chosen module returns no tokens.

    Reference:
        Neel Jain, Ping-yeh Chiang, Yuxin Wen, John Kirchenbauer, Hong-Min Chu, Gowthami Somepalli, Brian R. Bartoldson,
        Bhavya Kailkhura, Avi Schwarzschild, Aniruddha Saha, Micah Goldblum, Jonas Geiping, Tom Goldstein: NEFTune:
        Noisy Embeddings Improve Instruction Finetuning, ICLR 2024, arXiv:2310.05914.

    >>> EmbeddingNoise(alpha=5.0, include=("*.embed_tokens",)).alpha
    5.0
    """

    suited = "Embedding"
    usual_ranges = (Linear("alpha", 1.0, 15.0),)

    def __init__(
        self,
        *,
        alpha: float = 5.0,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        padding: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_range("alpha", alpha, low=0)
        check_seed(seed)
        if padding is not None:
            check_count("padding", padding, low=0)
        super().__init__(include=include or ("*",), exclude=exclude, types=())
        self.alpha = alpha
        self.padding = padding
        self.seed = seed

    @override
    def suits(self, module: nn.Module) -> bool:
        return self.include != ("*",) or isinstance(module, nn.Embedding)  # modules that are named may be of any type

    @override
    def selected(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        if self.include == ("*",) and not any(isinstance(module, nn.Embedding) for module in pl_module.modules()):
            raise SettingError(
                "include must choose modules of type Embedding, but there is none; name modules that return tokens"
            )
        return super().selected(pl_module)

    @override
    def new_session(self, run: Run) -> StochasticSession:
        session = inserted(self, run, lambda *_: TokenNoise(self.alpha), seed=self.seed, insertion=_BehindTokens)
        for hook in session.acting.values():
            if isinstance(hook, _BehindTokens):
                hook.padding = self.padding
        return session


class _BehindTokens(Insertion):
    """Counts the tokens that aren't padding, which only the layer's input shows."""

    padding: int | None = None

    @override
    def __call__(self, host: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any = None) -> Any:
        padding = getattr(host, "padding_idx", None) if self.padding is None else self.padding
        tokens = next((entry for entry in (*inputs, *named.values()) if isinstance(entry, Tensor)), None)
        layer: Any = self.layer
        if padding is not None and tokens is not None and not tokens.is_floating_point():
            layer.lengths = tokens.ne(padding).sum(-1)
        try:
            return super().__call__(host, inputs, named, output)
        finally:
            layer.lengths = None
