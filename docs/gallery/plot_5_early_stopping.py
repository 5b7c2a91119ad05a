"""
Early stopping: the network that was best
=========================================

Training goes on after validation has turned. Stopping there costs nothing, and going back to the best weights neither.
"""

# %%
# Overfit on purpose
# ------------------
# 600 generated signals of forty numbers in ten classes, and a dense network that learns them by heart.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer

from lightning_reg.callbacks import BestWeightsEarlyStopping, GeneralizationGap
from lightning_reg.data import Mnist1DData
from lightning_reg.models import MLP


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.003)


def fit(*callbacks):
    torch.manual_seed(0)
    data = Mnist1DData(samples=3000, train_size=600, val_size=500, batch_size=60, seed=0)
    model = MLP(input_shape=data.input_shape, num_classes=10, hidden_sizes=[128, 128], optimizer=adam)
    gap = GeneralizationGap(max_samples=300, verbose=False)
    trainer = Trainer(
        max_epochs=40,
        callbacks=[gap, *callbacks],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
    )
    trainer.fit(model, datamodule=data)
    return gap, trainer.test(model, datamodule=data, verbose=False)[0]


gap, last = fit()
for signal in gap.signals:
    print(signal)

# %%
# Those are the signs that a fit's summary goes by when it proposes what to try next.
#
# Mend it
# -------
# Stop when ten epochs have brought nothing, and restore the weights that were best: those that validation measured,
# averaged ones where weights are averaged.

stopping = BestWeightsEarlyStopping("val/loss", patience=10)
stopped_gap, best = fit(stopping)
print(f"stopped after epoch {stopping.stopped_epoch}, of 40")
for name, test in (("last weights", last), ("best weights", best)):
    print(f"{name}: test loss {test['test/loss']:.3f}, accuracy {100 * test['test/accuracy']:.1f} %")
if best["test/loss"] > last["test/loss"]:
    raise ArithmeticError("the best weights on validation data are worse on test data")

# %%
figure, axes = plt.subplots(figsize=(6, 3))
curves = gap.curves
axes.plot(curves.epochs, curves.train["loss"], label="training")
axes.plot(curves.epochs, curves.validation["loss"], label="validation")
restored = stopped_gap.curves.epochs[stopped_gap.curves.best]
axes.axvline(restored, color="gray", linestyle=":", label="restored")
axes.axvline(stopping.stopped_epoch, color="gray", label="stopped")
axes.set(xlabel="epoch", ylabel="loss", yscale="log", title="Forty epochs, and where it would have stopped")
axes.legend()
plt.show()

# %%
# From the command line: ``--trainer.callbacks+=BestWeightsEarlyStopping --trainer.callbacks.monitor=val/loss``.
# Derived: :doc:`/built/textbook/derive_7_early_stopping`.
