"""A classifier around any network."""

from typing import Any

from torch import nn

from lightning_reg.models.supervised import Supervised
from lightning_reg.models.tasks import Classification
from lightning_reg.settings import SettingError

__all__ = ["Classifier"]


class Classifier(Supervised):
    """Trains any network to classify, with cross entropy; :class:`Supervised` that refuses anything else.

    Args:
        network: Module from a batch of inputs to logits (N, num_classes).
        settings: Arguments of :class:`Supervised`.

    Raises:
        SettingError: If the task is another, or a setting is out of range.

    >>> import torch
    >>> module = Classifier(nn.Linear(4, 3), num_classes=3)
    >>> module(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(self, network: nn.Module, **settings: Any) -> None:
        if settings.get("task", "auto") == "auto":
            settings["task"] = "classification"
        super().__init__(network, **settings)
        if not isinstance(self.task, Classification):
            raise SettingError(
                f"task must be classification for Classifier, but is {type(self.task).__name__}; use Supervised"
            )
