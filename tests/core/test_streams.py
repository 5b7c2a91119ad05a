import random

from lightning_reg.core.streams import random_stream


def test_equal_keys_give_equal_streams_and_others_do_not():
    draws = {key: random_stream(*key).random() for key in [(0, 1, 2), (0, 1, 3), (1, 0, 2), (0, "1", 2), (0, 12)]}
    assert len(set(draws.values())) == len(draws)
    assert random_stream(0, 1, 2).random() == draws[0, 1, 2]


def test_draws_are_the_same_on_every_machine():
    """A resume on another machine has to go on with the same numbers."""
    assert random_stream(0, "mixup").getrandbits(32) == 422933729


def test_global_stream_is_left_alone():
    state = random.getstate()
    random_stream(1).random()
    assert random.getstate() == state
