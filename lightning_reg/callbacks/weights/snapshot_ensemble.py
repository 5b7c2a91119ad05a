"""Several networks from one training, whose probabilities are averaged."""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from lightning_reg.callbacks.weights.averages.averaging import CHECKPOINT_KEY, WeightAverage
from lightning_reg.callbacks.weights.averages.registered import is_expanded, reshard, tensors_of
from lightning_reg.callbacks.weights.network_calls import NetworkCalls, not_called
from lightning_reg.callbacks.weights.predictions import LossSeen, Meaning, Outputs, check_output, meaning_of
from lightning_reg.callbacks.weights.rates import set_rate
from lightning_reg.core.facts import Chart, Choice, Linear, Place, Position
from lightning_reg.core.gradients import local, to_shard
from lightning_reg.core.lightning import (
    callbacks_of,
    ends_a_step,
    flattens_parameters,
    instance_number,
    is_compiled,
    is_compiled_whole,
    logs_now,
    step_number,
    twins,
)
from lightning_reg.core.session import Session, kept, plain
from lightning_reg.core.step import Run, Step
from lightning_reg.core.technique import Technique
from lightning_reg.functional.annealing import annealed, cycle_ends
from lightning_reg.settings import SettingError, check_choice, check_count, check_dim, check_range

__all__ = ["SnapshotEnsemble", "Snapshots"]

Validate = Literal["ensemble", "trained"]
_FEWEST_STEPS = 2  # of a cycle, in which the rate falls
_ABSENT = object()  # the output of a network that no step has called


@dataclass(frozen=True)
class Snapshots:
    """Snapshots that one training has taken.

    Attributes:
        weights: Parameters and buffers of each snapshot by name, the latest last.
        module: Weak reference to the module that they were taken from.
    """

    weights: tuple[Mapping[str, Tensor], ...]
    module: Callable[[], LightningModule | None] = field(repr=False)


class SnapshotEnsemble(Technique):
    """Trains in cycles of the learning rate, keeps the weights that each ends with, and predicts with all of them.

    What it does: the learning rate of every parameter group falls from the optimizer's along half a cosine wave and
    jumps back, ``cycles`` times over the training; parameters and buffers are copied at the end of each of the ``last``
    cycles, before the rate is raised. Where a validation, test or prediction step calls the network, it is given the
    logits of the mean of the snapshots' probabilities (of values, their mean), so that losses, metrics and predictions
    of the module's own are those of the ensemble. The first training step shows what the outputs mean. Until the first
    cycle has ended, predictions are those of the trained weights, which the module itself always keeps.

    When to use: for several networks at the price of training one; where training is long enough for each cycle to
    converge. On 40 tables it was among the best single regularizers (Kadra et al., arXiv:2106.11189). When not: where
    prediction has to cost one pass; in short trainings, which are better spent in one cycle: in the studies
    ``wave2_weights`` and ``wave2_snapshots``, of 630 and 1,260 steps, three cycles came out 0.6 to 5.9 points behind
    one, since the first snapshots are worse than the last; equal cycles less far than doubling ones.

    Cost: ``last`` copies of parameters and buffers, in memory and in checkpoints; nothing in a training step. An
    evaluation takes ``last`` forward passes and copies the weights of each in and out.

    Logs:
        ``snapshot/lr``: the learning rate of the first parameter group; ``snapshot/kept``: the number of snapshots.

    Interacts with: schedulers of the learning rate and averages of weights, which it refuses beside it; early stopping,
    which may take the jump of the rate for the end; ``ModelCheckpoint``, whose files hold the set: the callback has to
    be in the Trainer where one is tested, else the weights that were trained last are. Whatever reads the network's
    output in evaluation, as ``TemperatureScaling`` would, reads that of the ensemble. Python's own counters in a
    network's ``forward`` count each pass.

    Deviates from the paper: cycles end at optimizer steps and needn't be of one length (``growth``, as in SGDR), and
    all techniques that act on weights have acted before a snapshot is taken.

    Args:
        cycles: Number of cycles, in each of which the rate falls once; at least 1.
        last: Number of the last cycles whose weights are kept, at least 1 and at most ``cycles``; where None, 3, or all
            of fewer.
        growth: Length of a cycle relative to the one before, at least 1. Kadra et al. have 3 cycles with 2.
        floor: Rate that a cycle falls to, as a share of the optimizer's, in [0, 1]; with 1 the rate is constant.
        outputs: Meaning of the network's outputs: ``"logits"`` of classes, ``"binary_logits"`` of independent labels,
            or ``"values"``, including probabilities; ``"auto"`` infers it from the torch loss function that the
            training step calls: cross entropy, binary cross entropy, or a regression loss.
        class_dim: Dimension of the classes in logits; where None, it is inferred from the loss function's input, mostly
            1.
        validate: Whether the fit validates with the ``"ensemble"`` so far or with the ``"trained"`` weights;
            evaluations outside of the fit always use the ensemble.

    Raises:
        SettingError: If a setting is out of its range, the cycles don't fit the run, something else drives the learning
            rate or averages weights, the steps call several networks, or the meaning of their outputs can't be
            inferred.

    Reference:
        Gao Huang, Yixuan Li, Geoff Pleiss, Zhuang Liu, John E. Hopcroft, Kilian Q. Weinberger: Snapshot Ensembles:
        Train 1, Get M for Free, ICLR 2017, arXiv:1704.00109.

    >>> SnapshotEnsemble(cycles=5).last
    3
    """

    place = Place.WEIGHTS
    position = Position.AVERAGING
    restarts_rate = True
    usual_ranges = (Linear("cycles", 3, 6), Choice("growth", (1.0, 2.0)))
    charts = (Chart("Schedules", "learning rate of the cycles", r"snapshot/lr$"),)

    def __init__(
        self,
        *,
        cycles: int,
        last: int | None = None,
        growth: float = 1.0,
        floor: float = 0.0,
        outputs: Outputs = "auto",
        class_dim: int | None = None,
        validate: Validate = "ensemble",
    ) -> None:
        check_count("cycles", cycles)
        if last is not None:
            check_count("last", last)
            if last > cycles:
                raise SettingError(f"last must be at most cycles, which is {cycles}, but is {last}")
        check_range("growth", growth, low=1)
        check_range("floor", floor, low=0, high=1)
        check_choice("outputs", outputs, get_args(Outputs))
        check_choice("validate", validate, get_args(Validate))
        super().__init__()
        self.cycles = cycles
        self.last = min(3, cycles) if last is None else last
        self.growth = growth
        self.floor = floor
        self.outputs: Outputs = outputs
        if class_dim is not None:
            check_dim("class_dim", class_dim)
        self.class_dim = class_dim
        self.validate: Validate = validate

    @property
    def snapshots(self) -> tuple[Mapping[str, Tensor], ...]:
        """Parameters and buffers of each snapshot by name, the latest last."""
        return self.last_result.weights if self.last_result else ()

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return SnapshotSession(self, run)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        name = type(self).__name__
        for callback in callbacks_of(trainer):
            is_other = isinstance(callback, (WeightAverage, *twins(StochasticWeightAveraging, WeightAveraging)))
            if is_other or (isinstance(callback, SnapshotEnsemble) and callback is not self):
                raise SettingError(
                    f"callbacks must not have {type(callback).__name__} with {name}: both decide which weights are "
                    "evaluated"
                )
        if flattens_parameters(trainer):
            raise SettingError(
                f"strategy must keep parameters apart with {name}, but is {type(trainer.strategy).__name__}; use "
                "DDPStrategy or ModelParallelStrategy"
            )
        if is_compiled_whole(pl_module):
            raise SettingError(
                f"the module must not be compiled as a whole with {name}, which stands around the network in its "
                "steps; compile the network in it: self.network.compile()"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self).__name__
        if not pl_module.automatic_optimization:
            raise SettingError(
                f"automatic_optimization must be True with {name}: under manual optimization nobody knows how many "
                "steps its cycles are made of"
            )
        if trainer.lr_scheduler_configs:
            schedulers = ", ".join(type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs)
            raise SettingError(
                f"configure_optimizers must return no scheduler of the learning rate with {name}, which drives it "
                f"itself, but returns {schedulers}"
            )
        super().on_fit_start(trainer, pl_module)

    # Evaluations outside of a fit have sessions, too: from when the module is complete and a checkpoint is loaded.

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._begin_evaluation(trainer, pl_module)
        super().on_validation_start(trainer, pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_evaluation(trainer, pl_module)

    def _begin_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, result = self.kept, self.last_result
        if result is not None and result.module() is not pl_module:
            state = {}  # snapshots of another module
        if not state.get("snapshots"):
            rank_zero_warn(
                f"{type(self).__name__} has no snapshots of this module, whose own weights are evaluated; give the "
                "ckpt_path of a checkpoint that was saved after a cycle had ended"
            )
        self.load_saved_state(state)
        self.begin(Run.begun(trainer, pl_module))

    # Lightning matches callbacks' states by their settings; this survives a change of settings.

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = self.kept
        if state:  # a finder saves before the fit has begun
            checkpoint.setdefault(CHECKPOINT_KEY, {})[self._key(trainer)] = plain(state)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get(CHECKPOINT_KEY, {}).get(self._key(trainer))
        if saved is not None or trainer.state.fn != TrainerFn.FITTING:  # what was held belongs to other weights
            self.load_saved_state(saved or {})

    def _key(self, trainer: Trainer) -> str:
        return f"{type(self).__name__}_{instance_number(trainer, self) + 1}"


@dataclass(eq=False)
class SnapshotSession(Session[SnapshotEnsemble]):
    """One fit, or one evaluation."""

    snapshots: list[dict[str, Tensor]] = kept(default_factory=list)  # the latest last
    rates: list[float] = kept(default_factory=list)  # by parameter group, those that cycles begin with
    steps: int = kept(default=0)  # of the whole training
    kind: str = kept(default="")  # of the network's outputs, when it is known
    class_dim: int = kept(default=1)
    boundaries: list[int] = field(default_factory=list, init=False)  # of the cycles, in steps
    driven: list[float | Tensor] = field(default_factory=list, init=False)  # the rates, by parameter group
    seen: LossSeen | None = field(default=None, init=False)  # while the first training step runs
    output: Any = field(default=None, init=False)  # of the network in it
    left_out: dict[str, nn.Parameter] | None = field(default=None, init=False)  # of a snapshot; None where unknown

    def __post_init__(self) -> None:
        NetworkCalls(self.run, type(self.technique).__name__, self._answer, self._differs)
        self.run.around_step("training_step", self._watch)

    @override
    def result(self) -> Snapshots:
        return Snapshots(tuple(self.snapshots), weakref.ref(self.run.module))

    # Training

    @override
    def train_starts(self) -> None:
        technique, trainer = self.technique, self.run.trainer
        if not any(optimizer.param_groups for optimizer in trainer.optimizers):
            raise SettingError(
                f"configure_optimizers must return an optimizer with {type(technique).__name__}, which drives its "
                "learning rate"
            )
        steps = trainer.estimated_stepping_batches
        if steps < 0 or math.isinf(steps):
            raise SettingError(
                f"max_epochs, or max_steps where the loader has no length, must say how long training is with "
                f"{type(technique).__name__}, whose cycles share it"
            )
        if self.steps not in (0, steps):
            raise SettingError(
                f"max_epochs must leave training as long as it was with {type(technique).__name__}, whose cycles share "
                f"it: {self.steps} steps, but has {steps}; start a new fit from the checkpoint's weights"
            )
        self.steps = int(steps)
        is_trial = trainer.fast_dev_run  # type: ignore[attr-defined]  # set by Trainer.__init__ elsewhere
        most = self.steps // _FEWEST_STEPS
        self.boundaries = cycle_ends(self.steps, 1 if is_trial else min(technique.cycles, most + 1), technique.growth)
        shortest = min(end - start for start, end in zip([0, *self.boundaries], self.boundaries, strict=False))
        if shortest < _FEWEST_STEPS and not is_trial:
            raise SettingError(
                f"cycles must leave at least {_FEWEST_STEPS} of the {self.steps} optimizer steps to each, but is "
                f"{technique.cycles} with growth {technique.growth:g}; train longer, or have fewer cycles"
            )

    @override
    def batch_starts(self, batch_idx: int) -> None:
        now = step_number(self.run.trainer) - 1
        if now >= self.steps:
            return
        start = max((end for end in self.boundaries if end <= now), default=0)
        length = next(end for end in self.boundaries if end > now) - start
        factor = annealed(1.0, self.technique.floor, (now - start) / length)
        groups = [group for optimizer in self.run.trainer.optimizers for group in optimizer.param_groups]
        self.rates += [float(group["lr"]) for group in groups[len(self.rates) :]]  # and of groups added since
        for group, rate in zip(groups, self.rates, strict=False):
            set_rate(group, rate * factor)
        self.driven = [group["lr"] for group in groups]

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        trainer = self.run.trainer
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if any(group["lr"] is not rate for group, rate in zip(groups, self.driven, strict=False)):
            raise SettingError(
                f"the learning rate must be left to {type(self.technique).__name__}, which drives it, but the module "
                "or a callback has set it"
            )
        # Every window counts, also one whose step a gradient scaler skipped.
        if ends_a_step(trainer) and step_number(trainer) in self.boundaries[-self.technique.last :]:
            self._take()
        if logs_now(trainer):
            self.run.log("snapshot/lr", float(trainer.optimizers[0].param_groups[0]["lr"]))
            self.run.log("snapshot/kept", float(len(self.snapshots)))

    @torch.no_grad()
    def _take(self) -> None:
        tensors = tensors_of(self.run.module)
        snapshot = {
            name: tensor.detach().clone()
            for name, tensor in tensors.items()
            if tensor.requires_grad or not (isinstance(tensor, nn.Parameter) or is_expanded(tensor))
        }
        self.snapshots = [*self.snapshots, snapshot][-self.technique.last :]
        self.left_out = None

    @override
    def before_step(self, step: Step) -> None:
        # Until it is trained, what was frozen has the value that it had in the snapshots.
        if self.left_out is None:
            self.left_out = {
                name: tensor
                for name, tensor in tensors_of(self.run.module).items()
                if isinstance(tensor, nn.Parameter) and any(name not in snapshot for snapshot in self.snapshots)
            }
        for name in [name for name, parameter in self.left_out.items() if parameter.requires_grad]:
            value = self.left_out.pop(name).detach()
            for snapshot in self.snapshots:
                snapshot.setdefault(name, value.clone())

    @override
    def train_ends(self) -> None:
        if not self.snapshots:
            rank_zero_warn(
                f"{type(self.technique).__name__} has no snapshot, because training ended before one of its last "
                "cycles did; the trained weights are evaluated"
            )

    # What the outputs mean

    def _watch(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.kind:
            return training_step(*args, **kwargs)
        self.output = _ABSENT
        with LossSeen() as self.seen:
            loss = training_step(*args, **kwargs)
        if loss is not None:  # else this batch is skipped
            technique = self.technique
            name = type(technique).__name__
            if self.output is _ABSENT:
                raise not_called("training_step", name)
            meaning = meaning_of(name, technique.outputs, technique.class_dim, self.output, self.seen)
            self.kind, self.class_dim = meaning.kind, meaning.class_dim
        self.seen = self.output = None
        return loss

    def _answer(
        self,
        step: str,
        network: nn.Module,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if step != "training_step":
            return self._evaluated(step, call, args, kwargs)
        if self.seen is None:
            return call(*args, **kwargs)
        with ExitStack() as stack:
            # Code that is compiled within the mode would be recompiled without it.
            if is_compiled(network) and isinstance(torch.overrides._get_current_function_mode(), LossSeen):  # type: ignore[no-untyped-call]
                stack.enter_context(torch.overrides._pop_mode_temporarily())
            self.output = call(*args, **kwargs)
        return self.output

    # Evaluation

    def _evaluated(self, step: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_fit = self.run.trainer.state.fn == TrainerFn.FITTING
        if is_fit and self.technique.validate == "trained":
            return call(*args, **kwargs)
        if self.snapshots:
            return self._prediction(step, call, args, kwargs)
        output = call(*args, **kwargs)
        if is_fit:  # in the sanity check rather than when the first cycle has ended
            self._check(step, output)
        return output

    def _check(self, step: str, output: Any) -> None:
        if self.technique.last > 1:  # of a single network there is nothing to average
            check_output(type(self.technique).__name__, step, output)

    def _differs(self, network: nn.Module) -> bool:
        """Whether a network has weights that differ between snapshots."""
        if not self.snapshots:
            return any(parameter.requires_grad for parameter in network.parameters())
        held = {id(tensor) for name, tensor in tensors_of(self.run.module).items() if name in self.snapshots[-1]}
        return any(id(parameter) in held for parameter in network.parameters())

    def _prediction(self, step: str, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = tensors_of(self.run.module)
        self._bring(tensors)
        outputs = []
        with self._own_weights(tensors):
            for snapshot in self.snapshots:
                self._put_in(snapshot, tensors)
                # A network may change its inputs in place, and compiled code writes outputs into the same memory.
                given, named = tree_map(_cloned, (args, kwargs))
                output = call(*given, **named)
                self._check(step, output)
                if any(isinstance(part, Tensor) and part.requires_grad for part in tree_leaves(output)):
                    raise SettingError(
                        f"an evaluation must not enable gradients with {type(self.technique).__name__}, whose "
                        "snapshots take turns in the same weights"
                    )
                outputs.append(tree_map(_cloned, output))
        return Meaning(self.kind, self.class_dim).mean(outputs)

    def _bring(self, tensors: Mapping[str, Tensor]) -> None:
        """Moves snapshots from a checkpoint to the module's device and sharding."""
        for snapshot in self.snapshots:
            for name, value in snapshot.items():
                there = tensors.get(name)
                if there is None or there.shape != value.shape:
                    raise SettingError(
                        f"{name} must keep the shape that it has in the snapshots, {tuple(value.shape)}, with "
                        f"{type(self.technique).__name__}, but the module has "
                        + ("none of that name" if there is None else f"{tuple(there.shape)}")
                    )
                if type(value) is not type(there.detach()) or value.device != there.device:
                    snapshot[name] = to_shard(value, there)

    @contextmanager
    def _own_weights(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Restores the module's own weights afterwards."""
        names = dict.fromkeys(name for snapshot in self.snapshots for name in snapshot)
        with torch.inference_mode(False):
            own = {name: tensors[name].detach().clone() for name in names}
        try:
            yield
        finally:
            self._put_in(own, tensors)

    def _put_in(self, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        # Evaluation runs in inference mode, whose tensors couldn't be trained with afterwards.
        with torch.inference_mode(False), torch.no_grad():
            for name, value in weights.items():
                local(tensors[name]).copy_(local(value))
        reshard(self.run.module)


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
