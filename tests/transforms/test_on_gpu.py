"""Augmentation on a GPU: nothing waits for it, and it does what a CPU does."""

from random import Random

import pytest
import torch

from lightning_reg.transforms import AdvancedAugmentation, BasicAugmentation, normalize_images

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]


@pytest.mark.parametrize("augmentation", [BasicAugmentation(), AdvancedAugmentation()], ids=["basic", "advanced"])
def test_augmentation_waits_for_nothing_and_is_what_a_cpu_makes(augmentation):
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def augmented(given, constants):
        stream = Random(0)
        changed = normalize_images(augmentation(given, stream=stream), constants, constants)
        return augmentation.after_normalization(changed, stream=stream)

    constants = torch.full((3,), 0.5)
    on_cpu, given, constants_there = augmented(images, constants), images.cuda(), constants.cuda()
    augmented(given, constants_there)  # the first call may set up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = augmented(given, constants_there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # Coordinates and sines are rounded in another way: where a pixel lies between two, either may be the nearest.
    differs = (on_gpu.cpu() - on_cpu).abs() > 1e-3
    assert differs.float().mean() < 1e-3
