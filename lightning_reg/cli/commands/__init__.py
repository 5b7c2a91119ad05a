"""Commands in addition to LightningCLI's."""
