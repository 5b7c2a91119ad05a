"""What a network is trained for: classes, several labels a sample, or numbers; a file a kind."""

from lightning_reg.models.tasks.classification import Classification, Multilabel
from lightning_reg.models.tasks.regression import Regression
from lightning_reg.models.tasks.task import Prediction, Task

__all__ = ["Classification", "Multilabel", "Prediction", "Regression", "Task"]
