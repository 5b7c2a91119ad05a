"""``python train.py study``: variants of one run, over seeds, and a report of what each is worth."""

import argparse
import importlib.metadata
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_reg.settings import SettingError, check_choice, check_count
from lightning_reg.studies.definition import Definition, Form, read_study
from lightning_reg.studies.execution import Perform, execute
from lightning_reg.studies.machine import processor
from lightning_reg.studies.outcome import Outcome
from lightning_reg.studies.report import check_can_draw, headline, number, write_report
from lightning_reg.studies.runs import Measured, Run, computations, compute
from lightning_reg.studies.statistics import summaries
from lightning_reg.studies.store import Store

__all__ = ["parser", "study"]

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "scikit-learn")


def study(args: Sequence[str]) -> int:
    """Runs a study, or what is left of it, and reports.

    Args:
        args: What follows ``study``.

    Returns:
        The exit status: 0 if all runs ended well, 1 if some failed, 130 if interrupted.

    Raises:
        SettingError: For whatever can't be used, before anything runs; and if the disk is full.
    """
    options = parser().parse_args(args)
    check_count("jobs", options.jobs)
    check_can_draw()  # rather than when all has been computed
    definition = _chosen(options)
    perform: Perform
    if definition.function:
        runs, perform = computations(definition), _compute
    else:
        # Late: the parser of computations needs nothing of Lightning.
        from lightning_reg.cli.fitting import fit
        from lightning_reg.cli.plan import fits

        runs, perform = fits(definition), fit
    store = Store(_folder(options, definition), definition.study.name)
    store.open()
    _announce(definition, runs, store, quick=options.quick)
    command = shlex.join(["python", "train.py", "study", *args])
    try:
        failures = execute(runs, store, perform, metric=definition.study.metric, jobs=options.jobs)
    except KeyboardInterrupt:
        done = sum(map(store.has_result, runs))
        print(f"\nInterrupted; {done} of {len(runs)} runs are done. To go on:\n  {command}", file=sys.stderr)
        return 130
    results = [result for run in runs if (result := store.result(run)) is not None]
    for result in results:  # from a time when the study asked for another
        check_choice("metric", definition.study.metric, list(result.metrics))
    outcome = Outcome(
        study=definition.study,
        results=results,
        failures=failures,
        command=command,
        commands=_commands(runs),
        versions=_versions(),
        seconds=sum(result.seconds for result in results),
        quick=options.quick,
    )
    print("\n" + "\n".join(_table(outcome)))
    for failure in failures:
        print(f"failed: {failure.variant}, seed {failure.seed}: {failure.message}")
    if failures:
        print(f"Tracebacks are in {store.folder}/runs/*/failure.txt. The same command tries again what failed.")
    if results:
        print("\n" + "\n".join(headline(outcome)))
        try:
            print(f"report: {write_report(outcome, store.folder)}")
        except OSError as error:
            raise (store.full(error) or error) from error
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of what follows ``study``."""
    made = argparse.ArgumentParser(
        prog="train.py study", description="Run variants of one run over seeds, and report what each is worth."
    )
    add = made.add_argument
    add("file", help="the study, such as configs/studies/dropout.yaml")
    add("--quick", action="store_true", help="the short form: two minutes at the most on two cores")
    add("--data", metavar="NAME", help="digits, mnist, fashion_mnist, cifar10, cifar100, or a folder of pictures")
    add("--root", help="where the data set lies, or is downloaded to; default: data")
    add("--seeds", type=int, metavar="N", help="how many seeds, from 0 on")
    add("--jobs", type=int, default=1, metavar="N", help="processes, each with its share of the cores; default: 1")
    add("--output", metavar="FOLDER", help="where results and the report go; default: runs/studies/NAME")
    add("--only", nargs="+", default=[], metavar="VARIANT", help="some of the variants")
    return made


def _chosen(options: argparse.Namespace) -> Definition:
    definition, form = read_study(options.file), Form()
    if definition.function:
        for name in ("data", "root"):
            if getattr(options, name) is not None:
                raise SettingError(f"{name} must be left out of a study that trains nothing")
    elif options.data is not None or options.root is not None:
        from lightning_reg.cli.plan import data_form

        form, place = data_form(options.data, options.root, definition.data)
        definition = definition.in_form(form).on(place)
    if options.quick:
        definition = definition.in_form(definition.quick)
        if options.data is not None:
            definition = definition.in_form(form.quick or Form())
    if options.only:
        definition = definition.only(options.only)
    return definition if options.seeds is None else definition.with_seeds(options.seeds)


def _folder(options: argparse.Namespace, definition: Definition) -> Path:
    """Returns where results go: each form has its own folder, lest a trial's report replaces that of a long study."""
    if options.output is not None:
        return Path(options.output)
    parts = [definition.study.name]
    if options.data is not None:
        parts.append(Path(options.data).name)
    return Path("runs", "studies", "-".join([*parts, *(["quick"] if options.quick else [])]))


def _announce(definition: Definition, runs: Sequence[Run], store: Store, *, quick: bool) -> None:
    study_ = definition.study
    results = [result for run in runs if (result := store.result(run)) is not None]
    left = len(runs) - len(results)
    print(f"{study_.title}{', in short' if quick else ''}\n{study_.question}".rstrip())
    counts = f"{_counted(len(study_.variants), 'variant')}, {_counted(len(study_.seeds), 'seed')}"
    print(f"{_counted(len(runs), 'run')}: {counts}; {len(results)} done already")
    if not left:
        return
    if results:
        seconds = statistics.fmean(result.seconds for result in results) * left
        print(f"The other {left} take about {_duration(seconds)} one after the other, as those did.")
    elif definition.minutes is not None:
        print(f"They take about {_duration(60 * definition.minutes)} on two cores.")
    else:
        print("How long they take is told when the first is done.")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} seconds"
    minutes = seconds / 60
    return f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"


def _compute(run: Run, _: Path) -> Measured:
    return compute(run)


def _commands(runs: Sequence[Run]) -> dict[str, str]:
    commands: dict[str, str] = {}
    for run in runs:
        if run.command and run.variant not in commands:
            commands[run.variant] = shlex.join(["python", "train.py", "fit", *run.command])
    return commands


def _versions() -> dict[str, str]:
    import lightning_reg

    found = {"lightning_reg": lightning_reg.__version__}
    found |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {**found, "Python": platform.python_version(), "processor": processor()}


def _table(outcome: Outcome) -> list[str]:
    """Returns a line a variant: the mean and its standard error over seeds."""
    metric, found = outcome.study.metric, summaries(outcome, outcome.study.metric)
    width = max(map(len, [*outcome.study.variants, "variant"])) + 2
    lines = [f"{'variant':<{width}}{metric}"]
    for variant in outcome.study.variants:
        if variant in found:
            each = found[variant]
            lines.append(
                f"{variant:<{width}}{number(metric, each.mean, each.error)} ({_counted(len(each.values), 'seed')})"
            )
        else:
            lines.append(f"{variant:<{width}}no run has ended well")
    return lines
