r"""
Dropout, and its inverted form
==============================

In training every unit is dropped with probability :math:`p`: a mask :math:`m_i` is 0 with probability
:math:`p`, else 1.
"""

# %%
# What the next layer gets
# ------------------------
# A unit of the next layer sums :math:`w_i m_i x_i`. In expectation that is
#
# .. math:: \mathbb{E}\left[\sum_i w_i m_i x_i\right] = (1 - p) \sum_i w_i x_i
#
# so with all units, in evaluation, it would get :math:`1/(1-p)` times as much as it learned from. Either evaluation
# makes up for it, as in the original form,
#
# .. math:: y_i = m_i \, x_i \text{ in training}, \qquad y_i = (1 - p) \, x_i \text{ in evaluation}
#
# or training does, as in the *inverted* form, which every library uses today, because evaluation is then the plain
# network:
#
# .. math:: y_i = \frac{m_i}{1 - p} \, x_i \text{ in training}, \qquad y_i = x_i \text{ in evaluation}
#
# .. literalinclude:: /../lightning_reg/functional/reference/dropout.py
#    :caption: lightning_reg/functional/reference/dropout.py
#    :pyobject: InvertedDropout.forward
#    :dedent: 4
#
# .. literalinclude:: /../lightning_reg/functional/reference/dropout.py
#    :caption: lightning_reg/functional/reference/dropout.py
#    :pyobject: OriginalDropout.forward
#    :dedent: 4

import torch

from lightning_reg.functional.reference import inverted_dropout, original_dropout

p = 0.3
inputs = torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64)
masks = (torch.rand(200_000, 4, generator=torch.Generator().manual_seed(0)) >= p).double()

for form in (inverted_dropout, original_dropout):
    trained = form(inputs.expand_as(masks), masks, p, training=True)
    evaluated = form(inputs, masks[0], p, training=False)
    # Five standard deviations of a mean over so many masks.
    error = 5 * trained.std(0) / len(masks) ** 0.5
    if not ((trained.mean(0) - evaluated).abs() <= error).all():
        raise ArithmeticError(f"{form.__name__}: training and evaluation differ in expectation")
    print(f"{form.__name__}: mean in training {trained.mean(0).numpy().round(2)}, in evaluation {evaluated.numpy()}")

# %%
# The same mean, another variance
# -------------------------------
# The expectation is kept, the variance isn't. As :math:`m_i^2 = m_i`, that of the inverted form is
#
# .. math:: \operatorname{Var}[y_i] = \frac{x_i^2}{(1-p)^2} \operatorname{Var}[m_i]
#    = \frac{x_i^2}{(1-p)^2} \, p (1 - p) = \frac{p}{1 - p} \, x_i^2
#
# This noise is what regularizes: for a linear model with squared loss it is, in expectation, an L2 penalty whose
# strength is this variance. It is also why dropout right before BatchNorm does harm, which learns a variance in
# training that evaluation doesn't have; the audit warns of it.

trained = inverted_dropout(inputs.expand_as(masks), masks, p, training=True)
expected = p / (1 - p) * inputs.square()
torch.testing.assert_close(trained.var(0), expected, rtol=0.02, atol=0)
print("variance", trained.var(0).numpy().round(2), "expected", expected.numpy().round(2))

# %%
# Backward
# --------
# Each output depends on its own input alone, and the mask is a constant, so the derivative is the factor itself:
#
# .. math:: \frac{\partial L}{\partial x_i} = \frac{m_i}{1 - p} \, \frac{\partial L}{\partial y_i}
#
# .. literalinclude:: /../lightning_reg/functional/reference/dropout.py
#    :caption: lightning_reg/functional/reference/dropout.py
#    :pyobject: InvertedDropout.backward
#    :dedent: 4
#
# The check differentiates the formula by autograd, which knows nothing of the code above.

points = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
outer = torch.randn(5, 4, dtype=torch.float64)
(by_hand,) = torch.autograd.grad(inverted_dropout(points, masks[:5], p, training=True), points, outer)
(by_autograd,) = torch.autograd.grad(masks[:5] / (1 - p) * points, points, outer)
torch.testing.assert_close(by_hand, by_autograd, rtol=0, atol=1e-14)
print("largest difference of gradients:", float((by_hand - by_autograd).abs().max()))

# %%
# A linear model's dropout is a penalty
# -------------------------------------
# With targets :math:`t` and inputs :math:`x`, the expected squared error under inverted dropout splits into bias and
# variance:
#
# .. math:: \mathbb{E}\left(t - \sum_i w_i y_i\right)^2 = \left(t - \sum_i w_i x_i\right)^2
#    + \frac{p}{1-p} \sum_i w_i^2 x_i^2

import matplotlib.pyplot as plt

weights, target = torch.tensor([0.5, -1.0, 0.25, 0.75], dtype=torch.float64), 2.0
rates = torch.linspace(0, 0.8, 17, dtype=torch.float64)
draws = torch.rand(50_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
measured, derived = [], []
for rate in rates.tolist():
    kept = inverted_dropout(inputs.expand_as(draws), (draws >= rate).double(), rate, training=True)
    measured.append((target - kept @ weights).square().mean())
    derived.append((target - inputs @ weights) ** 2 + rate / (1 - rate) * (weights * inputs).square().sum())
torch.testing.assert_close(torch.stack(measured), torch.stack(derived), rtol=0.03, atol=0)

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(rates, derived, label="derived")
axes.plot(rates, measured, "o", markersize=4, label="measured, 50,000 masks")
axes.set(xlabel="dropout rate", ylabel="expected squared error", title="Dropout of a linear model is an L2 penalty")
axes.legend()
plt.show()
