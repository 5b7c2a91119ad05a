"""Fits a foreign project with something attached, and tells what came of it."""

import contextlib
import copy
import functools
import importlib
import io
import logging
import math
import pkgutil
import types
import warnings
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import Metric

from lightning_reg.settings import SettingError
from tests.foreign import projects
from tests.foreign.project import EPOCHS, Project
from tests.helpers import quiet_trainer


def _collected():
    modules = [
        importlib.import_module(f"{projects.__name__}.{found.name}")
        for found in pkgutil.iter_modules(projects.__path__)
    ]
    return {name: project for module in modules for name, project in module.PROJECTS.items()}


PROJECTS: dict[str, Project] = _collected()


class Writer:
    """In the place of TensorBoard's: remembers the tags that it is given."""

    def __init__(self):
        self.tags = []

    def _remember(self, tag="", *args, **kwargs):
        self.tags.append(str(tag))

    def __getattr__(self, method):
        if not method.startswith("add_"):
            raise AttributeError(method)
        return self._remember

    def _get_file_writer(self):  # torch's writer hands out the one that takes events which are ready
        return self

    def add_summary(self, summary, step=None):
        self.tags += [value.tag for value in summary.value]


class Remembers(TensorBoardLogger):
    """Looks like TensorBoard's to whoever asks, and writes no files."""

    def __init__(self):
        super().__init__("unused")
        self.writer = Writer()
        self.metrics = []

    @property
    @rank_zero_experiment
    def experiment(self):
        return self.writer

    def log_metrics(self, metrics, step=None):
        self.metrics.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_graph(self, *args, **kwargs):
        pass

    def save(self):
        pass

    def finalize(self, status):
        pass


@dataclass
class Outcome:
    """What a fit leaves.

    Attributes:
        module: As it is afterwards.
        trainer: That fitted it.
        logged: What the logger was given, in order: step, tag and value.
        drawn: Tags of images, texts and histograms.
        said: Warnings, log records and printed lines.
    """

    module: LightningModule
    trainer: Trainer
    logged: list[tuple[int, str, float]]
    drawn: set[str]
    said: set[str]

    @property
    def tags(self):
        shown = {tag for _, tag, _ in self.logged} | self.drawn
        return shown | set(self.trainer.callback_metrics)

    @property
    def weights(self):
        return [parameter.detach().clone() for parameter in parameters_of(self.module)]

    def values_of(self, tag):
        """Steps and values, as they were logged."""
        return [(step, value) for step, named, value in self.logged if named == tag]


def parameters_of(module):
    """All of them under the names that the user gave them, whatever a technique has put in between."""
    named = {
        name.replace("parametrizations.", "").replace(".original", ""): parameter
        for name, parameter in module.named_parameters()
    }
    unlisted = getattr(module, "prompts", [])
    return [*(named[name] for name in sorted(named)), *unlisted]


@contextlib.contextmanager
def listening():
    """Collects what is printed, warned of and written to Lightning's log."""
    said: set[str] = set()
    handler = logging.Handler()
    handler.emit = lambda record: said.add(record.getMessage())
    # The last of Lightning's packages that was imported, by whichever test, writes to the log for all of them.
    names = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_reg")
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addHandler(handler)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(printed):
            warnings.simplefilter("always")
            yield said
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        said |= {str(warning.message) for warning in caught}
        said |= {line for line in printed.getvalue().splitlines() if line.strip()}


def fit(project, callbacks=()):
    """Trains as the project does, with more callbacks than it knows of."""
    torch.manual_seed(0)
    module = project.make()
    logger = (project.logger or Remembers)()
    loaders = project.train(), project.validation() if project.validation else None
    with listening() as said:
        trainer = quiet_trainer(
            *project.callbacks(),
            *callbacks,
            **{"max_epochs": EPOCHS, "logger": logger, "log_every_n_steps": 1, **project.settings},
        )
        trainer.fit(module, *loaders)
    remembers = isinstance(logger, Remembers)
    logged = (
        [(step, tag, float(value)) for step, values in logger.metrics for tag, value in values.items()]
        if remembers
        else []
    )
    return Outcome(module, trainer, logged, set(logger.writer.tags) if remembers else set(), said)


def fit_or_refusal(project, callbacks):
    """What came of it: an outcome, or the error by which a technique says that it can't."""
    try:
        return fit(project, callbacks)
    except SettingError as refusal:
        return refusal


@functools.cache
def fitted_plainly(name):
    """The project alone; don't change what is returned."""
    return fit(PROJECTS[name])


def is_finite(module):
    return all(bool(parameter.isfinite().all()) for parameter in parameters_of(module))


_LIGHTNINGS = set(vars(LightningModule())) - {"_parameters", "_buffers", "_modules", "training"}


def state_of(module, *, statistics=True):
    """Everything that a module holds, however deep, by where it lies: tensors as tensors, the rest as plain values.

    Args:
        module: After a fit.
        statistics: Whether BatchNorm's are included.
    """
    found, seen = {}, set()

    def visit(at, value):
        if isinstance(value, Tensor):
            found[at] = value.detach().clone()
        elif isinstance(value, np.ndarray):
            found[at] = torch.from_numpy(value.copy())
        elif isinstance(value, str | int | float | bool | None):
            found[at] = value
        elif isinstance(value, dict):
            found[at] = list(value)
            for key, entry in value.items():
                visit(f"{at}[{key!r}]", entry)
        elif isinstance(value, list | tuple | deque):
            found[at] = len(value)
            for index, entry in enumerate(value):
                visit(f"{at}[{index}]", entry)
        elif hasattr(value, "__dict__") and not isinstance(value, type | types.FunctionType | types.MethodType):
            if id(value) in seen:
                return
            seen.add(id(value))
            found[at] = type(value).__name__
            left_out = _LIGHTNINGS if isinstance(value, LightningModule) else set()
            if isinstance(value, _BatchNorm) and not statistics:
                left_out = {*left_out, "_buffers"}
            for key, entry in vars(value).items():
                if key not in left_out:
                    visit(f"{at}.{key}", entry)

    visit("module", module)
    return found


def counts_of(module):
    """Whole numbers that a project counts by: lengths of lists, counters, how often metrics were updated.

    They depend on how often a step ran, never on the weights.
    """
    own = {name: value for name, value in vars(module).items() if name not in _LIGHTNINGS and name[0] != "_"}
    bare = nn.Module()
    for name, value in own.items():
        if not isinstance(value, nn.Module | Tensor):
            setattr(bare, name, copy.copy(value))
    counts = {
        at: value.sum() if isinstance(value, Tensor) and not value.is_floating_point() else value
        for at, value in state_of(bare).items()
        if not at.startswith("module._") and "teachers" not in at
        if not isinstance(value, float) and not (isinstance(value, Tensor) and value.is_floating_point())
    }
    metrics = {
        f"{at}'s updates": submodule._update_count
        for at, submodule in module.named_modules()
        if isinstance(submodule, Metric)
    }
    return counts | metrics


def differences(one, other, tolerance=0.0):
    """Where two states differ, in words."""
    lines = [f"{at} is on one side alone" for at in sorted(set(one) ^ set(other))]
    for at in (at for at in one if at in other):
        a, b = one[at], other[at]
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or a.dtype != b.dtype:
                lines.append(f"{at} has another shape or dtype")
            elif not torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True):
                lines.append(
                    f"{at} differs by {(a - b).abs().max().item() if a.is_floating_point() else 'a whole number'}"
                )
        elif isinstance(a, float) and isinstance(b, float):
            if not math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) and not (math.isnan(a) and math.isnan(b)):
                lines.append(f"{at} is {a} and {b}")
        elif isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
            lines.append(f"{at} is {a} and {b}")
    return lines
