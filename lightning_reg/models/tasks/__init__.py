"""Tasks: classification, several labels per sample, or regression."""

from lightning_reg.models.tasks.classification import Classification, Multilabel
from lightning_reg.models.tasks.regression import Regression
from lightning_reg.models.tasks.task import Prediction, Task

__all__ = ["Classification", "Multilabel", "Prediction", "Regression", "Task"]
