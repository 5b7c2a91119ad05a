"""
Dropout: units that can't rely on each other
============================================

A network that learns its samples by heart, with dropout built in, and put into somebody else's network.
"""

# %%
# Overfit on purpose
# ------------------
# Generated signals of forty numbers in ten classes, 600 to learn from: a dense network learns all of them by heart, and
# is sure of itself on others, of which it gets most wrong.

import matplotlib.pyplot as plt
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_reg.callbacks import GeneralizationGap, InsertDropout
from lightning_reg.data import Mnist1DData
from lightning_reg.models import MLP, Classifier
from lightning_reg.nn import monte_carlo_predict


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.003)


def fit(make, *callbacks):
    torch.manual_seed(0)
    data = Mnist1DData(samples=3000, train_size=600, val_size=500, batch_size=60, seed=0)
    model = make(data)
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
        log_every_n_steps=10,
    )
    trainer.fit(model, datamodule=data)
    test = trainer.test(model, datamodule=data, verbose=False)[0]
    return model, data, gap.curves, test["test/accuracy"], test["test/loss"]


def mlp(rate):
    return lambda data: MLP(
        input_shape=data.input_shape, num_classes=10, hidden_sizes=[128, 128], drop_prob=rate, optimizer=adam
    )


fits = {"nothing": fit(mlp(0.0)), "dropout 0.3": fit(mlp(0.3))}

# %%
# Somebody else's network
# -----------------------
# It has no dropout, and nobody edits its code. ``InsertDropout`` puts it behind the ReLUs while it is trained;
# afterwards the network is what it was.


def somebodys(_):
    network = nn.Sequential(nn.Linear(40, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    return Classifier(network, num_classes=10, optimizer=adam)


fits["inserted 0.3"] = fit(somebodys, InsertDropout(p=0.3, types=("ReLU",)))
for name, (_, _, curves, accuracy, loss) in fits.items():
    print(
        f"{name}: training loss {curves.train['loss'][-1]:.3f}, test loss {loss:.3f}, accuracy {100 * accuracy:.1f} %"
    )

# %%
figure, axes = plt.subplots(1, 3, sharey=True)
for axis, (name, (_, _, curves, _, _)) in zip(axes, fits.items(), strict=True):
    axis.plot(curves.epochs, curves.train["loss"], label="training")
    axis.plot(curves.epochs, curves.validation["loss"], label="validation")
    axis.set(xlabel="epoch", title=name, yscale="log")
axes[0].set_ylabel("loss")
axes[0].legend()
plt.show()

# %%
# Dropout in evaluation
# ---------------------
# The same layers, left on: fifty predictions of each signal, by fifty masks. The entropy of their mean says how
# undecided they are together; where it is high, the network is wrong more often.

model, data, *_ = fits["dropout 0.3"]
batches = [data.on_after_batch_transfer(batch, 0) for batch in data.evaluation_dataloader("test")]
signals, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
predicted = monte_carlo_predict(model.eval(), signals, num_samples=50)

right = (predicted.mean.argmax(1) == labels).float()
by_doubt = right[predicted.predictive_entropy.argsort()].tensor_split(5)
shares = [100 * part.mean().item() for part in by_doubt]
print("accuracy, from the fifth that is most decided to the least:", [f"{share:.0f} %" for share in shares])
if fits["dropout 0.3"][4] > 0.9 * fits["nothing"][4]:
    raise ArithmeticError("dropout has mended nothing")
if shares[0] <= shares[-1]:
    raise ArithmeticError("what is undecided is right as often")

figure, axes = plt.subplots(figsize=(5, 2.6))
axes.bar(range(1, 6), shares)
axes.set(xlabel="fifth of the test signals, by entropy", ylabel="accuracy, %", title="What it knows, and what not")
plt.show()

# %%
# From the command line: ``--model.drop_prob 0.3``, or ``--config techniques/insert_dropout`` for any network.
# Derived: :doc:`/built/textbook/derive_2_dropout`.
