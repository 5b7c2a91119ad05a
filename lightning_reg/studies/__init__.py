"""Experiments that compare techniques: variants of a base run over several seeds, and a report on each variant."""
