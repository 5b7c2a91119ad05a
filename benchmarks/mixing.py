"""Mixup and CutMix of a batch of images, compared with torchvision's and timm's.

``python -m benchmarks mixing`` mixes 128×3×224×224 with labels of 1,000 classes. Any implementation must read every
image and its partner and write the result; the time of that, from the speed of a copy in the same run, is the limit
that transforms are compared with.
"""

from collections.abc import Callable, Iterator
from functools import partial
from random import Random

import torch
from torch import Tensor

from benchmarks.tables import Options, Table
from benchmarks.timing import alternate, copy_bandwidth, median_ratio, peer, quartiles
from lightning_reg.functional.batch.mixing import soft_targets
from lightning_reg.transforms import CutMix, Mixing, Mixup, MixupOrCutMix

CLASSES = 1000
# Least number of reads and writes per element: both operands, and the result.
LEAST = 3


def tables(options: Options) -> Iterator[Table]:
    """Yields a table for Mixup and one for CutMix."""
    shape = (4, 3, 8, 8) if options.smallest else (128, 3, 224, 224)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator).to(options.device)
    labels = torch.randint(0, CLASSES, shape[:1], generator=generator).to(options.device)
    vision = {name: peer("torchvision.transforms.v2", name) for name in ("MixUp", "CutMix")}
    timm = peer("timm.data.mixup", "Mixup")
    bandwidth = copy_bandwidth(options.device, numel=1_000 if options.smallest else 32_000_000)
    for name, ours in (("Mixup", Mixup), ("CutMix", CutMix)):
        members: dict[str, Callable[[], object]] = {
            name: _mixed(ours(), images, labels),
            f"{name}(per_sample=True)": _mixed(ours(per_sample=True), images, labels),
        }
        of_vision = vision["MixUp" if name == "Mixup" else name]
        if of_vision:
            transform = of_vision(num_classes=CLASSES)
            members[f"  torchvision's v2.{of_vision.__name__}"] = partial(transform, images, labels)
        if timm:
            settings = {"mixup_alpha": float(name == "Mixup"), "cutmix_alpha": float(name == "CutMix")}
            for mode in ("batch", "elem"):  # both modes modify their input in place
                mixer = timm(**settings, num_classes=CLASSES, mode=mode)
                members[f"  timm's Mixup(mode={mode!r})"] = partial(mixer, images, labels)
        if name == "CutMix":
            members["MixupOrCutMix"] = _mixed(MixupOrCutMix(), images, labels)
        seconds = alternate(members, rounds=options.rounds(31, 5), device=options.device)
        table = Table(
            f"{name} of {'×'.join(map(str, shape))}",
            ["transform", "ms", "quartiles", f"{name} / this", "of the limit"],
            note=f"The limit is two reads and a write at the speed of a copy, {bandwidth / 1e9:.1f} GB/s here.",
        )
        for second, times in seconds.items():
            low, median, high = quartiles(times)
            limit = LEAST * 4 * images.numel() / bandwidth
            ratio = None if second == name else median_ratio(seconds[name], times)
            table.add(second, 1e3 * median, f"{1e3 * low:.1f} to {1e3 * high:.1f}", ratio, f"{limit / median:.0%}")
        yield table


def _mixed(mix: Mixing, images: Tensor, labels: Tensor) -> Callable[[], object]:
    stream = Random(0)
    return lambda: mix(images, soft_targets(labels, CLASSES), stream=stream)
