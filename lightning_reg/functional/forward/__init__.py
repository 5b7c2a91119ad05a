"""Operations of the forward pass: random masks, noise and normalization of activations and weights."""
