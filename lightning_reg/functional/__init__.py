"""Pure tensor maths, one file a family; imports torch alone. Layers, transforms and callbacks call it."""
