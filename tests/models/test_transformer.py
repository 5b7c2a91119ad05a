import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.models import TransformerClassifier
from lightning_reg.optim import weight_decay_groups, weight_decay_table
from lightning_reg.settings import SettingError
from tests.helpers import quiet_trainer

EVERY_RATE = {"drop_prob": 0.2, "attention_drop_prob": 0.2, "stochastic_depth_prob": 0.2}


def batches(shape=(1, 8, 8), count=24):
    inputs = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, torch.arange(count) % 3), batch_size=8)


def fit(module, data, *callbacks, **settings):
    trainer = quiet_trainer(*callbacks, **settings)
    trainer.fit(module, data, data)
    return trainer


def transformer(**settings):
    torch.manual_seed(0)
    sizes = {"embed_dim": 12, "depth": 2, "num_heads": 3}
    return TransformerClassifier(**{"input_shape": (1, 8, 8), "num_classes": 3, **sizes, **settings})


@pytest.mark.parametrize("pool", ["mean", "class_token"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 4), (7, 5)])
def test_images_and_sequences_train(shape, pool):
    # A branch that is dropped from every sample of a batch gets no gradient, so its rate is 0 here.
    module = transformer(input_shape=shape, pool=pool, norm="rms", drop_prob=0.2, attention_drop_prob=0.2)
    before = {name: value.clone() for name, value in module.named_parameters()}
    trainer = fit(module, batches(shape))
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert all(not torch.equal(value, before[name]) for name, value in module.named_parameters())


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_other_precisions_train(precision, norm):
    trainer = fit(transformer(norm=norm, **EVERY_RATE), batches(), precision=precision, max_steps=2)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_compiled_network_trains_and_keeps_the_names_of_its_weights():
    module = transformer(compile=True, **EVERY_RATE)
    module.network.compile(backend="aot_eager")  # inductor needs a compiler for C++
    fit(module, batches(), max_steps=2)
    assert list(module.state_dict()) == list(transformer().state_dict())
    torch._dynamo.reset()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_norms_biases_positions_and_the_class_token_do_not_decay(norm):
    module = transformer(norm=norm, pool="class_token", depth=1)
    names = {parameter: name for name, parameter in module.named_parameters()}
    decay, spared = ({names[weight] for weight in group["params"]} for group in weight_decay_groups(module, 0.1))
    block = "network.block0"
    assert decay == {
        *(f"{block}.attention.{name}.weight" for name in ("query", "key", "value", "proj")),
        *(f"{block}.feed_forward.{name}.weight" for name in ("expand", "contract")),
        *("network.embedding.project.weight", "network.head.weight"),
    }
    assert spared == set(names.values()) - decay
    reasons = {line.split()[0]: line for line in weight_decay_table(module).splitlines()}
    for name in ("class_token", "position"):
        assert reasons[f"network.embedding.{name}.weight"].endswith("no: embedding")


def test_checkpoint_loads_with_other_rates_and_computes_the_same(tmp_path):
    module = transformer(**EVERY_RATE)
    trainer = fit(module, batches(), max_steps=2)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    plain = TransformerClassifier.load_from_checkpoint(tmp_path / "model.ckpt", **dict.fromkeys(EVERY_RATE, 0.0))
    inputs = batches().dataset.tensors[0]
    assert torch.equal(plain.eval()(inputs), module.eval()(inputs))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 4}, "model.num_heads must be 3, as in the checkpoint, but is 4"),
        ({"depth": 3}, "model.depth must be 2, as in the checkpoint, but is 3"),
        ({"pool": "class_token"}, "model.pool must be 'mean', as in the checkpoint, but is 'class_token'"),
        ({"patch_size": 2}, "model.patch_size must be 4, as in the checkpoint, but is 2"),
    ],
)
def test_checkpoint_of_another_network_is_refused(tmp_path, settings, message):
    """With other heads every weight would fit, and compute something else."""
    trainer = fit(transformer(), batches(), max_steps=1)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    with pytest.raises(SettingError, match=message):
        quiet_trainer().test(transformer(**settings), batches(), ckpt_path=tmp_path / "model.ckpt")


def test_bad_settings_are_refused_in_the_users_words():
    with pytest.raises(SettingError, match="patch_size must divide height and width, which are 8 and 8, but is 3"):
        transformer(patch_size=3)
    with pytest.raises(SettingError, match="num_heads must divide embed_dim, which is 12, but is 7"):
        transformer(num_heads=7)
    with pytest.raises(SettingError, match=r"but have \(2, 64\)"):
        transformer()(torch.zeros(2, 64))
