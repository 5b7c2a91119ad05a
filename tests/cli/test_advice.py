"""What the summary of a fit proposes: rules by rule, none that the audit warns of, and every command runs."""

import re
import shlex
import sys

import pytest
from lightning.pytorch import Callback

from lightning_reg.audit.contradictions import contradictions
from lightning_reg.audit.inventory import take_inventory
from lightning_reg.cli import main
from lightning_reg.cli.command import RegularizationCLI
from lightning_reg.cli.results.advice import REMEDIES, Situation, advice_lines, remedies, signs_in

PLAIN = {"hidden_sizes": [8], "norm": "none", "activation": "relu", "drop_prob": 0.0, "label_smoothing": 0.0}
OVERFITS = {"signs": frozenset({"overfitting"}), "model": PLAIN | {"weight_decay": None}, "data": {"mix": None}}
SHORT = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
BASE = ["fit", "--config", "digits_mlp", "--model.norm=none", "--model.drop_prob=0", "--trainer.callbacks=[]", *SHORT]


def names(**settings):
    return [remedy.name for remedy, _ in remedies(Situation(**settings))]


def test_nothing_is_proposed_without_a_sign():
    assert advice_lines(Situation(frozenset({"capacity"}), max_epochs=3)) == []


def test_what_is_there_already_is_not_proposed():
    assert names(**OVERFITS) == ["early stopping", "mixing", "normalization"]
    model = PLAIN | {"norm": "batch", "weight_decay": None}
    there = OVERFITS | {"stops_early": True, "model": model, "mixes": True}
    assert names(**there) == ["dropout", "averaged weights", "label smoothing"]
    there |= {"drop_prob": 0.3, "averages": True, "label_smoothing": 0.1}
    assert names(**there) == ["weight decay"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"model": PLAIN | {"activation": "selu"}}, "dropout"),  # which needs AlphaDropout
        ({"model": PLAIN | {"weight_decay": None}, "penalizes": True}, "weight decay"),  # twice the same
        ({"model": PLAIN, "softens": True}, "label smoothing"),  # with a confidence penalty
        ({"model": PLAIN, "classifies": False}, "label smoothing"),
        ({"data": {"augment": None}, "is_image": False}, "augmentation"),
        ({"model": {}}, "dropout"),  # somebody's module, which has no such setting
    ],
)
def test_what_would_work_against_itself_is_not_proposed(settings, name):
    found = Situation(frozenset({"memorization"}), **settings)
    (remedy,) = [remedy for remedy in REMEDIES["overfitting"] if remedy.name == name]
    assert not remedy.options(found)


def test_small_batches_get_layer_norm_and_tables_a_mixing_of_columns():
    few = Situation(frozenset({"memorization"}), model=PLAIN, data={"mix": None}, is_table=True, batch_size=4)
    options = {remedy.name: words for remedy, words in remedies(few)}
    assert options["normalization"] == ["--model.norm", "layer"]
    assert options["mixing"] == ["--config", "techniques/row_cutmix"]


def test_a_network_that_underfits_gets_less_and_longer():
    found = Situation(
        frozenset({"underfitting"}), PLAIN, {"augment": "basic", "mix": None}, drop_prob=0.5, max_epochs=10
    )
    assert [words for _, words in remedies(found)] == [
        ["--data.augment", "null"],
        ["--model.drop_prob", "0.25"],
        ["--trainer.max_epochs", "20"],
    ]
    assert names(signs=frozenset({"unfinished"}), model=PLAIN, drop_prob=0.5, max_epochs=10) == ["longer training"]


def test_a_command_replaces_what_it_changes(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *BASE, "--ckpt_path", "last", "--model.norm", "none"])
    command = next(line for line in advice_lines(Situation(**OVERFITS)) if line.endswith("batch"))
    kept = [word for word in BASE if word != "--model.norm=none"]
    assert shlex.split(command) == ["python", "train.py", *kept, "--model.norm", "batch"]


def test_what_is_seen_is_said_first(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", "digits_mlp"])
    assert advice_lines(Situation(frozenset({"underfitting"}), max_epochs=10)) == [
        "It underfits. To try next, one at a time:",
        "  # longer training: validation may still get better",
        "  python train.py fit --config digits_mlp --trainer.max_epochs 20",
    ]


def test_signs_of_the_best_weights_alone():
    apart = {"train": {"accuracy": 1.0, "loss": 0.1}, "validation": {"accuracy": 0.8, "loss": 0.9}}
    assert signs_in(apart) == {"memorization"}
    low = {"train": {"accuracy": 0.3, "loss": 2.0}, "validation": {"accuracy": 0.3, "loss": 2.0}}
    assert signs_in(low) == {"underfitting"}
    assert signs_in({"train": {"r2": 0.9}, "validation": {"r2": 0.9}}) == signs_in({}) == set()


class Audited(Callback):
    def on_train_start(self, trainer, pl_module):
        Audited.found = [str(each) for each in contradictions(take_inventory(trainer, pl_module))]


class OneEpoch(RegularizationCLI):
    def further_callbacks(self, callbacks):
        return [Audited()]

    def after_fit(self):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("base", ["digits_cnn", "tabular_mlp"])
def test_the_audit_warns_of_nothing_that_is_proposed(base, monkeypatch, capsys):
    """Each remedy by itself, in a run as it is shipped but without what regularizes it."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    plain = ["fit", "--config", base, "--model.norm=none", "--model.drop_prob=0", "--model.label_smoothing=0"]
    plain += ["--model.weight_decay=0", "--trainer.callbacks=[]", "--model.lr_scheduler=null", *SHORT]
    plain += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"]
    plain += ["--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0"]
    is_image = base == "digits_cnn"
    model = PLAIN | {"weight_decay": None}
    data = {"mix": None, "augment": None} if is_image else {"mix": None}
    found = Situation(frozenset({"overfitting"}), model, data, is_image=is_image, is_table=not is_image)
    proposed = [words for remedy in REMEDIES["overfitting"] if (words := remedy.options(found))]
    assert len(proposed) >= 7
    # In one run rather than in seven: what none of two warns of, none of them alone does.
    longer = [word for words in proposed for word in words]
    OneEpoch([*plain, *longer])
    assert [warning for warning in Audited.found if "patience" not in warning and "begins after" not in warning] == []


def test_fit_ends_with_commands_that_run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    # Without the progress bar; thirty samples are learned by heart at once.
    words = [*BASE, "--data.train_size=30", "--trainer.max_epochs=12", "--trainer.enable_model_summary=false"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    main()
    printed = capsys.readouterr().out
    assert "It overfits. To try next, one at a time:" in printed
    commands = re.findall(r"^  python (train.py fit .*)$", printed, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as exit_status:
            main([*shlex.split(command)[1:], "--print_config"])
        assert exit_status.value.code == 0
