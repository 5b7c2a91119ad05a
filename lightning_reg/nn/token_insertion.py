"""Dropout of tokens before any modules, together with the tokens' masks."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_reg.functional.forward.tokens import gathered
from lightning_reg.nn.insertion import Insertion
from lightning_reg.nn.layers.token_dropout import TokenDropout
from lightning_reg.settings import SettingError

__all__ = ["TokenInsertion"]


class TokenInsertion(Insertion):
    """A pre-forward hook that drops tokens of a module's inputs, and their entries of each mask.

    A mask has one entry for each token of a sample. A mask of padding is recognized by its name, such as
    ``src_key_padding_mask`` of torch's encoder.

    >>> host = nn.Linear(2, 3)
    >>> handle = TokenInsertion(TokenDropout(0.5), "0").attach(host)
    >>> host(torch.zeros(5, 4, 2)).shape
    torch.Size([5, 2, 3])
    """

    layer: TokenDropout

    batch_first: bool = True
    """Whether tokens are (N, T, E) rather than (T, N, E)."""

    names: tuple[str, ...] = ()
    """Names of the host's arguments."""

    @override
    def attach(self, host: nn.Module) -> RemovableHandle:
        self.names = tuple(inspect.signature(host.forward).parameters)  # compiled code can't look them up
        return host.register_forward_pre_hook(self, with_kwargs=True)

    @override
    def __call__(self, host: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any = None) -> Any:
        """Returns the arguments for the host in place of its own; None where they don't change."""
        if not self.acts(host):
            return None
        unnamed = len(inputs) - len(self.names)
        names = [*self.names[: len(inputs)], *[""] * unnamed, *named]
        values = [*inputs, *named.values()]
        place = next((index for index, value in enumerate(values) if isinstance(value, Tensor)), None)
        tokens = self._batch_first(self._checked(None if place is None else values[place]))
        masks = {
            index: self._mask(name, value, tokens)
            for index, (name, value) in enumerate(zip(names, values, strict=True))
            if index != place and isinstance(value, Tensor)
        }
        known = [mask for index, mask in masks.items() if mask is not None and "padding" in names[index]]
        kept = self.layer.kept(tokens, _as_truth(known[0]) if known else None)
        for index, mask in masks.items():
            if mask is not None:
                values[index] = gathered(mask, kept).view(*values[index].shape[:-1], -1)
        values[place or 0] = self._batch_first(gathered(tokens, kept))
        return tuple(values[: len(inputs)]), dict(zip(named, values[len(inputs) :], strict=True))

    def _batch_first(self, tokens: Tensor) -> Tensor:
        return tokens if self.batch_first else tokens.transpose(0, 1)

    def _checked(self, tokens: Tensor | None) -> Tensor:
        if tokens is None or tokens.ndim != 3 or not tokens.is_floating_point():
            kind = "no tensor" if tokens is None else f"{str(tokens.dtype)[6:]} of the shape {tuple(tokens.shape)}"
            raise SettingError(
                f"include must name modules that take tokens (N, T, E), to which positions were added, but {self.name} "
                f"takes {kind}"
            )
        return tokens

    def _mask(self, name: str, value: Tensor, tokens: Tensor) -> Tensor | None:
        """Returns an argument as a mask (N, T) if it is a mask of tokens, else None."""
        samples, length = tokens.shape[:2]
        if "bias" in name and value.ndim > 2 and length in value.shape[-2:]:  # such as one of positions
            raise self._of_pairs(name, value)
        if "mask" not in name and value.dtype != torch.bool:
            return None
        is_of_pairs = samples == length and "padding" not in name  # (T, T), or (N, T)
        if value.ndim > 1 and value.shape[0] == samples and value.numel() == samples * length and not is_of_pairs:
            return value.reshape(samples, length)
        if length in value.shape[-2:]:
            raise self._of_pairs(name, value)
        return None

    def _of_pairs(self, name: str, value: Tensor) -> SettingError:
        return SettingError(
            f"include must name modules that take no {'bias' if 'bias' in name else 'mask'} of pairs of tokens, but "
            f"{self.name} takes {name or 'one'} of the shape {tuple(value.shape)}"
        )


def _as_truth(padding: Tensor) -> Tensor:
    """Returns a mask of padding as bools; torch's encoder passes its layers numbers that are added to logits."""
    return padding if padding.dtype == torch.bool else padding == -torch.inf
