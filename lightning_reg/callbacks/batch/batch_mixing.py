"""Mixup, CutMix and their fellows on a project that exists."""

from collections.abc import Callable
from random import Random
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_reg.attach.batches import Key, check_key, part_of, with_parts
from lightning_reg.attach.loss_interpolation import LOSSES, InterpolatedLosses, leave_compiled_alone
from lightning_reg.attach.streams import base_seed, random_stream
from lightning_reg.attach.technique import Technique, instance_number
from lightning_reg.core.facts import Place
from lightning_reg.core.wrapping import around
from lightning_reg.settings import SettingError, check_count
from lightning_reg.transforms import Draw, Mixing

__all__ = ["BatchMixing"]


class BatchMixing(Technique):
    """Mixes the batches of somebody else's training step, without a change of its code.

    What it does: the training step is given mixed inputs and the batch's own targets, so that metrics go on working.
    Where it computes a loss of these targets by a function or module of torch's, the loss becomes
    λ·L(y_a) + (1 - λ)·L(y_b), with class weights, label smoothing and all other arguments as they are; y_b are the
    targets of the samples that were mixed in, λ ≥ 1/2. There is one forward pass. Targets may be class indices,
    one-hot, several labels or numbers. Validation and test are left alone.

    When to use: to add Mixup, CutMix, Cutout or random erasing to a project whose data module you don't want to touch.
    When not: with our own data modules, which mix by themselves (``ImageData(mix=...)``); where the loss is computed by
    a function that isn't torch's, or in compiled code, which is noticed at the first batch and refused; with CutMix,
    where each pixel has a target of its own, which would have to be pasted, too.

    Cost: what the transform costs, and a second evaluation of the loss. Memory: one batch of inputs. No state.

    Interacts with: CutMix and the erasing transforms need pictures. What else is computed of the targets (an auxiliary
    loss by hand) sees the batch's own ones; it is warned of. Training accuracy is that of the dominant label on mixed
    inputs, and so lower than without. Losses of numbers are interpolated, too: the mean squared error's gradient is
    that of the interpolated target. ``F.l1_loss(weight=...)`` loses its weight within any of torch's function modes
    (2.14), and so here.

    Deviates from the papers: see the transforms. With ``per_sample=True`` each side of a mean is divided by what the
    loss divides by, so that with class weights it is the weighted mean of each side.

    Args:
        mix: What is drawn for each batch: ``Mixup``, ``CutMix``, ``MixupOrCutMix``, ``Cutout``, ``RandomErasing``.
        input_key: Where the inputs are in a batch: an index, a name (a dictionary's key, a field or an attribute), or a
            getter and a setter; the setter returns a batch with other inputs.
        target_key: Where the targets are, likewise.
        epochs: How many epochs are mixed, before the batches stay as they are; all where None.
        seed: Of the random numbers; where None, that of ``seed_everything``.

    Raises:
        SettingError: If an argument can't be used; at the first batch, if it has no such part, or no loss of torch's is
            computed of the targets.

    Reference:
        Hongyi Zhang, Moustapha Cissé, Yann N. Dauphin, David Lopez-Paz: mixup: Beyond Empirical Risk Minimization,
        ICLR 2018, arXiv:1710.09412. Sangdoo Yun et al.: CutMix: Regularization Strategy to Train Strong Classifiers
        with Localizable Features, ICCV 2019, arXiv:1905.04899.

    >>> from lightning_reg.transforms import Mixup
    >>> BatchMixing(Mixup(alpha=0.4), input_key="image", target_key="label").mix
    Mixup(alpha=0.4, prob=1.0, per_sample=False)
    """

    place = Place.BATCH

    def __init__(
        self,
        mix: Mixing,
        *,
        input_key: Key = 0,
        target_key: Key = 1,
        epochs: int | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(mix, Mixing):
            raise SettingError(f"mix must be a transform such as Mixup(alpha=0.4), but is {mix!r}")
        check_key("input_key", input_key)
        check_key("target_key", target_key)
        if epochs is not None:
            check_count("epochs", epochs, low=0)
        if seed is not None:
            check_count("seed", seed, low=0)
        self.mix = mix
        self.input_key = input_key
        self.target_key = target_key
        self.epochs = epochs
        self.seed = seed
        self.current: Draw | None = None
        self._module: LightningModule | None = None
        self._is_checked = False
        self._number = 0
        self._batch = 0

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module._compiler_ctx is not None:
            raise SettingError(
                "the module must not be compiled as a whole with BatchMixing, which has to see how its loss is "
                "computed; compile the network in it: self.network.compile()"
            )
        self._module = pl_module
        self._is_checked = False
        self._number = instance_number(trainer, self)
        self.handles.append(around(pl_module, "training_step", self._step))
        self.handles += leave_compiled_alone(pl_module)

    @override
    def release(self) -> None:
        self._module = self.current = None

    @override
    def begin_batch(self, trainer: Trainer, batch_idx: int) -> None:
        self._batch = batch_idx

    def _step(self, training_step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._module is None or (self.epochs is not None and self._module.current_epoch >= self.epochs):
            self.current = None
            return training_step(*args, **kwargs)
        batch, others = (args[0], args[1:]) if args else (kwargs.pop("batch"), ())
        inputs = part_of(batch, self.input_key, name="input_key")
        targets = part_of(batch, self.target_key, name="target_key")
        if not targets.ndim or len(inputs) != len(targets):
            raise SettingError(
                f"input_key and target_key must lead to as many samples, but the batch has inputs of shape "
                f"{tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}"
            )
        self.current = draw = self.mix.drawn(inputs, stream=self._stream(self._module))
        if draw is not None:
            # A tensor of its own: the very object by which losses of these targets are known.
            targets = targets.view_as(targets)
            batch = with_parts(batch, [(self.input_key, draw.change(inputs)), (self.target_key, targets)])
        if not self.mix.needs_partner or (draw is None and self._is_checked):
            return training_step(batch, *others, **kwargs)
        with InterpolatedLosses(targets, draw.minor_weight if draw else None) as losses:
            output = training_step(batch, *others, **kwargs)
        self._check(losses, output)
        return output

    def _stream(self, module: LightningModule) -> Random:
        position = (module.global_rank, module.current_epoch, self._batch)
        return random_stream(base_seed(self.seed), *position, "BatchMixing", self._number)

    def _check(self, losses: InterpolatedLosses, output: Any) -> None:
        """Refuses, once, a training step whose loss isn't mixed."""
        is_skipped = output is None and self._module is not None and self._module.automatic_optimization
        if self._is_checked or is_skipped:
            return
        self._is_checked = True
        of_torch = ", ".join(each.__name__ for each in LOSSES)
        computed = f", but {', '.join(sorted(losses.others))} of them" if losses.others else ""
        if not losses.seen:
            raise SettingError(
                f"the loss must be computed by a function of torch's of the batch's targets (target_key "
                f"{self.target_key!r}) with BatchMixing, else it can't be mixed; training_step called none of "
                f"{of_torch} with them{computed}. Use one of these, or mix in the data module, which emits "
                "probabilities as targets"
            )
        if losses.others:
            rank_zero_warn(
                "BatchMixing mixes the loss that torch computes of the targets, but training_step also makes something "
                f"differentiable of them by {', '.join(sorted(losses.others))}: that sees each sample's own target "
                "alone"
            )
