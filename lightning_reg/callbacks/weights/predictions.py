"""Meaning of a network's outputs, inferred from a training step, and the mean of several networks' outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from lightning_reg.core.checkpointing import will_have_gradients
from lightning_reg.functional.weights.ensembles import log_mean_sigmoid, log_mean_softmax
from lightning_reg.settings import SettingError

__all__ = ["LossSeen", "Meaning", "Outputs", "check_output", "meaning_of"]

Outputs = Literal["auto", "logits", "binary_logits", "values"]

_KINDS: dict[Callable[..., Any], str] = {
    F.cross_entropy: "logits",
    F.nll_loss: "logits",  # log probabilities are logits of themselves
    F.binary_cross_entropy_with_logits: "binary_logits",
    F.binary_cross_entropy: "probabilities",
    F.mse_loss: "values",
    F.l1_loss: "values",
    F.smooth_l1_loss: "values",
    F.huber_loss: "values",
    F.gaussian_nll_loss: "values",
    F.poisson_nll_loss: "values",
}


class LossSeen(TorchFunctionMode):
    """Records the first torch loss function that a training step calls, and its input."""

    def __init__(self) -> None:
        super().__init__()
        self.kind: str | None = None
        self.given: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the loss's input."""
        return () if self.given is None else tuple(self.given.shape)

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.kind is None and func in _KINDS and will_have_gradients():  # else it is a metric
            given = args[0] if args else kwargs.get("input")
            self.kind, self.given = _KINDS[func], given.detach() if isinstance(given, Tensor) else None
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Meaning:
    """Meaning of a network's outputs.

    Attributes:
        kind: One of ``"logits"``, ``"binary_logits"`` and ``"values"``.
        class_dim: Dimension of the classes; used only for ``"logits"``.
    """

    kind: str
    class_dim: int = 1

    def mean(self, outputs: Sequence[Any]) -> Any:
        """Returns the logits of the mean of several networks' probabilities, or the mean of their values."""
        if len(outputs) == 1:
            return outputs[0]
        if self.kind == "logits":
            return log_mean_softmax(outputs, self.class_dim)
        return log_mean_sigmoid(outputs) if self.kind == "binary_logits" else torch.stack(list(outputs)).mean(0)


def check_output(technique: str, step: str, output: Any) -> None:
    """Raises if what a network returns in a step can't be averaged over networks.

    Raises:
        SettingError: If it isn't a tensor of floats with a batch dimension.
    """
    if not isinstance(output, Tensor):
        returned = f"a {type(output).__name__}"
    elif not output.is_floating_point() or output.ndim == 0:
        returned = f"one of shape {tuple(output.shape)} and {output.dtype}"
    else:
        return
    raise SettingError(
        f"the network must return a tensor of one row a sample with {technique}, but returns {returned} in {step}"
    )


def meaning_of(technique: str, given: Outputs, class_dim: int | None, output: Any, seen: LossSeen) -> Meaning:
    """Returns the meaning of outputs, from settings and from the loss that a training step computed.

    Args:
        given: The setting ``outputs``.
        class_dim: The setting ``class_dim``.
        seen: The loss that the step called.

    Raises:
        SettingError: If it can't be inferred, or the output isn't a tensor of floats with a batch dimension.
    """
    check_output(technique, "training_step", output)
    kind = seen.kind if given == "auto" else given
    if kind is None:
        raise SettingError(
            "outputs must be 'logits', 'binary_logits' or 'values' where the training step calls no loss function of "
            "torch's outside of compiled code, but is 'auto'"
        )
    if kind == "probabilities":
        kind = "binary_logits" if _are_logits_of(output, seen.given) else "values"
    if kind != "logits":
        return Meaning(kind)
    if class_dim is None:
        class_dim = _class_dim(tuple(output.shape), seen.shape)
    if class_dim is None or not -output.ndim <= class_dim < output.ndim:
        raise SettingError(
            f"class_dim must be the dimension of the classes in outputs of shape {tuple(output.shape)}, but is "
            f"{class_dim}"
        )
    return Meaning(kind, class_dim)


def _are_logits_of(output: Tensor, probabilities: Tensor | None) -> bool:
    """Whether a training step has itself turned a network's output into probabilities."""
    if probabilities is None or probabilities.numel() != output.numel():
        return False
    made = output.detach().float().sigmoid().flatten()
    return torch.allclose(made, probabilities.float().flatten(), atol=1e-2)  # the step may compute in 16 bits


def _class_dim(shape: tuple[int, ...], at_the_loss: tuple[int, ...]) -> int | None:
    """Returns the dimension of the classes; None where it is ambiguous."""
    usual = 1 if len(shape) > 1 else 0
    if not at_the_loss or shape == at_the_loss:
        return usual
    # Outputs of sequences, (N, T, C), are often flattened to (N · T, C) or transposed to (N, C, T).
    classes = at_the_loss[1] if len(at_the_loss) > 1 else at_the_loss[0]
    found = [dim for dim, size in enumerate(shape) if size == classes]
    return found[-1] if len(found) == 1 or (found and found[-1] == len(shape) - 1) else None
