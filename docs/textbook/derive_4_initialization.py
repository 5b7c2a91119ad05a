r"""
Initial weights: keeping the variance
=====================================

What decides whether a deep network learns at all is whether signals keep their size from layer to layer.
"""

# %%
# The variance of a linear unit
# -----------------------------
# A unit sums :math:`n` products, :math:`y = \sum_i w_i x_i`. With independent weights of mean 0 and variance :math:`v`,
# independent of the inputs, the mean of :math:`y` is 0, mixed terms vanish, and
#
# .. math:: \operatorname{Var}[y] = \sum_i \mathbb{E}[w_i^2] \, \mathbb{E}[x_i^2] = n \, v \, \mathbb{E}[x^2]
#
# Backward the same matrix is multiplied from the other side: each input's gradient sums over the :math:`n'` outputs, so
# :math:`\operatorname{Var}[\partial L / \partial x] = n' v \operatorname{Var}[\partial L / \partial y]`. Both are kept
# only where :math:`n = n'`; **Xavier** takes the mean of the two:
#
# .. math:: v = \frac{2}{n + n'}
#
# ReLU sets half of a symmetric :math:`y` to zero, :math:`\mathbb{E}[\max(y, 0)^2] = \frac12 \operatorname{Var}[y]`, and
# **Kaiming** makes up for it:
#
# .. math:: v = \frac{2}{n}
#
# The rule in general is :math:`v = \text{gain}^2 / n`, where the gain makes up for what the activation takes away.
#
# .. literalinclude:: /../lightning_reg/init/initialization.py
#    :caption: lightning_reg/init/initialization.py
#    :pyobject: VarianceScaling.__call__
#    :dedent: 4

import torch
from torch import nn

from lightning_reg.init import initialize_

WIDTH, DEPTH = 512, 12


def network(scheme):
    torch.manual_seed(0)
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    made = nn.Sequential(*layers)
    with torch.no_grad():
        initialize_(made, scheme, nn.ReLU())
    return made


layer = network("kaiming_normal")[0]
n = layer.in_features
measured, derived = layer.weight.var().item(), 2 / n
# A sample variance of N normal numbers has the relative standard deviation sqrt(2 / N).
if abs(measured / derived - 1) > 5 * (2 / layer.weight.numel()) ** 0.5:
    raise ArithmeticError(f"Kaiming's variance is {measured}, not 2 / n = {derived}")
print(f"Kaiming: variance {measured:.6f}, 2 / n = {derived:.6f}")

layer = network("xavier_normal")[0]
print(f"Xavier: variance {layer.weight.var().item():.6f}, 2 / (n + n') = {2 / (n + layer.out_features):.6f}")

# %%
# Twelve layers of ReLU
# ---------------------
# The mean square of what each layer returns. By the derivation it stays the same under Kaiming, and halves with each
# layer under Xavier, which doesn't know of the ReLU: :math:`2^{-12}` at the end. ``uniform`` is a fixed range that
# knows nothing of the layer's size, and LSUV measures and rescales, layer by layer.

from lightning_reg.init import lsuv_


def sizes(made, inputs):
    squares = []
    for layer in made:
        inputs = layer(inputs)
        if isinstance(layer, nn.ReLU):
            squares.append(inputs.square().mean().item())
    return squares


inputs = torch.randn(1024, WIDTH, generator=torch.Generator().manual_seed(1))
curves = {}
with torch.no_grad():
    for name in ("xavier_normal", "kaiming_normal", "uniform", "orthogonal"):
        curves[name] = sizes(network(name), inputs)
    scaled = network("orthogonal")
    lsuv_(scaled, inputs)
    curves["lsuv"] = sizes(scaled, inputs)

ratio = curves["xavier_normal"][-1] / inputs.square().mean().item()
print(f"Xavier: {ratio:.2e} of the inputs' mean square is left, 2**-12 is {2**-12:.2e}")
if not 0.5 < ratio * 2**12 < 2:
    raise ArithmeticError("the mean square doesn't halve with each layer")
kept = curves["kaiming_normal"][-1] / inputs.square().mean().item()
print(f"Kaiming: {kept:.2f}")
if not 0.5 < kept < 2:
    raise ArithmeticError("the mean square isn't kept")

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(6.4, 3.2))
for name, squares in curves.items():
    axes.plot(range(1, DEPTH + 1), squares, marker="o", markersize=3, label=name)
axes.set(xlabel="layer", ylabel="mean square of activations", yscale="log", title="Signals through twelve layers")
axes.legend()
plt.show()

# %%
# What training makes of it is a study: ``python train.py study configs/studies/initialization.yaml``.
