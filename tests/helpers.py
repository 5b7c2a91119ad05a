"""What many tests need."""

import importlib
import os
import sys

from lightning import pytorch

# The conformance suite runs on the other package, too: LIGHTNING_PACKAGE=pytorch_lightning.
PACKAGE = os.environ.get("LIGHTNING_PACKAGE", "lightning.pytorch")


def of_package(kind):
    """Returns a class of lightning, or the same class of the package that is tested."""
    module = importlib.import_module(kind.__module__.replace("lightning.pytorch", PACKAGE))
    return getattr(module, kind.__name__)


Trainer = of_package(pytorch.Trainer)


def quiet_trainer(*callbacks, **settings):
    """A trainer of one epoch that writes nothing but what it is asked for."""
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": list(callbacks),
            **settings,
        }
    )


def end_process():
    """Ends a process that gloo connected: as the interpreter ends, torch may abort in gloo's threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
