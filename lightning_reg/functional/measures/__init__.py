"""What is measured and shown: activations, weights, learning curves, errors of several models."""
