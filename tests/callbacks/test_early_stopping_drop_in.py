"""BestWeightsEarlyStopping in the place of Lightning's EarlyStopping: it decides, says, logs and saves the same."""

import inspect
import logging
import pickle
from random import Random
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_reg.callbacks import BestWeightsEarlyStopping
from tests.callbacks.test_best_weights_early_stopping_ways import Scripted, fit
from tests.helpers import quiet_trainer

INF, NAN = float("inf"), float("nan")


def scripts():
    """Losses that fall, rise, repeat and end in what isn't finite, with settings of every kind."""
    random = Random(0)
    choices = {
        "patience": [0, 1, 2, 5],
        "min_delta": [0.0, 0.3],
        "mode": ["min", "max"],
        "check_finite": [True, False],
        "stopping_threshold": [None, 0.2],
        "divergence_threshold": [None, 2.5],
        "check_on_train_epoch_end": [None, True, False],
    }
    for _ in range(40):
        losses = [round(random.uniform(0.1, 3.0), 1) for _ in range(8)]
        if random.random() < 0.4:
            losses[random.randrange(8)] = random.choice([NAN, INF, -INF])
        yield losses, {name: random.choice(values) for name, values in choices.items()}


def outcome(kind, losses, settings, caplog):
    caplog.clear()
    stopping = kind("val_loss", verbose=True, **settings)
    with caplog.at_level(logging.INFO, "lightning.pytorch.callbacks.early_stopping"):
        module, trainer = fit(losses, stopping)
    said = [
        record.getMessage() for record in caplog.records if record.name == "lightning.pytorch.callbacks.early_stopping"
    ]
    state = {name: repr(value) for name, value in stopping.state_dict().items()}
    return (trainer.current_epoch, trainer.global_step, trainer.should_stop, len(module.measured), said), state


@pytest.mark.parametrize(("losses", "settings"), list(scripts()), ids=str)
def test_same_epochs_messages_and_state(losses, settings, caplog):
    stock, stock_state = outcome(EarlyStopping, losses, settings, caplog)
    ours, our_state = outcome(BestWeightsEarlyStopping, losses, settings, caplog)
    assert ours == stock
    assert stock_state.items() <= our_state.items()


def test_same_arguments_in_the_same_places_with_the_same_defaults():
    stock = list(inspect.signature(EarlyStopping).parameters.values())
    ours = list(inspect.signature(BestWeightsEarlyStopping).parameters.values())
    assert [(parameter.name, parameter.default, parameter.kind) for parameter in stock] == [
        (our.name, our.default, our.kind) for our in ours[: len(stock)]
    ]
    assert all(our.kind == our.KEYWORD_ONLY for our in ours[len(stock) :])


@pytest.mark.parametrize("interval", [0.5, 1.0, 2])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("at_train_end", [None, True, False])
def test_checks_as_often(interval, every, at_train_end):
    counts = []
    for kind in (EarlyStopping, BestWeightsEarlyStopping):
        stopping = kind("val_loss", patience=99, check_on_train_epoch_end=at_train_end, strict=False)
        with patch.object(kind, "_evaluate_stopping_criteria", return_value=(False, None)) as evaluate:
            fit([1.0] * 20, stopping, steps=4, max_epochs=4, val_check_interval=interval, check_val_every_n_epoch=every)
        counts.append(evaluate.call_count)
    assert counts[0] == counts[1] > 0


def test_metric_of_one_element_is_squeezed_outside_of_a_fit():
    for kind in (EarlyStopping, BestWeightsEarlyStopping):
        stopping = kind(monitor="foo")
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.callback_metrics["foo"] = torch.tensor([[[0.5]]])
        with patch.object(kind, "_evaluate_stopping_criteria", return_value=(False, "")) as evaluate:
            stopping._run_early_stopping_check(trainer)
        assert evaluate.call_args.args[0].shape == ()


@pytest.mark.parametrize("second", [("other", 2, "min"), ("other", 9, "max"), ("val_loss", 1, "max")], ids=str)
def test_several_instances_stop_as_several_of_lightnings(second):
    losses, others = [3.0, 2.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]
    epochs = []
    for kind in (EarlyStopping, BestWeightsEarlyStopping):
        pair = kind("val_loss", patience=3), kind(second[0], patience=second[1], mode=second[2])
        epochs.append(fit(losses, *pair, others=others)[1].current_epoch)
    assert epochs[0] == epochs[1]


@pytest.mark.filterwarnings("ignore:val_loss was best in epoch 3, before this run was resumed")
def test_resumed_state_is_that_of_lightnings(tmp_path):
    losses = [5.0, 4.0, 4.5, 3.9, 4.0, 4.0, 4.0, 1.0]
    states = []
    for kind in (EarlyStopping, BestWeightsEarlyStopping):
        folder = tmp_path / kind.__name__

        def callbacks(kind=kind, folder=folder):
            return kind("val_loss", patience=3), ModelCheckpoint(folder, "last")

        fit(losses, *callbacks(), max_epochs=5)
        stopping, kept = callbacks()
        _, trainer = fit(losses, stopping, kept, module=Scripted(losses[5:]), ckpt_path=folder / "last.ckpt")
        names = EarlyStopping("val_loss").state_dict()
        states.append({name: repr(stopping.state_dict()[name]) for name in names} | {"epochs": trainer.current_epoch})
    assert states[0] == states[1]


def test_can_be_pickled_and_has_a_key_of_its_own():
    stopping = BestWeightsEarlyStopping("foo", mode="max", also={"bar": "min"})
    assert vars(pickle.loads(pickle.dumps(stopping)))["also"] == {"bar": "min"}
    assert stopping.state_key == "BestWeightsEarlyStopping{'monitor': 'foo', 'mode': 'max'}"


def test_unknown_mode_and_absent_metric_raise_what_lightning_raises():
    with pytest.raises(MisconfigurationException, match="`mode` can be min, max, got unknown_option"):
        BestWeightsEarlyStopping("foo", mode="unknown_option")
    stopping = BestWeightsEarlyStopping("foo")
    trainer = quiet_trainer()
    trainer.callback_metrics["bar"] = torch.tensor(1.0)
    with pytest.raises(RuntimeError, match=r"conditioned on metric `foo` which is not available.*`bar`"):
        stopping._run_early_stopping_check(trainer)
