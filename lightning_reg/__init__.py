"""Every regularization technique as PyTorch Lightning callbacks, layers, models and data modules.

Nothing is imported here but the version: ``from lightning_reg.callbacks import L2Penalty`` loads what it needs, and
``import lightning_reg`` costs nothing.
"""

__version__ = "0.1.0"
