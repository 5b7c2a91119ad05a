"""Independent random streams for layers, also inside a compiled graph."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_reg.functional.autograd import is_transformed
from lightning_reg.functional.bernoulli import bernoulli_int16
from lightning_reg.settings import SettingError

__all__ = ["NoiseStream", "draw", "mixed_seed"]


def draw(
    kind: str, like: Tensor, shape: Sequence[int], p: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Returns random numbers in the dtype and on the device of a tensor.

    Args:
        kind: Distribution: ``"bernoulli"`` (1 with probability ``p``, else 0; real where the tensor is complex),
            ``"uniform"`` on [0, 1), or ``"normal"`` (mean 0, variance 1). ``"bits"`` is ``"bernoulli"``, but of int16
            on the CPU, where that is several times faster.
        like: Tensor that the dtype and the device are taken from.
        shape: Shape of the result; if it is that of ``like``, the memory format is, too.
        p: Probability of a 1, for ``"bernoulli"``.
        generator: Source of random numbers; torch's global stream where None.

    >>> draw("bernoulli", torch.zeros(2), (3,), 1.0)
    tensor([1., 1., 1.])
    """
    if is_transformed():
        return _functional_draw(kind, like, shape, p, generator)
    if kind == "bits" and like.device.type == "cpu" and type(like) in (Tensor, nn.Parameter):  # a shard has its own way
        return _as_strided_like(bernoulli_int16(math.prod(shape), p, generator), like, shape)
    noise = _empty(like, shape, _dtype(kind, like))
    if kind in ("bernoulli", "bits"):
        return noise.bernoulli_(p, generator=generator)
    return noise.uniform_(generator=generator) if kind == "uniform" else noise.normal_(generator=generator)


def _functional_draw(
    kind: str, like: Tensor, shape: Sequence[int], p: float, generator: torch.Generator | None
) -> Tensor:
    """Draws as torch.vmap asks for by its ``randomness``, which fills no tensor in place that it doesn't map."""
    size, dtype, device = tuple(shape), _dtype(kind, like), like.device
    if kind in ("bernoulli", "bits"):
        return torch.bernoulli(torch.full(size, p, dtype=dtype, device=device), generator=generator)
    if kind == "uniform":
        return torch.rand(size, generator=generator, dtype=dtype, device=device)
    return torch.randn(size, generator=generator, dtype=dtype, device=device)


def _dtype(kind: str, like: Tensor) -> torch.dtype:
    return like.real.dtype if like.is_complex() and kind in ("bernoulli", "bits") else like.dtype


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    if tuple(shape) == tuple(like.shape):
        return torch.empty_like(like, dtype=dtype)
    return like.new_empty(shape, dtype=dtype)


def _as_strided_like(flat: Tensor, like: Tensor, shape: Sequence[int]) -> Tensor:
    if like.is_contiguous() or tuple(shape) != tuple(like.shape):
        return flat.view(shape)
    # The strides of empty_like, which drops gaps and overlaps.
    return flat.as_strided(shape, torch.empty_like(like, device="meta").stride())


_AMBIGUOUS = (
    "a random layer must not run several times in a step where activation checkpointing runs it again for the backward "
    "pass: which of its masks is to be repeated isn't known"
)


class NoiseStream:
    """A random stream whose draws depend only on a seed and on the number of draws since it was set.

    torch.compile can't trace a generator, so in compiled code the same numbers come from a custom operator.
    Where activation checkpointing runs a layer again in the backward pass, the draw of the forward pass is repeated.

    Args:
        on_cpu_only: Whether it is used by eager code on the CPU alone. Compiled code and GPUs then draw from torch's
            global stream, for which torch has fused kernels.

    >>> stream = NoiseStream()
    >>> stream.start(7)
    >>> first = stream.draw("normal", torch.zeros(2), (2,))
    >>> stream.start(7)
    >>> torch.equal(stream.draw("normal", torch.zeros(2), (2,)), first)
    True
    """

    def __init__(self, *, on_cpu_only: bool = False) -> None:
        self.on_cpu_only = on_cpu_only
        self._number = 0
        self._seed = torch.zeros((), dtype=torch.int64)  # for compiled code, where a new seed isn't a new graph
        self._draws = self._draws_before = 0
        self._is_ambiguous = False

    def start(self, seed: int) -> None:
        """Restarts the draws from a seed.

        Args:
            seed: Seed of at most 62 bits.
        """
        self._number = seed
        self._seed.fill_(seed)
        self._draws = 0
        self._is_ambiguous = False

    def advance(self) -> None:
        """Restarts the draws from the next seed, without recompilation."""
        self._number += 1
        self._seed.add_(1)
        self._draws = 0

    def rewind(self) -> None:
        """Prepares for a backward pass, in which checkpointed layers run again, compiled ones included."""
        self._draws_before = self._draws
        # The order in which several draws will be repeated is unknown.
        self._is_ambiguous = self._draws > 1
        self._draws = 0

    def go_on(self) -> None:
        """Continues after the backward pass, where the draws before it ended."""
        self._draws = self._draws_before
        self._is_ambiguous = False

    def serves(self, like: Tensor) -> bool:
        """Whether random numbers for a tensor come from this stream, rather than from torch's global one.

        Args:
            like: Tensor that the numbers are for.
        """
        return not self.on_cpu_only or (like.device.type == "cpu" and not torch.compiler.is_compiling())

    def draw(self, kind: str, like: Tensor, shape: Sequence[int], p: float | Tensor = 0.0) -> Tensor:
        """Returns the next random numbers, see :func:`draw`.

        Args:
            like: Tensor that the dtype and the device are taken from.
            p: Probability of a 1, for ``"bernoulli"`` and ``"bits"``; a number, or in compiled code a scalar tensor on
                the CPU.
        """
        like = like.detach()  # no gradient flows through it
        if torch.compiler.is_compiling():
            if self._is_ambiguous:
                raise SettingError(_AMBIGUOUS)
            index = self._draws
            self._draws += 1
            rate = p if isinstance(p, Tensor) else torch.tensor(p, dtype=torch.float64)
            noise: Tensor = _compiled_draw(kind, like, list(shape), rate, self._seed, index)
            return noise
        index = self._repeated() if torch._C._current_graph_task_id() != -1 else self._draws
        self._draws = max(self._draws, index + 1)
        return draw(kind, like, shape, float(p), _generator(like.device, self._number, index))

    def _repeated(self) -> int:
        """Returns the index of the draw that the backward pass repeats; checkpoints may be recomputed in any order."""
        if self._draws > 1 or self._is_ambiguous:
            raise SettingError(_AMBIGUOUS)
        return 0


def mixed_seed(seed: int, index: int) -> int:
    """Returns the seed of a generator for one draw of a stream.

    All of its bits depend on all bits of the arguments, because torch's CPU generator uses only 32. The finalizer is
    that of SplitMix64 (Guy L. Steele, Doug Lea, Christine H. Flood: Fast Splittable Pseudorandom Number Generators,
    OOPSLA 2014).

    Args:
        seed: Seed of the stream, a 64-bit number.
        index: Number of draws before this one.

    >>> mixed_seed(0, 0) % 2**32 == mixed_seed(2**40, 0) % 2**32
    False
    """
    mixed = (seed + (index + 1) * 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return (mixed ^ mixed >> 31) % 2**63


def _generator(device: torch.device, seed: int, index: int) -> torch.Generator:
    return torch.Generator(device).manual_seed(mixed_seed(seed, index))


@torch.library.custom_op(
    "lightning_reg::draw",
    mutates_args=(),
    schema="(str kind, Tensor like, SymInt[] shape, Tensor p, Tensor seed, int index) -> Tensor",
)
def _compiled_draw(kind: str, like: Tensor, shape: list[int], p: Tensor, seed: Tensor, index: int) -> Tensor:
    return draw(kind, like, shape, float(p), _generator(like.device, int(seed), index))


@_compiled_draw.register_fake
def _(kind: str, like: Tensor, shape: list[int], _p: Tensor, _seed: Tensor, _index: int) -> Tensor:
    is_short = kind == "bits" and like.device.type == "cpu"
    return _empty(like, shape, torch.int16 if is_short else _dtype(kind, like))
