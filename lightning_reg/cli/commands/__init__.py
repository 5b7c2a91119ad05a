"""The commands beside LightningCLI's own."""
