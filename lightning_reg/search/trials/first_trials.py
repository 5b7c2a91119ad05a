"""Trials that precede the sampler's proposals."""

from dataclasses import dataclass

from lightning_reg.search.spaces.space import Cocktail, Space

__all__ = ["First", "alone", "first_trials"]


@dataclass(frozen=True)
class First:
    """A cocktail that is tried before the sampler proposes any.

    Attributes:
        kind: ``plain``, ``base``, ``preset`` or ``alone``.
        name: Name of the trial.
        cocktail: The cocktail; None for the unchanged base.
    """

    kind: str
    name: str
    cocktail: Cocktail | None


def first_trials(space: Space, trials: int, *, has_base: bool) -> list[First]:
    """Returns the first trials: at most a third of the budget, but always the plain run and the base.

    Args:
        trials: Number of trials in the budget.
        has_base: Whether the base differs from the plain run, in which all switches are off.
    """
    always = [First("plain", "plain", {}), *([First("base", "base", None)] if has_base else [])]
    presets = [First("preset", name, cocktail) for name, cocktail in space.presets.items()]
    return [*always, *presets, *alone(space)][: max(trials // 3, len(always))]


def alone(space: Space) -> list[First]:
    """Returns each technique alone at its usual strength, in the order of the space."""
    return [First("alone", f"{switch.title} alone", space.alone(name)) for name, switch in space.switches.items()]
