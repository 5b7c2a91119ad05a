"""Benchmarks of speed, memory and accuracy, compared with the alternatives that a user would pick."""
