"""How a technique is attached, and what it means by hand: what tests of techniques hand to the conformance suite.

A test module of a callback that has a ``CONFORMANCE``, a dict of :class:`Technique` by name, is collected by
``tests/conformance/techniques.py``. A name is that of the callback, and perhaps a word more.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning.pytorch import Callback

from lightning_reg.callbacks import StrengthSchedule
from tests.conformance.problem import Network, Textbook

OFF = StrengthSchedule(kind="constant", end=0.0)
UNTRAINED = ("network.frozen.*",)
UNRUN = ("network.unused",)


@dataclass
class Technique:
    """How to attach it, and what it means by hand.

    Attributes:
        attach: Makes the callback.
        idle: Makes it with a strength at which it does nothing; where it has none, on what isn't trained.
        textbook: What it is by hand.
        second: Makes an idle one that can stand beside it; where None, ``idle``.
        clips: Whether it refuses to stand beside the Trainer's clipping.
        compiles: Whether it can act on compiled networks; else it refuses them.
        prepare: What the user's network has that others haven't.
        changed: Beginning of the names of the modules that it changes for good.
    """

    attach: Callable[[], Callback | list[Callback]]
    idle: Callable[[], Callback | list[Callback]]
    textbook: Textbook = field(default_factory=Textbook)
    second: Callable[[], Callback] | None = None
    clips: bool = False
    compiles: bool = True
    prepare: Callable[[Network], None] | None = None
    changed: str = ""

    def attached(self):
        """Callbacks that haven't been used."""
        return as_list(self.attach())


def as_list(attached):
    """Some techniques only mean something beside another."""
    return attached if isinstance(attached, list) else [attached]


def penalty(term):
    return Textbook(term=lambda model, *_: term(model))
