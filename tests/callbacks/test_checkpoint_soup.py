"""Soups of checkpoints, against means and choices by hand."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_reg.callbacks import CheckpointSoup
from lightning_reg.settings import SettingError
from tests.callbacks.averaged import Normed, fit, state, val_loss
from tests.conformance.problem import SomebodysModule, loader
from tests.helpers import quiet_trainer


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Five fine-tunings of one model, noisy ones, of which the last is of no use."""
    folder = tmp_path_factory.mktemp("soup")
    start, _ = fit(max_epochs=10)
    paths = []
    for index, rate in enumerate([0.3, 0.4, 0.5, 0.6, 5.0]):
        module = copy.deepcopy(start)
        module.rate = rate
        _, trainer = fit(module=module, max_epochs=1)
        paths.append(folder / f"{index}.ckpt")
        trainer.save_checkpoint(paths[-1])
    return paths


def loaded(path):
    return torch.load(path, weights_only=True)["state_dict"]


def mean_by_hand(paths):
    """In 64 bits, with statistics by torch's own function."""
    module, states = Normed(), [loaded(path) for path in paths]
    mean = {name: torch.stack([entry[name].double() for entry in states]).mean(0) for name in states[0]}
    module.load_state_dict({name: value.to(states[0][name].dtype) for name, value in mean.items()})
    if len(paths) > 1:
        module.eval()
        update_bn(loader(), module)
    return module


def test_a_uniform_soup_is_the_mean_with_statistics_of_its_own(tuned):
    module = Normed()
    soup = CheckpointSoup(greedy=False).cook(
        quiet_trainer(), module, tuned[:3], train_dataloaders=loader(), val_dataloaders=loader()
    )
    expected = mean_by_hand(tuned[:3])
    for name, value in expected.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(soup.state_dict[name], value, rtol=0, atol=1e-6)
            assert torch.equal(module.state_dict()[name], soup.state_dict[name])
    assert soup.ingredients == tuple(tuned[:3])
    assert soup.score is None
    assert module.net[1].momentum == 0.1


def test_a_greedy_soup_takes_what_makes_it_no_worse(tuned):
    alone = {path: val_loss(mean_by_hand([path])) for path in tuned}
    ranked = sorted(tuned, key=alone.__getitem__)
    taken, best = [ranked[0]], alone[ranked[0]]
    for path in ranked[1:]:
        loss = val_loss(mean_by_hand([*taken, path]))
        if loss <= best:
            taken, best = [*taken, path], loss
    soup = CheckpointSoup().cook(quiet_trainer(), Normed(), tuned, train_dataloaders=loader(), val_dataloaders=loader())
    assert 1 < len(taken) < len(tuned)
    assert soup.ingredients == tuple(taken)
    assert soup.score == pytest.approx(best, abs=1e-5)
    assert soup.score <= min(soup.scores.values())
    assert dict(soup.scores) == pytest.approx(alone, abs=1e-5)


def test_a_checkpoint_of_nan_is_never_the_first_ingredient(tuned, tmp_path):
    spoiled = torch.load(tuned[0], weights_only=True)
    spoiled["state_dict"]["net.0.weight"].fill_(torch.nan)
    torch.save(spoiled, tmp_path / "spoiled.ckpt")
    paths = [tmp_path / "spoiled.ckpt", *tuned[1:3]]
    for mode in ("min", "max"):
        soup = CheckpointSoup(mode=mode, buffers="average").cook(
            quiet_trainer(), Normed(), paths, val_dataloaders=loader()
        )
        assert paths[0] not in soup.ingredients
    with pytest.raises(SettingError, match=r"spoiled.ckpt' holds weights that the model can't take: .* has NaNs"):
        CheckpointSoup(greedy=False).cook(quiet_trainer(), Normed(), paths, val_dataloaders=loader())


def test_a_soup_is_saved_and_tested_as_any_checkpoint(tuned, tmp_path):
    module = Normed()
    soup = CheckpointSoup(greedy=False, buffers="average").cook(quiet_trainer(), module, tuned[:3])
    soup.save(tmp_path / "soup.ckpt")
    (tested,) = quiet_trainer().test(Normed(), loader(), ckpt_path=tmp_path / "soup.ckpt", verbose=False)
    assert tested["test_loss"] == pytest.approx(val_loss(module), abs=1e-6)
    assert not torch.load(tmp_path / "soup.ckpt", weights_only=True).get("optimizer_states")


def test_checkpoints_of_another_model_are_refused(tuned, tmp_path):
    module = SomebodysModule()
    trainer = quiet_trainer()
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    before = state(model := Normed())
    with pytest.raises(
        SettingError, match=r"must all be of the model that is given, but in '.*other.ckpt' 'constant' is absent"
    ):
        CheckpointSoup().cook(quiet_trainer(), model, [*tuned[:2], tmp_path / "other.ckpt"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_things_that_cannot_be_are_refused(tuned, tmp_path):
    with pytest.raises(SettingError, match="checkpoints must be at least two files"):
        CheckpointSoup().cook(quiet_trainer(), Normed(), tuned[:1])
    with pytest.raises(SettingError, match="train_dataloaders must be given where the module has BatchNorm"):
        CheckpointSoup().cook(quiet_trainer(), Normed(), tuned, val_dataloaders=loader())
    with pytest.raises(SettingError, match="monitor must be logged by validation, but is 'val/loss'"):
        CheckpointSoup(monitor="val/loss", buffers="average").cook(
            quiet_trainer(), Normed(), tuned, val_dataloaders=loader()
        )
    torch.save({"weights": 1}, tmp_path / "plain.ckpt")
    with pytest.raises(SettingError, match="must be Lightning's, with a state_dict"):
        CheckpointSoup().cook(quiet_trainer(), Normed(), [tuned[0], tmp_path / "plain.ckpt"])
    with pytest.raises(SettingError, match="mode must be one of min, max, but is 'best'"):
        CheckpointSoup(mode="best")


def test_spectral_vectors_belong_to_the_mean(tmp_path):
    def module():
        made = Normed(rate=0.5)
        torch.manual_seed(1)
        nn.utils.parametrizations.spectral_norm(made.net[0])
        return made

    for index in range(2):
        _, trainer = fit(module=module(), max_epochs=index + 1)
        trainer.save_checkpoint(tmp_path / f"{index}.ckpt")
    made = module()
    CheckpointSoup(greedy=False).cook(
        quiet_trainer(), made, [tmp_path / "0.ckpt", tmp_path / "1.ckpt"], train_dataloaders=loader()
    )
    assert torch.linalg.matrix_norm(made.eval().net[0].weight, 2).item() == pytest.approx(1, abs=1e-5)
