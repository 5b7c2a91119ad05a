"""Replacement of BatchNorm by another normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_reg.callbacks.forward.expectations import unmet_expectation
from lightning_reg.callbacks.forward.surgery import Surgery, WatchedSession, computes_itself, refuse_lazy
from lightning_reg.core.bypasses import all_had_a_turn
from lightning_reg.core.facts import Choice
from lightning_reg.core.lightning import is_compiled
from lightning_reg.core.selection import plain_name
from lightning_reg.core.step import Run
from lightning_reg.nn import NORMS, make_norm
from lightning_reg.settings import SettingError

__all__ = ["ReplaceNorm"]

_BatchNorm = nn.modules.batchnorm._BatchNorm
_HOOKS = [name for name in vars(nn.Module()) if "_hook" in name]  # and of which kind those of the backward pass are
_MARK = "replaces_norm"  # on the new layer, and so on its copies


class ReplaceNorm(Surgery):
    """Replaces the normalization layers of an existing network by others.

    What it does: each chosen layer is replaced, wherever the module uses it, by one with the same number of features,
    which takes over scale and shift where both have them (and, by name, has none that the old one was made without),
    running statistics, ε, momentum, device, dtype, mode and
    hooks. The module keeps the change after training. Checkpoints load with the callback.

    When to use: BatchNorm with small batches, or many accumulated ones, is noise: ``"group"`` doesn't depend on the
    batch, ``"ghost_batch"`` makes large batches as noisy as small ones. When not: in a network that was trained with
    BatchNorm, unless it is trained on for long: what running statistics did is gone.

    Cost: that of the layer. ``"group"`` costs in evaluation what it costs in training.

    Interacts with: ``WeightStandardization``, which makes GroupNorm as good as BatchNorm. Optimizers are made after the
    change, and so train the new parameters.

    Args:
        norm: Name of the new normalization: batch, ghost_batch, layer, instance, group, rms, filter_response, none; or
            any callable (or its import path) from the number of features to a module.
        include: Globs over names of modules.
        exclude: Globs over names of modules that are left out.
        types: Classes of modules, or their names; BatchNorm of any dimension where empty.

    Raises:
        SettingError: If a pattern matches nothing, the dimensions that a layer normalizes over aren't known, it does
            more than normalize (or may, in a ``forward`` of its own, unless ``types`` names its class), or a module
            relies on its class or attributes.

    Reference:
        Yuxin Wu, Kaiming He: Group Normalization, ECCV 2018, arXiv:1803.08494.

    >>> ReplaceNorm(norm="group").norm
    'group'
    """

    usual_ranges = (Choice("norm", ("group", "ghost_batch", "layer")),)
    suited = "BatchNorm"
    by_default = (_BatchNorm,)
    lasts = True

    def __init__(
        self,
        *,
        norm: str | Callable[[int], nn.Module] = "group",
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        types: Sequence[str | type] = (),
    ) -> None:
        make_norm(norm, 32, spatial_dims=2)  # raises now if the name is unknown
        super().__init__(include=include, exclude=exclude, types=types)
        self.norm = norm

    @override
    def new_session(self, run: Run) -> ReplacedSession:
        before = set(run.module.parameters())
        names = {module: name for name, module in self._left(run.module).items()}
        shared: dict[nn.Parameter, nn.Parameter] = {}
        new = {module: self._replacement(name, module, shared) for module, name in names.items()}
        for holder in run.module.modules():  # before anything is replaced
            parts = [("", part) for part in holder.modules() if part is not holder]  # which it may loop over
            children = [(leaf, child) for leaf, child in holder._modules.items() if child is not None]
            for leaf, part in children + parts:
                asked = unmet_expectation(holder, leaf, part, new[part]) if part in new else None
                if asked is not None:
                    raise SettingError(
                        f"exclude must name {names[part]}, a {type(part).__name__} that a {type(new[part]).__name__} "
                        f"can't stand in for: {asked}"
                    )
        # Hyperparameters stay as they were given.
        seen = {id(kept) for name, kept in vars(run.module).items() if name.startswith("_hparams")}
        for holder in list(run.module.modules()):
            _swap(vars(holder), new, seen)
        _turn_off_fast_path(run.module)
        changes = [(f"{type(old).__name__} -> {type(made).__name__}", names[old]) for old, made in new.items()]
        session = ReplacedSession(self, run, changes=changes, made=set(run.module.parameters()) - before)
        session.watch(self._done(run.module))
        return session

    def _done(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Returns the layers that have been put in, now or earlier, by name."""
        named = pl_module.named_modules()
        return {plain_name(name): module for name, module in named if vars(module).get(_MARK) == repr(self.norm)}

    def _left(self, pl_module: LightningModule) -> dict[str, nn.Module]:
        """Returns the chosen layers that aren't replaced yet: an earlier stage or trainer may have replaced some."""
        done = set(self._done(pl_module).values())
        try:
            chosen = self.selected(pl_module)
        except SettingError:
            if done:
                return {}
            raise
        return {name: module for name, module in chosen.items() if module not in done}

    def _replacement(self, name: str, old: nn.Module, shared: dict[nn.Parameter, nn.Parameter]) -> nn.Module:
        """Returns a new norm; what was one parameter of several norms, as ``shared`` records, is one again."""
        children = list(old.children())  # an activation, say, which timm turns off by an Identity
        if any(not isinstance(child, nn.Identity) for child in children):
            raise SettingError(f"exclude must name {name}, a {type(old).__name__}, which does more than normalize")
        if isinstance(old, _BatchNorm) and not children and computes_itself(old) and not self.names_class_of(old):
            raise SettingError(
                f"exclude must name {name}, a {type(old).__name__}, which computes in a way of its own, so that it may "
                "do more than normalize; or types must name that class"
            )
        new = make_norm(self.norm, _num_features(name, old), spatial_dims=_spatial_dims(name, old, self.norm))
        if type(new) is nn.InstanceNorm1d and isinstance(old, nn.BatchNorm1d):
            new.__class__ = _OfPositions  # made by the same call, whatever its arguments were
            vars(new)["place"] = name
        if isinstance(self.norm, str) and self.norm in NORMS:
            _leave_out_absent(old, new)
        if (like := next(old.parameters(), next(old.buffers(), None))) is not None:
            new.to(like.device, like.dtype)
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            before, after = getattr(old, leaf, None), getattr(new, leaf, None)
            if isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape:
                with torch.no_grad():
                    after.copy_(before)
                after.requires_grad_(before.requires_grad)
                made = new._parameters.get(leaf)
                if isinstance(before, nn.Parameter) and made is not None:
                    new._parameters[leaf] = shared.setdefault(before, made)
        if vars(old).get("eps") is not None and vars(new).get("eps") is not None:
            new.eps = old.eps
        if "momentum" in vars(old) and "momentum" in vars(new):  # None is a mean over all batches
            new.momentum = old.momentum
        setattr(new, _MARK, repr(self.norm))
        new.training = old.training
        for hooks in _HOOKS:  # the very same dictionaries, so that handles can still remove what they registered
            vars(new)[hooks] = vars(old)[hooks]
        return new


def _leave_out_absent(old: nn.Module, new: nn.Module) -> None:
    """Takes scale and shift out of a new layer where the old one was made without them."""
    for leaf in ("weight", "bias"):
        if old._parameters.get(leaf, ...) is None and leaf in new._parameters:
            new.register_parameter(leaf, None)
    for flag in ("affine", "elementwise_affine"):
        if hasattr(new, flag):
            setattr(new, flag, any(True for _ in new.parameters()))


def _turn_off_fast_path(pl_module: LightningModule) -> None:
    """Has torch's encoders call new norms: in evaluation they would read the parameters and compute LayerNorm."""
    layers = {
        layer
        for layer in pl_module.modules()
        if isinstance(layer, nn.TransformerEncoderLayer)
        and any(hasattr(getattr(layer, leaf, None), _MARK) for leaf in ("norm1", "norm2"))
    }
    for layer in layers:
        layer.activation_relu_or_gelu = 0  # what the fast path computes; the slow one calls layer.activation
    for encoder in pl_module.modules():
        if isinstance(encoder, nn.TransformerEncoder) and not layers.isdisjoint(encoder.modules()):
            encoder.use_nested_tensor = False  # which the slow path doesn't take


def _swap(holder: dict[Any, Any] | list[Any], new: dict[nn.Module, nn.Module], seen: set[int]) -> None:
    """Replaces layers in a module's attributes: children, and what is called through a list, a tuple or a dict."""
    if id(holder) in seen:  # it may hold itself
        return
    seen.add(id(holder))
    for key, kept in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
        swapped = _swapped(kept, new, seen)
        if swapped is not kept:
            holder[key] = swapped


def _swapped(kept: Any, new: dict[nn.Module, nn.Module], seen: set[int]) -> Any:
    if isinstance(kept, nn.Module):
        return new.get(kept, kept)
    if isinstance(kept, (dict, list)):
        _swap(kept, new, seen)
    elif isinstance(kept, tuple):
        parts = [_swapped(part, new, seen) for part in kept]
        if any(part is not before for part, before in zip(parts, kept, strict=True)):
            return type(kept)(*parts) if hasattr(kept, "_fields") else tuple(parts)
    return kept


@dataclass(eq=False)
class ReplacedSession(WatchedSession):
    """One run with replaced layers, which forward may pass over because they are of another class.

    Attributes:
        handles: Handles of the hooks that record whether they run, until that is checked.
        has_had_turn: Whether training has run long enough; what only validation runs is waited for.
    """

    handles: list[RemovableHandle] = field(default_factory=list)
    has_had_turn: bool = False

    def watch(self, layers: dict[str, nn.Module]) -> None:
        """Registers hooks that record whether layers run."""
        if not self.changes and any(map(is_compiled, self.run.module.modules())):
            return  # compiled by an earlier fit, and won't run new hooks
        for name, layer in layers.items():
            self.acting[name] = _HasRun()
            self.handles.append(layer.register_forward_hook(self.acting[name]))

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        trainer = self.run.trainer
        self.has_had_turn = self.has_had_turn or all_had_a_turn(trainer, batch_idx)
        if self.unseen and self.has_had_turn and not trainer.enable_validation:
            self._check()

    @override
    def validation_epoch_ends(self) -> None:
        if self.unseen and self.has_had_turn and not self.run.trainer.sanity_checking:
            self._check()

    @override
    def train_ends(self) -> None:
        if self.unseen and self.has_had_turn:
            self._check()

    def _check(self) -> None:
        self.check()
        self._remove_hooks()

    @override
    def ends(self, exception: BaseException | None) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        while self.handles:
            self.handles.pop().remove()

    @override
    def found_inert(self, names: list[str]) -> None:
        rank_zero_warn(
            f"ReplaceNorm has put in layers that the training step doesn't run: {', '.join(names)}. Where forward asks "
            "for the class of a layer, or the module keeps the old one elsewhere, exclude must name it"
        )


class _HasRun:
    has_run = False

    def __call__(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        if hasattr(layer, _MARK):  # the replaced layer has the same hooks
            self.has_run = True


class _OfPositions(nn.InstanceNorm1d):
    """Replaces a BatchNorm1d, which takes (N, C) and (N, C, L), and refuses (N, C), which it would read as (C, L)."""

    place: str

    @override
    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim == 2:
            raise SettingError(
                f"exclude must name {self.place}, whose inputs {tuple(input.shape)} are (batch, features): norm "
                "'instance' needs positions to average over"
            )
        super()._check_input_dim(input)


def _num_features(name: str, module: nn.Module) -> int:
    refuse_lazy(name, module)
    for attribute in ("num_features", "num_channels", "normalized_shape"):
        size = getattr(module, attribute, None)
        if size is not None:
            return int(size[-1]) if isinstance(size, (tuple, list)) else int(size)
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.ndim == 1:
        return len(weight)
    raise SettingError(f"exclude must name {name}, a {type(module).__name__} whose number of features isn't known")


def _spatial_dims(name: str, module: nn.Module, norm: object) -> int:
    """Returns the number of dimensions after the channels; 0 for layers that take features last."""
    for dims in (1, 2, 3):
        if any(kind.__name__.endswith(f"Norm{dims}d") for kind in type(module).__mro__):
            return dims
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        if len(module.normalized_shape) > 1:
            raise SettingError(f"exclude must name {name}, which normalizes over {tuple(module.normalized_shape)}")
        # Subclasses with a forward of their own are made for maps with channels first.
        return 0 if type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward) else 2
    if norm in ("batch", "instance", "filter_response"):
        raise SettingError(
            f"exclude must name {name}: of a {type(module).__name__} it isn't known how many dimensions {norm!r} is for"
        )
    return 2  # these take maps of any dimension
