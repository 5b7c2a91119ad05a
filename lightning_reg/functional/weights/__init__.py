"""Weights after the optimizer's step: proximal operators, constraints, decay, averages, ensembles."""
