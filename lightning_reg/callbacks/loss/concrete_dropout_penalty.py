"""The loss term from which concrete dropout learns its rates."""

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import override

from lightning_reg.callbacks.loss.loss_term import LossTerm, TermSession
from lightning_reg.core.facts import PENALTY_CHARTS, SCHEDULE_CHART
from lightning_reg.core.lightning import logs_now
from lightning_reg.core.samples import training_samples
from lightning_reg.core.schedules import StrengthSchedule
from lightning_reg.core.selection import plain_name
from lightning_reg.core.session import Session
from lightning_reg.core.step import Run
from lightning_reg.nn.layers.concrete_dropout import ConcreteDropout, concrete_layers
from lightning_reg.settings import SettingError, check_count

__all__ = ["ConcreteDropoutPenalty"]


class ConcreteDropoutPenalty(LossTerm):
    """Adds the term by which layers with ``ConcreteDropout`` learn their rates to the loss of any module.

    What it does: the sum over layers of l²/(2(1 − p))·‖W‖² − K·H(p), divided by the number of training samples, joins
    the loss that goes into backward. The loss that the module logs stays clean. The models of this package add the term
    by themselves, but leave it to the callback if there is one.

    When to use: on your own LightningModule that is built with ``ConcreteDropout``. When not: where the loss isn't a
    mean negative log-likelihood per sample, such as a sum over the batch.

    Cost: reads the weights of these layers once in the forward and once in the backward pass. No state.

    Interacts with: weight decay and L2 penalties, which shrink the same weights, and so lower the rates.

    Args:
        num_samples: Number of training samples, at least 1; that of the training loader's data set where None.
        schedule: Factor of the term over the course of training; constant where None.

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

    tag = "concrete_dropout"
    charts = (*PENALTY_CHARTS, SCHEDULE_CHART)

    def __init__(self, *, num_samples: int | None = None, schedule: StrengthSchedule | None = None) -> None:
        if num_samples is not None:
            check_count("num_samples", num_samples)
        super().__init__(schedule=schedule)
        self.num_samples = num_samples

    @override
    def new_session(self, run: Run) -> Session[Any]:
        return ConcreteSession(self, run)


@dataclass(eq=False)
class ConcreteSession(TermSession):
    """One fit, with the layers that learn their rate and the number of samples."""

    technique: ConcreteDropoutPenalty
    layers: dict[str, ConcreteDropout] = field(init=False)
    num_samples: int = 1

    @override
    def __post_init__(self) -> None:
        module = self.run.module
        self.layers = {plain_name(name): layer for name, layer in concrete_layers(module).items()}
        if not self.layers:
            raise SettingError("ConcreteDropoutPenalty must have a layer of ConcreteDropout, but the module has none")
        super().__post_init__()
        if getattr(module, "adds_concrete_penalty", False):
            module.adds_concrete_penalty = False  # type: ignore[assignment]
            self.run.until_end(_Relieved(module))

    @override
    def train_starts(self) -> None:
        given = self.technique.num_samples
        self.num_samples = training_samples(self.run.trainer) if given is None else given

    @override
    def term(self) -> Tensor:
        return torch.stack([layer.regularization(self.num_samples) for layer in self.layers.values()]).sum()

    @override
    def batch_ends(self, outputs: Any, batch_idx: int) -> None:
        if logs_now(self.run.trainer):
            for name, layer in self.layers.items():
                self.run.log(f"dropout/{name}", layer.p_logit.detach().sigmoid())


@dataclass(frozen=True)
class _Relieved:
    """Handle that lets a module of ours add the term by itself again after the run."""

    module: LightningModule

    def remove(self) -> None:
        self.module.adds_concrete_penalty = True  # type: ignore[assignment]
