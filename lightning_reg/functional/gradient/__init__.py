"""Operations on gradients before the optimizer's step: penalties of weights, clipping, noise, sharpness."""
