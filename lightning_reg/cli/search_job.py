"""A search whose runs are those of ``fit``: from a base configuration to the best one, ready to train."""

import argparse
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_reg.cli.command import MONITOR
from lightning_reg.cli.invocation import command_line
from lightning_reg.cli.options import executor_of, versions
from lightning_reg.cli.unattended import trial
from lightning_reg.cli.unattended.fitting import all_settings, content_of, fit
from lightning_reg.cli.unattended.plan import command_of, fits
from lightning_reg.cli.unattended.rehearsal import Rehearsed, fitting_space
from lightning_reg.search.confirmation import (
    FIRST_SEED,
    best_alone,
    confirmation_file,
    confirmation_metric,
    variants_of,
)
from lightning_reg.search.definition import SearchDefinition
from lightning_reg.search.folder import SearchFolder
from lightning_reg.search.job import SearchJob
from lightning_reg.search.outcome import Confirmation, SearchOutcome, as_json, confirmed
from lightning_reg.search.overlay import differences, replaced_callbacks, value_of, with_cocktail
from lightning_reg.search.python_form import python_form
from lightning_reg.search.report import page
from lightning_reg.search.spaces.space import Cocktail, Space
from lightning_reg.settings import SettingError, check_choice
from lightning_reg.studies.definition import Piece, read_study
from lightning_reg.studies.execution import Perform, execute
from lightning_reg.studies.executor import Executor
from lightning_reg.studies.outcome import Failure, Outcome
from lightning_reg.studies.report import write_report
from lightning_reg.studies.runs import Run, key_of
from lightning_reg.studies.store import Store

__all__ = ["CommandJob", "set_split"]

_FEW_SAMPLES, _USUAL_FOLDS = 2000, 5
_PACKAGES = ("torch", "lightning", "optuna", "numpy")


class CommandJob(SearchJob):
    """A search of the command line.

    Args:
        definition: The search as its file defines it, with the command's options applied.
        pieces: Pieces of the base configuration.
        options: Parsed options of the command.
        command: Command that resumes the search.
    """

    def __init__(
        self, definition: SearchDefinition, pieces: Sequence[Piece], options: argparse.Namespace, command: str
    ) -> None:
        if not pieces:
            raise SettingError("base is missing: name it in the search's file, or give --model, --data and --trainer")
        try:
            self.whole_base = all_settings(command_of(pieces))
        except SettingError as error:
            raise SettingError(f"base: {error}") from error
        self.pieces = pieces
        self.base = trial.for_trials(self.whole_base)
        space, notes = fitting_space(definition.space, self.base)
        definition = replace(definition, space=space)
        name = f"{definition.name}-quick" if options.quick else definition.name
        folder = Path(options.output or Path("runs", "search", name))
        parts = definition.parts(content_of(self.base))
        super().__init__(definition, SearchFolder(folder, definition.name, parts), storage=options.storage)
        self.options = options
        self.command = command
        self.notes = [*notes, *_replaced(space, self.base)]
        self.has_test = False

    @property
    @override
    def perform(self) -> Perform:
        return trial.fit_trial

    @override
    def rehearse(self) -> None:
        definition = self.definition
        first = deepcopy(self.base)
        set_split(first, 0, self.splits, definition.seed)  # so that the data module refuses folds that it can't make
        seen = Rehearsed(self.space, first).rehearse()
        check_choice("metric", definition.metric, list(seen.metrics))
        few = seen.samples is not None and seen.samples < _FEW_SAMPLES
        self.splits = definition.folds or (_USUAL_FOLDS if few else 1)
        definition.check_prune(self.splits)
        self.space, self.has_test = seen.space, seen.has_test
        if self.base["checkpoint"]["monitor"] == MONITOR and MONITOR not in seen.metrics:
            self._select_by_metric()
        self.has_base = with_cocktail(self.space, self.base, {}) != self.base
        self.notes += seen.notes
        self._announce()

    def _select_by_metric(self) -> None:
        selection = {"monitor": self.definition.metric, "mode": "min" if self.definition.prefers_less else "max"}
        self.base["checkpoint"] |= selection
        self.whole_base["checkpoint"] |= selection
        self.pieces = [*self.pieces, {f"checkpoint.{name}": value for name, value in selection.items()}]
        self.notes.append(f"the epoch is selected by {self.definition.metric}: the module doesn't log {MONITOR}")

    def _announce(self) -> None:
        definition = self.definition
        splits = "one validation split" if self.splits == 1 else f"{self.splits} validation splits"
        print(f"{definition.title}\n{definition.trials} trials, each on {splits}, judged by {definition.metric}")
        print(f"switches: {', '.join(self.space.switches)}")
        for note in self.notes:
            print(f"note: {note}")

    @override
    def executor(self) -> Executor:
        return executor_of(self.options)

    @override
    def versions(self) -> dict[str, str]:
        return versions(_PACKAGES)

    @override
    def runs(self, name: str, cocktail: Cocktail | None) -> list[Run]:
        settings = self._settings(self.base, cocktail)
        runs = []
        for split in range(self.splits):
            made = deepcopy(settings)
            set_split(made, split, self.splits, self.definition.seed)
            key = key_of({"trial": content_of(made)})
            runs.append(Run(variant=name, seed=split, key=key, arguments={"settings": made}))
        return runs

    def _settings(self, base: Mapping[str, Any], cocktail: Cocktail | None) -> dict[str, Any]:
        return deepcopy(dict(base)) if cocktail is None else with_cocktail(self.space, base, cocktail)

    @override
    def confirm(self, outcome: SearchOutcome, executor: Executor) -> tuple[Confirmation | None, list[Failure]]:
        definition, best = self.definition, outcome.best
        cocktail = (best.cocktail if best is not None else None) or {}
        metric = confirmation_metric(definition.metric, has_test=self.has_test)
        seeds = range(FIRST_SEED + definition.seed, FIRST_SEED + definition.seed + definition.confirm)
        single = best_alone(outcome.tried, prefers_less=definition.prefers_less)
        variants = variants_of(self.space, self.whole_base, cocktail, single)
        text = confirmation_file(
            definition.title, self.pieces, variants, seeds, metric, prefers_less=definition.prefers_less
        )
        path = self.folder.write("confirm.yaml", text)
        study = read_study(path)
        runs = fits(study)
        print(f"\nConfirmation: {len(variants)} variants with {len(seeds)} fresh seeds, judged by {metric}")
        store = Store(self.folder.path / "confirmation", "confirm")
        with store.locked():
            failures = execute(runs, store, fit, executor, metric=metric)
        results = [result for run in runs if (result := store.result(run)) is not None]
        if results:
            told = Outcome(
                study.study,
                results,
                failures,
                command=command_line(["study", str(path)]),
                versions=self.versions(),
                seconds=sum(result.seconds for result in results),
            )
            write_report(told, store.folder)
        return confirmed(results, metric, seeds, cocktail, prefers_less=definition.prefers_less), failures

    @override
    def hand_over(self, outcome: SearchOutcome) -> None:
        python = configuration = ""
        if outcome.best is not None:
            python = self._python(outcome.best.cocktail)
            configuration = self._yaml(outcome, "best", outcome.best.cocktail)
            self.folder.write("best.py", python)
            self.folder.write("best.yaml", configuration)
            idle = [] if outcome.confirmation is None else outcome.confirmation.idle
            if idle:
                cocktail = outcome.best.cocktail or {}
                small = {name: values for name, values in cocktail.items() if name not in idle}
                self.folder.write("best_small.yaml", self._yaml(outcome, "best_small", small))
        self.folder.write("report.html", page(outcome, python, configuration))
        self.folder.write_json(as_json(outcome))

    def _yaml(self, outcome: SearchOutcome, name: str, cocktail: Cocktail | None) -> str:
        path = self.folder.path / f"{name}.yaml"
        comments = [command_line(["fit", "--config", str(path)]), outcome.words(cocktail)]
        settings = self._settings(self.whole_base, cocktail)
        return "".join(f"# {line}\n" for line in comments) + trial.as_yaml(settings)

    def _python(self, cocktail: Cocktail | None) -> str:
        if cocktail is None:
            return "callbacks = []  # the base as it is\n"
        made = with_cocktail(self.space, self.base, cocktail)
        settings = differences(self.space, self.base, made)
        settings.pop("trainer.callbacks", None)
        return python_form(self.space.callbacks_of(cocktail), settings)


def set_split(settings: dict[str, Any], split: int, splits: int, seed: int) -> None:
    """Selects one of the validation splits in place; the test split stays the same.

    Args:
        settings: Settings of a fit; changed in place.
        split: Index of the split.
        seed: Seed of the first split.
    """
    settings["seed_everything"] = seed + split
    arguments = (settings.get("data") or {}).get("init_args") or {}
    if "seed" in arguments:  # our data modules seed the order with it, and the validation split if there are no folds
        arguments["seed"] = seed + split
    # If the test split is drawn from the rows, folds would replace it.
    has_folds = {"folds", "fold", "val_size"} <= set(arguments) and arguments.get("test_size") is None
    has_own = (Path(str(arguments.get("root"))) / "val").is_dir() if "root" in arguments else False
    if splits > 1 and has_folds and not has_own:
        arguments |= {"folds": splits, "fold": split}


def _replaced(space: Space, base: Mapping[str, Any]) -> list[str]:
    """Returns notes about parts of the base that switches override."""
    notes = [
        f"the base has {' and '.join(names)}, which {switch} adds: in trials {switch} decides, and the trial 'base' "
        "has it as it is"
        for switch, names in replaced_callbacks(space, base).items()
    ]
    set_by = {
        name: switch.name
        for switch in space.switches.values()
        for name, off in switch.without.items()
        if value_of(base, name) != off
    }
    notes += [
        f"the base sets {name} to {value_of(base, name)!r}: in trials {switch} decides, and the trial 'base' has it "
        "as it is"
        for name, switch in set_by.items()
    ]
    return notes
