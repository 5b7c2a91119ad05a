r"""Dropout in both of its forms, given the mask.

A unit is kept with probability 1 − p, so the next layer gets 1 − p of the sum that it would get from all units. Either
training makes up for it, or evaluation does.
"""

from typing import Any

from torch import Tensor
from torch.autograd import Function
from typing_extensions import override

from lightning_reg.functional.shapes import check_shape
from lightning_reg.settings import check_range

__all__ = ["InvertedDropout", "OriginalDropout", "inverted_dropout", "original_dropout"]


class InvertedDropout(Function):
    r"""Dropout that rescales in training.

    .. math::
        y_i = \frac{m_i}{1 - p} \, x_i \text{ in training}, \quad y_i = x_i \text{ in evaluation}

    Each output depends on its own input alone, and the mask is a constant. So the derivative is the factor:

    .. math::
        \frac{\partial L}{\partial x_i} = \frac{m_i}{1 - p} \, \frac{\partial L}{\partial y_i} \text{ in training},
        \quad \frac{\partial L}{\partial x_i} = \frac{\partial L}{\partial y_i} \text{ in evaluation}
    """

    @override
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, mask: Tensor, p: float, training: bool) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.keep_prob, ctx.training = 1 - p, training
        return inputs * mask / ctx.keep_prob if training else inputs.clone()

    @override
    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        grad_inputs = grad_outputs * mask / ctx.keep_prob if ctx.training else grad_outputs
        return grad_inputs, None, None, None


class OriginalDropout(Function):
    r"""Dropout that rescales in evaluation.

    .. math::
        y_i = m_i \, x_i \text{ in training}, \quad y_i = (1 - p) \, x_i \text{ in evaluation}

    Again the derivative is the factor:

    .. math::
        \frac{\partial L}{\partial x_i} = m_i \, \frac{\partial L}{\partial y_i} \text{ in training}, \quad
        \frac{\partial L}{\partial x_i} = (1 - p) \, \frac{\partial L}{\partial y_i} \text{ in evaluation}
    """

    @override
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, mask: Tensor, p: float, training: bool) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.keep_prob, ctx.training = 1 - p, training
        return inputs * mask if training else inputs * ctx.keep_prob

    @override
    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (mask,) = ctx.saved_tensors
        grad_inputs = grad_outputs * mask if ctx.training else grad_outputs * ctx.keep_prob
        return grad_inputs, None, None, None


def inverted_dropout(inputs: Tensor, mask: Tensor, p: float, *, training: bool) -> Tensor:
    r"""Inverted dropout: kept units are divided by the keep probability in training, and evaluation is the identity.

    .. math:: y_i = \frac{m_i \, x_i}{1 - p} \text{ in training}, \quad y_i = x_i \text{ in evaluation}

    Args:
        inputs: Inputs x, of any shape.
        mask: Mask m, 1 where a unit is kept and 0 where it is dropped, of the shape of the inputs; unused in
            evaluation.
        p: Probability of a 0 in the mask, in [0, 1).
        training: Whether units are dropped.

    Returns:
        A tensor of the inputs' shape.

    Raises:
        SettingError: If ``p`` is out of range or the mask has another shape.

    Reference:
        Nitish Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from Overfitting, JMLR 2014, end of
        section 10.

    >>> import torch
    >>> inputs, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    >>> inverted_dropout(inputs, mask, 0.5, training=True)
    tensor([2., 0., 6.])
    >>> inverted_dropout(inputs, mask, 0.5, training=False)
    tensor([1., 2., 3.])
    """
    return _applied(InvertedDropout, inputs, mask, p, training)


def original_dropout(inputs: Tensor, mask: Tensor, p: float, *, training: bool) -> Tensor:
    r"""Dropout as first proposed: the mask alone in training, and everything times the keep probability in evaluation.

    .. math:: y_i = m_i \, x_i \text{ in training}, \quad y_i = (1 - p) \, x_i \text{ in evaluation}

    Args:
        inputs: Inputs x, of any shape.
        mask: Mask m, 1 where a unit is kept and 0 where it is dropped, of the shape of the inputs; unused in
            evaluation.
        p: Probability of a 0 in the mask, in [0, 1).
        training: Whether units are dropped.

    Returns:
        A tensor of the inputs' shape.

    Raises:
        SettingError: If ``p`` is out of range or the mask has another shape.

    Reference:
        Geoffrey E. Hinton et al.: Improving neural networks by preventing co-adaptation of feature detectors, 2012,
        arXiv:1207.0580.

    >>> import torch
    >>> inputs, mask = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 0.0, 1.0])
    >>> original_dropout(inputs, mask, 0.5, training=True)
    tensor([1., 0., 3.])
    >>> original_dropout(inputs, mask, 0.5, training=False)
    tensor([0.5000, 1.0000, 1.5000])
    """
    return _applied(OriginalDropout, inputs, mask, p, training)


def _applied(form: type[Function], inputs: Tensor, mask: Tensor, p: float, training: bool) -> Tensor:
    check_range("p", p, low=0, high=1, high_open=True)
    check_shape("mask", mask, inputs.shape)
    outputs: Tensor = form.apply(inputs, mask.to(inputs.dtype), p, training)
    return outputs
