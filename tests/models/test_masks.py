"""What a model drops in a step depends on where training stands, and on nothing else."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import InsertDropout, SharpnessAwareMinimization
from lightning_reg.models import CNN, MLP
from lightning_reg.models.masks import KeyedMasks
from lightning_reg.nn import DropBlock2d, Dropout, SpatialDropout, StochasticDepth, drop_connected

GENERATOR = torch.Generator().manual_seed(0)
VECTORS = TensorDataset(torch.randn(24, 6, generator=GENERATOR), torch.arange(24) % 3)
IMAGES = TensorDataset(torch.randn(24, 1, 8, 8, generator=GENERATOR), torch.arange(24) % 3)


def mlp(dropout="standard"):
    return MLP(input_shape=(6,), num_classes=3, hidden_sizes=(2048, 16), dropout=dropout, drop_prob=0.5)


def cnn(dropout="spatial"):
    return CNN(input_shape=(1, 8, 8), num_classes=3, channels=(4, 8), dropout=dropout, drop_prob=0.5)


MODELS = {
    "mlp": (mlp, VECTORS),
    "drop_connect": (lambda: mlp("drop_connect"), VECTORS),
    "concrete": (lambda: mlp("concrete"), VECTORS),
    "gaussian": (lambda: mlp("gaussian"), VECTORS),
    "cnn": (cnn, IMAGES),
}


@pytest.fixture(autouse=True)
def _seeded(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    seed_everything(5)


class Resumable(DataLoader):
    """Goes on after the batches that it handed out before the checkpoint was written."""

    handed_out = 0

    def __iter__(self):
        skipped = self.handed_out % len(self)
        for index, batch in enumerate(super().__iter__()):
            if index >= skipped:
                self.handed_out = index + 1
                yield batch

    def state_dict(self):
        return {"handed_out": self.handed_out % len(self)}

    def load_state_dict(self, state):
        self.handed_out = state["handed_out"]


def trained(module, data, tmp_path, *, callbacks=(), ckpt_path=None, **settings):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[*callbacks],
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **settings,
    )
    trainer.fit(module, Resumable(data, batch_size=8), Resumable(data), ckpt_path=ckpt_path)
    return [weight.detach().clone() for weight in module.parameters()]


def assert_equal(some, others):
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("steps", [3, 4], ids=["between epochs", "within one"])
def test_a_resumed_run_drops_what_the_uninterrupted_one_would_have(name, steps, tmp_path):
    make, data = MODELS[name]
    torch.manual_seed(1)
    start = make().state_dict()

    def module():
        fresh = make()
        fresh.load_state_dict(start)
        return fresh

    whole = trained(module(), data, tmp_path, max_epochs=3)
    saving = ModelCheckpoint(dirpath=tmp_path, filename="at", every_n_train_steps=steps)
    trained(module(), data, tmp_path, max_steps=steps, callbacks=[saving])
    torch.manual_seed(99)  # the global stream isn't asked
    resumed = trained(module(), data, tmp_path, max_epochs=3, ckpt_path=tmp_path / "at.ckpt")
    assert_equal(resumed, whole)


def test_masks_follow_seed_process_epoch_and_batch():
    layer = Dropout(0.5)
    masks = KeyedMasks(layer)
    drawn = {}
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        masks.start(*key)
        drawn[key] = layer(torch.ones(100))
    masks.start(0, 0, 0)
    assert torch.equal(layer(torch.ones(100)), drawn[0, 0, 0])
    assert len({tuple(outputs.tolist()) for outputs in drawn.values()}) == 4


def test_every_layer_has_masks_of_its_own_and_the_global_stream_is_left_alone():
    network = nn.ModuleList(
        [Dropout(0.5), Dropout(0.5), SpatialDropout(0.5), DropBlock2d(0.3, block_size=2), StochasticDepth(0.5)]
    )
    masks = KeyedMasks(network)
    masks.start(0, 0, 0)
    before = torch.get_rng_state()
    first, second, *_ = (layer(torch.ones(30, 4, 8, 8)) for layer in network)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    masks.end()
    assert all(layer.stream is None for layer in network)


def test_between_steps_layers_draw_from_the_global_stream(tmp_path):
    module = mlp()
    trained(module, VECTORS, tmp_path, max_steps=2)
    assert all(getattr(layer, "stream", None) is None for layer in module.modules())
    module.train()
    torch.manual_seed(1)
    first = module.network(VECTORS.tensors[0])
    torch.manual_seed(1)
    assert torch.equal(module.network(VECTORS.tensors[0]), first)
    assert not torch.equal(module.network(VECTORS.tensors[0]), first)


def test_a_fit_that_failed_leaves_nothing_that_the_next_one_minds(tmp_path):
    module = mlp()
    step = module.training_step

    def failing(batch, batch_idx):
        loss = step(batch, batch_idx)
        if batch_idx == 1:
            raise RuntimeError("out of batches")
        return loss

    torch.manual_seed(1)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    module.training_step = failing
    with pytest.raises(RuntimeError, match="out of batches"):
        trained(module, VECTORS, tmp_path, max_epochs=1)
    del module.training_step
    module.load_state_dict(start)
    after = trained(module, VECTORS, tmp_path, max_epochs=1)
    fresh = mlp()
    fresh.load_state_dict(start)
    assert_equal(after, trained(fresh, VECTORS, tmp_path, max_epochs=1))


def test_a_layer_that_a_technique_gave_random_numbers_keeps_them():
    layer = drop_connected(nn.Linear(4, 4), 0.5)
    masks = KeyedMasks(layer)
    masks.start(0)
    ours = layer.stream
    technique = type(ours)()
    layer.stream = technique
    KeyedMasks(layer).start(1)
    assert layer.stream is technique


def test_the_second_pass_of_sam_drops_what_the_first_did(tmp_path):
    module = mlp()
    outputs = []
    layer = next(layer for layer in module.modules() if isinstance(layer, Dropout))
    layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output.detach() == 0))
    sam = SharpnessAwareMinimization(rho=1e-9)
    trained(module, VECTORS, tmp_path, max_steps=1, callbacks=[sam])
    first, second = outputs[-2:]  # behind what tries the network
    assert torch.equal(first, second)


def test_compiled_models_leave_dropout_to_torch_in_one_graph(tmp_path):
    torch._dynamo.reset()
    module = MLP(input_shape=(6,), num_classes=3, hidden_sizes=(16,), drop_prob=0.5, compile=True)
    module.network._compiled_call_impl = torch.compile(module.network._call_impl, backend="aot_eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    trained(module, VECTORS, tmp_path, max_epochs=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_insertions_beside_it_have_random_numbers_of_their_own(tmp_path):
    assert isinstance(mlp(), LightningModule)
    trained(mlp(), VECTORS, tmp_path, max_steps=2, callbacks=[InsertDropout(p=0.5, types=("ReLU",))])
