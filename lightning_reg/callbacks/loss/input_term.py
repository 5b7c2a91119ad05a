"""Terms of gradients by the inputs of a training step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.memory import is_oom_error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from lightning_reg.callbacks.loss.loss_term import TermSession
from lightning_reg.core.batches import Key, floating_part_of, with_parts
from lightning_reg.core.gradients import refuse_sharded
from lightning_reg.core.lightning import is_compiled
from lightning_reg.settings import SettingError

__all__ = ["InputTermSession", "refusing_reentrant"]


@contextmanager
def refusing_reentrant(technique: str) -> Iterator[None]:
    """Says which setting of activation checkpointing keeps gradients by the inputs from being computed.

    Args:
        technique: Name of the calling technique, for the error message.
    """
    try:
        yield
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise SettingError(
            f"use_reentrant must be False where activations are checkpointed with {technique}, which differentiates by "
            "the inputs"
        ) from error


@dataclass(eq=False)
class InputTermSession(TermSession):
    """One fit of a term of gradients by the inputs.

    Attributes:
        input_key: Position of the inputs in a batch.
        inputs: Inputs of the latest training step, which require a gradient.
    """

    input_key: Key
    inputs: Tensor = field(init=False)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.technique.is_idle:
            return
        module, name = self.run.module, type(self.technique).__name__
        if any(map(is_compiled, module.modules())):
            raise SettingError(
                f"the module must not be compiled with {name}, whose term is differentiated twice, which compiled code "
                "can't be; leave out torch.compile"
            )
        # FSDP frees full weights after the first backward pass.
        refuse_sharded({weight: path for path, weight in module.named_parameters()}, name, "use DDP")

    @override
    def watching(self) -> AbstractContextManager[Any]:
        return sdpa_kernel(SDPBackend.MATH)  # fused attention has no second derivative

    @override
    def watched_batch(self, batch: Any) -> Any:
        inputs = floating_part_of(batch, self.input_key, name="input_key", technique=type(self.technique).__name__)
        if not inputs.requires_grad:
            # Of a tensor that was made in inference mode only a copy can have a gradient.
            inputs = (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()
        self.inputs = inputs
        # A copy, because a training step may change its batch in place, which a leaf of the graph can't be.
        return with_parts(batch, [(self.input_key, inputs.clone())])

    def by_inputs(self, loss: Tensor) -> Tensor:
        """Returns the term at full strength, a function of gradients by the inputs.

        Args:
            loss: Mean over samples.
        """
        raise NotImplementedError

    @override
    def term_of(self, loss: Tensor) -> Tensor:
        name = type(self.technique).__name__
        with refusing_reentrant(name):
            term = self.by_inputs(loss)
        if not self.is_checked and term.requires_grad:
            try:
                torch.autograd.grad(term, self.inputs, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                if is_oom_error(error):
                    raise
                raise SettingError(
                    f"training_step must be made of functions that can be differentiated twice with {name}, but "
                    f"that fails: {str(error).partition(chr(10))[0]}"
                ) from error
        return term
