"""The names that a model's docstring lists, which ``--help`` shows, are those that it takes, and all that there are."""

import re

import docstring_parser
import pytest
import torch

from lightning_reg.init import INITIALIZATIONS
from lightning_reg.models import CNN, MLP, RNN, TransformerClassifier
from lightning_reg.nn import ACTIVATIONS, DROPOUTS, NORMS, WEIGHT_DROPOUTS
from lightning_reg.settings import SettingError

NAMES = {
    "norm": [*NORMS],
    "activation": [*ACTIVATIONS],
    "dropout": [*DROPOUTS, *WEIGHT_DROPOUTS],
    "init": [*INITIALIZATIONS, "auto", "default", "lsuv"],
}
SHAPES = {MLP: (1, 8, 8), CNN: (1, 8, 8), RNN: (5, 3), TransformerClassifier: (1, 8, 8)}
PAIRS = [(model, setting) for setting in NAMES for model in SHAPES if (model, setting) != (RNN, "activation")]


def documented(model, setting):
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(model.__doc__).params}[setting]
    return set(re.findall(r"\w+", described)) & set(NAMES[setting])


def taken(model, setting):
    found = set()
    for name in NAMES[setting]:
        try:
            made = model(input_shape=SHAPES[model], num_classes=3, drop_prob=0.3, **{setting: name})
            made.train()(torch.zeros(4, *SHAPES[model]))
        except SettingError:
            continue
        found.add(name)
    return found


@pytest.mark.parametrize(
    ("model", "setting"), [pytest.param(*pair, id="-".join((pair[1], pair[0].__name__))) for pair in PAIRS]
)
def test_a_model_takes_the_names_that_its_docstring_lists(model, setting):
    assert documented(model, setting)
    assert documented(model, setting) <= taken(model, setting)


@pytest.mark.parametrize("setting", NAMES)
def test_every_name_that_there_is_is_listed_somewhere(setting):
    models = [model for model, named in PAIRS if named == setting]
    assert set().union(*(documented(model, setting) for model in models)) == set(NAMES[setting])
