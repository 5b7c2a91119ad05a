r"""
Mixup and CutMix
================

Both train on samples that nobody has seen, made of two, and on targets that are made of theirs.
"""

# %%
# Mixup
# -----
# .. math:: \tilde x = \lambda x_a + (1 - \lambda) \, x_b, \qquad
#    \tilde y = \lambda y_a + (1 - \lambda) \, y_b, \qquad \lambda \sim \operatorname{Beta}(\alpha, \alpha)
#
# Cross entropy is linear in its target, so a mixed target's loss is the mix of two losses with hard labels,
#
# .. math:: \ell(z, \tilde y) = -\sum_c \tilde y_c \log \operatorname{softmax}(z)_c
#    = \lambda \, \ell(z, y_a) + (1 - \lambda) \, \ell(z, y_b)
#
# which is how ``BatchMixing`` can mix the batches of a project whose loss and metrics want class indices.
#
# .. literalinclude:: /../lightning_reg/functional/batch/mixing.py
#    :caption: lightning_reg/functional/batch/mixing.py
#    :pyobject: mix_with_previous

import torch
from torch.nn import functional as F

from lightning_reg.functional.batch.mixing import mix_with_previous, paste_from_previous, soft_targets

generator = torch.Generator().manual_seed(0)
images = torch.rand(6, 1, 8, 8, generator=generator, dtype=torch.float64)
labels = torch.tensor([0, 1, 2, 3, 1, 0])
logits = torch.randn(6, 4, generator=generator, dtype=torch.float64)
minor = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64)  # 1 - lambda, for each sample its own

mixed = mix_with_previous(images, minor)
for index in range(6):  # the textbook's loop; a sample's partner is the one before it
    partner = images[index - 1]
    torch.testing.assert_close(mixed[index], (1 - minor[index]) * images[index] + minor[index] * partner)

targets = mix_with_previous(soft_targets(labels, 4).double(), minor)
of_targets = F.cross_entropy(logits, targets, reduction="none")
of_labels = (1 - minor) * F.cross_entropy(logits, labels, reduction="none") + minor * F.cross_entropy(
    logits, labels.roll(1), reduction="none"
)
torch.testing.assert_close(of_targets, of_labels, rtol=0, atol=1e-12)
print("loss of mixed targets and mix of losses differ by", float((of_targets - of_labels).abs().max()))

# %%
# How much is mixed
# -----------------
# :math:`\operatorname{Beta}(\alpha, \alpha)` is symmetric around 1/2. Its variance is :math:`1 / (4 (2 \alpha + 1))`:
# at small alpha nearly all samples are nearly one of the two, at 1 all shares are equally likely, and beyond the middle
# is preferred. Which of the two is called *a* is a matter of naming, so only :math:`\max(\lambda, 1 - \lambda)`
# matters, and ``Mixup`` takes that one, so that each sample stays the dominant one of its own mix.

from random import Random

stream = Random(0)
for alpha in (0.2, 0.4, 1.0, 4.0):
    drawn = torch.tensor([stream.betavariate(alpha, alpha) for _ in range(100_000)], dtype=torch.float64)
    derived = 1 / (4 * (2 * alpha + 1))
    torch.testing.assert_close(drawn.var().item(), derived, rtol=0.02, atol=0)
    minor_share = 0.5 - (drawn - 0.5).abs().mean()
    print(f"alpha {alpha}: variance {drawn.var():.4f}, derived {derived:.4f}; mean minor share {minor_share:.3f}")

# %%
# CutMix
# ------
# A box of one image is pasted into the other, and targets are mixed by *area*:
#
# .. math:: \tilde x = M \odot x_b + (1 - M) \odot x_a, \qquad
#    \tilde y = (1 - s) \, y_a + s \, y_b, \qquad s = \frac{\sum M}{H W}
#
# The box has the area :math:`1 - \lambda` of the image, so its sides are :math:`\sqrt{1 - \lambda}` of the image's; its
# middle is any pixel, so it is cut off at the border, and :math:`s` is counted after that.
#
# .. literalinclude:: /../lightning_reg/transforms/cutmix.py
#    :caption: lightning_reg/transforms/cutmix.py
#    :pyobject: CutMix.draw
#    :dedent: 4

from lightning_reg.transforms import CutMix

flat = torch.arange(6, dtype=torch.float64).view(6, 1, 1, 1).expand(6, 1, 8, 8)  # image i is i everywhere
draws = 0
for seed in range(200):
    pasted, shares = CutMix(alpha=1.0)(flat, soft_targets(torch.arange(6), 6).double(), stream=Random(seed))
    for index in range(6):
        share = shares[index, (index - 1) % 6].item()  # what the target says is the partner's
        counted = (pasted[index] == (index - 1) % 6).double().mean().item()  # what the pixels say
        if abs(share - counted) > 1e-6 or share > 0.5:
            raise ArithmeticError(f"the target has {share} of the partner, the image {counted}")
        draws += 1
print(f"targets have the partner's share of pixels in all of {draws} images, and never more than a half")

# %%
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

digits = torch.tensor(load_digits().images[[3, 10]]).unsqueeze(1)
rows = {
    "one": digits[1],
    "another": digits[0],
    "Mixup, 0.3": mix_with_previous(digits, torch.tensor(0.3, dtype=torch.float64))[1],
    "CutMix, a quarter": paste_from_previous(digits, [(2, 6, 3, 7)])[1],
}
figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.1))
for axis, (name, image) in zip(axes, rows.items(), strict=True):
    axis.imshow(image[0], cmap="gray")
    axis.set(title=name, xticks=[], yticks=[])
plt.show()
