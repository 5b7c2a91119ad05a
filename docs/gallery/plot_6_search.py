"""
Search: which of them, and how strong
=====================================

Which techniques does a network need? A search tries cocktails on validation data, and asks fresh seeds whether the best
is more than luck. Here in small: six trials of fifteen epochs, three switches.
"""

# %%
# A run, built around the callbacks that it is given
# --------------------------------------------------
# ``search`` hands over callbacks; module, data and trainer are the project's own.

import tempfile

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer

from lightning_reg.data import Mnist1DData
from lightning_reg.models import MLP
from lightning_reg.search import search


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.005)


def make(callbacks, trial):
    torch.manual_seed(trial.seed)
    data = Mnist1DData(samples=2000, train_size=500, val_size=500, batch_size=50, seed=trial.seed)
    model = MLP(input_shape=data.input_shape, num_classes=10, hidden_sizes=[128, 128], optimizer=adam)
    trainer = Trainer(
        max_epochs=15,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    return trainer, model, data


# %%
# What may be tried
# -----------------
# A space is a list of switches, with ranges where strengths stand. The first trials are the plain run and single
# techniques; then Optuna proposes.

space = {
    "title": "Three switches",
    "switches": {
        "dropout": {"callback": "InsertDropout", "arguments": {"p": {"linear": [0.05, 0.5]}, "types": ["ReLU"]}},
        "mixup": {
            "callback": "BatchMixing",
            "arguments": {
                "mix": {"class_path": "lightning_reg.transforms.Mixup", "init_args": {"alpha": {"linear": [0.1, 1.0]}}}
            },
        },
        "ema": {"callback": "ExponentialMovingAverage", "arguments": {"half_life": {"log": [1.0, 10.0]}}},
    },
}

found = search(
    make,
    space=space,
    metric="val/loss",
    test_metric="test/loss",
    trials=6,
    confirm=2,
    output=tempfile.mkdtemp(),
    quiet=True,
)
print(found)

# %%
# What it hands over are callbacks, made anew, for a trainer of one's own; and what was tried.

print([type(callback).__name__ for callback in found.callbacks()])

# %%
tried = [trial for trial in found.outcome.tried if trial.value is not None]
figure, axes = plt.subplots(figsize=(6, 3))
for trial in tried:
    best = trial.position == found.outcome.best.position
    axes.barh(trial.position, trial.value, color="C1" if best else "C0")
    axes.text(0, trial.position, "  " + (" + ".join(trial.cocktail or {}) or "nothing"), va="center", fontsize=8)
axes.set(xlabel="validation loss", ylabel="trial", title="What was tried; the best in another color")
axes.invert_yaxis()
plt.show()

# %%
# Confirmed
# ---------
# The best value flatters itself, so the cocktail is trained again with fresh seeds, beside the plain run and itself
# without each part, and is measured on the test part. Two seeds are enough to show how it is done, and for nothing
# else:

confirmation = found.outcome.confirmation
if confirmation is None:
    raise ArithmeticError("the plain run was best: there is nothing to confirm")
for variant, summary in confirmation.summaries.items():
    print(f"{variant}: {confirmation.metric} {summary.mean:.2f}")

# %%
# From the command line: ``python train.py search configs/search/digits.yaml --quick``; see :doc:`/searching`.
