"""Inputs and targets of a batch: images, rows of tables, mixtures of samples."""
