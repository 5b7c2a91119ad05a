"""LightningModules: one training step around any network, and networks with pluggable parts.

Their tasks (classification, regression, several labels) are in ``lightning_reg.models.tasks``.
"""

from lightning_reg.models.classifier import Classifier
from lightning_reg.models.cnn import CNN
from lightning_reg.models.mlp import MLP
from lightning_reg.models.rnn import RNN
from lightning_reg.models.supervised import Supervised
from lightning_reg.models.tasks import Classification, Multilabel, Regression, Task
from lightning_reg.models.transformer import TransformerClassifier

__all__ = [
    "CNN",
    "MLP",
    "RNN",
    "Classification",
    "Classifier",
    "Multilabel",
    "Regression",
    "Supervised",
    "Task",
    "TransformerClassifier",
]
