r"""
Early stopping
==============

Training error falls on and on; validation error falls, and then rises. Whoever stops at the lowest point gets a network
that never went far from its initial weights, and that is a regularizer of its own.
"""

# %%
# Early stopping is an L2 penalty, nearly
# ---------------------------------------
# Near its minimum :math:`w^*` a loss is a paraboloid with curvatures :math:`h_i` along its own axes. Gradient descent
# from zero with learning rate :math:`\eta` has come, after :math:`t` steps, along axis :math:`i` to
#
# .. math:: w_i^{(t)} = \left(1 - (1 - \eta h_i)^t\right) w_i^*
#
# because each step multiplies what is missing by :math:`1 - \eta h_i`. The minimum of the loss with an L2 penalty lies,
# setting :math:`h_i (w_i - w_i^*) + \lambda w_i = 0`, at
#
# .. math:: w_i = \frac{h_i}{h_i + \lambda} \, w_i^*
#
# Both shrink directions of small curvature, which the data hardly decides, and leave the others. Where :math:`\eta h_i`
# is small they agree for :math:`\lambda \approx 1 / (\eta t)`: fewer steps are a stronger penalty.

import torch

curvatures = torch.logspace(-3, 0, 40, dtype=torch.float64)
minimum = torch.ones(40, dtype=torch.float64)
rate, steps = 0.1, 200

weights = torch.zeros(40, dtype=torch.float64, requires_grad=True)
for _ in range(steps):
    loss = (curvatures * (weights - minimum).square()).sum() / 2
    (slope,) = torch.autograd.grad(loss, weights)
    weights = (weights - rate * slope).detach().requires_grad_()

derived = (1 - (1 - rate * curvatures) ** steps) * minimum
torch.testing.assert_close(weights.detach(), derived, rtol=0, atol=1e-12)
penalized = curvatures / (curvatures + 1 / (rate * steps)) * minimum
print(f"descent and formula differ by {float((weights.detach() - derived).abs().max()):.1e}")
print(f"stopped and penalized weights differ by at most {float((derived - penalized).abs().max()):.3f} of 1")
if (derived - penalized).abs().max() > 0.25:
    raise ArithmeticError("early stopping is far from the penalty")

# %%
# When to stop
# ------------
# The rule: remember the best value :math:`m^*` of a validation metric and its weights; where the last ``patience``
# measurements brought none that is better by ``min_delta``, stop, and go back to those weights. A toy that overfits: a
# polynomial of degree 12 on 20 noisy points, fitted by gradient descent. The oracle reads the whole curve afterwards;
# the rule saw it number by number.

from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.callbacks import BestWeightsEarlyStopping


def points(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 1, generator=generator) * 2 - 1
    features = torch.cat([torch.cos(k * torch.acos(x)) for k in range(13)], 1)  # Chebyshev polynomials
    return TensorDataset(features, torch.sin(4 * x) + 0.3 * torch.randn(count, 1, generator=generator))


class Polynomial(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(13, 1, bias=False)
        torch.nn.init.zeros_(self.layer.weight)
        self.train_losses, self.losses, self.weights = [], [], []

    def loss(self, batch):
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("val_loss", loss)
        if not self.trainer.sanity_checking:
            self.losses.append(loss.item())
            self.train_losses.append(self.loss(TRAIN.tensors).item())
            self.weights.append(self.layer.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


TRAIN, VALIDATION = points(20, 0), points(200, 1)
PATIENCE = 80


def fit(*callbacks):
    module = Polynomial()
    trainer = Trainer(
        max_epochs=600,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, DataLoader(TRAIN, batch_size=20), DataLoader(VALIDATION, batch_size=200))
    return module


whole, stopped = fit(), fit(BestWeightsEarlyStopping("val_loss", patience=PATIENCE, verbose=False))
best = min(range(len(whole.losses)), key=whole.losses.__getitem__)
until = len(stopped.losses) - 1
print(f"lowest at epoch {best} of {len(whole.losses)}, stopped at epoch {until}")
torch.testing.assert_close(stopped.layer.weight.detach(), whole.weights[best], rtol=0, atol=0)
if until != best + PATIENCE:
    raise ArithmeticError("patience wasn't kept")
print(f"validation loss {whole.losses[best]:.3f} of the restored weights, {whole.losses[-1]:.3f} of the last ones")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(7.2, 3))
axes[0].plot(curvatures, derived, label="200 steps")
axes[0].plot(curvatures, penalized, linestyle="--", label="L2, 1 / (rate × steps)")
axes[0].set(xscale="log", xlabel="curvature", ylabel="share of the way", title="Stopping is shrinking")
axes[0].legend()
axes[1].plot(whole.train_losses, label="training")
axes[1].plot(whole.losses, label="validation")
axes[1].axvline(best, color="gray", linestyle=":", label="restored")
axes[1].axvline(until, color="gray", label="stopped")
axes[1].set(xlabel="epoch", ylabel="squared error", title="A polynomial that overfits", yscale="log")
axes[1].legend()
plt.show()
