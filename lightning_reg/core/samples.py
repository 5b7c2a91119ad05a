"""How many samples there are to train on."""

from collections.abc import Sized

from lightning.pytorch import Trainer

from lightning_reg.settings import SettingError

__all__ = ["training_samples"]


def training_samples(trainer: Trainer) -> int:
    """Returns how many samples an epoch has, over all processes.

    Args:
        trainer: In a fit, whose training loader has a data set that knows its length.

    Raises:
        SettingError: If it doesn't.
    """
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    if not isinstance(dataset, Sized):
        raise SettingError(
            "num_samples must be given, because the training loader has no data set that knows its length"
        )
    return len(dataset)
