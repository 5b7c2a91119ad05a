r"""
Gradient clipping
=================

Now and then a gradient is so large that one step undoes a thousand. Clipping bounds the step.
"""

# %%
# By norm
# -------
# All gradients together are one vector :math:`g`. If it is longer than :math:`\tau`, it is shortened to that length,
# and keeps its direction:
#
# .. math:: g \leftarrow g \, \min\left(1, \frac{\tau}{\lVert g \rVert}\right)
#
# Among all vectors no longer than :math:`\tau` this is the one nearest to :math:`g`: it is a projection. The norm is
# taken over all parameters; the norm of the parts' norms is that of the whole,
# :math:`\lVert g \rVert^2 = \sum_k \lVert g_k \rVert^2`.
#
# .. literalinclude:: /../lightning_reg/functional/gradient/clipping.py
#    :caption: lightning_reg/functional/gradient/clipping.py
#    :pyobject: shrinking_factor

import torch

from lightning_reg.functional.gradient.clipping import clip_by_value_, scale_, shrinking_factor
from lightning_reg.functional.norms import norms_of, total_norm

torch.manual_seed(0)
gradients = [torch.randn(30, 20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)]
whole = torch.cat([gradient.flatten() for gradient in gradients])

norm = total_norm(norms_of(gradients))
torch.testing.assert_close(norm, whole.norm(), rtol=1e-12, atol=0)
clipped = [gradient.clone() for gradient in gradients]
scale_(clipped, shrinking_factor(norm, 1.0))

parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
for parameter, gradient in zip(parameters, gradients, strict=True):
    parameter.grad = gradient.clone()
torch.nn.utils.clip_grad_norm_(parameters, 1.0)
for ours, parameter in zip(clipped, parameters, strict=True):
    torch.testing.assert_close(ours, parameter.grad, rtol=0, atol=1e-12)
print(f"norm {float(norm):.3f}, after clipping {float(total_norm(norms_of(clipped))):.6f}, as torch clips it")

# Nothing within the ball is nearer: random points of it are all farther away.
projected = torch.cat([gradient.flatten() for gradient in clipped])
points = torch.randn(20_000, len(whole), dtype=torch.float64)
points = points / points.norm(dim=1, keepdim=True) * torch.rand(20_000, 1, dtype=torch.float64)
if (points - whole).norm(dim=1).min() < (projected - whole).norm():
    raise ArithmeticError("clipping by norm isn't the projection")
cosine = float(projected @ whole / projected.norm() / whole.norm())
print(f"cosine of the angle between before and after: {cosine:.12f}")

# %%
# By value
# --------
# .. math:: g_i \leftarrow \max(-v, \min(v, g_i))
#
# This is the projection onto a cube. It turns the gradient: large entries lose, small ones don't.

cut = [gradient.clone() for gradient in gradients]
clip_by_value_(cut, 0.5)
for ours, gradient in zip(cut, gradients, strict=True):
    torch.testing.assert_close(ours, gradient.clamp(-0.5, 0.5), rtol=0, atol=0)
turned = torch.cat([gradient.flatten() for gradient in cut])
print(f"cosine after clipping by value: {float(turned @ whole / turned.norm() / whole.norm()):.3f}")

# %%
# A cliff
# -------
# The loss of a recurrent network has cliffs, where a step along the gradient leaves everything. The simplest such loss:
# one weight that is multiplied with itself fifty times, as in a linear recurrence, :math:`L(w) = (w^{50} - 0.5)^2`,
# whose minimum lies at :math:`0.5^{1/50} = 0.986`. One step throws the weight onto the plateau, where there is no slope
# left to come back by.

import matplotlib.pyplot as plt


def descend(start, limit, steps=80, rate=0.0002):
    path = [start]
    for _ in range(steps):
        weight = torch.tensor(path[-1], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad((weight**50 - 0.5).square(), weight)
        scale_([slope], shrinking_factor(slope.abs(), limit))
        path.append(float(weight.detach() - rate * slope))
    return path


free, bounded = descend(1.03, float("inf")), descend(1.03, 5.0)
best = 0.5 ** (1 / 50)
print(f"without clipping the weight ends at {free[-1]:.3f}, with it at {bounded[-1]:.3f}; the minimum is at {best:.3f}")
if abs(bounded[-1] - best) > 0.005 or abs(free[-1] - best) < 0.1:
    raise ArithmeticError("clipping doesn't save the descent")

weights = torch.linspace(0.6, 1.035, 400, dtype=torch.float64)
figure, axes = plt.subplots(1, 2, figsize=(7.2, 3))
axes[0].plot(weights, (weights**50 - 0.5).square(), color="gray")
axes[0].plot(bounded, [(w**50 - 0.5) ** 2 for w in bounded], "o", markersize=3, label="clipped")
axes[0].plot(free, [(w**50 - 0.5) ** 2 for w in free], "o", markersize=4, label="not clipped")
axes[0].legend()
axes[0].set(xlabel="weight", ylabel="loss", title="The cliff", ylim=(-0.3, 6), xlim=(0.6, 1.04))
axes[1].plot(bounded, label="clipped")
axes[1].plot(free, label="not clipped")
axes[1].axhline(best, color="gray", linestyle=":")
axes[1].set(xlabel="step", ylabel="weight", title="Descent from 1.03")
axes[1].legend()
plt.show()
