"""Where runs lie: output folders and checkpoints by name."""

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_reg.settings import SettingError

__all__ = [
    "check_readable",
    "check_writable",
    "continue_run",
    "find_checkpoint",
    "nothing_half_written",
    "run_folders",
]


def run_folders(trainer: Trainer) -> Path:
    """Returns the folder under which the runs of this configuration lie.

    Args:
        trainer: With its logger.
    """
    root = getattr(trainer.logger, "root_dir", None) or trainer.default_root_dir
    return Path(root)


def check_writable(trainer: Trainer, checkpoints: str | None = None) -> None:
    """Raises if a folder that the run will write to can't be written.

    Args:
        trainer: With its loggers.
        checkpoints: Folder for checkpoints if it isn't the run's.

    Raises:
        SettingError: With the folder and why.
    """
    folders = [
        (f"{type(logger).__name__}'s save_dir", getattr(logger, "log_dir", logger.save_dir))
        for logger in trainer.loggers
    ]
    folders.append(("checkpoint.dirpath", checkpoints))
    if not trainer.loggers:
        folders.append(("trainer.default_root_dir", trainer.default_root_dir))
    for setting, folder in folders:
        if folder is None or "://" in str(folder):
            continue
        try:
            # By writing, because permissions don't tell all: a full or a read-only disk, a folder of the kernel's.
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
    """Removes what was written to the run's folder if settings turn out to be unusable before there is a checkpoint.

    Args:
        trainer: That is about to run.
    """
    folder = Path(trainer.log_dir).absolute() if trainer.log_dir else None
    parent = _nearest_existing(folder) if folder else None
    before = set(folder.rglob("*")) if folder else set()
    try:
        yield
    except (SettingError, MisconfigurationException):
        written = [] if folder is None else sorted(set(folder.rglob("*")) - before, reverse=True)
        saved = any(path.suffix == ".ckpt" for path in written)
        if folder is not None and trainer.is_global_zero and not saved:
            for path in written:  # what lies in a folder comes before it
                if path.is_dir():
                    path.rmdir()
                else:
                    path.unlink()
            while folder != parent and folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
                folder = folder.parent
        raise


def find_checkpoint(trainer: Trainer, ckpt_path: str, dirpath: str | None = None) -> str:
    """Turns ``best`` and ``last`` into the newest checkpoint of that name of this configuration's runs.

    Args:
        trainer: Whose logger says where the runs lie.
        ckpt_path: best, last, a file, or what else Lightning understands (an address, ``hpc``, ``registry``).
        dirpath: Where checkpoints lie if not in their run's folder.

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
    if not Path(path).is_file():
        raise SettingError(f"ckpt_path must be best, last or a file that exists, but is {path!r}")
    return path


def continue_run(trainer: Trainer, ckpt_path: str) -> None:
    """Lets whatever is done with a checkpoint write into the folder of the run it comes from.

    So a resumed run's curves go on in TensorBoard, and its best checkpoint stays the best of the whole run rather than
    the best since the interruption; tests and predictions lie beside the model they belong to.

    Args:
        trainer: Whose loggers haven't opened a folder yet.
        ckpt_path: The checkpoint.
    """
    run = Path(ckpt_path).absolute().parent.parent
    for logger in trainer.loggers:
        # Not a CSVLogger: it would delete the curves that are there.
        if isinstance(logger, TensorBoardLogger) and Path(logger.root_dir).absolute() == run.parent:
            logger._version = run.name  # it takes it in its constructor only


def check_readable(path: str) -> None:
    """Raises if a file is no checkpoint. Whether it fits the model is seen when the model is complete.

    Args:
        path: A checkpoint's file.

    Raises:
        SettingError: If it isn't one.
    """
    if not Path(path).is_file():  # an address; Lightning fetches it
        return
    try:
        # As Lightning will load it; other people's hyperparameters may be more than plain values.
        torch.load(path, map_location="cpu", weights_only=False, mmap=True)["state_dict"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"ckpt_path {path!r} is not a Lightning checkpoint") from error
