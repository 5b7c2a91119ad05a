"""What happens to a batch on a GPU: the same as on a CPU, and nothing that the host waits for."""

from random import Random

import pytest
import torch

from lightning_reg.data import ImageData
from lightning_reg.models import CNN
from lightning_reg.transforms import (
    AdvancedAugmentation,
    BasicAugmentation,
    CutMix,
    Cutout,
    Mixup,
    MixupOrCutMix,
    RandomErasing,
)
from tests.helpers import quiet_trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]


@pytest.fixture
def _waiting_is_an_error():
    torch.zeros(1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


MIXES = [Mixup(), Mixup(per_sample=True), CutMix(), CutMix(per_sample=True), MixupOrCutMix(), Cutout(), RandomErasing()]


@pytest.mark.usefixtures("_waiting_is_an_error")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mix", MIXES, ids=repr)
def test_mixing(mix, channels_last):
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    inputs, targets = torch.randn(7, 3, 16, 12).to(memory_format=memory_format), torch.eye(7)
    on_gpu = inputs.pin_memory().cuda(non_blocking=True), targets.pin_memory().cuda(non_blocking=True)
    found = mix(*on_gpu, stream=Random(0))
    expected = mix(inputs, targets, stream=Random(0))
    torch.cuda.set_sync_debug_mode("default")
    assert found[0].is_contiguous(memory_format=memory_format)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("_waiting_is_an_error")
@pytest.mark.parametrize(
    "augment", [BasicAugmentation(), AdvancedAugmentation()], ids=lambda augment: type(augment).__name__
)
def test_augmentation(augment):
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    on_gpu = augment(images.pin_memory().cuda(non_blocking=True), stream=Random(0))
    erased = augment.after_normalization(on_gpu, stream=Random(1))
    torch.cuda.set_sync_debug_mode("default")
    expected = augment(images, stream=Random(0))
    # Where a source pixel lies on the border between two, rounding may take the other one.
    assert ((on_gpu.cpu() - expected).abs() > 1e-4).float().mean() < 1e-3
    assert ((erased.cpu() - augment.after_normalization(expected, stream=Random(1))).abs() > 1e-4).float().mean() < 1e-3


def test_a_network_is_trained_and_tested_on_augmented_and_mixed_images():
    data = ImageData(dataset="digits", batch_size=64, augment="basic", mix=MixupOrCutMix(), seed=0)
    model = CNN(input_shape=data.input_shape, num_classes=10, channels=(16, 32), norm="batch")
    trainer = quiet_trainer(accelerator="gpu", max_epochs=15)
    trainer.fit(model, data)
    assert trainer.test(model, data, verbose=False)[0]["test/accuracy"] > 0.9
