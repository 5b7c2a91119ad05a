"""The search from Python, for projects without LightningCLI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from typing_extensions import override

from lightning_reg.core.lightning import callbacks_of
from lightning_reg.core.metric_names import lower_is_better
from lightning_reg.search.confirmation import FIRST_SEED, best_alone, compared
from lightning_reg.search.definition import SearchDefinition, narrowed
from lightning_reg.search.folder import SearchFolder
from lightning_reg.search.job import SearchJob
from lightning_reg.search.outcome import Confirmation, SearchOutcome, as_json, confirmed
from lightning_reg.search.prospects import Prospect, with_present, without_contradictions
from lightning_reg.search.python_form import python_form
from lightning_reg.search.python_run import Make, SearchTrial, build, made_of, perform, seeded
from lightning_reg.search.report import page
from lightning_reg.search.spaces.space import Cocktail, Space
from lightning_reg.search.spaces.space_file import read_space
from lightning_reg.search.trials.storage import check_installed
from lightning_reg.settings import (
    SettingError,
    as_sequence,
    check_callable,
    check_choice,
    check_count,
    check_text,
)
from lightning_reg.studies.definition import check_seed_count
from lightning_reg.studies.execution import Perform, execute
from lightning_reg.studies.executor import Executor, InProcessExecutor, LocalExecutor
from lightning_reg.studies.outcome import Failure
from lightning_reg.studies.runs import Run, key_of
from lightning_reg.studies.store import Store

__all__ = ["Found", "Make", "SearchTrial", "search"]


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        outcome: All trials, the best one and the confirmation.
        folder: Output folder, which contains the report.
    """

    outcome: SearchOutcome
    folder: Path

    @property
    def cocktail(self) -> Cocktail:
        """The best cocktail: the switches that are on, each with its strengths."""
        best = self.outcome.best
        return {} if best is None or best.cocktail is None else best.cocktail

    def callbacks(self) -> list[Callback]:
        """Returns new instances of the best cocktail's callbacks."""
        return made_of(self.outcome.space, self.cocktail)

    def __str__(self) -> str:
        return self.outcome.words(self.cocktail)


def search(
    make: Make,
    *,
    metric: str,
    space: str | Mapping[str, Any] = "attach",
    better: str | None = None,
    trials: int = 50,
    minutes: float | None = None,
    splits: int = 1,
    exclude: Sequence[str] = (),
    seed: int = 0,
    jobs: int = 1,
    confirm: int = 3,
    test_metric: str | None = None,
    max_step_time: float | None = None,
    output: str | Path = "runs/search/python",
    storage: str | None = None,
    quiet: bool = False,
) -> Found:
    """Searches for the callbacks that a project needs, and for their strengths.

    Finished runs are kept in ``output``: the same call resumes an interrupted search.

    Args:
        make: Function that builds a run: ``make(callbacks, trial)`` returns ``(trainer, module, data)``, where the
            trainer has these callbacks in addition to its own.
        metric: Metric to optimize, as logged in validation.
        space: Name of a shipped space, path of a file, or the content of such a file; switches may only add callbacks.
        better: ``lower`` or ``higher``: which values are better; derived from the metric's name if None.
        trials: Number of trials, at least 3.
        minutes: Time in minutes after which no new trial starts; unlimited if None.
        splits: Number of runs of each trial, with different seeds.
        exclude: Names of switches to leave out.
        seed: Seed of the sampler and the splits.
        jobs: Number of trials that run in parallel. If more than 1, each runs in its own process, and ``make`` must be
            a module-level function.
        confirm: Number of fresh seeds with which the cocktail is compared with no technique and with each part left
            out; 0 for no confirmation.
        test_metric: Metric of the confirmation, as logged in ``test``; ``metric`` if None.
        max_step_time: Largest duration of a training step, as a multiple of the plain run's; unlimited if None.
        output: Folder for trials, report and results.
        storage: URL of a database that several drivers share; a journal in the folder if None.
        quiet: Whether to hide the progress bar.

    Returns:
        The best cocktail, and all trials.

    Raises:
        SettingError: If a setting is invalid, the metric isn't logged, or a run without callbacks fails.
    """
    check_installed()
    check_callable("make", make, "a function of callbacks and a trial")
    check_text("output", output, or_path=True)
    check_text("metric", metric)
    for name, text in (("test_metric", test_metric), ("storage", storage)):
        if text is not None:
            check_text(name, text)
    check_seed_count("splits", splits)
    check_count("jobs", jobs)
    if better is not None:
        check_choice("better", better, ("lower", "higher"))
    definition = SearchDefinition(
        name=Path(output).name,
        title="The cocktail of callbacks",
        base=(),
        space=_of_callbacks_alone(narrowed(read_space(space), exclude=as_sequence("exclude", exclude))),
        metric=metric,
        prefers_less=lower_is_better(metric) if better is None else better == "lower",
        trials=trials,
        minutes=minutes,
        folds=splits,
        seed=seed,
        max_step_time=max_step_time,
        confirm=confirm,
    )
    folder = SearchFolder(Path(output), definition.name, definition.parts(None))
    job = _PythonJob(definition, folder, make, jobs=jobs, test_metric=test_metric, storage=storage, quiet=quiet)
    outcome, _ = job.do()
    return Found(outcome, folder.path)


def _of_callbacks_alone(space: Space) -> Space:
    for switch in space.switches.values():
        for setting in (*switch.settings, *switch.without):
            raise SettingError(
                f"space must be of callbacks alone where make builds the run, but {switch.name!r} sets {setting}"
            )
    return space


class _PythonJob(SearchJob):
    """A search whose runs are built by a user's function."""

    def __init__(
        self,
        definition: SearchDefinition,
        folder: SearchFolder,
        make: Make,
        *,
        jobs: int,
        test_metric: str | None,
        storage: str | None,
        quiet: bool,
    ) -> None:
        super().__init__(definition, folder, storage=storage, quiet=quiet)
        self.make = make
        self.jobs = jobs
        self.test_metric = test_metric

    @property
    @override
    def perform(self) -> Perform:
        return perform

    @override
    def rehearse(self) -> None:
        seed = self.definition.seed
        trial = SearchTrial("plain", 0, seed)
        with seeded(seed):
            built = build(self.make, [Callback()], trial)
            again = build(self.make, [Callback()], trial)
        for name, one, other in (("Trainer", built.trainer, again.trainer), ("module", built.module, again.module)):
            if one is other:
                raise SettingError(f"make must return a new {name} at each call, but returned the same one twice")
        del again, other
        space, absent = with_present(self.space, built.module)

        def contradictions_with(*names: str) -> dict[str, str]:
            added = made_of(space, {name: space.switches[name].usual() for name in names})
            callbacks = [*callbacks_of(built.trainer), *added]
            return Prospect(built.module, callbacks, built.loaders.get("datamodule"), built.trainer).contradictions()

        self.space, notes = without_contradictions(space, contradictions_with)
        self.notes = [*absent, *notes]

    @override
    def executor(self) -> Executor:
        return InProcessExecutor() if self.jobs == 1 else LocalExecutor(self.jobs)

    @override
    def runs(self, name: str, cocktail: Cocktail | None) -> list[Run]:
        seed = self.definition.seed
        return [self._run(name, cocktail or {}, split, seed + split) for split in range(self.splits)]

    def _run(self, name: str, cocktail: Cocktail, split: int, seed: int, *, test: bool = False) -> Run:
        entries = self.space.callbacks_of(cocktail)
        arguments = {"make": self.make, "callbacks": entries, "split": split, "test": test}
        return Run(name, seed, key_of([entries, split, seed, self.splits, test]), arguments=arguments)

    @override
    def confirm(self, outcome: SearchOutcome, executor: Executor) -> tuple[Confirmation | None, list[Failure]]:
        definition = self.definition
        cocktail = (outcome.best.cocktail if outcome.best is not None else None) or {}
        variants = compared(cocktail, best_alone(outcome.tried, prefers_less=definition.prefers_less))
        metric = self.test_metric or definition.metric
        seeds = range(FIRST_SEED + definition.seed, FIRST_SEED + definition.seed + definition.confirm)
        runs = [
            self._run(name, variant or {}, -1, seed, test=self.test_metric is not None)
            for seed in seeds
            for name, variant in variants.items()
        ]
        store = Store(self.folder.path, definition.name)
        failures = execute(runs, store, perform, executor, metric=metric, quiet=self.quiet)
        results = [result for run in runs if (result := store.result(run)) is not None]
        return confirmed(results, metric, seeds, cocktail, prefers_less=definition.prefers_less), failures

    @override
    def hand_over(self, outcome: SearchOutcome) -> None:
        cocktail = (outcome.best.cocktail if outcome.best is not None else None) or {}
        code = python_form(self.space.callbacks_of(cocktail), {})
        self.folder.write("best.py", code)
        self.folder.write("report.html", page(outcome, code, ""))
        self.folder.write_json(as_json(outcome))
