import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import GradientClipping
from lightning_reg.models import RNN
from lightning_reg.optim import weight_decay_groups
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer


def batches(shape=(1, 8, 8), count=24):
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, torch.arange(count) % 3), batch_size=8)


def fit(module, data, *callbacks, **settings):
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(module, data, data)
    return trainer


def rnn(**settings):
    torch.manual_seed(0)
    return RNN(**{"input_shape": (1, 8, 8), "num_classes": 3, "hidden_size": 8, **settings})


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 6), (7, 5)])
def test_images_and_sequences_train(cell, shape):
    module = rnn(cell=cell, input_shape=shape, drop_prob=0.2, weight_drop_prob=0.2, norm="layer", bidirectional=True)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = fit(module, batches(shape))
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert all(not torch.equal(value, before[name]) for name, value in module.named_parameters())


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_other_precisions_train(precision):
    trainer = fit(rnn(drop_prob=0.2, weight_drop_prob=0.2), batches(), precision=precision, max_steps=2)
    assert trainer.callback_metrics["train/loss"].isfinite()


# The compiler leaves torch's recurrent modules out, and reads .grad of what comes out of them.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_network_trains_and_keeps_the_names_of_its_weights():
    module = rnn(compile=True, weight_drop_prob=0.2)
    module.network.compile(backend="aot_eager")  # inductor needs a compiler for C++
    fit(module, batches(), max_steps=2)
    assert list(module.state_dict()) == list(rnn().state_dict())
    torch._dynamo.reset()


def test_only_matrices_of_weights_decay():
    module = rnn(norm="layer", num_layers=2)
    names = {parameter: name for name, parameter in module.named_parameters()}
    decay, spared = ({names[weight] for weight in group["params"]} for group in weight_decay_groups(module))
    cells = {f"network.recurrent{index}.cell.weight_{kind}_l0" for index in (0, 1) for kind in ("ih", "hh")}
    assert decay == {*cells, "network.head.weight"}
    assert spared == set(names.values()) - decay


def test_checkpoint_loads_with_other_rates_and_computes_the_same(tmp_path):
    module = rnn(drop_prob=0.3, weight_drop_prob=0.3, num_layers=2)
    trainer = fit(module, batches(), max_steps=2)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    plain = RNN.load_from_checkpoint(tmp_path / "model.ckpt", drop_prob=0.0, weight_drop_prob=0.0)
    inputs = batches().dataset.tensors[0]
    assert torch.equal(plain.eval()(inputs), module.eval()(inputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": "gru"}, "model.cell must be 'lstm', as in the checkpoint, but is 'gru'"),
        ({"pool": "mean"}, "model.pool must be 'last', as in the checkpoint, but is 'mean'"),
        ({"num_layers": 2}, "model.num_layers must be 1, as in the checkpoint, but is 2"),
        ({"bidirectional": True}, "model.bidirectional must be False, as in the checkpoint, but is True"),
    ],
)
def test_checkpoint_of_another_network_is_refused(tmp_path, settings, message):
    trainer = fit(rnn(), batches(), max_steps=1)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(SettingError, match=message):
        quiet_trainer().test(rnn(**settings), batches(), ckpt_path=tmp_path / "model.ckpt")


def test_flat_inputs_are_refused_with_their_shape():
    with pytest.raises(SettingError, match=r"input_shape must be \(time, features\) .* but is \(64,\)"):
        rnn(input_shape=(64,))
    with pytest.raises(SettingError, match=r"but have \(2, 64\)"):
        rnn()(torch.zeros(2, 64))


@pytest.mark.parametrize("clipped", [False, True])
def test_clipping_lets_a_network_learn_whose_gradients_explode(clipped):
    """Fifty steps with recurrent weights of gain 1.5 multiply gradients by 1.5⁵⁰, about 10⁸.

    The first step without clipping saturates every unit for good, and the loss stays at that of guessing, log 2. Of
    twelve other seeds none came below 0.69 without clipping, nor stayed above 0.30 with it.
    """
    torch.manual_seed(0)
    inputs = torch.zeros(256, 50, 4)
    inputs[:, -1] = torch.randn(256, 4)
    labels = (inputs[:, -1, 0] > 0).long()
    module = rnn(
        cell="rnn",
        input_shape=(50, 4),
        num_classes=2,
        hidden_size=32,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
    )
    nn.init.orthogonal_(module.network.recurrent0.cell.weight_hh_l0, gain=1.5)
    for bias in (module.network.recurrent0.cell.bias_ih_l0, module.network.recurrent0.cell.bias_hh_l0):
        nn.init.zeros_(bias)
    callbacks = [GradientClipping(algorithm="norm", max_norm=1.0)] if clipped else []
    data = DataLoader(TensorDataset(inputs, labels), batch_size=32, shuffle=True)
    fit(module, data, *callbacks, max_epochs=20, limit_val_batches=0)
    with torch.no_grad():
        loss = F.cross_entropy(module(inputs), labels).item()
    assert loss < 0.45 if clipped else loss > 0.9 * math.log(2)
