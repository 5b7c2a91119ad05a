"""Pure tensor maths, one file a family, which layers, transforms and callbacks call."""
