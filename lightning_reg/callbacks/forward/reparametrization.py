"""Parametrizations of the weights of existing layers that last after training."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lightning_reg.callbacks.forward.surgery import Surgery, SurgerySession, computes_itself, refuse_lazy
from lightning_reg.core.lightning import pruned_weights
from lightning_reg.core.step import Run
from lightning_reg.nn.layers.drop_connect import DropConnect
from lightning_reg.settings import SettingError

__all__ = ["reparametrized"]


def reparametrized(
    surgery: Surgery,
    run: Run,
    register: Callable[[nn.Module, str], None],
    *,
    parametrization: type[nn.Module],
    adjective: str,
) -> SurgerySession:
    """Parametrizes the ``weight`` of the layers that a technique selects, unless it is already.

    Args:
        run: The run; its module must be complete.
        register: Function that registers the parametrization, given a layer and its name.
        parametrization: Class of the parametrization, by which layers that already have it are recognized.
        adjective: Description of the parametrized weights, for messages.

    Raises:
        SettingError: If a weight has fewer than two dimensions or no shape yet, is computed by a hook, is dropped at
            random or pruned, or belongs to a layer with a ``forward`` of its own that ``types`` doesn't name.
    """
    pruned = {layer for layer, name in pruned_weights(run.trainer) if name == "weight"}
    chosen = {name: layer for name, layer in surgery.selected(run.module).items() if not _has(layer, parametrization)}
    for name, layer in chosen.items():
        refuse_lazy(name, layer)
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim < 2:
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else "none"
            raise SettingError(
                f"include must name layers whose weight has two dimensions or more, but {name} has {shape}"
            )
        if not is_parametrized(layer, "weight") and "weight" not in layer._parameters:  # torch's older weight_norm
            raise SettingError(f"exclude must name {name}, whose weight is computed from others by a hook")
        if layer in pruned:
            raise SettingError(
                f"exclude must name {name} in {type(surgery).__name__}, or parameters_to_prune leave it out in "
                f"ModelPruning, which can't prune a weight that is {adjective}"
            )
        if isinstance(layer, DropConnect):
            raise SettingError(
                f"exclude must name {name} in InsertDropConnect or in {type(surgery).__name__}: dropped weights are no "
                f"longer {adjective}"
            )
        if computes_itself(layer) and not surgery.names_class_of(layer):
            raise SettingError(
                f"exclude must name {name}, a {type(layer).__name__}, which computes with its weight in a way of its "
                f"own, so that it needn't be {adjective} there; or types must name that class"
            )
    changes = [(f"{type(layer).__name__}, {adjective}", name) for name, layer in chosen.items()]
    before = set(run.module.parameters())
    for name, layer in chosen.items():
        register(layer, name)
    return SurgerySession(surgery, run, changes=changes, made=set(run.module.parameters()) - before)


def _has(layer: nn.Module, parametrization: type[nn.Module]) -> bool:
    if not is_parametrized(layer, "weight"):
        return False
    return any(isinstance(step, parametrization) for step in layer.parametrizations["weight"])  # type: ignore[index]
