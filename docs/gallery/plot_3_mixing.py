"""
Batch mixing: samples that nobody has seen
==========================================

A network that learns its samples by heart can't if it never sees one twice.
"""

# %%
# Overfit on purpose
# ------------------
# Generated signals of forty numbers in ten classes, 600 to learn from. Classes differ in shape alone, and a dense
# network knows nothing of shapes: it learns all 600 by heart, and is sure of itself on others, of which it gets most
# wrong.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer

from lightning_reg.callbacks import GeneralizationGap
from lightning_reg.data import Mnist1DData
from lightning_reg.models import MLP
from lightning_reg.transforms import Mixup, RowCutMix


class FirstBatch(Callback):
    """Keeps what the network sees first."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 0:
            self.signals, self.targets = batch


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.003)


def fit(mix=None):
    torch.manual_seed(0)
    data = Mnist1DData(samples=3000, train_size=600, val_size=500, batch_size=60, seed=0, mix=mix)
    model = MLP(input_shape=data.input_shape, num_classes=10, hidden_sizes=[128, 128], optimizer=adam)
    gap, first = GeneralizationGap(every_n_epochs=2, max_samples=300, verbose=False), FirstBatch()
    trainer = Trainer(
        max_epochs=40,
        callbacks=[gap, first],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    trainer.fit(model, datamodule=data)
    test = trainer.test(model, datamodule=data, verbose=False)[0]
    return first, gap.curves, test


fits = {"nothing": fit(), "Mixup": fit(Mixup(alpha=1.0)), "RowCutMix": fit(RowCutMix(alpha=1.0))}
for name, (_, curves, test) in fits.items():
    print(
        f"{name}: training loss {curves.train['loss'][-1]:.3f}, test loss {test['test/loss']:.3f}, "
        f"accuracy {100 * test['test/accuracy']:.1f} %"
    )

# %%
# What the network sees
# ---------------------
# The same three signals of the first batch, and their targets: one class, or two with their shares.


def told(target):
    if not target.ndim:  # a class index
        return str(int(target))
    shares, classes = target.topk(2)
    return ", ".join(
        f"{label} ({100 * share:.0f} %)"
        for share, label in zip(shares.tolist(), classes.tolist(), strict=True)
        if share
    )


figure, axes = plt.subplots(3, 3, figsize=(7.2, 4.2), sharex=True, sharey=True)
for row, (name, (first, _, _)) in zip(axes, fits.items(), strict=True):
    for axis, signal, target in zip(row, first.signals, first.targets, strict=False):
        axis.plot(signal)
        axis.set(xticks=[], yticks=[])
        axis.set_title(f"class {told(target)}", fontsize=9)
    row[0].set_ylabel(name)
plt.show()

# %%
# Both measured alike
# -------------------
# The loss that training logs is that of mixed samples; ``GeneralizationGap`` measures clean ones, in evaluation mode,
# in both parts. Training loss no longer goes to zero, and validation loss rises by far less: the network is as often
# right, and less sure where it is wrong.

figure, axes = plt.subplots(1, 3, sharey=True)
for axis, (name, (_, curves, _)) in zip(axes, fits.items(), strict=True):
    axis.plot(curves.epochs, curves.train["loss"], label="training")
    axis.plot(curves.epochs, curves.validation["loss"], label="validation")
    axis.set(xlabel="epoch", title=name, yscale="log")
axes[0].set_ylabel("loss on clean samples")
axes[0].legend()
plt.show()

if min(fits[name][2]["test/loss"] for name in ("Mixup", "RowCutMix")) > 0.9 * fits["nothing"][2]["test/loss"]:
    raise ArithmeticError("mixing has mended nothing")

# %%
# From the command line: ``--config techniques/mixup``. For somebody else's data module there is the callback
# ``BatchMixing(Mixup(alpha=0.4))``, which leaves labels as they are. Derived: :doc:`/built/textbook/derive_5_mixing`.
