"""
Averaging: many noisy steps, one calm network
=============================================

Small batches and a high learning rate never come to rest: the last step is an accident. The mean of the
last hundred isn't.
"""

# %%
# A run that jumps about
# ----------------------
# 300 digits in batches of ten; gradient descent with momentum, at a learning rate that is too high to settle.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Callback, Trainer

from lightning_reg.callbacks import ExponentialMovingAverage, StochasticWeightAverage
from lightning_reg.data import ImageData
from lightning_reg.models import MLP


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.15, momentum=0.9)


class Recorder(Callback):
    """Keeps what validation logs."""

    def __init__(self):
        self.curves = {}

    def on_validation_end(self, trainer, pl_module):
        for name in ("val/loss", "val/accuracy", "ema/val/accuracy", "ema/val/loss"):
            if name in trainer.callback_metrics:
                self.curves.setdefault(name, []).append(trainer.callback_metrics[name].item())


def fit(*callbacks):
    torch.manual_seed(0)
    data = ImageData(dataset="digits", train_size=300, val_size=0.2, batch_size=10, seed=0)
    model = MLP(
        input_shape=data.input_shape,
        num_classes=10,
        hidden_sizes=[64],
        optimizer=sgd,
        weight_decay=0,
        activation="tanh",
    )
    recorder = Recorder()
    trainer = Trainer(
        max_epochs=15,
        callbacks=[*callbacks, recorder],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=100,
    )
    trainer.fit(model, datamodule=data)
    return recorder.curves, trainer.test(model, datamodule=data, verbose=False)[0]["test/accuracy"]


plain, plain_test = fit()

# %%
# Averaged
# --------
# ``ExponentialMovingAverage(validate="both")`` validates the trained weights and their average in one run: the trained
# ones take the same steps as before, since an average looks on. ``StochasticWeightAverage`` takes the mean of the
# second half's epochs, at a learning rate of its own.

average = ExponentialMovingAverage(half_life=2.0, half_life_unit="epoch", validate="both")
averaged, averaged_test = fit(average)
_, swa_test = fit(StochasticWeightAverage(start=0.5, lr=0.02, anneal_epochs=1))
if sum(averaged["ema/val/accuracy"]) <= sum(averaged["val/accuracy"]):
    raise ArithmeticError("the average is no better than what it averages")
print("measured:", sorted(averaged))
print(f"test accuracy: last step {100 * plain_test:.1f} %, EMA {100 * averaged_test:.1f} %, SWA {100 * swa_test:.1f} %")

# %%
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(plain["val/accuracy"], label="as trained")
axes.plot(averaged["ema/val/accuracy"], label="averaged")
axes.set(xlabel="epoch", ylabel="validation accuracy", title="The same steps, and their average")
axes.legend()
plt.show()

# %%
# From the command line: ``--config techniques/exponential_moving_average``. What an average remembers:
# :doc:`/play`.
