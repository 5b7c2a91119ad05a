"""The page of the training step: a diagram of its places, and the techniques that act there, from declared facts."""

from collections.abc import Iterable, Mapping

import generate

from lightning_reg.core.facts import Place, Position
from lightning_reg.core.technique import Technique

__all__ = ["page"]

_WIDTH, _HEIGHT, _GAP, _LEFT = 250, 56, 30, 75
_PLACES = (Place.BATCH, Place.FORWARD, Place.LOSS, Place.GRADIENT, Place.WEIGHTS)
_BETWEEN = {Place.LOSS: "backward()", Place.GRADIENT: "optimizer.step()"}
_INSIDE = {
    Place.BATCH: "inputs and targets",
    Place.FORWARD: "activations, weights in use",
    Place.LOSS: "a term more",
    Place.GRADIENT: "between backward and step",
    Place.WEIGHTS: "parameters after the step",
    Place.RUN: "when training ends, and with what",
}
_TOP = 100
_BEFORE = {
    Position.SHARPNESS: "replaces the gradient of the loss by that of worse weights nearby, before anything is added",
    Position.PENALTY: "adds its gradient to the loss's; where it is proximal, shrinks weights right behind the step",
    Position.CENTRALIZATION: "takes the mean of what the loss and the penalties came to",
    Position.NOISE: "is added last, so that nothing averages it out",
    Position.MEASUREMENT: "watches: gradients before clipping, and behind the step what it has changed",
    Position.CLIPPING: "bounds what has come together",
}
_BEHIND = {
    Position.CONSTRAINT: "acts where the optimizer and the penalties have moved weights, before updates are measured",
    Position.LOOKAHEAD: "goes back a part of the way",
    Position.AVERAGING: "sees the weights as the batch leaves them",
    Position.RESTORING: "has the last word, when training has ended",
}


def page() -> str:
    """Returns the page as Markdown."""
    parts = [
        "# The step",
        "Every technique acts in one place of the training step, and says which. Click on a place: who acts there?",
        "::::{div} step-page",
        f":::{{div}} step-drawing\n```{{raw}} html\n{_drawing()}\n```\n:::",
        ":::{div} step-places",
        *(_section(place) for place in (*_PLACES, Place.RUN)),
        ":::\n::::",
        _order(),
    ]
    return "\n\n".join(parts) + "\n"


def _of(place: Place) -> list[type[Technique]]:
    chosen = [technique for technique in generate.techniques() if technique.place is place]
    return sorted(chosen, key=lambda technique: (technique.position, technique.__name__))


def _section(place: Place) -> str:
    title = f"(step-{place.value})=\n## {place.value.capitalize()}: {generate.PLACES[place]}"
    return "\n\n".join([title, _list(_of(place))])


def _list(techniques: Iterable[type[Technique]]) -> str:
    # Links formatted as code, as in the lists of the API.
    return "\n".join(f"- {_link(technique)}: {generate.first_sentence(technique)}" for technique in techniques)


def _link(technique: type[Technique]) -> str:
    return f"[`{technique.__name__}`](../cards/{technique.__name__}.md)"


def _order() -> str:
    """Returns the section with the order of actions around the optimizer's step."""
    everybody = [*generate.techniques(), *generate.monitors()]

    def rows(order: Mapping[Position, str]) -> list[str]:
        who = {position: [kind for kind in everybody if kind.position is position] for position in order}
        return [f"| {', '.join(map(_link, who[position]))} | {what} |" for position, what in order.items()]

    table = [
        "| who, in this order | what |",
        "|---|---|",
        *rows(_BEFORE),
        "| **the optimizer's step** | |",
        *rows(_BEHIND),
    ]
    text = (
        "Around the optimizer's step there is an order, and it is the same whatever the order of the user's list: each "
        "class declares its `position`, and `core/step.py` goes through them. What acts on batches, layers and the "
        "loss has none."
    )
    return "\n\n".join(["## The order around the step", text, "\n".join(table)])


def _drawing() -> str:
    ys = {place: _TOP + index * (_HEIGHT + _GAP) for index, place in enumerate(_PLACES)}
    bottom = ys[Place.WEIGHTS] + _HEIGHT
    middle = _LEFT + _WIDTH / 2
    lines = [
        f'<svg viewBox="0 0 350 {bottom + 30}" role="img" aria-label="The training step: batch, forward, loss, '
        'gradient, weights, and the run around them" xmlns="http://www.w3.org/2000/svg">',
        '<defs><marker id="step-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" class="step-tip"/></marker></defs>',
        f'<rect x="6" y="10" width="338" height="{bottom + 10}" rx="14" class="step-frame"/>',
        _place(Place.RUN, 24, 24, 302),
    ]
    for place, y in ys.items():
        lines.append(_place(place, _LEFT, y, _WIDTH))
        if place is not Place.WEIGHTS:
            lines.append(_arrow(f"M{middle} {y + _HEIGHT} v{_GAP - 3}"))
        if place in _BETWEEN:
            lines.append(f'<text x="{middle + 10}" y="{y + _HEIGHT + 19}" class="step-call">{_BETWEEN[place]}</text>')
    first, last = ys[Place.BATCH] + _HEIGHT / 2, ys[Place.WEIGHTS] + _HEIGHT / 2
    lines.append(_arrow(f"M{_LEFT} {last} h-28 q-14 0 -14 -14 V{first + 14} q0 -14 14 -14 h25"))
    y = (first + last) / 2
    lines.append(
        f'<text x="26" y="{y}" class="step-call" text-anchor="middle" transform="rotate(-90 26 {y})">next batch'
    )
    return "\n".join([*lines, "</text>", "</svg>"])


def _place(place: Place, x: int, y: int, width: int) -> str:
    count = len(_of(place))
    counted = "1 callback" if count == 1 else f"{count} callbacks"
    return (
        f'<a href="#step-{place.value}" class="step-place" aria-label="{place.value}: {counted}">'
        f'<rect x="{x}" y="{y}" width="{width}" height="{_HEIGHT}" rx="9"/>'
        f'<text x="{x + 14}" y="{y + 24}" class="step-name">{place.value}</text>'
        f'<text x="{x + width - 14}" y="{y + 24}" text-anchor="end" class="step-count">{counted}</text>'
        f'<text x="{x + 14}" y="{y + 43}" class="step-what">{_INSIDE[place]}</text></a>'
    )


def _arrow(path: str) -> str:
    return f'<path d="{path}" class="step-arrow" marker-end="url(#step-tip)"/>'
