"""The tables of the decision guide, generated from the rules of the command line's advice."""

from collections.abc import Mapping
from typing import Any

from lightning_reg.cli.results.advice import REMEDIES, Situation

__all__ = ["tables"]

_MODEL: Mapping[str, Any] = {
    "hidden_sizes": [256, 128],
    "norm": "none",
    "activation": "relu",
    "drop_prob": 0.3,
    "label_smoothing": 0.0,
    "weight_decay": None,
}
_OVER: Mapping[str, Any] = {"signs": frozenset({"overfitting"}), "model": _MODEL, "max_epochs": 50}
_UNDER = {**_OVER, "signs": frozenset({"underfitting"}), "drop_prob": 0.3}
_SITUATIONS: Mapping[str, Mapping[str, Situation]] = {
    "overfitting": {
        "images": Situation(**_OVER, data={"augment": None, "mix": None}, is_image=True),
        "rows": Situation(**_OVER, data={"mix": None}, is_table=True),
    },
    "underfitting": {
        "images": Situation(**_UNDER, data={"augment": "basic", "mix": None}, is_image=True),
        "rows": Situation(**_UNDER, data={"mix": "RowCutMix"}, is_table=True),
    },
}


def tables() -> Mapping[str, str]:
    """Returns a table for each signal as Markdown."""
    return {sign: _table(sign, situations) for sign, situations in _SITUATIONS.items()}


def _table(sign: str, situations: Mapping[str, Situation]) -> str:
    rows = ["| what | append |", "|---|---|"]
    for remedy in REMEDIES[sign]:
        options = {kind: " ".join(remedy.options(situation)) for kind, situation in situations.items()}
        alike = len(set(options.values())) == 1
        told = [
            f"`{text}`" if alike else f"on {kind} `{text}`"
            for kind, text in options.items()
            if text and (not alike or kind == "images")
        ]
        rows.append(f"| **{remedy.name}**: {remedy.why} | {'<br>'.join(told)} |")
    return "\n".join(rows) + "\n"
