r"""
BatchNorm, LayerNorm, RMSNorm, forward and backward
===================================================

Normalization gives activations mean 0 and variance 1, and lets the network choose another scale and shift. What differs
is over what the statistics are taken: BatchNorm over the samples of a batch, LayerNorm over the features of a sample.
"""

# %%
# BatchNorm in four steps
# -----------------------
# A channel has :math:`m` values :math:`x_i`, as many as samples times positions:
#
# .. math:: \mu = \frac{1}{m} \sum_i x_i, \quad
#    \sigma^2 = \frac{1}{m} \sum_i (x_i - \mu)^2, \quad
#    \hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2 + \epsilon}}, \quad
#    y_i = \gamma \, \hat x_i + \beta
#
# .. literalinclude:: /../lightning_reg/functional/reference/batch_norm.py
#    :caption: lightning_reg/functional/reference/batch_norm.py
#    :pyobject: BatchNormInTraining.forward
#    :dedent: 4

import torch
from torch.nn import functional as F

from lightning_reg.functional.reference import batch_norm, layer_norm, rms_norm

torch.manual_seed(0)
inputs = (3 * torch.randn(16, 4, dtype=torch.float64) + 5).requires_grad_()
gamma = torch.randn(4, dtype=torch.float64, requires_grad=True)
beta = torch.randn(4, dtype=torch.float64, requires_grad=True)
outer = torch.randn(16, 4, dtype=torch.float64)  # dL/dy, whatever comes behind the layer

outputs = batch_norm(inputs, None, None, gamma, beta, training=True)
torchs = F.batch_norm(inputs, None, None, gamma, beta, training=True)
torch.testing.assert_close(outputs, torchs, rtol=0, atol=1e-12)
print("largest difference from torch's:", float((outputs - torchs).detach().abs().max()))

# %%
# Backward, step by step
# ----------------------
# By the chain rule the gradient of a quantity is the sum, over everything that it goes into, of the gradient there
# times the derivative of it. So one goes through the four steps from the last to the first. We write :math:`g_i` for
# :math:`\partial L / \partial y_i`.
#
# **Step 4.** The shift goes into every output with derivative 1, the scale with derivative :math:`\hat x_i`, and
# :math:`\hat x_i` into its own output with derivative :math:`\gamma`:
#
# .. math:: \frac{\partial L}{\partial \beta} = \sum_i g_i, \qquad
#    \frac{\partial L}{\partial \gamma} = \sum_i g_i \, \hat x_i, \qquad
#    \frac{\partial L}{\partial \hat x_i} = g_i \, \gamma

epsilon, count = 1e-5, len(inputs)
with torch.no_grad():
    mean = inputs.mean(0)
    variance = (inputs - mean).square().mean(0)
    std = (variance + epsilon).sqrt()
    normalized = (inputs - mean) / std

    grad_beta = outer.sum(0)
    grad_gamma = (outer * normalized).sum(0)
    grad_normalized = outer * gamma

# %%
# **Step 3, the variance.** It goes into every :math:`\hat x_i`, by the power :math:`-1/2`:
#
# .. math:: \frac{\partial L}{\partial \sigma^2} = \sum_i \frac{\partial L}{\partial \hat x_i} \, (x_i - \mu)
#    \left(-\frac{1}{2}\right) (\sigma^2 + \epsilon)^{-3/2}
#
# **Step 3 and 2, the mean.** It goes into every :math:`\hat x_i` and into the variance. The second sum is zero, because
# deviations from a mean cancel:
#
# .. math:: \frac{\partial L}{\partial \mu} = -\sum_i \frac{\partial L}{\partial \hat x_i}
#    \frac{1}{\sqrt{\sigma^2 + \epsilon}}
#    - \frac{\partial L}{\partial \sigma^2} \, \frac{2}{m} \sum_i (x_i - \mu)

with torch.no_grad():
    grad_variance = (grad_normalized * (inputs - mean) * -0.5 * std**-3).sum(0)
    grad_mean = -(grad_normalized / std).sum(0) - grad_variance * 2 / count * (inputs - mean).sum(0)
    print("sums of deviations:", (inputs - mean).sum(0).abs().max().item())

# %%
# **Step 1, the inputs.** An input goes into its own :math:`\hat x_i`, into the variance, and into the mean:
#
# .. math:: \frac{\partial L}{\partial x_i} =
#    \frac{\partial L}{\partial \hat x_i} \frac{1}{\sqrt{\sigma^2 + \epsilon}}
#    + \frac{\partial L}{\partial \sigma^2} \, \frac{2 \, (x_i - \mu)}{m}
#    + \frac{\partial L}{\partial \mu} \, \frac{1}{m}
#
# The last two terms are what a layer with constants for statistics doesn't have: moving one sample moves all others.

with torch.no_grad():
    grad_inputs = grad_normalized / std + grad_variance * 2 * (inputs - mean) / count + grad_mean / count

of_torch = torch.autograd.grad(torchs, (inputs, gamma, beta), outer)
for name, by_hand, by_torch in zip(
    ("inputs", "gamma", "beta"), (grad_inputs, grad_gamma, grad_beta), of_torch, strict=True
):
    torch.testing.assert_close(by_hand, by_torch, rtol=0, atol=1e-12)
    print(f"gradient of {name}: largest difference from torch's {float((by_hand - by_torch).abs().max()):.1e}")

# %%
# The same lines as they stand in the library, for any number of positions, and differentiable once more:
#
# .. literalinclude:: /../lightning_reg/functional/reference/batch_norm.py
#    :caption: lightning_reg/functional/reference/batch_norm.py
#    :pyobject: BatchNormInTraining.backward
#    :dedent: 4

ours = torch.autograd.grad(outputs, (inputs, gamma, beta), outer)
for by_ours, by_torch in zip(ours, of_torch, strict=True):
    torch.testing.assert_close(by_ours, by_torch, rtol=0, atol=1e-12)


def of_inputs(values):
    return batch_norm(values, None, None, gamma.detach(), beta.detach(), training=True)


# Against differences of the outputs themselves, which know of no derivative, and of the gradients for the second one.
if not (torch.autograd.gradcheck(of_inputs, inputs) and torch.autograd.gradgradcheck(of_inputs, inputs)):
    raise ArithmeticError("the gradient isn't that of differences")
print("first and second derivatives equal those by differences")

# %%
# What follows from it: the gradient of the inputs has no part along a constant, and none along :math:`\hat x`; the
# layer forgets both, so nothing can be learned by them (but for what epsilon lets through).

along_constant = (grad_inputs).sum(0).abs().max()
along_normalized = (grad_inputs * normalized).sum(0).abs().max()
print(f"along a constant {along_constant:.1e}, along the normalized inputs {along_normalized:.1e}")
if along_constant > 1e-12 or along_normalized > 1e-4:
    raise ArithmeticError("the gradient isn't orthogonal to what is normalized away")

# %%
# LayerNorm: the same four steps, turned by ninety degrees
# --------------------------------------------------------
# Statistics are those of a sample's :math:`m` features; every feature has a scale and a shift of its own. So gradients
# of scale and shift are sums over samples, those of the statistics sums over features:
#
# .. math:: \frac{\partial L}{\partial \gamma_i} = \sum_n g_{ni} \, \hat x_{ni}, \qquad
#    \frac{\partial L}{\partial \hat x_i} = g_i \gamma_i, \qquad
#    \frac{\partial L}{\partial x_i} =
#    \frac{\partial L}{\partial \hat x_i} \frac{1}{\sqrt{\sigma^2 + \epsilon}}
#    + \frac{\partial L}{\partial \sigma^2} \, \frac{2 \, (x_i - \mu)}{m}
#    + \frac{\partial L}{\partial \mu} \, \frac{1}{m}
#
# Nothing is shared by samples: it does the same in evaluation, and with a batch of one.
#
# .. literalinclude:: /../lightning_reg/functional/reference/layer_norm.py
#    :caption: lightning_reg/functional/reference/layer_norm.py
#    :pyobject: LayerNormFunction.backward
#    :dedent: 4

ours = layer_norm(inputs, (4,), gamma, beta)
torchs = F.layer_norm(inputs, (4,), gamma, beta)
torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-12)
gradients = torch.autograd.grad(ours, (inputs, gamma, beta), outer)
of_torch = torch.autograd.grad(torchs, (inputs, gamma, beta), outer)
for by_ours, by_torch in zip(gradients, of_torch, strict=True):
    torch.testing.assert_close(by_ours, by_torch, rtol=0, atol=1e-12)
torch.testing.assert_close(layer_norm(inputs[:1], (4,)), layer_norm(inputs, (4,))[:1], rtol=0, atol=0)
print("LayerNorm equals torch's, forward and backward, and a sample alone is what it is in a batch")

# %%
# RMSNorm: no mean
# ----------------
# What helps is the scale, it is found, and not the shift: so the mean is left out, and with it a sum forward and one
# backward.
#
# .. math:: s = \frac{1}{m} \sum_i x_i^2, \quad \hat x_i = \frac{x_i}{\sqrt{s + \epsilon}}, \quad
#    \frac{\partial L}{\partial s} = \sum_i \frac{\partial L}{\partial \hat x_i} \, x_i
#    \left(-\frac{1}{2}\right) (s + \epsilon)^{-3/2}, \quad
#    \frac{\partial L}{\partial x_i} = \frac{\partial L}{\partial \hat x_i} \frac{1}{\sqrt{s + \epsilon}}
#    + \frac{\partial L}{\partial s} \, \frac{2 \, x_i}{m}
#
# .. literalinclude:: /../lightning_reg/functional/reference/rms_norm.py
#    :caption: lightning_reg/functional/reference/rms_norm.py
#    :pyobject: RMSNormFunction.backward
#    :dedent: 4

ours = rms_norm(inputs, (4,), gamma, eps=1e-6)
torchs = F.rms_norm(inputs, (4,), gamma, eps=1e-6)
gradients = torch.autograd.grad(ours, (inputs, gamma), outer)
of_torch = torch.autograd.grad(torchs, (inputs, gamma), outer)
for by_ours, by_torch in zip((ours, *gradients), (torchs, *of_torch), strict=True):
    torch.testing.assert_close(by_ours, by_torch, rtol=0, atol=1e-12)
print("RMSNorm equals torch's, forward and backward")

# %%
# Which values share their statistics:

import matplotlib.pyplot as plt

values = inputs.detach()[:8]
figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.6), sharey=True)
kinds = {
    "inputs": values,
    "BatchNorm": F.batch_norm(values, None, None, training=True),
    "LayerNorm": F.layer_norm(values, (4,)),
    "RMSNorm": F.rms_norm(values, (4,)),
}
for axis, (name, shown) in zip(axes, kinds.items(), strict=True):
    axis.imshow((shown - shown.mean()) / shown.std(), cmap="coolwarm", vmin=-2.5, vmax=2.5, aspect="auto")
    axis.set(title=name, xticks=[], yticks=[], xlabel="features")
axes[0].set_ylabel("samples")
plt.show()
