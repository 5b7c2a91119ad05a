"""Mixup of hidden states, in a layer drawn for each batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_reg.callbacks.batch.batch_mixing import BatchMixing, MixingSession
from lightning_reg.callbacks.forward.surgery import as_types
from lightning_reg.core.batches import Key
from lightning_reg.core.facts import Log, Place
from lightning_reg.core.hooks import add_forward_hook
from lightning_reg.core.lightning import is_compiled
from lightning_reg.core.selection import as_patterns, select_modules
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.functional.batch.mixing import mix_with_previous
from lightning_reg.settings import SettingError
from lightning_reg.transforms import Draw, Mixup

__all__ = ["ManifoldMixup"]


class ManifoldMixup(BatchMixing):
    """Mixes hidden states of a network in training, and the loss by the same weight: mixup in a layer drawn by lot.

    What it does: each batch draws one of the chosen layers, or the input, and a weight λ from Beta(α, α). That layer's
    output becomes λ h_a + (1 − λ) h_b, with b the sample before a, and the loss that the training step computes from
    the targets becomes λ·L(y_a) + (1 − λ)·L(y_b), λ ≥ 1/2, as ``BatchMixing`` does it: labels stay as they are for
    metrics. Evaluation is left alone.

    When to use: for classifiers that are trained long, where mixing inputs alone begins to underfit; behind stages or
    blocks, not behind each of their layers. In 60 epochs on small data it brought two points, and so no more than
    ``Mixup`` of inputs (study ``wave2_forward``). When not: beside ``BatchMixing`` or a data module's ``mix``; with
    layers that return several tensors, or a time axis first.

    Cost: one pass over the hidden states of the drawn layer, and a second evaluation of the loss. No state.

    Interacts with: activation checkpointing, which mixes again the layers that it computes again; torch.compile, where
    all chosen layers are mixed, but one with weight 0, so that there is one graph. The rest is as for ``BatchMixing``.
    A second pass over the same batch, as of sharpness-aware minimization, draws the same layer and weight.

    Deviates from the paper: the minor weight is at most 0.5 (the two samples swap roles above it), so that each
    sample's own label stays the dominant one.

    Args:
        alpha: Parameter of the distribution Beta(alpha, alpha), at least 0; 1 to 2 is usual, at 0 nothing is mixed.
        layers: Globs over names of modules whose outputs may be mixed; of nested ones the outermost. Where this and
            ``types`` are empty, ``*block*``.
        types: Classes of these modules, or their names; all that ``layers`` chooses where empty.
        include_input: Whether the input is one of the places that are drawn.
        prob: Probability that a batch is mixed at all, in [0, 1].
        input_key: Place of the inputs in a batch: an index, a name, or a getter and a setter.
        target_key: Place of the targets, likewise.
        epochs: Number of epochs with mixing, after which batches stay as they are; all where None.
        seed: Seed of the random numbers; that of ``seed_everything`` where None.

    Raises:
        SettingError: If an argument can't be used, a pattern matches nothing, or the module optimizes manually; at the
            first batch that draws it, if a layer doesn't run exactly once in a training step, or doesn't return one
            tensor with one row per sample; as ``BatchMixing`` does, if no torch loss is computed from the targets.

    Reference:
        Vikas Verma, Alex Lamb, Christopher Beckham, Amir Najafi, Ioannis Mitliagkas, David Lopez-Paz, Yoshua Bengio:
        Manifold Mixup: Better Representations by Interpolating Hidden States, ICML 2019, arXiv:1806.05236.

    >>> ManifoldMixup(alpha=2.0, layers=("*layer1", "*layer2")).alpha
    2.0
    """

    place = Place.FORWARD
    usual_ranges = (Log("alpha", 0.1, 4.0),)

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        layers: Sequence[str] = (),
        types: Sequence[str | type] = (),
        include_input: bool = True,
        prob: float = 1.0,
        input_key: Key = 0,
        target_key: Key = 1,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> None:
        mix = Mixup(alpha=alpha, prob=prob)
        super().__init__(mix, input_key=input_key, target_key=target_key, epochs=epochs, seed=seed)
        self.alpha = alpha
        self.prob = prob
        self.layers = as_patterns("layers", layers or (("*",) if types else ("*block*",)))
        self.types = as_types(types)
        self.include_input = include_input

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return ManifoldSession(self, run)


@dataclass(eq=False)
class ManifoldSession(MixingSession):
    """One fit.

    Attributes:
        layers: The modules whose outputs may be mixed, by name.
        weights: Weights that the layers mix in for the current batch, (L,), on the device: all but one 0. Written in
            place, because compiled code reads them.
        picked: Index of the layer that is mixed, until the end of the backward pass, in which checkpointed layers run
            again; None where none is.
        runs: Number of runs of the drawn layer in the training step.
        size: Number of samples in the batch.
    """

    technique: ManifoldMixup
    layers: dict[str, nn.Module] = field(init=False)
    weights: Tensor = field(init=False)
    picked: int | None = None
    is_on: bool = False
    runs: int = 0
    size: int = 0

    @override
    def __post_init__(self) -> None:
        technique, run = self.technique, self.run
        if not run.module.automatic_optimization:
            raise SettingError(
                "automatic_optimization must be True with ManifoldMixup: under manual optimization nobody knows which "
                "pass belongs to which loss"
            )
        self.layers = _outermost(
            select_modules(run.module, include=technique.layers, types=technique.types, setting="layers")
        )
        self.weights = torch.zeros(len(self.layers), device=run.module.device)
        super().__post_init__()
        for index, module in enumerate(self.layers.values()):
            run.until_end(add_forward_hook(module, partial(self.mixed, index)))

    @override
    def _drawn(self, inputs: Tensor) -> Draw | None:
        if not self.technique.include_input:
            # Inputs that stay as they are may be anything, such as tokens.
            return super()._drawn(torch.empty(len(inputs), device=inputs.device))
        if not inputs.is_floating_point():
            raise SettingError(
                f"include_input must be False where inputs can't be mixed, as those of this batch, of {inputs.dtype}"
            )
        return super()._drawn(inputs)

    @override
    def _changed(self, inputs: Tensor, draw: Draw) -> Tensor:
        first = -1 if self.technique.include_input else 0
        place = self._stream(" layer").randrange(first, len(self.layers))
        if place < 0 or draw.minor_weight is None:
            return draw.change(inputs)
        self.picked, self.runs, self.size, self.is_on = place, 0, len(inputs), True
        self.weights.zero_()
        self.weights[place].copy_(draw.minor_weight)
        return inputs

    @override
    def _step(self, training_step: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        self._rest()
        output = super()._step(training_step, batch, *args, **kwargs)
        if output is None:  # this batch is skipped, and no backward pass follows
            self._rest()
        elif self.picked is not None:
            self._check_runs(list(self.layers)[self.picked])
        return output

    def _check_runs(self, name: str) -> None:
        # What compiled code runs isn't counted.
        if self.runs == 1 or (self.runs == 0 and any(map(is_compiled, self.run.module.modules()))):
            return
        times = f"{self.runs} times" if self.runs else "not at all"
        raise SettingError(
            f"layers must be of modules that run once in a training step with ManifoldMixup, but {name} ran {times}"
        )

    @override
    def after_backward(self) -> None:
        self._rest()

    def _rest(self) -> None:
        self.is_on, self.picked = False, None

    def mixed(self, index: int, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Returns a layer's output, mixed if it is the layer that was drawn."""
        if not self.is_on:
            return output
        if torch.compiler.is_compiling():
            return self._with_previous(output, index)
        if index != self.picked:
            return output
        self.runs += 1
        if not isinstance(output, Tensor) or not output.ndim or len(output) != self.size:
            found = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise SettingError(
                f"layers must be of modules that return one tensor with {self.size} rows, one a sample, with "
                f"ManifoldMixup, but {list(self.layers)[index]} returns one of {found}"
            )
        return self._with_previous(output, index)

    def _with_previous(self, output: Tensor, index: int) -> Tensor:
        # A copy: where a batch runs again, weights are written before this pass has gone backward.
        return mix_with_previous(output, self.weights[index].clone())


def _outermost(modules: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Leaves out modules within other chosen ones, and lists and dicts of modules, which don't run."""
    running = {
        name: module for name, module in modules.items() if not isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    if not running:
        raise SettingError(f"layers must be of modules that run, but {', '.join(modules)} only hold others")
    return {
        name: module for name, module in running.items() if not any(name.startswith(f"{other}.") for other in running)
    }
