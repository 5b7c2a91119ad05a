"""The search from Python, for projects without LightningCLI."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from lightning_reg.core.lightning import callbacks_of
from lightning_reg.core.metric_names import lower_is_better
from lightning_reg.search.confirmation import FIRST_SEED, best_alone
from lightning_reg.search.definition import narrowed
from lightning_reg.search.folder import SearchFolder
from lightning_reg.search.outcome import COCKTAIL, Confirmation, SearchOutcome, as_json, confirmed, without
from lightning_reg.search.overlay import class_of
from lightning_reg.search.prospects import Prospect, with_present
from lightning_reg.search.python_form import python_form
from lightning_reg.search.report import page
from lightning_reg.search.running import STEP_SECONDS, Budget, Goal, do_trials
from lightning_reg.search.space import Cocktail, Space
from lightning_reg.search.space_file import read_space
from lightning_reg.search.step_timer import StepTimer
from lightning_reg.search.storage import Driver, check_installed, silenced, stored
from lightning_reg.search.trials import First, Trials
from lightning_reg.settings import SettingError, check_choice, check_count, check_range
from lightning_reg.studies.execution import execute
from lightning_reg.studies.executor import Executor, LocalExecutor
from lightning_reg.studies.runs import Measured, Run, key_of
from lightning_reg.studies.store import Store

__all__ = ["Found", "Make", "SearchTrial", "search"]

T = TypeVar("T")


@dataclass(frozen=True)
class SearchTrial:
    """What a function that builds a run is told of it.

    Attributes:
        name: Of the trial.
        split: Which of the splits, or repetitions, it is; of the confirmation -1.
        seed: Of the split, for whoever splits data at random; it has been set globally, too.
    """

    name: str
    split: int
    seed: int


Make = Callable[[list[Callback], SearchTrial], Sequence[Any]]
"""Builds a run of callbacks: returns the Trainer, the module and, unless the module has loaders of its own, the data
module, or loaders for training and validation."""


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        outcome: All of it.
        folder: Where the report lies.
    """

    outcome: SearchOutcome
    folder: Path

    @property
    def cocktail(self) -> Cocktail:
        """The best cocktail: the switches that are on, each with its strengths."""
        best = self.outcome.best
        return {} if best is None or best.cocktail is None else best.cocktail

    def callbacks(self) -> list[Callback]:
        """Returns the best cocktail's callbacks, made anew."""
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
    """Searches for the callbacks that a project of one's own needs, and how strong.

    What is finished is kept in ``output``: the same call goes on where it was interrupted.

    Args:
        make: Builds a run: ``make(callbacks, trial)`` returns ``(trainer, module, data)``, the trainer with these
            callbacks beside its own.
        metric: By which trials are judged, as it is logged in validation.
        space: The name of a shipped space, a file, or what such a file holds; of callbacks alone.
        better: Whether ``lower`` or ``higher`` values are better; the metric's name tells where None.
        trials: How many trials there are.
        minutes: After how long no trial is begun any more.
        splits: How often each is measured, with other seeds.
        exclude: Switches of the space that are left out.
        seed: Of the sampler and the splits.
        jobs: How many trials are done at once, each in a process of its own; then ``make`` has to be a function of a
            module. One is done in this process.
        confirm: With how many fresh seeds the cocktail is compared with none and with each part left out; 0 for none.
        test_metric: By which that is judged, as it is logged in a test; ``metric`` where None.
        max_step_time: How many times as long as the plain one a training step may take.
        output: Where everything goes.
        storage: A database that several drivers share, instead of a journal in the folder.
        quiet: Whether the progress bar is left out.

    Returns:
        The cocktail, and all that was tried.

    Raises:
        SettingError: If something can't be used, the metric isn't logged, or a run without callbacks fails.
    """
    check_installed()
    for name, value, low in (("trials", trials, 3), ("splits", splits, 1), ("jobs", jobs, 1), ("confirm", confirm, 0)):
        check_count(name, value, low=low)
    check_count("seed", seed, low=0)
    for name, limit in (("minutes", minutes), ("max_step_time", max_step_time)):
        if limit is not None:
            check_range(name, limit, low=0, low_open=True)
    if better is not None:
        check_choice("better", better, ("lower", "higher"))
    prefers_less = lower_is_better(metric) if better is None else better == "lower"
    chosen = narrowed(read_space(space), exclude=exclude)
    _check_callbacks_alone(chosen)
    name = Path(output).name
    parts = {"space": key_of(repr(chosen.switches)), "metric": key_of([metric, prefers_less]), "seed": key_of(seed)}
    parts["folds"] = key_of(splits)
    folder = SearchFolder(Path(output), name, parts)
    folder.check()
    if storage is not None:
        with stored(folder.path, storage):  # out of reach, or not, before anything is made
            pass
    chosen, notes = _without_contradictions(chosen, make, seed)
    folder.make()
    job = _Search(make, metric, chosen, splits, seed, test_metric)
    driver = Driver(folder.path)
    first = [
        First("plain", "plain", {}),
        *(First("preset", preset, cocktail) for preset, cocktail in chosen.presets.items()),
        *_alone(chosen),
    ]
    store = Store(folder.path, name)
    budget = Budget(trials, minutes, max_step_time)
    with folder.reported(), driver.alive(), silenced(), stored(folder.path, storage) as opened:
        kept = Trials(
            opened,
            f"{name}-{key_of(parts)}",
            chosen,
            first[: max(trials // 3, 1)],
            prefers_less=prefers_less,
            seed=seed,
            driver=driver,
        )
        with InProcess() if jobs == 1 else LocalExecutor(jobs) as executor:
            goal = Goal(metric, prefers_less, splits)
            do_trials(kept, store, job.runs, perform, executor, goal, budget, quiet=quiet)
            best = kept.best(kept.tried)
            confirmation = None
            if confirm and best is not None and best.cocktail:
                do_trials(kept, store, job.runs, perform, executor, goal, budget, quiet=quiet, only=_alone(chosen))
                best = kept.best(kept.tried)
                confirmation = job.confirmed(kept, store, executor, confirm, prefers_less=prefers_less, quiet=quiet)
        tried = kept.tried
        outcome = SearchOutcome(
            name=name,
            title="The cocktail of callbacks",
            space=chosen,
            metric=metric,
            prefers_less=prefers_less,
            splits=splits,
            seed=seed,
            tried=tried,
            best=best,
            importances=kept.importances(),
            notes=notes,
            confirmation=confirmation,
        )
        _hand_over(outcome, folder)
    return Found(outcome, folder.path)


def _hand_over(outcome: SearchOutcome, folder: SearchFolder) -> None:
    cocktail = {} if outcome.best is None or outcome.best.cocktail is None else outcome.best.cocktail
    code = python_form(_entries(outcome.space, cocktail), {})
    folder.write("best.py", code)
    folder.write("report.html", page(outcome, code, ""))
    folder.write_json(as_json(outcome))


def _alone(space: Space) -> list[First]:
    return [First("alone", f"{switch.title} alone", space.alone(name)) for name, switch in space.switches.items()]


def _check_callbacks_alone(space: Space) -> None:
    for switch in space.switches.values():
        if switch.settings or switch.without:
            raise SettingError(
                f"space must be of callbacks alone where make builds the run, but {switch.name!r} sets "
                f"{', '.join([*switch.settings, *switch.without][:1])}"
            )


def _entries(space: Space, cocktail: Cocktail) -> list[dict[str, Any]]:
    return [entry for name, values in cocktail.items() for entry in space.switches[name].realized(values)[1]]


def made_of(space: Space, cocktail: Cocktail) -> list[Callback]:
    """Returns a cocktail's callbacks."""
    return [_made(entry) for entry in _entries(space, cocktail)]


def _made(entry: Any) -> Any:
    if isinstance(entry, Mapping) and "class_path" in entry:
        kind = class_of(entry)
        if kind is None:
            raise SettingError(f"class_path must be a class that can be imported, but is {entry['class_path']!r}")
        return kind(**{name: _made(value) for name, value in (entry.get("init_args") or {}).items()})
    if isinstance(entry, list):
        return [_made(value) for value in entry]
    return entry


@dataclass(frozen=True)
class _Built:
    trainer: Trainer
    module: LightningModule
    loaders: dict[str, Any]  # as the trainer's fit takes them

    @property
    def evaluated(self) -> dict[str, Any]:
        if "datamodule" in self.loaders or not self.loaders:
            return self.loaders
        return {"dataloaders": self.loaders["val_dataloaders"]}


def _build(make: Make, callbacks: list[Callback], trial: SearchTrial) -> _Built:
    returned = make(list(callbacks), trial)
    if not isinstance(returned, (tuple, list)) or len(returned) not in (2, 3, 4):
        raise SettingError(f"make must return (trainer, module, data), but returned {type(returned).__name__}")
    trainer, module, *data = returned
    missing = [type(callback).__name__ for callback in callbacks if callback not in callbacks_of(trainer)]
    if missing:
        raise SettingError(
            f"make must give the Trainer the callbacks that it is given, but {', '.join(missing)} is missing"
        )
    if len(data) == 1 and isinstance(data[0], (tuple, list)):
        data = list(data[0])
    if len(data) == 1 and not isinstance(data[0], LightningDataModule) and not hasattr(data[0], "train_dataloader"):
        raise SettingError(f"make must return a data module, or two loaders, but returned {type(data[0]).__name__}")
    names = {0: (), 1: ("datamodule",), 2: ("train_dataloaders", "val_dataloaders")}[len(data)]
    return _Built(trainer, module, dict(zip(names, data, strict=True)))


def _without_contradictions(space: Space, make: Make, seed: int) -> tuple[Space, list[str]]:
    """Leaves out what the audit would warn of, and finds the pairs that it would warn of."""
    with _seeded(seed):
        built = _build(make, [], SearchTrial("plain", 0, seed))
    datamodule = built.loaders.get("datamodule")
    space, absent = with_present(space, built.module)

    def found(*names: str) -> dict[str, str]:
        added = made_of(space, {name: space.switches[name].usual() for name in names})
        return Prospect(
            built.module, [*callbacks_of(built.trainer), *added], datamodule, built.trainer
        ).contradictions()

    known, notes = set(found()), list(absent)
    alone = {name: found(name) for name in space.switches}
    new = {name: [text for what, text in entry.items() if what not in known] for name, entry in alone.items()}
    notes += [f"{name} is left out: {texts[0]}" for name, texts in new.items() if texts]
    left_out = [name for name, texts in new.items() if texts]
    kept = space.without(left_out) if left_out else space
    conflicts = set()
    for first, second in combinations(kept.switches, 2):
        if kept.are_compatible(first, second):
            told = known | set(alone[first]) | set(alone[second])
            texts = [text for what, text in found(first, second).items() if what not in told]
            if texts:
                conflicts.add(frozenset((first, second)))
                notes.append(f"{first} and {second} are never tried together: {texts[0]}")
    return replace(kept, conflicts=kept.conflicts | conflicts), notes


class _seeded:  # noqa: N801  # used as a function
    """Sets the global seeds, and puts back what was there."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._context = isolate_rng()

    def __enter__(self) -> None:
        self._context.__enter__()
        seed_everything(self._seed, verbose=False)

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def perform(run: Run, _: Path) -> Measured:
    """Does a run that a user's function builds.

    Args:
        run: With the function and its callbacks among the arguments.
        _: The run's folder; where anything is written is the function's to say.
    """
    arguments = run.arguments
    callbacks = [_made(entry) for entry in arguments["callbacks"]]
    timer = StepTimer()
    with _seeded(run.seed):
        built = _build(arguments["make"], callbacks, SearchTrial(run.variant, arguments["split"], run.seed))
        callbacks_of(built.trainer).append(timer)
        built.trainer.fit(built.module, **built.loaders)
        metrics = {name: float(value) for name, value in built.trainer.callback_metrics.items() if value.numel() == 1}
        # Of the weights that are there when all callbacks have ended: averaged ones, the best ones.
        for found in built.trainer.validate(built.module, **built.evaluated, verbose=False):
            metrics |= {name: float(value) for name, value in found.items()}
        if arguments.get("test"):
            tested: dict[str, Any] = built.loaders if "datamodule" in built.loaders else {}
            for found in built.trainer.test(built.module, **tested, verbose=False):
                metrics |= {name: float(value) for name, value in found.items()}
    if timer.seconds is not None:
        metrics[STEP_SECONDS] = timer.seconds
    return Measured(metrics)


@dataclass(frozen=True)
class _Search:
    make: Make
    metric: str
    space: Space
    splits: int
    seed: int
    test_metric: str | None

    def runs(self, name: str, cocktail: Cocktail | None) -> list[Run]:
        return [self._run(name, cocktail or {}, split, self.seed + split) for split in range(self.splits)]

    def _run(self, name: str, cocktail: Cocktail, split: int, seed: int, *, test: bool = False) -> Run:
        entries = _entries(self.space, cocktail)
        arguments = {"make": self.make, "callbacks": entries, "split": split, "test": test}
        return Run(name, seed, key_of([entries, split, seed, self.splits, test]), arguments=arguments)

    def confirmed(
        self, trials: Trials, store: Store, executor: Executor, count: int, *, prefers_less: bool, quiet: bool
    ) -> Confirmation | None:
        tried = trials.tried
        best = trials.best(tried)
        cocktail = (best.cocktail if best is not None else None) or {}
        variants: dict[str, Cocktail] = {COCKTAIL: cocktail, "plain": {}}
        if len(cocktail) > 1:
            for switch in cocktail:
                variants[without(switch)] = {name: values for name, values in cocktail.items() if name != switch}
        single = best_alone(tried, prefers_less=prefers_less)
        if single is not None and single.cocktail not in variants.values():
            variants[single.name] = single.cocktail or {}
        metric = self.test_metric or self.metric
        seeds = [FIRST_SEED + self.seed + index for index in range(count)]
        runs = [
            self._run(name, entry, -1, seed, test=self.test_metric is not None)
            for seed in seeds
            for name, entry in variants.items()
        ]
        execute(runs, store, perform, executor, metric=metric, quiet=quiet)
        values: dict[str, dict[int, float]] = {}
        for run in runs:
            result = store.result(run)
            if result is not None:
                values.setdefault(run.variant, {})[run.seed] = result.metrics[metric]
        return confirmed(values, metric, seeds, cocktail, prefers_less=prefers_less)


class InProcess(Executor):
    """Does tasks in this very process, when they are submitted."""

    is_local = True

    @property
    @override
    def slots(self) -> int:
        return 1

    @override
    def submit(self, task: Callable[..., T], /, *arguments: Any) -> "Future[T]":
        future: Future[T] = Future()
        future.set_result(task(*arguments))
        return future

    @override
    def close(self, *, at_once: bool = False) -> None:
        pass
