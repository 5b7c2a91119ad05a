"""A table of everything that regularizes a run, and of techniques in it that work against each other."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.nn.parameter import UninitializedParameter
from typing_extensions import override

from lightning_reg.audit.chart_layout import charts_for
from lightning_reg.audit.contradictions import Contradiction, contradictions, monitors_not_logged
from lightning_reg.audit.inventory import Row, take_inventory, technique_settings
from lightning_reg.core.facts import Place
from lightning_reg.core.lightning import callbacks_of, instance_number
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.core.technique import Technique
from lightning_reg.core.tensorboard import log_final_metrics, log_layout, log_text
from lightning_reg.text import table

__all__ = ["RegularizationAudit", "markdown_table", "text_table"]

_WIDTH = 100


class RegularizationAudit(Technique):
    """Says what regularizes a run, all of it in one table, and what in it works against itself.

    What it does: when training starts it looks through the trainer, the module, the optimizers and the data for all
    that regularizes: batch size, augmentation, mixing; layers that drop something, norms, reparametrized and frozen
    weights; label smoothing and penalties; clipping; the decay of each parameter group, constraints, averages; early
    stopping. For combinations that work against each other it gives the reason and the remedy. Metrics that a callback
    watches and nothing logs are reported after the first epoch.

    When to use: always; for your own runs it is the record, for others' runs the first thing to read. When not: never
    in the way; it changes nothing.

    Cost: a walk over the module when training starts. State: none.

    Args:
        verbose: Whether the table is printed.
        warn: Whether it looks for combinations that work against each other; they are reported below the table, or as
            Python warnings where ``verbose`` is off.
        final_metrics: Whether the last metrics are logged beside all settings when the fit ends, so that TensorBoard's
            HParams page compares runs by technique; the command line does that itself, with the best weights.

    Logs:
        The table as text, ``audit/regularization``; the layout of TensorBoard's page of custom scalars, with those
        charts for which there are callbacks; ``final/<metric>`` beside all settings.

    Interacts with: a second one in the same trainer stays silent.

    Reference:
        Dropout before BatchNorm: Xiang Li et al.: Understanding the Disharmony between Dropout and Batch Normalization
        by Variance Shift, CVPR 2019, arXiv:1801.05134. Decay under Adam: Ilya Loshchilov, Frank Hutter: Decoupled
        Weight Decay Regularization, ICLR 2019, arXiv:1711.05101.

    >>> RegularizationAudit(verbose=False).contradictions
    []
    """

    place = Place.RUN
    only_watches = True  # the audit leaves out what changes nothing

    def __init__(self, *, verbose: bool = True, warn: bool = True, final_metrics: bool = True) -> None:
        super().__init__()
        self.verbose = verbose
        self.warn = warn
        self.final_metrics = final_metrics

    @property
    def rows(self) -> list[Row]:
        """Rows of the latest fit's table."""
        return [] if self.last_result is None else list(self.last_result.rows)

    @property
    def contradictions(self) -> list[Contradiction]:
        """Combinations in the latest fit that work against each other."""
        return [] if self.last_result is None else list(self.last_result.contradictions)

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return AuditSession(self, run)


@dataclass(frozen=True)
class AuditResult:
    """Result of an audit."""

    rows: tuple[Row, ...]
    contradictions: tuple[Contradiction, ...]


@dataclass(eq=False)
class AuditSession(Session[RegularizationAudit]):
    """One fit. A configuration and its overlay may each bring an audit: only the first reports."""

    is_first: bool = field(init=False)
    rows: list[Row] = field(default_factory=list)
    contradictions: list[Contradiction] = field(default_factory=list)
    has_validated: bool = False
    has_checked: bool = False  # whether what is watched is logged

    def __post_init__(self) -> None:
        self.is_first = instance_number(self.run.trainer, self.technique) == 0

    @override
    def result(self) -> AuditResult:
        return AuditResult(tuple(self.rows), tuple(self.contradictions))

    @override
    def train_starts(self) -> None:
        technique, trainer, module = self.technique, self.run.trainer, self.run.module
        if not self.is_first:
            return
        found = take_inventory(trainer, module)
        self.rows = found.rows
        self.contradictions = contradictions(found) if technique.warn else []
        title = _title(trainer, module)
        log_text(trainer, "audit/regularization", markdown_table(title, self.rows, self.contradictions))
        log_layout(trainer, charts_for(callbacks_of(trainer)))
        if not technique.verbose:
            for contradiction in self.contradictions:
                rank_zero_warn(str(contradiction))
        elif trainer.is_global_zero:
            print("\n" + text_table(title, self.rows, self.contradictions) + "\n")  # noqa: T201  # what it is for

    @override
    def validation_ends(self) -> None:
        self.has_validated = self.has_validated or not self.run.trainer.sanity_checking

    @override
    def epoch_ends(self) -> None:
        trainer = self.run.trainer
        if not self.is_first or self.has_checked or not (self.has_validated or not trainer.enable_validation):
            return
        self.has_checked = True
        if self.technique.warn:
            for monitor in monitors_not_logged(callbacks_of(trainer), sorted(trainer.callback_metrics)):
                self.contradictions.append(monitor)
                rank_zero_warn(str(monitor))

    @override
    def ends(self, exception: BaseException | None) -> None:
        trainer = self.run.trainer
        if self.technique.final_metrics and self.is_first and exception is None:
            metrics = {
                f"final/{name.replace('/', '_')}": value.item()
                for name, value in trainer.callback_metrics.items()
                if value.numel() == 1
            }
            data = getattr(trainer, "datamodule", None)
            log_final_metrics(trainer, self.run.module, data, metrics, technique_settings(trainer))


def _title(trainer: Trainer, pl_module: LightningModule) -> str:
    trainable = [parameter for parameter in pl_module.parameters() if parameter.requires_grad]
    shaped = [parameter for parameter in trainable if not isinstance(parameter, UninitializedParameter)]
    lazy = "" if len(shaped) == len(trainable) else " and those of lazy layers"
    weights = f"{sum(parameter.numel() for parameter in shaped):,} trainable weights{lazy}"
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    samples = f" on {len(dataset):,} training samples" if isinstance(dataset, Sized) else ""
    return f"Regularization of {type(pl_module).__name__}: {weights}{samples}"


def text_table(title: str, rows: Sequence[Row], found: Sequence[Contradiction]) -> str:
    """Returns the audit as plain text of at most 100 columns.

    Args:
        rows: Rows of the table, sorted by place.
        found: Combinations that work against each other.

    >>> print(text_table("Regularization of MLP", [Row("loss", "label smoothing", "0.1")], []))
    Regularization of MLP
    <BLANKLINE>
    place     technique        settings
    loss      label smoothing  0.1
    """
    cells = [["place", "technique", "settings"]]
    for place, group in groupby(rows, key=lambda row: row.place):
        # A place is named once.
        cells += [["" if index else place, row.technique, row.settings] for index, row in enumerate(group)]
    lines = [title, "", *table(cells, width=_WIDTH)]
    if found:
        numbered = [[f"{number}.", str(entry)] for number, entry in enumerate(found, 1)]
        lines += ["", "What works against itself", *table(numbered, right=[0], width=_WIDTH)]
    return "\n".join(lines)


def markdown_table(title: str, rows: Sequence[Row], found: Sequence[Contradiction]) -> str:
    """Returns the audit as Markdown.

    Args:
        rows: Rows of the table, sorted by place.
        found: Combinations that work against each other.

    >>> print(markdown_table("Regularization of MLP", [Row("loss", "label smoothing", "0.1")], []))
    **Regularization of MLP**
    <BLANKLINE>
    | place | technique | settings |
    |---|---|---|
    | loss | label smoothing | 0.1 |
    """
    lines = [f"**{title}**", "", "| place | technique | settings |", "|---|---|---|"]
    lines += [f"| {row.place} | {row.technique} | {_escaped(row.settings)} |" for row in rows]
    if found:
        lines += ["", "**What works against itself**", ""]
        lines += [f"{number}. {_escaped(str(entry))}" for number, entry in enumerate(found, 1)]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Keeps globs and names with underscores from being read as Markdown."""
    for sign in "\\|*_":
        text = text.replace(sign, f"\\{sign}")
    return text
