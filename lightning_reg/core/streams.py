"""Random numbers that depend only on the position in training."""

import hashlib
import os
from random import Random

from lightning_reg.settings import check_count

__all__ = ["base_seed", "check_seed", "random_stream"]

_LARGEST = 2**63 - 1  # that torch's generators take


def check_seed(seed: int | None) -> None:
    """Raises if a seed is invalid.

    Args:
        seed: Seed of a technique; None stands for that of ``seed_everything``.

    Raises:
        SettingError: If it isn't an integer of at least 0 that torch's generators take.
    """
    if seed is not None:
        check_count("seed", seed, low=0)
        check_count("seed", seed, low=0, high=_LARGEST)


def base_seed(seed: int | None) -> int:
    """Returns the seed that a run's random numbers start from.

    Args:
        seed: Seed of a technique; if None, that of ``seed_everything``, or 0 if that wasn't called.

    >>> base_seed(3)
    3
    """
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed


def random_stream(*key: int | str) -> Random:
    """Returns a stream of random numbers for one key, such as (seed, rank, epoch, batch, technique).

    Equal keys give equal streams on every machine and in every run, different keys unrelated ones. So techniques
    don't disturb each other or the global stream, ranks differ, and a resumed run draws what the uninterrupted one
    would have, without any state to save.

    Args:
        key: Integers and names that identify the position in training.

    >>> random_stream(0, "mixup").random() == random_stream(0, "mixup").random()
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))
