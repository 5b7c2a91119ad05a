"""Experiments that compare techniques: variants of one base run, over seeds, and a report of what each is worth."""
