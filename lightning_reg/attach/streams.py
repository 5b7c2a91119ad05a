"""Random numbers that depend on where training stands, and on nothing else."""

import hashlib
from random import Random

__all__ = ["random_stream"]


def random_stream(*key: int | str) -> Random:
    """Returns a stream of random numbers for one key, such as (seed, rank, epoch, batch, technique).

    Equal keys give equal streams on every machine and in every run, different keys unrelated ones. So techniques
    don't disturb each other or the global stream, ranks differ, and a resumed run draws what the uninterrupted one
    would have, without any state to save.

    Args:
        key: Whole numbers and names that say where training stands.

    >>> random_stream(0, "mixup").random() == random_stream(0, "mixup").random()
    True
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return Random(int.from_bytes(digest, "big"))
