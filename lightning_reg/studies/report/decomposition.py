"""Bias and variance of a study's variants: computed by its runs, or from their predictions."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from lightning_reg.functional.measures.generalization import decompose_squared_error, decompose_zero_one_error
from lightning_reg.studies.outcome import Outcome, collected
from lightning_reg.studies.statistics import mean_and_error

__all__ = ["Parts", "parts_of"]


@dataclass(frozen=True)
class Parts:
    """The parts of the error of each variant.

    Attributes:
        label: Name of the error.
        variants: Names of the variants, in the order of all lists below.
        stacked: Values of each part, by its name; the parts sum to the expected error.
        measured: Measured error of each variant.
        errors: Standard error of each measured error.
        notes: Values of further quantities, by their names.
    """

    label: str
    variants: list[str]
    stacked: dict[str, list[float]]
    measured: list[float]
    errors: list[float]
    notes: dict[str, list[float]]

    @property
    def names(self) -> list[str]:
        """Names of the parts."""
        return list(self.stacked)


def parts_of(outcome: Outcome) -> Parts | None:
    """Returns the parts of the error; None if the results don't provide them."""
    squared = collected(outcome, "decomposition")
    if squared:
        return _squared(squared)
    predicted = {
        variant: runs
        for variant, runs in collected(outcome, "predictions").items()
        if len(runs) > 1 and all(run["targets"] == runs[0]["targets"] for run in runs)
    }
    values = {variant: runs for variant, runs in predicted.items() if "values" in runs[0]}
    if values:
        return _squared_of(values)
    return _zero_one(predicted) if predicted else None


def _squared(found: dict[str, list[Any]]) -> Parts:
    def mean(variant: str, key: str) -> float:
        return mean_and_error([entry[key] for entry in found[variant]])[0]

    names = {"bias²": "bias_squared", "variance": "variance", "noise": "noise"}
    return Parts(
        "mean squared error",
        list(found),
        {name: [mean(variant, key) for variant in found] for name, key in names.items()},
        [mean(variant, "error") for variant in found],
        # The standard error of a mean over seeds, from that of each seed.
        [math.hypot(*(run["error_standard_error"] for run in runs)) / len(runs) for runs in found.values()],
        {},
    )


def _squared_of(found: dict[str, list[Any]]) -> Parts:
    predicted = {
        name: torch.tensor([run["values"] for run in runs], dtype=torch.float64) for name, runs in found.items()
    }
    targets = {name: torch.tensor(runs[0]["targets"], dtype=torch.float64) for name, runs in found.items()}
    parts = {name: decompose_squared_error(values, targets[name], noise=0.0) for name, values in predicted.items()}
    errors = {name: (values - targets[name]).square().mean(1).tolist() for name, values in predicted.items()}
    return Parts(
        "mean squared error",
        list(found),
        {
            "bias² and noise": [part.bias_squared.item() for part in parts.values()],
            "variance": [part.variance.item() for part in parts.values()],
        },
        [mean_and_error(error)[0] for error in errors.values()],
        [mean_and_error(error)[1] for error in errors.values()],
        {},
    )


def _share_wrong(classes: list[int], targets: list[int]) -> float:
    return sum(one != other for one, other in zip(classes, targets, strict=True)) / len(targets)


def _zero_one(found: dict[str, list[Any]]) -> Parts:
    parts = {
        variant: decompose_zero_one_error(
            torch.tensor([run["classes"] for run in runs]), torch.tensor(runs[0]["targets"])
        )
        for variant, runs in found.items()
    }
    wrong = {name: [_share_wrong(run["classes"], run["targets"]) for run in runs] for name, runs in found.items()}
    # The stacked parts sum to the error: the variance on biased samples, which corrects errors, reduces the bias.
    return Parts(
        "share of wrong answers",
        list(found),
        {
            "bias that stays": [(part.bias - part.biased_variance).item() for part in parts.values()],
            "variance": [part.unbiased_variance.item() for part in parts.values()],
        },
        [part.error.item() for part in parts.values()],
        [mean_and_error(values)[1] for values in wrong.values()],
        {
            "bias": [part.bias.item() for part in parts.values()],
            "errors that variance undoes": [part.biased_variance.item() for part in parts.values()],
        },
    )
