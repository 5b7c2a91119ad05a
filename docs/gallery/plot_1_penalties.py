"""
Penalties: weights that don't grow
==================================

An MLP with 50,000 weights learns 100 digits by heart. Penalties keep its weights small, or set them to zero.
"""

# %%
# Overfit on purpose
# ------------------
# 100 digits of the 1,797 that ship with scikit-learn, a wide network, plain gradient descent.
# :class:`~lightning_reg.monitors.generalization_gap.GeneralizationGap` measures training and validation data alike.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer

from lightning_reg.callbacks import GeneralizationGap, L1Penalty, L2Penalty
from lightning_reg.data import ImageData
from lightning_reg.models import MLP


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def fit(*callbacks):
    torch.manual_seed(0)
    data = ImageData(dataset="digits", train_size=100, val_size=0.2, batch_size=25, seed=0)
    model = MLP(input_shape=data.input_shape, num_classes=10, hidden_sizes=[256, 128], optimizer=sgd, weight_decay=0)
    gap = GeneralizationGap(every_n_epochs=2, max_samples=300, verbose=False)
    trainer = Trainer(
        max_epochs=40,
        callbacks=[gap, *callbacks],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=4,
    )
    trainer.fit(model, datamodule=data)
    test = trainer.test(model, datamodule=data, verbose=False)[0]
    return model, gap, test["test/accuracy"]


plain, gap, accuracy = fit()
print(f"training loss {gap.curves.train['loss'][-1]:.4f}, validation loss {gap.curves.validation['loss'][-1]:.2f}")
print(f"test accuracy {100 * accuracy:.1f} %")

# %%
# Training loss goes to zero, validation loss stays where it is: the network is more and more sure of its own mistakes.

figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(gap.curves.epochs, gap.curves.train["loss"], label="training")
axes.plot(gap.curves.epochs, gap.curves.validation["loss"], label="validation")
axes.set(xlabel="epoch", ylabel="loss", yscale="log", title="Learned by heart")
axes.legend()
plt.show()

# %%
# Mend it
# -------
# L2 pulls every weight in proportion to its size, L1 by the same amount. As a proximal step, L1 makes weights exactly
# zero.

fits = {
    "nothing": (plain, gap, accuracy),
    "L2": fit(L2Penalty(weight=0.02)),
    "L1, proximal": fit(L1Penalty(weight=0.02, proximal=True)),
}
for name, (model, measured, test) in fits.items():
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])
    curves = measured.curves
    distance = curves.validation["loss"][-1] - curves.train["loss"][-1]
    zeros = 100 * (weights == 0).float().mean()
    print(f"{name}: test accuracy {100 * test:.1f} %, gap of the loss {distance:.2f}, exact zeros {zeros:.0f} %")

# %%
# What became of the weights, and of the gap:

figure, (left, right) = plt.subplots(1, 2)
for name, (model, measured, _) in fits.items():
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim > 1])
    left.hist(weights.numpy(), bins=80, range=(-0.3, 0.3), histtype="step", label=name, log=True)
    curves = measured.curves
    losses = zip(curves.validation["loss"], curves.train["loss"], strict=True)
    right.plot(curves.epochs, [validation - train for validation, train in losses], label=name)
left.set(xlabel="weight", ylabel="how many", title="Weights")
right.set(xlabel="epoch", ylabel="validation loss − training loss", title="The gap")
right.legend()
plt.show()

# %%
# From the command line: ``--trainer.callbacks+=L2Penalty --trainer.callbacks.weight=0.02``. Under Adam a penalty is
# divided by the gradient's size; there ``--model.weight_decay`` is what is meant, and the audit says so.
# Derived: :doc:`/built/textbook/derive_1_penalties`.
