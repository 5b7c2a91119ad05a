"""Monitors, which watch a run and change nothing; users import them from :mod:`lightning_reg.callbacks`."""
