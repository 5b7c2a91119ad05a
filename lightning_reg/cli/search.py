"""The command ``search``: which regularizers a network needs, and how strong."""

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from typing_extensions import override

from lightning_reg.cli.invocation import command_line
from lightning_reg.core.metric_names import lower_is_better
from lightning_reg.search.confirmation import (
    FIRST_SEED,
    best_alone,
    confirmation_file,
    confirmation_metric,
    variants_of,
)
from lightning_reg.search.definition import KEYS, SearchDefinition, read_search
from lightning_reg.search.folder import SearchFolder
from lightning_reg.search.outcome import Confirmation, SearchOutcome, as_json, confirmed
from lightning_reg.search.overlay import differences, replaced_callbacks, value_of, with_cocktail
from lightning_reg.search.report.page import headline, page
from lightning_reg.search.running import Budget, Goal, do_trials
from lightning_reg.search.space import Cocktail, Space
from lightning_reg.search.storage import Driver, check_installed, masked, silenced, stored
from lightning_reg.search.trials import First, Trials
from lightning_reg.settings import SettingError, check_choice, check_count, check_range, did_you_mean
from lightning_reg.shipped import find_config
from lightning_reg.studies.definition import Piece, read_study
from lightning_reg.studies.execution import execute
from lightning_reg.studies.executor import Executor, LocalExecutor, RayExecutor
from lightning_reg.studies.machine import processor
from lightning_reg.studies.outcome import Failure, Outcome
from lightning_reg.studies.report import check_can_draw, write_report
from lightning_reg.studies.runs import Run, key_of
from lightning_reg.studies.store import Store
from lightning_reg.text import table

__all__ = ["first_trials", "parser", "search"]

_OF_BASE = ("--config", "--model", "--data", "--trainer", "--checkpoint", "--seed_everything", "-c")
_FEW_SAMPLES, _USUAL_FOLDS = 2000, 5
_PACKAGES = ("torch", "lightning", "optuna", "numpy")


def search(args: Sequence[str]) -> int:
    """Runs a search, or what is left of it, and hands over what came of it.

    Args:
        args: What follows ``search``.

    Returns:
        The exit status: 0 if all went well, 1 if runs of the confirmation failed, 130 if interrupted.

    Raises:
        SettingError: For whatever can't be used, before the first trial; and if the disk is full.
    """
    options, words = _options(args)
    check_installed()
    check_can_draw()
    options.file = find_config("search file", options.file, within="search")
    definition = read_search(options.file, quick=options.quick).with_options(
        metric=options.metric,
        prefers_less=None if options.metric is None else lower_is_better(options.metric),
        trials=options.trials,
        minutes=options.minutes,
        max_step_time=options.max_step_time,
    )
    job = _Job(definition, options, words, args)
    try:
        return job.do()
    except KeyboardInterrupt:
        print(f"\nInterrupted; what is finished is kept. To go on:\n  {job.command}", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Returns the parser of what follows ``search``."""
    made = _Parser(
        prog=command_line(["search"]),
        description="Search for the cocktail of regularizers that a network needs, and confirm it with fresh seeds. "
        "Options of fit (--model, --data, --trainer.max_epochs 20, --config ...) are added to the file's base.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Keys of the search's file:\n" + "\n".join(table(list(KEYS.items()), indent="  ", width=100)),
        allow_abbrev=False,
    )
    add = made.add_argument
    add("file", metavar="FILE", help="the search: a file, or the name of one that is shipped, such as digits")
    add("--quick", action="store_true", help="the short form, as the file has it")
    add("--trials", type=int, metavar="N", help="how many trials; as the file says, or 60")
    add("--minutes", type=float, metavar="M", help="after how long no trial is begun any more")
    add("--jobs", type=int, default=1, metavar="J", help="trials at once, each with its share of the cores; default: 1")
    add("--cluster", metavar="ADDRESS", help="do the trials on a Ray cluster: auto, HOST:PORT, or local")
    add("--gpus-per-run", type=float, metavar="N", help="how many GPUs of the cluster each trial has; default: 0")
    add("--storage", metavar="URL", help="a database that several drivers share, instead of a journal in the folder")
    add("--output", metavar="FOLDER", help="where everything goes; default: runs/search/NAME")
    add("--no-confirm", action="store_true", help="leave out the confirmation with fresh seeds")
    add("--metric", metavar="NAME", help="by which trials are judged, in place of the file's")
    add("--max-step-time", type=float, metavar="X", help="times the plain step's time that a step may take")
    return made


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, with what was probably meant."""

    @override
    def error(self, message: str) -> NoReturn:
        raise SettingError(f"search: {message}; see train.py search --help")


def _options(args: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the command's own options, and what it hands on to the base."""
    made = parser()
    options, words = made.parse_known_args(args)
    known = [option for action in made._actions for option in action.option_strings if "," not in option]
    for word in words:
        name = word.partition("=")[0]
        if word.startswith("-") and name.lstrip("-").partition(".")[0].rstrip("+") not in {
            option.lstrip("-") for option in _OF_BASE
        }:
            raise SettingError(f"search: unrecognized argument {name}{did_you_mean(name, [*known, *_OF_BASE])}")
    check_count("jobs", options.jobs)
    if options.cluster is None and options.gpus_per_run is not None:
        raise SettingError("gpus_per_run must be left out without --cluster")
    if options.cluster is not None and options.jobs != 1:
        raise SettingError("jobs must be left out with --cluster, where as many trials are done as its cores allow")
    check_range("gpus_per_run", options.gpus_per_run or 0, low=0)
    return options, words


def first_trials(space: Space, trials: int, *, has_base: bool) -> list[First]:
    """Returns what is tried before the sampler proposes: at most a third of the budget.

    Args:
        trials: How many there are in all.
        has_base: Whether the base differs from the plain run.
    """
    first = [First("plain", "plain", {})]
    if has_base:
        first.append(First("base", "base", None))
    first += [First("preset", name, cocktail) for name, cocktail in space.presets.items()]
    first += alone(space)
    return first[: max(trials // 3, len(first[: 1 + has_base]))]


def alone(space: Space) -> list[First]:
    """Returns every technique alone at its usual strength, by evidence."""
    return [First("alone", f"{switch.title} alone", space.alone(name)) for name, switch in space.switches.items()]


class _Job:
    """One search, from its file to what it hands over."""

    def __init__(
        self, definition: SearchDefinition, options: argparse.Namespace, words: Sequence[str], args: Sequence[str]
    ) -> None:
        # Late: what can be found wrong before needs nothing of Lightning.
        from lightning_reg.cli.fitting import all_settings, content_of
        from lightning_reg.cli.plan import command_of
        from lightning_reg.cli.rehearsal import fitting_space
        from lightning_reg.cli.trial import for_trials

        self.options = options
        self.command = masked(command_line(["search", *args]), options.storage)
        self.pieces: tuple[Piece, ...] = (*definition.base, *_as_pieces(words))
        if not self.pieces:
            raise SettingError("base is missing: name it in the search's file, or give --model, --data and --trainer")
        try:
            self.whole_base = all_settings(command_of(self.pieces))
        except SettingError as error:
            raise SettingError(f"base: {error}") from error
        self.base = for_trials(self.whole_base)
        space, notes = fitting_space(definition.space, self.base)
        self.definition = replace(definition, space=space)
        self.notes = [*notes, *_replaced(space, self.base)]
        folder = options.output or Path(
            "runs", "search", "-".join([definition.name, *(["quick"] if options.quick else [])])
        )
        self.parts = self.definition.parts(content_of(self.base))
        self.folder = SearchFolder(Path(folder), definition.name, self.parts)
        self.folder.check()
        self.has_test = False
        self.splits = 1

    def do(self) -> int:
        """Searches, confirms, and hands over."""
        if self.options.storage is not None:
            with stored(self.folder.path, self.options.storage):  # out of reach, or not, before anything is made
                pass
        self._rehearse()
        self._announce()
        self.folder.make()
        driver = Driver(self.folder.path)
        with (
            self.folder.reported(),
            driver.alive(),
            silenced(),
            stored(self.folder.path, self.options.storage) as storage,
        ):
            trials = self._trials(storage, driver)
            with self._executor() as executor:
                self._search(trials, executor)
                outcome = self._outcome(trials)
                failures: list[Failure] = []
                self._hand_over(outcome)  # before what may be interrupted
                if self._is_confirmed(outcome):
                    self._search(trials, executor, only=alone(self.space))
                    outcome = self._outcome(trials)
                    confirmation, failures = self._confirm(outcome, executor)
                    outcome = replace(outcome, confirmation=confirmation)
                    self._hand_over(outcome)
        self._tell(outcome, failures)
        return 1 if failures else 0

    def _rehearse(self) -> None:
        from lightning_reg.cli.rehearsal import Rehearsed

        definition = self.definition
        seen = Rehearsed(definition.space, self.base).rehearse()
        check_choice("metric", definition.metric, list(seen.metrics))
        self.space, self.has_test = seen.space, seen.has_test
        self.notes += seen.notes
        few = seen.samples is not None and seen.samples < _FEW_SAMPLES
        self.splits = definition.folds or (_USUAL_FOLDS if few else 1)
        definition.check_prune(self.splits)

    def _announce(self) -> None:
        definition, space = self.definition, self.space
        splits = "one validation split" if self.splits == 1 else f"{self.splits} validation splits"
        print(f"{definition.title}\n{definition.trials} trials, each on {splits}, judged by {definition.metric}")
        print(f"switches: {', '.join(space.switches)}")
        for note in self.notes:
            print(f"note: {note}")

    def _trials(self, storage: Any, driver: Driver) -> Trials:
        definition = self.definition
        plain = with_cocktail(self.space, self.base, {})
        first = first_trials(self.space, definition.trials, has_base=plain != self.base)
        return Trials(
            storage,
            f"{definition.name}-{key_of(self.parts)}",
            self.space,
            first,
            prefers_less=definition.prefers_less,
            seed=definition.seed,
            driver=driver,
            prunes=definition.prune,
        )

    def _executor(self) -> Executor:
        if self.options.cluster is None:
            return LocalExecutor(self.options.jobs)
        return RayExecutor(self.options.cluster, gpus_per_run=self.options.gpus_per_run or 0)

    def _search(self, trials: Trials, executor: Executor, *, only: Sequence[First] = ()) -> None:
        from lightning_reg.cli.trial import fit_trial

        definition = self.definition
        do_trials(
            trials,
            Store(self.folder.path, definition.name),
            self._runs,
            fit_trial,
            executor,
            Goal(definition.metric, definition.prefers_less, self.splits, prunes=definition.prune),
            Budget(definition.trials, definition.minutes, definition.max_step_time),
            only=only,
        )

    def _runs(self, name: str, cocktail: Cocktail | None) -> list[Run]:
        from lightning_reg.cli.fitting import content_of

        settings = deepcopy(self.base) if cocktail is None else with_cocktail(self.space, self.base, cocktail)
        runs = []
        for split in range(self.splits):
            made = deepcopy(settings)
            set_split(made, split, self.splits, self.definition.seed)
            key = key_of({"trial": content_of(made)})
            runs.append(Run(variant=name, seed=split, key=key, arguments={"settings": made}))
        return runs

    def _outcome(self, trials: Trials) -> SearchOutcome:
        definition, tried = self.definition, trials.tried
        return SearchOutcome(
            name=definition.name,
            title=definition.title,
            space=self.space,
            metric=definition.metric,
            prefers_less=definition.prefers_less,
            splits=self.splits,
            seed=definition.seed,
            tried=tried,
            best=trials.best(tried),
            importances=trials.importances(),
            notes=self.notes,
            command=self.command,
            versions=_versions(),
        )

    def _is_confirmed(self, outcome: SearchOutcome) -> bool:
        wanted = not self.options.no_confirm and self.definition.confirm > 0
        return wanted and outcome.best is not None and bool(outcome.best.cocktail)

    def _confirm(self, outcome: SearchOutcome, executor: Executor) -> tuple[Confirmation | None, list[Failure]]:
        from lightning_reg.cli.fitting import fit
        from lightning_reg.cli.plan import fits

        definition, best = self.definition, outcome.best
        cocktail = (best.cocktail if best is not None else None) or {}
        metric = confirmation_metric(definition.metric, has_test=self.has_test)
        seeds = range(FIRST_SEED + definition.seed, FIRST_SEED + definition.seed + definition.confirm)
        single = best_alone(outcome.tried, prefers_less=definition.prefers_less)
        variants = variants_of(self.space, self.whole_base, cocktail, single)
        text = confirmation_file(
            definition.title, self.pieces, variants, seeds, metric, prefers_less=definition.prefers_less
        )
        study = read_study(self.folder.write("confirm.yaml", text))
        runs = fits(study)
        print(f"\nConfirmation: {len(variants)} variants with {len(seeds)} fresh seeds, judged by {metric}")
        store = Store(self.folder.path / "confirmation", "confirm")
        with store.locked():
            failures = execute(runs, store, fit, executor, metric=metric)
        results = [result for run in runs if (result := store.result(run)) is not None]
        values: dict[str, dict[int, float]] = {}
        for result in results:
            values.setdefault(result.variant, {})[result.seed] = result.metrics[metric]
        study_command = command_line(["study", str(self.folder.path / "confirm.yaml")])
        if results:
            told = Outcome(study.study, results, failures, study_command, versions=_versions())
            write_report(replace(told, seconds=sum(result.seconds for result in results)), store.folder)
        return confirmed(values, metric, seeds, cocktail, prefers_less=definition.prefers_less), failures

    def _hand_over(self, outcome: SearchOutcome) -> None:
        """Writes the cocktail, what is told of it, and what scripts read."""
        from lightning_reg.cli.trial import Fits

        python = configuration = ""
        fits = Fits()
        if outcome.best is not None:
            python = self._python(outcome.best.cocktail)
            configuration = self._yaml(fits, outcome, "best", outcome.best.cocktail)
            self.folder.write("best.py", python)
            self.folder.write("best.yaml", configuration)
            idle = [] if outcome.confirmation is None else outcome.confirmation.idle
            if idle:
                cocktail = outcome.best.cocktail or {}
                small = {name: values for name, values in cocktail.items() if name not in idle}
                self.folder.write("best_small.yaml", self._yaml(fits, outcome, "best_small", small))
        self.folder.write("report.html", page(outcome, python, configuration))
        self.folder.write_json(as_json(outcome))

    def _yaml(self, fits: Any, outcome: SearchOutcome, name: str, cocktail: Cocktail | None) -> str:
        whole = self.whole_base
        settings = whole if cocktail is None else with_cocktail(self.space, whole, cocktail)
        path = self.folder.path / f"{name}.yaml"
        comments = [command_line(["fit", "--config", str(path)]), outcome.words(cocktail)]
        return "".join(f"# {line}\n" for line in comments) + str(fits.as_yaml(settings))

    def _python(self, cocktail: Cocktail | None) -> str:
        from lightning_reg.search.python_form import python_form

        if cocktail is None:
            return "callbacks = []  # the base as it is\n"
        made = with_cocktail(self.space, self.base, cocktail)
        settings = differences(self.space, self.base, made)
        settings.pop("trainer.callbacks", None)
        added = [callback for name, values in cocktail.items() for callback in self._callbacks(name, values)]
        return python_form(added, settings)

    def _callbacks(self, name: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        return self.space.switches[name].realized(values)[1]

    def _tell(self, outcome: SearchOutcome, failures: Sequence[Failure]) -> None:
        print("\n" + "\n".join(headline(outcome)))
        for failure in failures:
            print(f"failed: {failure.variant}, seed {failure.seed}: {failure.message}")
        folder = self.folder.path
        if outcome.best is not None:
            print(f"train it:  {command_line(['fit', '--config', str(folder / 'best.yaml')])}")
            print(f"in Python: {folder / 'best.py'}")
        print(f"report:    {folder / 'report.html'}")


def set_split(settings: dict[str, Any], split: int, splits: int, seed: int) -> None:
    """Gives settings one of the validation splits; the test part stays where it is.

    Args:
        settings: Of a fit; they are changed.
        split: Which, from 0.
        splits: How many there are.
    """
    settings["seed_everything"] = seed + split
    arguments = (settings.get("data") or {}).get("init_args") or {}
    if "seed" in arguments:  # ours: of the validation part where there are no folds, and of the order
        arguments["seed"] = seed + split
    # Where a test part is made of the rows, folds would be of it.
    has_folds = {"folds", "fold", "val_size"} <= set(arguments) and arguments.get("test_size") is None
    has_own = (Path(str(arguments.get("root"))) / "val").is_dir() if "root" in arguments else False
    if splits > 1 and has_folds and not has_own:
        arguments |= {"folds": splits, "fold": split}


def _as_pieces(words: Sequence[str]) -> list[Piece]:
    """Returns what was written behind the base as pieces of a configuration, in their order."""
    pieces: list[Piece] = []
    left = list(words)
    while left:
        name, has_value, value = left.pop(0).partition("=")
        if not has_value:
            if not left:
                raise SettingError(f"search: {name} must be followed by a value")
            value = left.pop(0)
        key = name.lstrip("-")
        pieces.append(Path(value) if key in ("config", "c") else {key: value})
    return pieces


def _replaced(space: Space, base: Mapping[str, Any]) -> list[str]:
    """Says who decides where the base has what a switch adds."""
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


def _versions() -> dict[str, str]:
    import lightning_reg

    found = {"lightning_reg": lightning_reg.__version__}
    found |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {**found, "Python": platform.python_version(), "processor": processor()}
