"""Moved to ``core.gradients``."""

from lightning_reg.core.gradients import *  # noqa: F403
