"""The term by which concrete dropout learns its rates."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_reg.attach.loss_term import LossTerm
from lightning_reg.attach.samples import training_samples
from lightning_reg.attach.schedules import StrengthSchedule
from lightning_reg.attach.selection import plain_name
from lightning_reg.attach.technique import logs_now
from lightning_reg.core.facts import Place
from lightning_reg.nn.concrete_dropout import ConcreteDropout, concrete_layers
from lightning_reg.settings import SettingError, check_count

__all__ = ["ConcreteDropoutPenalty"]


class ConcreteDropoutPenalty(LossTerm):
    """Adds the term by which layers with ``ConcreteDropout`` learn their rates to the loss of any module.

    What it does: the sum over layers of l²/(2(1 − p))·‖W‖² − K·H(p), divided by the number of training samples, joins
    the loss that goes into backward. The loss that the module logs stays clean. The models of this package add it by
    themselves; with the callback, they leave it to that.

    When to use: on a LightningModule of one's own that is built with ``ConcreteDropout``. When not: where the loss
    isn't a mean negative log likelihood per sample, such as a sum over the batch.

    Cost: reads the weights of these layers once in the forward and once in the backward pass. No state.

    Interacts with: weight decay and L2 penalties, which pull at the same weights, and so lower the rates.

    Args:
        num_samples: How many samples there are to train on; those of the training loader where None.
        schedule: What the term is multiplied by as training goes on; constant where None.

    Logs:
        ``penalty/concrete_dropout``, its value, ``penalty/concrete_dropout_share``, the share of its size in loss plus
        size, and ``dropout/<layer>``, the rates, at the steps the trainer logs.

    Raises:
        SettingError: If no layer learns its rate, ``num_samples`` isn't known, or the module optimizes manually.

    Reference:
        Yarin Gal, Jiri Hron, Alex Kendall: Concrete Dropout, NeurIPS 2017, arXiv:1705.07832.

    >>> ConcreteDropoutPenalty(num_samples=50_000).num_samples
    50000
    """

    place = Place.LOSS
    tag = "concrete_dropout"

    def __init__(self, *, num_samples: int | None = None, schedule: StrengthSchedule | None = None) -> None:
        if num_samples is not None:
            check_count("num_samples", num_samples)
        super().__init__(schedule=schedule)
        self.num_samples = num_samples
        self._num_samples = 0
        self._relieved: LightningModule | None = None
        self._layers: dict[str, ConcreteDropout] = {}

    @property
    @override
    def is_idle(self) -> bool:
        return False

    @override
    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = {plain_name(name): each for name, each in concrete_layers(pl_module).items()}
        if not self._layers:
            raise SettingError("ConcreteDropoutPenalty must have a layer of ConcreteDropout, but the module has none")
        super().attach(trainer, pl_module)
        if getattr(pl_module, "adds_concrete_penalty", False):
            self._relieved = pl_module
            self._relieved.adds_concrete_penalty = False  # type: ignore[assignment]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._num_samples = training_samples(trainer) if self.num_samples is None else self.num_samples

    @override
    def watching(self) -> AbstractContextManager[Any]:
        return nullcontext()

    @override
    def term(self) -> Tensor:
        return torch.stack([layer.regularization(self._num_samples) for layer in self._layers.values()]).sum()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if logs_now(trainer):
            for name, layer in self._layers.items():
                pl_module.log(f"dropout/{name}", layer.logit_bias.detach().sigmoid())

    @override
    def release(self) -> None:
        super().release()
        self._layers = {}
        if self._relieved is not None:
            self._relieved.adds_concrete_penalty = True  # type: ignore[assignment]
            self._relieved = None
