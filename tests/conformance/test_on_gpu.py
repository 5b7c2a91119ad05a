"""On a GPU: no step that doesn't log waits for the device, and training gives what it gives on a CPU."""

import pytest
import torch
from lightning.pytorch import Callback

from tests.conformance.problem import BATCHES, EPOCHS, Setting, loader, weights_of
from tests.conformance.techniques import TECHNIQUES

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # What Lightning and torch say of the machine and of the tool that finds what waits.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
    pytest.mark.filterwarnings("ignore:GPU available but not used:UserWarning"),
]
# Their random numbers come from the device's own generator.
DRAWS_ON_DEVICE = ("ConcreteDropoutPenalty", "EmbeddingNoise", "GradientNoise", "Insert", "Mixout")


class Errors(Callback):
    """From the end of the forward pass to the end of the step, after the first one, whatever waits is an error."""

    def on_before_backward(self, trainer, *_):
        torch.cuda.set_sync_debug_mode("error" if trainer.global_step else "default")

    def on_before_zero_grad(self, *_):
        torch.cuda.set_sync_debug_mode("default")

    on_train_batch_end = on_train_end = on_exception = on_before_zero_grad


def fit(name, accelerator, *others):
    technique = TECHNIQUES[name]
    callbacks = [*others, *technique.attached()]  # so that what is written after a step may wait
    trainer = Setting().trainer(callbacks, accelerator=accelerator, log_every_n_steps=1000)
    module = Setting().module(prepare=technique.prepare)
    trainer.fit(module, loader(), loader())
    assert trainer.global_step == EPOCHS * BATCHES
    return [weight.cpu() for weight in weights_of(module)]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_steps_that_do_not_log_never_wait_and_end_where_a_cpu_does(name):
    on_gpu = fit(name, "gpu", Errors())
    if name.startswith(DRAWS_ON_DEVICE) or "dropout" in name:
        return
    for one, other in zip(on_gpu, fit(name, "cpu"), strict=True):
        # Sums are made in another order in every one of the steps.
        torch.testing.assert_close(one, other, rtol=0, atol=EPOCHS * BATCHES * 1e-5 * other.abs().max().item())
