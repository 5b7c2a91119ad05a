"""Gradients between the backward pass and the optimizer's step: penalties of weights, clipping, noise, sharpness."""
