"""Output folders of runs, and checkpoints by name."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_reg.cli.resuming import Checkpoint, progress_of
from lightning_reg.core.lightning import callbacks_of
from lightning_reg.files import check_weights, opened, read_checkpoint
from lightning_reg.settings import SettingError

__all__ = [
    "check_writable",
    "continue_run",
    "find_checkpoint",
    "load_with",
    "nothing_half_written",
    "read_for",
    "run_folders",
]

_LAYOUT: Mapping[str, type] = {
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "hyper_parameters": Mapping,
    "callbacks": Mapping,
    "loops": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
}
"""Types of the entries of a Lightning checkpoint; an entry may be missing, but not have another type."""


def run_folders(trainer: Trainer) -> Path:
    """Returns the folder that contains the runs of this configuration."""
    root = getattr(trainer.logger, "root_dir", None) or trainer.default_root_dir
    return Path(root)


def check_writable(trainer: Trainer, checkpoints: str | None = None) -> None:
    """Checks that every folder the run will write to is writable.

    Args:
        checkpoints: Folder for checkpoints if it isn't the run's.

    Raises:
        SettingError: If a folder isn't writable, with the reason.
    """
    folders = [
        (f"{type(logger).__name__}'s save_dir", getattr(logger, "log_dir", logger.save_dir))
        for logger in trainer.loggers
    ]
    folders.append(("checkpoint.dirpath", checkpoints))
    parts = (trainer.profiler, *callbacks_of(trainer))  # type: ignore[attr-defined]  # set elsewhere
    folders += [(f"{type(part).__name__}'s dirpath", getattr(part, "dirpath", None)) for part in parts]
    if not trainer.loggers:
        folders.append(("trainer.default_root_dir", trainer.default_root_dir))
    for setting, folder in folders:
        if folder is None or "://" in str(folder):
            continue
        try:
            # By writing, because permissions don't show a full or read-only disk, or a folder such as /proc.
            with tempfile.TemporaryFile(dir=_nearest_existing(Path(folder))):
                pass
        except OSError as error:
            raise SettingError(
                f"{setting} must be a folder that can be written, but is {str(folder)!r}: {error.strerror}"
            ) from error


def _nearest_existing(folder: Path) -> Path:
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    return nearest


@contextmanager
def nothing_half_written(trainer: Trainer) -> Iterator[None]:
    """Removes what was written to the run's folder if settings prove invalid before a checkpoint was saved."""
    folder = Path(trainer.log_dir).absolute() if trainer.log_dir else None
    parent = _nearest_existing(folder) if folder else None
    before = set(folder.rglob("*")) if folder else set()
    try:
        yield
    except (SettingError, MisconfigurationException):
        written = [] if folder is None else sorted(set(folder.rglob("*")) - before, reverse=True)
        saved = any(path.suffix == ".ckpt" for path in written)
        if folder is not None and trainer.is_global_zero and not saved:
            for path in written:  # a folder's contents come before the folder
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
            while folder != parent and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
        raise


def find_checkpoint(trainer: Trainer, ckpt_path: str, dirpath: str | None = None) -> str:
    """Resolves ``best`` and ``last`` to the newest checkpoint of that name among this configuration's runs.

    Args:
        trainer: Trainer whose logger determines the folder of the runs.
        ckpt_path: ``best``, ``last``, a file, or anything else Lightning accepts (a URL, ``hpc``, ``registry``).
        dirpath: Folder of checkpoints if they aren't in their run's folder.

    Raises:
        SettingError: If there is no such checkpoint.
    """
    path = str(ckpt_path)
    if "://" in path or path == "hpc" or path.startswith("registry"):
        return path
    if path in ("best", "last"):
        root = run_folders(trainer)
        found = list(Path(dirpath or root).glob(f"{path}.ckpt"))
        found += root.glob(f"checkpoints/{path}.ckpt")
        found += root.glob(f"*/checkpoints/{path}.ckpt")
        if not found:
            raise SettingError(
                f"ckpt_path is {path!r}, but no run under {str(root)!r} has a {path}.ckpt; run fit first"
            )
        return str(max(found, key=lambda file: file.stat().st_mtime))
    if not os.path.lexists(path):  # pathlib raises where a name is too long, or a folder closed
        raise SettingError(f"ckpt_path must be best, last or a file that exists, but is {path!r}")
    with opened("ckpt_path", path):  # checks that it is a regular, readable file
        return path


def continue_run(trainer: Trainer, ckpt_path: str) -> None:
    """Makes the trainer write into the folder of the run that a checkpoint comes from.

    A resumed run thus continues its curves in TensorBoard, and its best checkpoint stays the best of the whole run
    rather than the best since the interruption; tests and predictions are saved with the model they belong to.

    Args:
        trainer: Trainer whose loggers haven't created a folder yet.
        ckpt_path: File of the checkpoint.
    """
    run = Path(ckpt_path).absolute().parent.parent
    for logger in trainer.loggers:
        # Not a CSVLogger: it would delete the existing curves.
        if isinstance(logger, TensorBoardLogger) and Path(logger.root_dir).absolute() == run.parent:
            logger._version = run.name  # settable in its constructor only


def read_for(command: str, path: str, model: LightningModule, *, weights_only: bool) -> Checkpoint:
    """Reads a checkpoint and checks that a command can use it; returns an empty mapping if it isn't a local file.

    Whether its weights match the model is checked later, when the model is complete.

    Args:
        command: Name of the command; ``fit`` resumes from the checkpoint.
        path: File of the checkpoint, or anything else Lightning accepts.
        model: Model that the checkpoint will be loaded into.
        weights_only: Whether to reject a file that holds more than data.

    Raises:
        SettingError: If the file isn't a Lightning checkpoint, has weights that the model can't take, or, for ``fit``,
            lacks the state to resume from.
    """
    if not Path(path).is_file():  # Lightning fetches it
        return {}
    found = read_checkpoint("ckpt_path", path, weights_only=weights_only)
    shown = f"ckpt_path {path!r}"
    state = found.get("state_dict") if isinstance(found, Mapping) else None
    if not isinstance(state, Mapping):
        raise SettingError(f"{shown} is not a Lightning checkpoint: it has no state_dict")
    for name, kind in _LAYOUT.items():
        if name in found and not isinstance(found[name], kind):
            raise SettingError(f"{shown} is not a Lightning checkpoint: its {name} is a {type(found[name]).__name__}")
    check_weights(shown, state, dict(model.named_parameters()))
    if command == "fit":
        if not found.get("optimizer_states"):
            raise SettingError(
                f"{shown} holds no optimizer_states to go on with; validate, test and predict can use it"
            )
        progress_of(path, found)
    return cast("Checkpoint", found)


def load_with(trainer: Trainer, *, weights_only: bool) -> None:
    """Sets the default of ``weights_only`` for every checkpoint that a trainer loads.

    Lightning otherwise chooses by itself for http addresses, whose files it unpickles in full, and for strategies that
    restore after setup.

    Args:
        trainer: The trainer; its strategy's ``load_checkpoint`` is replaced.
        weights_only: Whether to reject a file that holds more than data.
    """
    load, chosen = trainer.strategy.load_checkpoint, weights_only

    @wraps(load)
    def load_checkpoint(checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        return load(checkpoint_path, weights_only=chosen if weights_only is None else weights_only)

    trainer.strategy.load_checkpoint = load_checkpoint  # type: ignore[method-assign]
