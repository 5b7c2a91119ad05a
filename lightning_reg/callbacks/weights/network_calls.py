"""Interception of the one network whose output the steps of a module use."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from lightning_reg.callbacks.weights.averages.remembered_inputs import networks_of
from lightning_reg.core.lightning import compiled_call
from lightning_reg.core.step import Run
from lightning_reg.settings import SettingError

__all__ = ["NetworkCalls", "not_called"]

Answer = Callable[[str, nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class NetworkCalls:
    """Wraps the outermost calls of networks within a module's steps, until the run ends.

    A network is the module itself, or a child of it that has parameters. A step may call only one of them, any number
    of times: what a step combines from several outputs isn't the output of any network.

    Args:
        run: Run of a fit or an evaluation; its module must be complete.
        answer: Function called once for each outermost call, with the step's name, the network, its call, and the
            call's arguments; returns what the step gets as output.
        matters: Whether a network is wrapped; calls of others are left alone.
    """

    def __init__(self, run: Run, technique: str, answer: Answer, matters: Callable[[nn.Module], bool]) -> None:
        self._technique = technique
        self._answer = answer
        self._matters = matters
        self._step = ""  # the one that is running
        self._called = ""  # the network that it has called
        self._is_within = False  # whether an outermost call is running
        module = run.module
        for step in _STEPS:
            run.around(module, step, partial(self._run_step, step))
        for name in ["", *networks_of(module)]:
            network = module.get_submodule(name)
            if any(True for _ in network.parameters()):
                run.around(network, compiled_call(network) or "forward", partial(self._call, name, network))

    def _run_step(self, step: str, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._step:  # validation by way of the training step is validation
            return inner(*args, **kwargs)
        self._step, self._called, self._is_within = step, "", False
        try:
            output = inner(*args, **kwargs)
        finally:
            called, self._step, self._is_within = self._called, "", False
        if not called and step != "training_step":  # which may skip a batch
            raise not_called(step, self._technique)
        return output

    def _call(self, name: str, network: nn.Module, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._step or self._is_within or not self._matters(network):
            return inner(*args, **kwargs)
        shown = f"self.{name}" if name else "self"
        if self._called not in ("", shown):
            raise SettingError(
                f"{self._step} must call one network with {self._technique}, which takes its output for the "
                f"prediction, but calls {self._called} and {shown}; let forward call both, and the step self(...)"
            )
        self._called = shown
        self._is_within = True
        try:
            return self._answer(self._step, network, inner, args, kwargs)
        finally:
            self._is_within = False


def not_called(step: str, technique: str) -> SettingError:
    """Returns the error to raise where a step has called no network, or only parts of one."""
    return SettingError(
        f"{step} must call the module or a network that is its child with {technique}, which takes its output for the "
        "prediction; a part of a network, such as a slice, isn't enough"
    )
