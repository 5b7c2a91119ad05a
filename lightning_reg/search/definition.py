"""The definition of a search, read from its file and validated before anything runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from lightning_reg.core.metric_names import lower_is_better
from lightning_reg.files import read_yaml
from lightning_reg.search.spaces.space import Space
from lightning_reg.search.spaces.space_file import read_space
from lightning_reg.settings import SettingError, check_choice, check_count, check_range, did_you_mean
from lightning_reg.studies.definition import Piece, check_seed_count, pieces
from lightning_reg.studies.runs import key_of

__all__ = ["KEYS", "SearchDefinition", "read_search"]

KEYS: Mapping[str, str] = {
    "title": "what the report begins with; the file's name where left out",
    "base": "what is trained: a configuration's path, settings by name, or a list of these; options of fit follow",
    "space": "tabular, tabular_small, image, attach, a file, or a space itself",
    "exclude": "switches that are left out",
    "only": "the switches that are tried, instead of all",
    "metric": "as it is logged in validation",
    "better": "whether lower or higher values are better; the metric's name tells where left out",
    "trials": "how many; 60 where left out",
    "minutes": "after how long no trial is begun any more",
    "folds": "on how many validation splits a trial is measured; five below 2,000 training samples, else one",
    "seed": "of the sampler and the splits; 0 where left out",
    "prune": "whether a trial may be ended by its first folds, of which there are at least four; false where left out",
    "max_step_time": "how many times as long as the plain one a training step may take",
    "confirm": "how many fresh seeds the confirmation has; 5 where left out, 0 for none",
    "quick": "what --quick changes: any of these but title, space and quick; base is appended",
}
_QUICK = tuple(key for key in KEYS if key not in ("title", "space", "quick"))
_FEWEST_TO_PRUNE = 4  # three can't be significant at p < 0.1


@dataclass(frozen=True)
class SearchDefinition:
    """The settings of a search.

    Attributes:
        name: Name of the search, used for its folder.
        title: Title of the report.
        base: Pieces of the base configuration.
        metric: Metric to optimize, as logged in validation.
        prefers_less: Whether lower values of the metric are better.
        trials: Number of trials, at least 3.
        minutes: Time in minutes after which no new trial starts; unlimited if None.
        folds: Number of validation splits that a trial is evaluated on; chosen by the number of samples if None.
        seed: Seed of the sampler and the splits.
        prune: Whether a trial may be stopped after its first folds.
        max_step_time: Largest duration of a training step, as a multiple of the plain run's; unlimited if None.
        confirm: Number of seeds of the confirmation; 0 for no confirmation.
    """

    name: str
    title: str
    base: tuple[Piece, ...]
    space: Space
    metric: str
    prefers_less: bool
    trials: int = 60
    minutes: float | None = None
    folds: int | None = None
    seed: int = 0
    prune: bool = False
    max_step_time: float | None = None
    confirm: int = 5

    def __post_init__(self) -> None:
        check_count("trials", self.trials, low=3)
        for name in ("minutes", "max_step_time"):
            if getattr(self, name) is not None:
                check_range(name, getattr(self, name), low=0, low_open=True)
        if self.folds is not None:
            check_seed_count("folds", self.folds)
        check_count("seed", self.seed, low=0)
        check_count("seed", self.seed, low=0, high=2**32 - 1)  # as seed_everything takes it
        check_seed_count("confirm", self.confirm, low=0)
        self.check_prune(self.folds)

    def check_prune(self, folds: int | None) -> None:
        """Checks that there are enough folds for pruning.

        Args:
            folds: Number of folds; None if not known yet.

        Raises:
            SettingError: If trials may be pruned, but there are too few folds.
        """
        if self.prune and folds is not None and folds < _FEWEST_TO_PRUNE:
            raise SettingError(f"prune needs at least {_FEWEST_TO_PRUNE} folds, but folds is {folds}")

    def with_options(self, **options: Any) -> Self:
        """Returns a copy with command-line options in place of the file's settings.

        Args:
            options: Values by attribute; None leaves an attribute unchanged.
        """
        return replace(self, **{name: value for name, value in options.items() if value is not None})

    def parts(self, base: Any) -> dict[str, str]:
        """Returns hashes of the settings that identify a search: trials of another search can't be added to it.

        Args:
            base: All settings of the base configuration.
        """
        contents = {
            "base": base,
            "space": repr([self.space.switches, self.space.presets, sorted(map(sorted, self.space.conflicts))]),
            "metric": [self.metric, self.prefers_less],
            "folds": self.folds,
            "seed": self.seed,
        }
        return {name: key_of(content) for name, content in contents.items()}


def read_search(path: str | Path, *, quick: bool = False) -> SearchDefinition:
    """Reads a search file and validates everything that doesn't need the base configuration.

    Args:
        path: Path of the file.
        quick: Whether to apply the settings of the file's short form.

    Raises:
        SettingError: If the file is invalid.
    """
    path = Path(path)
    content = read_yaml("search file", path)
    try:
        _check_keys("the file", content, tuple(KEYS))
        bases = [content.get("base")]
        short = content.get("quick") or {}
        _check_keys("quick", short, _QUICK)
        if quick:
            bases.append(short.get("base"))
            content = {**content, **short}
        return _definition(content, bases, path)
    except SettingError as error:
        raise SettingError(f"search file {str(path)!r}: {error}") from error


def _check_keys(where: str, content: Any, known: Sequence[str]) -> None:
    if not isinstance(content, dict):
        raise SettingError(f"{where} must be settings by name, but is {content!r}")
    for key in content:
        if key not in known:
            hint = did_you_mean(str(key), known)
            raise SettingError(f"{where} has {key!r}, which is none of {', '.join(known)}{hint}")


def _definition(content: Mapping[str, Any], bases: Sequence[Any], path: Path) -> SearchDefinition:
    for name in ("space", "metric"):
        if content.get(name) is None:
            raise SettingError(f"{name} is missing")
    if not isinstance(content["metric"], str):
        raise SettingError(f"metric must be text, but is {content['metric']!r}")
    better = content.get("better")
    if better is not None:
        check_choice("better", better, ("lower", "higher"))
    given = {
        name: content[name]
        for name in ("trials", "minutes", "folds", "seed", "prune", "max_step_time", "confirm")
        if content.get(name) is not None
    }
    if not isinstance(given.get("prune", False), bool):
        raise SettingError(f"prune must be true or false, but is {given['prune']!r}")
    return SearchDefinition(
        name=path.stem,
        title=" ".join(str(content.get("title") or path.stem).split()),
        base=tuple(piece for base in bases for piece in pieces("base", base, path)),
        space=_space(content, path),
        metric=content["metric"],
        prefers_less=lower_is_better(content["metric"]) if better is None else better == "lower",
        **given,
    )


def _space(content: Mapping[str, Any], path: Path) -> Space:
    if not isinstance(content["space"], (str, dict)):
        raise SettingError(f"space must be a name, a file or a space itself, but is {content['space']!r}")
    space = read_space(content["space"], path.parent)
    return narrowed(space, only=_names("only", content), exclude=_names("exclude", content))


def narrowed(space: Space, *, only: Sequence[str] = (), exclude: Sequence[str] = ()) -> Space:
    """Returns a space with a subset of its switches.

    Args:
        only: Names of the switches to keep; all if empty.
        exclude: Names of the switches to leave out.

    Raises:
        SettingError: If there is no switch of a given name, or none is left.
    """
    for setting, names in (("only", only), ("exclude", exclude)):
        for name in names:
            check_choice(setting, name, list(space.switches))
            if list(names).count(name) > 1:
                raise SettingError(f"{setting} must name every switch once, but names {name!r} several times")
    left_out = {name for name in space.switches if (only and name not in only) or name in exclude}
    return space.without(left_out) if left_out else space


def _names(setting: str, content: Mapping[str, Any]) -> list[str]:
    given = content.get(setting) or []
    if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
        raise SettingError(f"{setting} must be a list of switches, but is {given!r}")
    return given
