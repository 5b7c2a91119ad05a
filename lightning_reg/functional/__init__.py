"""Pure functions of tensors, which layers, transforms and callbacks call."""
