r"""
Penalties of the weights
========================

A penalty adds to the loss what large weights cost. What training needs of it is its gradient, so that is what the
callbacks add, without a graph; here both forms stand beside each other.
"""

# %%
# L2: weights shrink in proportion
# --------------------------------
# Half the squared length of all weights, times a strength:
#
# .. math:: P(w) = \frac{\lambda}{2} \sum_i w_i^2, \qquad \frac{\partial P}{\partial w_i} = \lambda w_i
#
# A step of plain gradient descent with learning rate :math:`\eta` on the loss :math:`L + P` is therefore
#
# .. math:: w_i \leftarrow w_i - \eta \left(\frac{\partial L}{\partial w_i} + \lambda w_i\right)
#    = (1 - \eta \lambda) \, w_i - \eta \frac{\partial L}{\partial w_i}
#
# so every weight is first multiplied by a number below 1: *weight decay*. Under Adam it isn't, because there the
# gradient, and the penalty's with it, is divided by its own size; ``AdamW`` decays beside the step for that reason.

import torch

from lightning_reg.functional.gradient.penalties import add_elastic_net_gradient_, elastic_net_penalty, l2_penalty

weights = torch.linspace(-2, 2, 9, dtype=torch.float64).requires_grad_()
loss = (3 * weights - 1).square().sum()
rate, strength = 0.01, 0.5

(loss_gradient,) = torch.autograd.grad(loss, weights, retain_graph=True)
(gradient,) = torch.autograd.grad(loss + l2_penalty([weights], strength), weights)
stepped = weights - rate * gradient
decayed = (1 - rate * strength) * weights - rate * loss_gradient
torch.testing.assert_close(stepped, decayed, rtol=0, atol=1e-14)
print("a step on loss + penalty equals decay and a step on the loss, to", (stepped - decayed).abs().max().item())

# %%
# L1: weights shrink by a constant
# --------------------------------
# .. math:: P(w) = \lambda \sum_i |w_i|, \qquad \frac{\partial P}{\partial w_i} = \lambda \operatorname{sign}(w_i)
#
# The pull doesn't fade as a weight gets small, so a weight that the loss hardly cares for arrives at zero. At zero the
# absolute value has no derivative; 0 is one of its subgradients, and the one that torch takes. The elastic net is the
# sum of both. This is the code that adds its gradient, once for each optimizer step:
#
# .. literalinclude:: /../lightning_reg/functional/gradient/penalties.py
#    :caption: lightning_reg/functional/gradient/penalties.py
#    :pyobject: add_elastic_net_gradient_

gradient = torch.zeros_like(weights)
add_elastic_net_gradient_([gradient], [weights.detach()], l1=0.1, l2=0.5)
(expected,) = torch.autograd.grad(elastic_net_penalty([weights], 0.1, 0.5), weights)
torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)
print("added in place:", [round(value, 3) for value in gradient.tolist()])

# %%
# Exact zeros: the proximal step
# ------------------------------
# By gradients alone a weight jumps back and forth across zero, and is never exactly there. The *proximal* step asks
# instead for the point that is best for the penalty and still near to where the step went, :math:`v`:
#
# .. math:: w = \operatorname*{arg\,min}_u \; \frac{1}{2} (u - v)^2 + \tau |u|, \qquad \tau = \eta \lambda
#
# For :math:`u > 0` the derivative :math:`u - v + \tau` is zero at :math:`u = v - \tau`, which is positive only if
# :math:`v > \tau`; for :math:`u < 0` likewise at :math:`v + \tau`; else zero itself is the best. Together:
#
# .. math:: w = \operatorname{sign}(v) \, \max(|v| - \tau, 0)
#
# The check looks for the minimum by brute force, on a fine grid.

from lightning_reg.functional.weights.proximal import soft_threshold_

steps = torch.linspace(-2, 2, 81, dtype=torch.float64)
shrunk = steps.clone()
soft_threshold_([shrunk], 0.5)

grid = torch.linspace(-2, 2, 4001, dtype=torch.float64)
cost = (grid - steps.unsqueeze(1)).square() / 2 + 0.5 * grid.abs()  # (81, 4001)
torch.testing.assert_close(shrunk, grid[cost.argmin(1)], rtol=0, atol=1e-3)
print(f"{int((shrunk == 0).sum())} of {len(shrunk)} weights are exactly zero")

# %%
# What the three do to a weight in one step, side by side:

import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6, 3.2))
axes.plot(steps, steps, linestyle=":", color="gray", label="no penalty")
axes.plot(steps, steps / 1.5, label="L2")
axes.plot(steps, steps - 0.5 * steps.sign(), label="L1, by its gradient")
axes.plot(steps, shrunk, label="L1, proximal")
axes.set(xlabel="weight before", ylabel="weight after", title="One step of three penalties, much too strong")
axes.legend()
plt.show()
