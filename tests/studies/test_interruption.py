"""Ctrl-C never leaves anything half done."""

import signal
import threading

import pytest

from lightning_reg.studies.claims import Claim, Claims
from lightning_reg.studies.execution import execute
from lightning_reg.studies.interruption import deferred_interrupts, ignored_interrupts
from tests.studies.helpers import do, make_runs, noted, open_store


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("owner", "method", "moment", "finished"),
    [(Claims, "take", "after", 0), (Claim, "__enter__", "before", 0), (Claim, "__exit__", "before", 1)],
)
def test_a_run_is_given_back_when_ctrl_c_comes_around_it(tmp_path, monkeypatch, owner, method, moment, finished):
    whole = getattr(owner, method)

    def interrupted(*args):
        if moment == "before":
            press_ctrl_c()
        result = whole(*args)
        if moment == "after":
            press_ctrl_c()
        return result

    store, runs = open_store(tmp_path / "study"), make_runs(2)
    with monkeypatch.context() as patched:
        patched.setattr(owner, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(runs, store, do, quiet=True)
    assert not list(store.folder.glob("runs/*/claim-*"))
    assert sum(map(store.has_result, runs)) == finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert execute(runs, store, do, quiet=True) == []
    assert [seed for seed, _ in noted(store)] == [0, 1]


def test_an_interrupt_waits_for_the_end_also_behind_an_exception():
    def fail():
        with deferred_interrupts():
            press_ctrl_c()
            raise ValueError("first")

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert str(caught.value.__context__) == "first"


def test_an_interruptible_part_is_interrupted_at_once_and_what_follows_is_not():
    done = []

    def press_twice():
        with deferred_interrupts() as interruptible:
            try:
                with interruptible():
                    press_ctrl_c()
                    done.append("too much")
            finally:
                press_ctrl_c()
                done.append("given back")

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert done == ["given back"]


def test_in_another_thread_and_without_an_exception_nothing_changes():
    seen = []

    def look():
        with deferred_interrupts() as interruptible, interruptible(), ignored_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
    with ignored_interrupts():
        with deferred_interrupts():
            press_ctrl_c()
        press_ctrl_c()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
