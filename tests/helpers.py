"""What many tests need."""

from lightning.pytorch import Trainer


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
