"""A small problem, a foreign module for it, and the training loop that a textbook would write."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from lightning import pytorch
from lightning.pytorch import plugins
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_reg.core.selection import plain_name
from tests.helpers import of_package, quiet_trainer

LightningModule, MixedPrecision = of_package(pytorch.LightningModule), of_package(plugins.MixedPrecision)

EPOCHS = 3
BATCHES = 6  # with accumulation over 4 the last window has 2
BATCH_SIZE = 8
LEARNING_RATE = 0.1
DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Network(nn.Module):
    """Has what trips techniques up: a frozen layer, one that is never used, tied weights, a norm, biases."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.first = nn.Linear(6, 12)
        self.norm = nn.LayerNorm(12)
        self.hidden = nn.Linear(12, 12)
        self.tied = nn.Linear(12, 12)
        self.tied.weight = self.hidden.weight
        self.act = nn.Tanh()
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(12, 3)

    def features(self, inputs):
        inputs = self.norm(self.first(inputs + self.frozen(inputs)))
        return self.act(self.tied(torch.relu(self.hidden(inputs))))

    def forward(self, inputs):
        self.seen = self.features(inputs)
        return self.head(self.seen)


def network(prepare=None):
    """The user's, perhaps with something of its own."""
    torch.manual_seed(0)
    model = Network()
    if prepare:
        prepare(model)
    return model


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def matrices(model):
    """What penalties mean by default: no biases, no norms; tied weights once."""
    return [parameter for parameter in trainable(model) if parameter.ndim > 1]


def samples(count=BATCHES * BATCH_SIZE):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


class SomebodysModule(LightningModule):
    """Knows nothing of us: a tuple batch, its own loss, its own logging."""

    def __init__(self, compiled=False, fused=False, prepare=None):
        super().__init__()
        self.fused = fused
        self.network = network(prepare)
        if compiled:
            self.network.compile(backend="aot_eager")

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        if hasattr(self.network, "make_optimizer"):
            return self.network.make_optimizer(self.parameters())
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE, momentum=0.9, fused=self.fused)


@dataclass(frozen=True)
class Setting:
    """One cell of the matrix."""

    precision: str = "32-true"
    accumulate: int = 1
    clip: str | None = None
    compiled: bool = False
    fused: bool = False  # an optimizer that unscales by itself

    def __str__(self):
        flags = ["compiled"] * self.compiled + ["fused"] * self.fused
        return "-".join([self.precision, f"accumulate{self.accumulate}", f"clip_{self.clip}", *flags])

    def module(self, cls=SomebodysModule, prepare=None):
        return cls(self.compiled, self.fused, prepare)

    def trainer(self, callbacks, **settings):
        plugins = []
        precision = self.precision
        if precision == "16-mixed":  # by name alone it would become bfloat16 on a CPU
            plugins = [MixedPrecision("16-mixed", "cpu", scaler())]
            precision = None
        return quiet_trainer(
            *callbacks,
            **{
                "max_epochs": EPOCHS,
                "accumulate_grad_batches": self.accumulate,
                "gradient_clip_val": 0.1 if self.clip else None,
                "gradient_clip_algorithm": self.clip,
                "precision": precision,
                "plugins": plugins,
                **settings,
            },
        )

    def tolerance(self, start, end):
        """Largest difference of two weights that rounding explains.

        In 32 bits 1e-6 of the weights. In mixed precision the sums are made in another order too, so that weights
        differ in their last bits, and an activation that lies at a border is rounded to the other side: each step
        may differ by the dtype's resolution, and so may the way from start to end.
        """
        if self.precision == "32-true":
            return 1e-6 * max(weight.abs().max().item() for weight in end)
        way = max((b - a).abs().max().item() for a, b in zip(start, end, strict=True))
        return torch.finfo(DTYPES[self.precision]).eps * way


def scaler():
    return torch.amp.GradScaler("cpu", init_scale=1024.0)


@dataclass
class Result:
    """What training starts from and leaves: weights at the end of each epoch, and validation losses."""

    start: list[torch.Tensor]
    weights: list[list[torch.Tensor]] = field(default_factory=list)
    val_losses: list[float] = field(default_factory=list)


def loader(batch_size=BATCH_SIZE):
    return DataLoader(samples(), batch_size=batch_size)


class Resumable(DataLoader):
    """Goes on after the batches that it handed out before the checkpoint was written."""

    handed_out = 0

    def __iter__(self):
        skipped = self.handed_out % BATCHES  # Lightning doesn't go on to the end of an iterator whose length it knows
        for index, batch in enumerate(super().__iter__()):
            if index >= skipped:
                self.handed_out = index + 1
                yield batch

    def state_dict(self):
        return {"handed_out": self.handed_out % BATCHES}

    def load_state_dict(self, state):
        self.handed_out = state["handed_out"]


def resumable_loader():
    return Resumable(samples(), batch_size=BATCH_SIZE)


@dataclass
class Textbook:
    """What a technique is by hand.

    Attributes:
        term: From model, inputs and logits to what is added to the loss.
        on_gradients: Changes gradients before clipping, given the model, the step and a memory that lasts the run.
        after_step: Changes weights after the step, given the model and the share of a whole window that it had.
        change: Changes what the model computes; it is told where training stands by its ``rank``, ``epoch`` and
            ``batch``.
        final_epoch: From the validation losses to the epoch whose weights remain.
        mix: From model, inputs and labels to other inputs, and from logits to the loss.
        sharpen: Replaces the gradients before anything else is done to them, given the model and what accumulates the
            window's gradients anew.
        evaluated: Weights that are evaluated, and remain, for each parameter of the model; where None, the trained.
        optimizer: Makes the optimizer.
        rate: From the step and the number of all steps to what the learning rate is multiplied by.
    """

    term: Callable[[Network, torch.Tensor, torch.Tensor], torch.Tensor | float] = lambda *_: 0.0
    on_gradients: Callable[[Network, int, dict], None] = lambda *_: None
    after_step: Callable[[Network, float], None] = lambda *_: None
    change: Callable[[Network], None] = lambda *_: None
    final_epoch: Callable[[list[float]], int] = lambda losses: len(losses) - 1
    mix: Callable[[Network, torch.Tensor, torch.Tensor], tuple[torch.Tensor, Callable]] = lambda _, inputs, labels: (
        inputs,
        lambda logits: F.cross_entropy(logits, labels),
    )
    sharpen: Callable[[Network, Callable[[], None]], None] = lambda *_: None
    evaluated: Callable[[Network], list[torch.Tensor]] | None = None
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] = lambda parameters: torch.optim.SGD(
        parameters, lr=LEARNING_RATE, momentum=0.9
    )
    rate: Callable[[int, int], float] = lambda *_: 1.0


def weights_of(module):
    """Copies of all parameters, in the order of their names as the user wrote them."""
    named = sorted((plain_name(name), parameter) for name, parameter in module.named_parameters())
    return [parameter.detach().clone() for _, parameter in named]


@torch.no_grad()
def put_in(model, weights):
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)


def textbook_loop(setting, textbook, processes=1, prepare=None):
    """Trains by hand, with every batch split as so many processes would share it."""
    model = network(prepare)
    textbook.change(model)
    result, memory, step = Result(start=weights_of(model)), {}, 0
    steps = EPOCHS * -(-BATCHES // setting.accumulate)
    optimizer = textbook.optimizer(trainable(model))
    dtype = DTYPES[setting.precision]
    scale = scaler() if dtype == torch.float16 else torch.amp.GradScaler("cpu", enabled=False)
    # As Lightning does: each use of a tied weight is rounded by itself.
    autocast = functools.partial(
        torch.autocast, "cpu", dtype=dtype, enabled=dtype != torch.float32, cache_enabled=False
    )

    def backward(epoch, index, inputs, labels):
        model.epoch, model.batch, buffers = epoch, index, [buffer.clone() for buffer in model.buffers()]
        for rank in range(processes):
            model.rank, part = rank, inputs[rank::processes]
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)  # every process starts from its own
            part, loss_of = textbook.mix(model, part, labels[rank::processes])
            with autocast():
                logits = model(part)
                loss = loss_of(logits) + textbook.term(model, part, logits)
            scale.scale(loss / setting.accumulate / processes).backward()

    def again(window):
        optimizer.zero_grad()
        buffers = [buffer.clone() for buffer in model.buffers()]
        for micro_batch in window:
            backward(*micro_batch)
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
        for parameter in trainable(model):
            if parameter.grad is not None and scale.is_enabled():
                parameter.grad /= scale.get_scale()

    for epoch in range(EPOCHS):
        model.train()
        window = []
        for index, (inputs, labels) in enumerate(loader()):
            window.append((epoch, index, inputs, labels))
            backward(*window[-1])
            if (index + 1) % setting.accumulate == 0 or index + 1 == BATCHES:
                optimizer.param_groups[0]["lr"] = LEARNING_RATE * textbook.rate(step, steps)
                scale.unscale_(optimizer)
                textbook.sharpen(model, functools.partial(again, window))
                window = []
                textbook.on_gradients(model, step, memory)
                if setting.clip == "norm":
                    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                if setting.clip == "value":
                    nn.utils.clip_grad_value_(model.parameters(), 0.1)
                scale.step(optimizer)
                scale.update()
                optimizer.zero_grad()
                with torch.no_grad():
                    textbook.after_step(model, (index % setting.accumulate + 1) / setting.accumulate)
                step += 1
        trained = [weight.detach().clone() for weight in model.parameters()]
        put_in(model, textbook.evaluated(model) if textbook.evaluated else trained)
        result.weights.append(weights_of(model))
        model.eval()
        with torch.no_grad(), autocast():
            losses = [F.cross_entropy(model(inputs), labels) for inputs, labels in loader()]
        result.val_losses.append(torch.stack(losses).mean().item())
        put_in(model, trained)
    return result
