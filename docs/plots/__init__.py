"""One plot for the page of each technique, drawn when the site is built, of what the technique itself computes.

Who draws is found by class: a family's function (of all weight penalties, say) serves its members, and that of the
place of the step serves who has no other. So a new technique has a plot from its first day: of two weights in a valley,
of a loss over its logit, of maps, of samples, of the charts that it declares.
"""

import hashlib
import json
from pathlib import Path

import figures
import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from lightning_reg.core.technique import Technique
from plots import batch, forward, gradient, layers, loss, run, weights  # noqa: F401  they register what they draw
from plots.registry import drawer

__all__ = ["STYLE", "WITHOUT", "draw", "write"]

# Whose page has no plot, and why.
WITHOUT = {"RegularizationAudit": "what it shows is a table, which its card has"}
STYLE = {**figures.STYLE, "figure.constrained_layout.use": False, "font.size": 9}
_SIZE = (4.8, 2.5)  # inches: letters are read on a phone, too


def draw(kind: type[Technique]) -> tuple[Figure, str]:
    """Returns a technique's plot, and the sentence below it.

    Args:
        kind: The technique's class.

    Raises:
        LookupError: If nothing draws it.
    """
    by = drawer(kind)
    if by is None:
        raise LookupError(f"nothing draws {kind.__name__}: register a function in docs/plots")
    figure = Figure(figsize=_SIZE, layout="constrained")
    with figures.undisturbed():
        return figure, by(kind, figure)


def write(folder: Path, kinds: list[type[Technique]], library: str) -> dict[str, str]:
    """Writes each plot for light and for dark pages, where the library or what draws has changed.

    Args:
        folder: Where to.
        kinds: Whose plots.
        library: A digest of the library's code.

    Returns:
        The sentences below them, by the techniques' names.
    """
    sources = sorted([*Path(__file__).parent.glob("*.py"), Path(figures.__file__)])
    drawn = {"by": hashlib.sha256(b"".join([library.encode(), *(file.read_bytes() for file in sources)])).hexdigest()}
    captions = folder / "captions.json"
    if captions.exists():
        known: dict[str, str] = json.loads(captions.read_text(encoding="utf-8"))
        if known["by"] == drawn["by"]:
            return known
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for kind in kinds:
        if kind.__name__ not in WITHOUT:
            with mpl.rc_context(STYLE):
                figure, drawn[kind.__name__] = draw(kind)
                figures.written(figure, folder / kind.__name__)
    captions.write_text(json.dumps(drawn, indent=1, ensure_ascii=False), encoding="utf-8")
    return drawn
