"""Callbacks that restore, and what the command line compares before a run goes on from a checkpoint."""

import torch
from lightning import pytorch

from lightning_reg.cli.resuming import check_callbacks, check_can_go_on
from tests.helpers import of_package


class ComparesFirst(of_package(pytorch.Callback)):
    """Compares a checkpoint with the run, before anything of it is restored."""

    def __init__(self, path):
        self.path = str(path)

    def setup(self, trainer, pl_module, stage):
        self.found = torch.load(self.path, weights_only=True)
        check_callbacks(self.path, self.found, trainer)

    def on_fit_start(self, trainer, pl_module):
        check_can_go_on(self.path, self.found, trainer)


class RestoresAtOnce(of_package(pytorch.Callback)):
    """Restores a checkpoint of the fit that runs, as Lightning's finders do at an epoch's start."""

    def __init__(self, path):
        self.path = path

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)
            connector = trainer._checkpoint_connector
            connector.resume_start(self.path)
            for restore in (connector.restore_model, connector.restore_callbacks, connector.restore_optimizers):
                restore()
            connector.resume_end()
