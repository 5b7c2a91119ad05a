"""The one module that touches private parts of Lightning and torch, each with its reason.

``pytorch_lightning`` is the same library under another name, with classes of its own. The checks here are therefore for
what an object can do; where only its class tells, :func:`twins` returns the class of either package. A contract test
(``tests/core/test_lightning.py``) fails with a clear message when a new version moves one of these parts.
"""

import copy
import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelPruning
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch import Tensor
from torch.amp.grad_scaler import GradScaler, OptState
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_reg.core.gradients import local
from lightning_reg.core.wrapping import MethodHold
from lightning_reg.settings import SettingError

__all__ = [
    "any_gradient",
    "attach",
    "average_model",
    "callbacks_of",
    "check_version",
    "compiled_call",
    "ends_a_step",
    "flattens_parameters",
    "gradient_scale",
    "has_stand_in",
    "instance_number",
    "instance_suffix",
    "is_compiled",
    "is_compiled_whole",
    "is_logged_now",
    "is_overridden",
    "log_metrics",
    "logs_now",
    "optimizer_index",
    "optimizer_name",
    "package_of",
    "pickles_for_processes",
    "planned_epochs",
    "prepared",
    "random_states",
    "refuse_compiled_whole",
    "remove_forward_hook",
    "scaler_scale",
    "set_callbacks",
    "set_random_states",
    "silent_view",
    "starts_processes",
    "step_number",
    "toggled_parameters",
    "twin",
    "twins",
    "undistributed",
    "unscaled_loss",
    "validate_apart",
    "validation_epoch_end",
    "validation_interval",
    "without_gradient_sync",
]

T = TypeVar("T")

# The two names under which Lightning is published, and those of Fabric.
_PACKAGES = (("lightning.pytorch", "pytorch_lightning"), ("lightning.fabric", "lightning_fabric"))
_OLDEST = (2, 6)


# Either package


def twins(*classes: type[T]) -> tuple[type[T], ...]:
    """Returns classes of ``lightning`` and, if ``pytorch_lightning`` is in use, the same classes of that package.

    Args:
        classes: Classes of ``lightning``.

    Returns:
        Tuple of classes for ``isinstance``.
    """
    return tuple(found for kind in classes for found in _both(kind))


def _both(kind: type[T]) -> Iterator[type[T]]:
    yield kind
    for ours, theirs in _PACKAGES:
        if kind.__module__.startswith(f"{ours}."):
            # A package that wasn't imported has no instances; importing it takes seconds.
            module = sys.modules.get(kind.__module__.replace(ours, theirs, 1))
            other = getattr(module, kind.__name__, None)
            if isinstance(other, type) and other is not kind:
                yield cast("type[T]", other)


def package_of(trainer: Trainer) -> str:
    """Returns ``"lightning"`` or ``"pytorch_lightning"``, whichever a trainer belongs to."""
    home = next((kind.__module__ for kind in type(trainer).__mro__ if _is_lightnings(kind)), "lightning.pytorch")
    return home.partition(".")[0]


def twin(kind: type[T], package: str) -> type[T]:
    """Returns a class of ``lightning``, or the same class of ``pytorch_lightning``, which is imported if needed.

    Args:
        kind: Class of ``lightning``.
        package: Return value of :func:`package_of`.
    """
    if package == "lightning":
        return kind
    ours, theirs = next(names for names in _PACKAGES if kind.__module__.startswith(f"{names[0]}."))
    module = importlib.import_module(kind.__module__.replace(ours, theirs, 1))
    return cast("type[T]", getattr(module, kind.__name__))


def check_version(trainer: Trainer) -> None:
    """Raises if the trainer's Lightning is too old.

    Raises:
        SettingError: If its version is older than the oldest that is supported.
    """
    package = package_of(trainer)
    version: str = importlib.import_module(package).__version__
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        needed = ".".join(map(str, _OLDEST))
        raise SettingError(f"{package} must be at least {needed} with lightning_reg's callbacks, but is {version}")


def is_overridden(owner: object, method: str) -> bool:
    """Whether an object has a method other than Lightning's default, or, of a callback, than Lightning's own.

    Args:
        owner: Module, data module, logger or callback to inspect.
        method: Name of the method.
    """
    own = getattr(owner, "__dict__", {}).get(method)
    if own is not None and not isinstance(own, MethodHold):
        return True
    home = next((kind for kind in type(owner).__mro__ if method in vars(kind)), None)
    if home is None:
        return False
    modules = twins(LightningModule, LightningDataModule)
    if not isinstance(owner, modules):
        return not _is_lightnings(home)
    return all(home not in kind.__mro__ for kind in modules)  # Lightning's demonstrations are modules like any other


def _is_lightnings(kind: type) -> bool:
    return kind.__module__.startswith(tuple(f"{name}." for names in _PACKAGES for name in names))


# Callbacks


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Returns the trainer's callbacks, an attribute that Lightning doesn't declare."""
    return cast("list[Callback]", trainer.callbacks)  # type: ignore[attr-defined]


def set_callbacks(trainer: Trainer, callbacks: list[Callback]) -> None:
    """Replaces the trainer's callbacks.

    Args:
        callbacks: A new list, because Lightning may be iterating over the old one.
    """
    trainer.callbacks = callbacks  # type: ignore[attr-defined]


def instance_number(trainer: Trainer, callback: Callback) -> int:
    """Returns the index of a callback among those of its class."""
    same = [other for other in callbacks_of(trainer) if type(other) is type(callback)]
    return next((number for number, other in enumerate(same) if other is callback), 0)


def instance_suffix(trainer: Trainer, callback: Callback) -> str:
    """Returns the suffix of a callback's tags; empty if it is the only one of its class."""
    alone = sum(type(other) is type(callback) for other in callbacks_of(trainer)) <= 1
    return "" if alone else f"_{instance_number(trainer, callback) + 1}"


# A copy of the module


def silent_view(trainer: Trainer) -> Trainer:
    """Returns a view of the trainer for a copy of the module: in the same state, but what it logs is discarded."""
    view = copy.copy(trainer)
    view.loggers = [DummyLogger() for _ in trainer.loggers]
    # Lightning looks up in these which module to run, and whose hooks move a batch.
    view._accelerator_connector = copy.copy(trainer._accelerator_connector)
    view._accelerator_connector.strategy = copy.copy(trainer.strategy)
    view._data_connector = copy.copy(trainer._data_connector)
    view._data_connector._datahook_selector = copy.copy(trainer._data_connector._datahook_selector)
    return view


def attach(view: Trainer, copied: LightningModule) -> None:
    """Connects a copy of the module with a view, so that ``view.strategy`` runs the copy.

    Args:
        view: Return value of :func:`silent_view`.
    """
    view.strategy._lightning_module = copied
    view.strategy.model = copied  # without the wrapper for several processes
    if view._data_connector._datahook_selector is not None:
        view._data_connector._datahook_selector.model = copied
    copied.trainer = view


def prepared(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """Returns a batch as a step gets it: in its precision, on its device, after the hooks of module and data module.

    Args:
        batch: Batch from the loader.
    """
    batch = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def undistributed(sampler: Any) -> Any:
    """Returns the sampler whose draws Lightning's own distributes over processes, or the given one if it isn't that."""
    # The wrapper yields only this process's share, and gives the sampler by no public name.
    return vars(sampler.dataset)["_sampler"] if isinstance(sampler, twins(DistributedSamplerWrapper)) else sampler


# The position in training


def validation_epoch_end(trainer: Trainer) -> tuple[object, str]:
    """Returns the object and the name of the method that calls the hooks at the end of a fit's validation.

    A layer around it runs before all callbacks, such as those that then take averaged weights out of the module.
    """
    return trainer.fit_loop.epoch_loop.val_loop, "_on_evaluation_epoch_end"


def logs_now(trainer: Trainer) -> bool:
    """Whether the trainer logs the current step; there is no public API for it.

    Args:
        trainer: Trainer within a training batch.
    """
    return bool(trainer._logger_connector.should_update_logs)


def step_number(trainer: Trainer) -> int:
    """Returns the number of batches that have stepped, this one included; ``global_step`` counts every optimizer.

    Args:
        trainer: Trainer within a training batch.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped) + 1


def ends_a_step(trainer: Trainer) -> bool:
    """Whether the optimizer steps with this batch rather than accumulating further.

    Args:
        trainer: Trainer within a training batch.
    """
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def planned_epochs(trainer: Trainer) -> float:
    """Returns the number of planned epochs by ``max_epochs`` or ``max_steps``, whichever ends first, or infinity.

    Args:
        trainer: Trainer in a fit. ``max_steps`` tells nothing of epochs whose number of batches isn't known. Under
            manual optimization, where a batch may make any number of steps, it counts only if ``max_epochs`` isn't
            given, as if each batch made one.
    """
    epochs = math.inf if trainer.max_epochs is None or trainer.max_epochs < 0 else trainer.max_epochs
    if trainer.max_steps < 0 or (math.isfinite(epochs) and not trainer.lightning_module.automatic_optimization):
        return epochs
    trainer.fit_loop.setup_data()  # which Lightning does later; doing it twice does nothing
    batches = trainer.num_training_batches
    if math.isinf(batches):
        return epochs
    steps = max(math.ceil(batches / trainer.accumulate_grad_batches), 1)  # the last window of an epoch may be shorter
    return min(epochs, math.ceil(trainer.max_steps / steps))


def validation_interval(trainer: Trainer) -> float | None:
    """Returns the batches, or the share of an epoch, between validations; None where they are due by time.

    The trainer has no ``val_check_interval`` then.
    """
    return getattr(trainer, "val_check_interval", None)


def starts_processes(trainer: Trainer) -> bool:
    """Whether the strategy forks or spawns the training processes, so that this one doesn't see their changes."""
    return isinstance(trainer.strategy.launcher, twins(_MultiProcessingLauncher))


def pickles_for_processes(trainer: Trainer) -> bool:
    """Whether the strategy pickles the whole trainer for processes that know nothing of this one."""
    return starts_processes(trainer) and getattr(trainer.strategy.launcher, "_start_method", "") != "fork"


def flattens_parameters(trainer: Trainer) -> bool:
    """Whether the strategy flattens parameters (FSDP1, DeepSpeed), so that they lose their names."""
    return isinstance(trainer.strategy, twins(FSDPStrategy, DeepSpeedStrategy))


def pruned_weights(trainer: Trainer) -> list[tuple[torch.nn.Module, str]]:
    """Returns the layers and the names of the weights that Lightning's own pruning callbacks will replace."""
    return [pair for callback in pruning_callbacks(trainer) for pair in callback._parameters_to_prune or ()]


def pruning_callbacks(trainer: Trainer) -> list[ModelPruning]:
    """Returns Lightning's own pruning callbacks."""
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, twins(ModelPruning))]


def average_model(callback: Callback) -> Any:
    """Returns the averaged model of Lightning's own weight-averaging callbacks; None if there is none."""
    return getattr(callback, "_average_model", None)


def random_states() -> dict[str, Any]:
    """Returns the states of all global random number generators: torch's, NumPy's and Python's."""
    # Checking for a GPU loads its driver's library, at every call.
    uses_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # of torch
    states: dict[str, Any] = _collect_rng_states(include_cuda=uses_cuda)
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restores the states of the global random number generators.

    Args:
        states: Return value of :func:`random_states`.
    """
    _set_rng_states(states)


def set_versions(tensors: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Sets version counters back, so that graphs that saved the tensors then take them for unchanged."""
    setter: Any = torch._C._autograd._unsafe_set_version_counter
    try:
        setter(tuple(tensors), tuple(versions))
    except TypeError:  # older versions of torch take one at a time
        for tensor, version in zip(tensors, versions, strict=True):
            setter(tensor, version)


def is_compiled_whole(module: torch.nn.Module) -> bool:
    """Whether a LightningModule was compiled by ``torch.compile``, its training step included."""
    return getattr(module, "_compiler_ctx", None) is not None


def refuse_compiled_whole(module: torch.nn.Module, technique: str) -> None:
    """Raises if a LightningModule was compiled as a whole, for techniques that have to see its training step's calls.

    Args:
        technique: Name of the technique, for the error message.

    Raises:
        SettingError: If it was, with what to compile instead.
    """
    if is_compiled_whole(module):
        raise SettingError(
            f"the module must not be compiled as a whole with {technique}, which has to see how its loss is computed; "
            "compile the network in it: self.network.compile()"
        )


def is_compiled(module: torch.nn.Module) -> bool:
    """Whether calls of a module run compiled code, made by ``torch.compile`` or by its own ``compile``."""
    # Importing torch.compile's own class is slow.
    is_wrapped = type(module).__module__.startswith("torch._dynamo")
    return is_wrapped or is_compiled_whole(module) or compiled_call(module) is not None


def compiled_call(module: torch.nn.Module) -> str | None:
    """Returns the name of the attribute with a module's compiled call; None unless its own ``compile`` was used.

    A layer around this attribute isn't compiled, whereas hooks of such a module are.
    """
    return None if module._compiled_call_impl is None else "_compiled_call_impl"


def remove_forward_hook(copied: torch.nn.Module, handle: RemovableHandle) -> None:
    """Removes a forward hook that was copied along from a copy of a module; torch's handle removes the original.

    Args:
        handle: Handle of the original hook or pre-hook, which has the same number in the copy.
    """
    for hooks in (
        copied._forward_hooks,
        copied._forward_hooks_with_kwargs,
        copied._forward_hooks_always_called,
        copied._forward_pre_hooks,
        copied._forward_pre_hooks_with_kwargs,
    ):
        cast(dict[int, Any], hooks).pop(handle.id, None)


def without_gradient_sync(trainer: Trainer) -> AbstractContextManager[None]:
    """Returns a context in which backward passes don't average gradients over processes."""
    block = getattr(trainer.strategy, "block_backward_sync", None)
    return nullcontext() if block is None else cast("AbstractContextManager[None]", block())


def validate_apart(trainer: Trainer, module: LightningModule) -> tuple[dict[str, Any], set[str]]:
    """Runs the fit's validation once more, with another module; there is no public API for it.

    Neither callbacks nor loggers are called, and the loop and the trainer's metrics are restored afterwards.

    Args:
        trainer: Trainer whose validation is about to run.
        module: The trainer's module, or a copy of it.

    Returns:
        The logged metrics, and the names of those that are for loggers.
    """
    loop, connector, strategy = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector, trainer.strategy
    progress = loop.batch_progress.state_dict()
    replaced: list[tuple[Any, str, Any]] = [
        (connector, "_callback_metrics", {}),
        (connector, "_logged_metrics", {}),
        (connector, "_progress_bar_metrics", {}),
        (loop, "_results", type(loop._results)(training=False)),  # the existing ones refer to the module's metrics
        (trainer, "callbacks", []),
        (trainer, "loggers", [DummyLogger() for _ in trainer.loggers]),
    ]
    if module is not trainer.lightning_module:
        module.trainer = trainer
        module._metric_attributes = None  # its keys are ids of the original's metrics
        replaced += [(strategy, "_lightning_module", module), (strategy, "model", module)]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        type(loop).run(loop)  # the loop's own method, without layers around it
        return dict(connector._callback_metrics), set(connector._logged_metrics)
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        loop.batch_progress.load_state_dict(progress)


def is_logged_now(trainer: Trainer, name: str) -> bool:
    """Whether a metric was logged in the current loop rather than an earlier one; there is no public API for it.

    Args:
        trainer: Trainer at the end of a validation or of a training epoch.
    """
    return trainer._results is not None and name in trainer._logger_connector.metrics["callback"]


def log_metrics(trainer: Trainer, metrics: dict[str, Any], logged: set[str]) -> None:
    """Logs metrics as if a module had logged them; a callback can't log before validation has begun.

    Args:
        metrics: Values by name; early stopping and checkpoints can monitor them.
        logged: Names of the metrics that loggers get, too.
    """
    connector = trainer._logger_connector
    connector._callback_metrics.update(metrics)
    connector.log_metrics({name: metrics[name] for name in metrics if name in logged})


# Optimizers and the gradient scaler


def optimizer_index(trainer: Trainer, optimizer: Optimizer) -> int:
    """Returns the index of an optimizer among the trainer's.

    Raises:
        SettingError: If it isn't one of them.
    """
    for index, other in enumerate(trainer.optimizers):
        if other is optimizer:
            return index
    raise SettingError(
        f"configure_optimizers must return every optimizer that steps, but there is another {type(optimizer).__name__}"
    )


def optimizer_name(trainer: Trainer, optimizer: Optimizer) -> str:
    """Returns the suffix of an optimizer's tags; empty if it is the trainer's only one."""
    return f"_optimizer_{optimizer_index(trainer, optimizer) + 1}" if len(trainer.optimizers) > 1 else ""


def has_stand_in(trainer: Trainer) -> bool:
    """Whether Lightning steps an optimizer of its own that does nothing, as configure_optimizers returns None."""
    return any(type(optimizer).__name__ == "_MockOptimizer" for optimizer in trainer.optimizers)


def any_gradient(trainer: Trainer, *, counts_zeros: bool = True) -> bool:
    """Whether any parameter of any optimizer has a gradient.

    Args:
        counts_zeros: Whether a gradient of zeros is one; if not, the host waits for the device.
    """
    groups = (group for optimizer in trainer.optimizers for group in optimizer.param_groups)
    gradients = (parameter.grad for group in groups for parameter in group["params"] if parameter.grad is not None)
    return any(counts_zeros or bool(local(gradient).any()) for gradient in gradients)


def toggled_parameters(module: LightningModule) -> dict[torch.nn.Parameter, bool]:
    """Returns the ``requires_grad`` that parameters had before ``toggle_optimizer`` froze some of them."""
    return getattr(module, "_param_requires_grad_state", {})


def scaler_scale(trainer: Trainer, device: torch.device) -> Tensor | None:
    """Returns the gradient scaler's scale, without a transfer to the host; None if there is no scaler.

    Args:
        device: Device of the result.
    """
    scaler = _scaler(trainer)
    return None if scaler is None else scaler.scale(torch.ones((), device=device))


def gradient_scale(trainer: Trainer, optimizer: Optimizer, *, is_early: bool = False) -> Tensor | None:
    """Returns the gradient scaler's scale if gradients still carry it in ``on_before_optimizer_step``.

    They do with optimizers that unscale gradients themselves (fused ones): whatever is added must carry it, too.

    Args:
        optimizer: Optimizer that is about to step.
        is_early: Whether that hook is still to come: until then, gradients of all optimizers carry the scale.

    Returns:
        Scalar on the optimizer's device, without a transfer to the host; None if gradients carry no scale.
    """
    if not is_early and not getattr(optimizer, "_step_supports_amp_scaling", False):
        return None
    scaler = _scaler(trainer)
    # Code that clips by hand has called scaler.unscale_ already.
    if scaler is None or scaler._per_optimizer_states[id(optimizer)]["stage"] is not OptState.READY:
        return None
    devices = (parameter.device for group in optimizer.param_groups for parameter in group["params"])
    return scaler_scale(trainer, next(devices, trainer.strategy.root_device))


def unscaled_loss(trainer: Trainer, loss: Tensor) -> Tensor:
    """Returns the loss as the user's training step returned it, from the argument of ``on_before_backward``.

    Args:
        loss: Loss times the gradient scaler's scale, divided by the number of accumulated batches.
    """
    loss = loss.detach()
    if trainer.lightning_module.automatic_optimization:
        loss = loss * trainer.accumulate_grad_batches
    scale = scaler_scale(trainer, loss.device)
    return loss if scale is None else loss / scale


def _scaler(trainer: Trainer) -> GradScaler | None:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if isinstance(scaler, GradScaler) else None
