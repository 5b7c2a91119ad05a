"""The number of training samples."""

from collections.abc import Sized

from lightning.pytorch import Trainer

from lightning_reg.settings import SettingError

__all__ = ["training_samples"]


def training_samples(trainer: Trainer) -> int:
    """Returns the number of samples per epoch, over all processes.

    Args:
        trainer: Trainer in a fit.

    Raises:
        SettingError: If the training loader's data set has no length.
    """
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if not isinstance(dataset, Sized):
        raise SettingError(
            "num_samples must be given, because the training loader has no data set that knows its length"
        )
    return len(dataset)
