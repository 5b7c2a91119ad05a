"""Operations on weights after the optimizer's step: proximal operators, constraints, decay, averages, ensembles."""
