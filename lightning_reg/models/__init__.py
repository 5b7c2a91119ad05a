"""LightningModules: a classifier around any network, and networks with pluggable parts."""

from lightning_reg.models.classifier import Classifier
from lightning_reg.models.cnn import CNN
from lightning_reg.models.mlp import MLP
from lightning_reg.models.rnn import RNN
from lightning_reg.models.transformer import TransformerClassifier

__all__ = ["CNN", "MLP", "RNN", "Classifier", "TransformerClassifier"]
