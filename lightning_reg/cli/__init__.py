"""The command line: LightningCLI with a summary, checked links and plain messages."""

from lightning_reg.cli.main import main

__all__ = ["main"]
