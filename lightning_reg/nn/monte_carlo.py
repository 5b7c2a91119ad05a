"""Monte Carlo dropout: uncertainty from several stochastic passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lightning_reg.functional.forward.noise import NoiseStream
from lightning_reg.nn.insertion import insertions
from lightning_reg.nn.rates import is_stochastic
from lightning_reg.settings import SettingError, check_choice, check_count

__all__ = ["MonteCarloPrediction", "monte_carlo_predict", "stochastic_passes"]


class MonteCarloPrediction(NamedTuple):
    """Mean and uncertainty of several stochastic passes, for each sample.

    Attributes:
        mean: Mean over passes of the probabilities (N, C, ...), or of the values.
        std: Standard deviation over passes, of the same shape.
        predictive_entropy: Entropy of the mean in nats (N, ...), the total uncertainty; None for values.
        mutual_information: Part of it due to uncertain weights (N, ...): the predictive entropy minus the mean entropy
            of single passes; high where more data would help. None for values.
    """

    mean: Tensor
    std: Tensor
    predictive_entropy: Tensor | None
    mutual_information: Tensor | None


def monte_carlo_predict(
    model: Callable[..., Tensor],
    *inputs: Any,
    num_samples: int = 20,
    outputs: Literal["logits", "probabilities", "values"] = "logits",
    class_dim: int = 1,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> MonteCarloPrediction:
    """Predicts several times with dropout turned on.

    Only dropout is turned on: BatchNorm stays in evaluation mode, and every module's mode is restored afterwards, also
    after an exception. Gradients aren't tracked.

    Args:
        model: Module with at least one layer that drops something.
        inputs: Positional arguments of the model.
        num_samples: Number T of stochastic passes.
        outputs: Kind of the model's outputs: ``"logits"`` or ``"probabilities"`` (N, C, ...), or ``"values"``, as for
            regression.
        class_dim: Dimension of the classes; unused for values.
        transform: Function applied to each pass's outputs before averaging; ``outputs`` is then the kind of its
            results.

    Returns:
        Mean and uncertainty, in the outputs' precision.

    Raises:
        SettingError: If nothing in the model drops anything, a setting is out of range, or the model doesn't return
            a tensor.

    Reference:
        Yarin Gal, Zoubin Ghahramani: Dropout as a Bayesian Approximation, ICML 2016, arXiv:1506.02142. Mutual
        information: Neil Houlsby et al.: Bayesian Active Learning for Classification and Preference Learning, 2011,
        arXiv:1112.5745.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    >>> monte_carlo_predict(model, torch.zeros(2, 4)).mean.shape
    torch.Size([2, 3])
    """
    check_count("num_samples", num_samples)
    check_choice("outputs", outputs, ("logits", "probabilities", "values"))
    if not isinstance(model, nn.Module):
        raise SettingError(f"model must be a torch.nn.Module, but is a {type(model).__name__}")
    mean = squares = mean_entropy = torch.zeros(())
    with torch.no_grad(), stochastic_passes(model) as streams:
        for count in range(1, num_samples + 1):
            for stream in streams:
                stream.advance()
            returned = model(*inputs)
            sample = _checked(returned if transform is None else transform(returned), class_dim, outputs)
            if outputs == "logits":
                sample = sample.softmax(class_dim)
            # Welford's algorithm: a difference of mean squares would lose the digits of a small variance.
            change = sample - mean
            mean = mean + change / count
            squares = squares + change * (sample - mean)
            if outputs != "values":
                mean_entropy = mean_entropy + (_entropy(sample, class_dim) - mean_entropy) / count
    std = (squares / num_samples).sqrt()
    if outputs == "values":
        return MonteCarloPrediction(mean, std, None, None)
    predictive = _entropy(mean, class_dim)
    # Negative only by rounding, because entropy is concave.
    return MonteCarloPrediction(mean, std, predictive, (predictive - mean_entropy).clamp(min=0))


@contextmanager
def stochastic_passes(model: nn.Module) -> Iterator[list[NoiseStream]]:
    """Puts a model into evaluation mode with its stochastic layers turned on, and restores every mode afterwards.

    Args:
        model: The model, whose modules' modes are changed within the context.

    Yields:
        The noise streams of the layers that don't draw from torch's global one.

    Raises:
        SettingError: If nothing in the model drops anything.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    stochastic = [module for module in modules if is_stochastic(module)]
    inserted = [hook for hook in insertions(model) if not hook.layer.is_idle]
    if not stochastic and not inserted:
        kinds = sorted({type(module).__name__ for module in modules})
        raise SettingError(
            "model must have a layer that drops something, a module rather than a call of a function, but has "
            + ", ".join(kinds)
        )
    try:
        model.eval()
        for layer in stochastic:
            layer.training = True  # not train(), which would include submodules
        for module in modules:
            if isinstance(module, nn.TransformerEncoderLayer) or _reads_a_childs_rate(module):
                module.training = True  # in evaluation these take a fast path without the dropout below them
        for hook in inserted:
            hook.is_forced = True
        sources = [getattr(source, "stream", None) for source in (*stochastic, *(hook.layer for hook in inserted))]
        yield [source for source in sources if isinstance(source, NoiseStream)]
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for hook in inserted:
            hook.is_forced = False


def _reads_a_childs_rate(module: nn.Module) -> bool:
    """Whether a module passes a child's rate to a fused kernel, as timm's attention does with ``attn_drop``."""
    child = getattr(module, "attn_drop", None)
    return isinstance(child, nn.Module) and is_stochastic(child)


def _checked(sample: Any, class_dim: int, outputs: str) -> Tensor:
    if not isinstance(sample, Tensor):
        raise SettingError(f"model must return a tensor, but returns a {type(sample).__name__}")
    if outputs != "values" and not -sample.ndim <= class_dim < sample.ndim:
        raise SettingError(f"class_dim must be a dimension of outputs {tuple(sample.shape)}, but is {class_dim}")
    return sample


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    total: Tensor = torch.special.entr(probabilities).sum(dim)
    return total
