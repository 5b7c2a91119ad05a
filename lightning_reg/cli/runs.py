"""Where runs lie: output folders and checkpoints by name."""

import os
import pickle
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_reg.models.checkpoints import check_fits
from lightning_reg.settings import SettingError

__all__ = ["check_writable", "continue_run", "find_checkpoint", "load_fitting_checkpoint", "run_folders"]


def run_folders(trainer: Trainer) -> Path:
    """Returns the folder under which the runs of this configuration lie.

    Args:
        trainer: With its logger.
    """
    root = getattr(trainer.logger, "root_dir", None) or trainer.default_root_dir
    return Path(root)


def check_writable(trainer: Trainer) -> None:
    """Raises if a folder that the run will write to can't be written.

    Args:
        trainer: With its loggers.

    Raises:
        SettingError: With the folder and why.
    """
    folders = [(f"{type(logger).__name__}'s save_dir", logger.save_dir) for logger in trainer.loggers]
    for setting, folder in [*folders, ("trainer.default_root_dir", trainer.default_root_dir)]:
        if folder is None or "://" in str(folder):
            continue
        nearest = Path(folder).absolute()
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            reason = "can't be written" if nearest.is_dir() else "is a file"
            raise SettingError(
                f"{setting} must be a folder that can be written, but is {str(folder)!r}: {nearest} {reason}"
            )


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
        if isinstance(logger, (TensorBoardLogger, CSVLogger)) and Path(logger.root_dir).absolute() == run.parent:
            logger._version = run.name  # the loggers take it in their constructors only


def load_fitting_checkpoint(path: str, model: LightningModule) -> None:
    """Raises if a file is no checkpoint or doesn't fit the model, before anything is written.

    Args:
        path: A checkpoint's file.
        model: What it is to be loaded into.

    Raises:
        SettingError: With what is wrong.
    """
    if not Path(path).is_file():  # an address; Lightning fetches it
        return
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = checkpoint["state_dict"]
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise SettingError(f"ckpt_path {path!r} is not a Lightning checkpoint") from error
    check_fits(state, model)
