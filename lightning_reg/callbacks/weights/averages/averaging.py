"""Base class of techniques that average weights over training and evaluate with the average."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.held_weights import HeldWeights
from lightning_reg.core.facts import Place, Position
from lightning_reg.core.lightning import callbacks_of, flattens_parameters, instance_number, twins
from lightning_reg.core.technique import Technique
from lightning_reg.settings import SettingError, check_choice

if TYPE_CHECKING:
    from lightning_reg.callbacks.weights.averages.average_session import AverageSession

__all__ = ["CHECKPOINT_KEY", "Buffers", "Validate", "WeightAverage"]

Buffers = Literal["average", "copy", "recompute"]
Validate = Literal["averaged", "both"]
CHECKPOINT_KEY = "lightning_reg"  # Lightning matches callbacks' states by settings; these survive a change


class WeightAverage(Technique):
    """Holds an average of the weights, and swaps it with the trained weights for evaluation.

    The first such callback of a trainer gives the model its weights: its average is in the module while the fit
    validates, in the ``state_dict`` of checkpoints, and in the module when the fit has ended. Further ones only report
    on validation data, under a prefix. Where an exception ends the fit the trained weights are left in the module.

    Every registered parameter is averaged that has been trainable so far; while it is frozen it counts with the value
    that it keeps. Parametrized weights are averaged before the parametrization, which therefore holds for the average,
    too.

    Args:
        buffers: Running statistics of normalization layers: ``"average"`` like weights, ``"copy"`` from the trained
            weights, or ``"recompute"`` for the average.
        validate: ``"averaged"``: validation reports on the average; ``"both"``: on the trained weights, and once more,
            with a prefix, on the average.
    """

    place = Place.WEIGHTS
    position = Position.AVERAGING
    averages_weights: ClassVar[bool] = True
    prefix: ClassVar[str]
    delays: ClassVar[tuple[str, ...]] = ()  # names of the settings that decide when the average begins

    def __init__(self, *, buffers: Buffers, validate: Validate) -> None:
        super().__init__()
        check_choice("buffers", buffers, get_args(Buffers))
        check_choice("validate", validate, get_args(Validate))
        self.buffers: Buffers = buffers
        self.validate: Validate = validate

    @property
    @override
    def session(self) -> "AverageSession | None":
        return cast("AverageSession | None", super().session)

    @property
    def updates(self) -> int:
        """Number of updates of the latest fit's average."""
        return self.last_result.updates if self.last_result else 0

    @property
    def is_in(self) -> bool:
        """Whether the module has the averaged weights at this moment."""
        return bool(self.last_result and self.last_result.is_in)

    def gives_weights(self, trainer: Trainer) -> bool:
        """Whether this is the trainer's first average, which gives the model its weights."""
        return (
            next((callback for callback in callbacks_of(trainer) if isinstance(callback, WeightAverage)), None) is self
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        for callback in callbacks_of(trainer):
            if isinstance(callback, twins(StochasticWeightAveraging, WeightAveraging)):
                raise SettingError(
                    f"callbacks must not have {type(callback).__name__} with {type(self).__name__}: both evaluate "
                    "with averaged weights"
                )
        if flattens_parameters(trainer):
            raise SettingError(
                f"strategy must keep parameters apart with {type(self).__name__}, but is "
                f"{type(trainer.strategy).__name__}; use DDPStrategy or ModelParallelStrategy"
            )

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        gives = self.gives_weights(trainer)
        if self.session is not None:
            self.session.follow()
            if gives:
                self.session.recompute_for_checkpoint()
        state = self.kept
        if not state:  # a finder saves before the fit has begun
            return
        held = HeldWeights.of(state["weights"])
        weights = checkpoint.get("state_dict", {})
        if gives:
            held.save_into(weights, pl_module)
        saved = {**state, "weights": held.beside(pl_module, weights, gives=gives)}
        checkpoint.setdefault(CHECKPOINT_KEY, {})[self._key(trainer)] = saved

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {}).get(self._key(trainer))
        if trainer.state.fn != TrainerFn.FITTING:
            self.load_saved_state({})  # what was held belongs to other weights
        elif saved is not None:
            self.load_saved_state(saved)

    def _key(self, trainer: Trainer) -> str:
        return f"{type(self).__name__}_{instance_number(trainer, self) + 1}"
