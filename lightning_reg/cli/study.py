"""The command ``study``: runs variants of one run over several seeds, and reports what each is worth."""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_reg.cli.invocation import command_line
from lightning_reg.cli.options import CommandParser, add_places, check_places, executor_of, versions
from lightning_reg.files import read_yaml
from lightning_reg.settings import SettingError, check_choice
from lightning_reg.shipped import find_config
from lightning_reg.studies.definition import Definition, Form, read_study
from lightning_reg.studies.execution import Perform, execute
from lightning_reg.studies.outcome import Failure, Outcome, Result
from lightning_reg.studies.report import check_can_draw, headline, number, write_report
from lightning_reg.studies.runs import Run, computations, compute
from lightning_reg.studies.statistics import summaries
from lightning_reg.studies.store import Store, full_disk, is_disk_full
from lightning_reg.studies.study_file import dumped, keys_help
from lightning_reg.text import counted, duration, table

__all__ = ["parser", "study"]

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "scikit-learn")


def study(args: Sequence[str]) -> int:
    """Runs or resumes a study, and reports its results.

    Args:
        args: Words after ``study`` on the command line.

    Returns:
        The exit status: 0 if all runs succeeded, 1 if some failed, 130 if interrupted.

    Raises:
        SettingError: If a setting is invalid, before anything runs; and if the disk is full.
    """
    options = parser().parse_args(args)
    options.file = find_config("study file", options.file, within="studies")
    if options.print_config:
        read_study(options.file)  # raises if the file is invalid
        print(dumped(read_yaml("study file", options.file)), end="")
        return 0
    check_places(options)
    check_can_draw()  # before rather than after all runs
    definition = _chosen(options)
    runs, perform = _runs(definition)
    store = Store(_folder(options, definition), definition.study.name)
    store.check()
    if not any(map(store.has_result, runs)):
        _check_metric(definition, runs)
    _announce(definition, runs, store, quick=options.quick)
    command = command_line(["study", *args])
    failures: list[Failure] = []
    if not all(map(store.has_result, runs)):  # a finished study only writes its report
        try:
            with executor_of(options) as executor, store.locked():
                failures = execute(runs, store, perform, executor, metric=definition.study.metric)
        except KeyboardInterrupt:
            done = sum(map(store.has_result, runs))
            print(f"\nInterrupted; {done} of {len(runs)} runs are done. To go on:\n  {command}", file=sys.stderr)
            return 130
    results = _results(runs, store, definition.study.metric)
    outcome = Outcome(
        study=definition.study,
        results=results,
        failures=failures,
        command=command,
        commands=_commands(runs),
        versions=versions(_PACKAGES),
        seconds=sum(result.seconds for result in results),
        quick=options.quick,
    )
    _report(outcome, store.folder)
    return 1 if failures else 0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the words after ``study``."""
    made = CommandParser(
        prog=command_line(["study"]),
        description="Run variants of one run over seeds, and report what each is worth.",
        epilog=keys_help(),
    )
    add = made.add_argument
    add("file", metavar="FILE", help="the study: a file, or the name of one that is shipped, such as dropout")
    add("--quick", action="store_true", help="the short form: two minutes at the most on two cores")
    add("--data", metavar="NAME", help="digits, mnist, fashion_mnist, cifar10, cifar100, or a folder of images")
    add("--root", metavar="FOLDER", help="where the data set lies, or is downloaded to; default: data")
    add("--seeds", type=int, metavar="N", help="how many seeds, from 0 on")
    add("--only", nargs="+", default=[], metavar="VARIANT", help="some of the variants")
    add_places(made, "runs")
    add("--output", metavar="FOLDER", help="where results and the report go; default: runs/studies/NAME")
    add("--print_config", action="store_true", help="print the file with all defaults, and run nothing")
    return made


def _chosen(options: argparse.Namespace) -> Definition:
    definition, form = read_study(options.file), Form()
    if definition.function:
        for name in ("data", "root"):
            if getattr(options, name) is not None:
                raise SettingError(f"{name} must be left out of a study that trains nothing")
    elif options.data is not None or options.root is not None:
        from lightning_reg.cli.unattended.plan import data_form

        form, place = data_form(options.data, options.root, definition.data)
        definition = definition.in_form(form).on(place)
    if options.quick:
        definition = definition.in_form(definition.quick)
        if options.data is not None:
            definition = definition.in_form(form.quick or Form())
    if options.only:
        definition = definition.only(options.only)
    return definition if options.seeds is None else definition.with_seeds(options.seeds)


def _runs(definition: Definition) -> tuple[list[Run], Perform]:
    """Returns the runs of a study, and the function that performs one."""
    if definition.function:
        return computations(definition), compute
    # Imported late: computations need neither Lightning nor LightningCLI's parser.
    from lightning_reg.cli.unattended.fitting import fit
    from lightning_reg.cli.unattended.plan import fits

    return fits(definition), fit


def _check_metric(definition: Definition, runs: Sequence[Run]) -> None:
    """Raises if the first run doesn't measure what the study asks for."""
    if definition.function:
        return
    from lightning_reg.cli.unattended.fitting import metric_names

    if names := metric_names(runs[0]):
        check_choice("metric", definition.study.metric, names)


def _results(runs: Sequence[Run], store: Store, metric: str) -> list[Result]:
    """Returns the results of finished runs.

    Raises:
        SettingError: If one lacks the metric, as an older one does where it was set later.
    """
    found = [(run, result) for run in runs if (result := store.result(run)) is not None]
    for run, result in found:
        if not any(metric in other.metrics for _, other in found):
            check_choice("metric", metric, list(result.metrics))
        if metric not in result.metrics:
            path = str(store.run_folder(run))
            raise SettingError(
                f"the result in {path!r} has no {metric}, which others have; remove {path!r}, and its run is done again"
            )
    return [result for _, result in found]


def _folder(options: argparse.Namespace, definition: Definition) -> Path:
    """Returns the output folder: each form has its own, so that a quick report doesn't replace that of a full study."""
    if options.output is not None:
        return Path(options.output)
    parts = [definition.study.name]
    if options.data is not None:
        parts.append(Path(options.data).name)
    return Path("runs", "studies", "-".join([*parts, *(["quick"] if options.quick else [])]))


def _announce(definition: Definition, runs: Sequence[Run], store: Store, *, quick: bool) -> None:
    asked = definition.study
    results = [result for run in runs if (result := store.result(run)) is not None]
    left = len(runs) - len(results)
    print(f"{asked.title}{', in short' if quick else ''}\n{asked.question}".rstrip())
    counts = f"{counted(len(asked.variants), 'variant')}, {counted(len(asked.seeds), 'seed')}"
    print(f"{counted(len(runs), 'run')}: {counts}; {len(results)} done already")
    if not left:
        return
    if results:
        seconds = statistics.fmean(result.seconds for result in results) * left
        print(f"The other {left} take about {duration(seconds)} one after the other, as those did.")
    elif definition.minutes is not None:
        print(f"They take about {duration(60 * definition.minutes)} on two cores.")
    else:
        print("How long they take is seen when the first is done.")


def _commands(runs: Sequence[Run]) -> dict[str, str]:
    commands: dict[str, str] = {}
    for run in runs:
        if run.command and run.variant not in commands:
            commands[run.variant] = command_line(["fit", *run.command])
    return commands


def _report(outcome: Outcome, folder: Path) -> None:
    print("\n" + "\n".join(_table(outcome)))
    for failure in outcome.failures:
        print(f"failed: {failure.variant}, seed {failure.seed}: {failure.message}")
    if outcome.failures:
        print(f"Tracebacks are in {folder}/runs/*/failure.txt. The same command tries again what failed.")
    if outcome.results:
        print("\n" + "\n".join(headline(outcome)))
        try:
            print(f"report: {write_report(outcome, folder)}")
        except OSError as error:
            if is_disk_full(error, folder):
                raise full_disk(folder) from error
            print(f"The report can't be written: {error}", file=sys.stderr)


def _table(outcome: Outcome) -> list[str]:
    """Returns one line per variant: the mean over seeds and its standard error."""
    metric, found = outcome.study.metric, summaries(outcome, outcome.study.metric)
    rows = [["variant", metric]]
    for variant in outcome.study.variants:
        text = "no run has ended well"
        if variant in found:
            summary = found[variant]
            text = f"{number(metric, summary.mean, summary.error)} ({counted(len(summary.values), 'seed')})"
        rows.append([variant, text])
    return table(rows)
