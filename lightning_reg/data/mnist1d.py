"""A generated data set of ten classes in forty numbers, small enough for a study in seconds."""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad
from typing_extensions import override

from lightning_reg.core.hyperparameters import save_plain_hyperparameters
from lightning_reg.data.in_memory import InMemoryData
from lightning_reg.data.loader import SampleDataset
from lightning_reg.data.row_splits import RowSplitter
from lightning_reg.data.targets import Targets, Task
from lightning_reg.settings import SettingError, check_choice, check_count, check_range
from lightning_reg.transforms import Mixing

__all__ = ["Mnist1DData", "mnist1d"]

_LENGTH = 40
_PADDING, _PADDING_SPREAD, _SHIFT = 48, 12, 48  # in points of the templates
_AMPLITUDE_SPREAD, _SHEAR, _CORRELATED = 0.2, 0.75, 0.25
_SHAPES = {"flat": (_LENGTH,), "sequence": (_LENGTH, 1), "image": (1, 1, _LENGTH)}
# A hand-drawn curve for each class; some resemble the stroke of a digit.
_TEMPLATES = torch.tensor(
    [
        [0.2, 0.7, 1.0, 1.1, 1.1, 1.1, 1.1, 1.1, 1.1, 1.0, 0.7, 0.2],
        [0.0, 0.0, 0.1, 0.3, 0.8, 1.4, 1.4, 0.8, 0.3, 0.1, 0.0, 0.0],
        [0.5, 1.0, 1.1, 0.7, 0.1, -0.5, -0.9, -1.1, -1.1, -0.7, -0.6, -0.6],
        [0.4, 1.0, 1.1, 0.7, 0.2, 0.0, 0.2, 0.7, 1.1, 1.0, 0.4, 0.0],
        [-0.2, -0.5, -0.8, -1.1, -1.1, -0.6, 0.6, 1.3, 1.3, 0.3, 0.0, 0.0],
        [1.1, 1.1, 1.0, 0.2, -0.3, -0.4, 0.2, 0.8, 1.0, 0.7, 0.2, -0.2],
        [1.3, 0.9, 0.5, 0.1, -0.3, -0.7, -1.0, -1.1, -0.8, -0.3, -0.7, -1.0],
        [1.0, 1.0, 1.0, 1.0, 0.7, 0.3, -0.1, -0.5, -0.9, -1.2, -0.8, -0.3],
        [0.3, 0.9, 1.0, 0.5, -0.4, -0.9, -0.4, 0.5, 1.0, 0.9, 0.3, -0.6],
        [-0.3, 0.4, 1.1, 0.4, -0.3, 0.4, 1.1, 0.4, -0.3, -0.9, -1.1, -1.1],
    ]
)


def mnist1d(samples: int, *, difficulty: float = 1.0, noise: float = 0.02, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns signals (N, 40), float32, and their classes (N,), balanced up to one sample.

    A signal is its class's template of 12 points, padded, scaled, circularly shifted, with correlated noise and noise
    of each point, sheared, and sampled at 40 points. So classes differ in shape alone: a network that is invariant to
    shifts has an advantage, a linear one hardly learns anything.

    The steps are the paper's; the templates and the generator are our own, so accuracies differ from the paper's.

    Args:
        samples: Number of signals N.
        difficulty: Scale of the spread of padding, size, shift, shear and correlated noise: at 0 all signals of a class
            are equal but for ``noise``, at 1 they differ about as much as the paper's.
        noise: Standard deviation of the independent noise of each point.
        seed: Seed of the random numbers.

    Reference:
        Sam Greydanus: Scaling down Deep Learning, 2020, arXiv:2011.14439.

    >>> signals, classes = mnist1d(20)
    >>> signals.shape, classes.bincount().tolist()
    (torch.Size([20, 40]), [2, 2, 2, 2, 2, 2, 2, 2, 2, 2])
    """
    generator = torch.Generator().manual_seed(seed)

    def spread(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * difficulty

    classes = torch.arange(samples) % len(_TEMPLATES)
    points = _TEMPLATES.shape[1]
    length = points + _PADDING + _PADDING_SPREAD * spread(samples, 1)  # (N, 1)
    shift = _SHIFT * (1 + spread(samples, 1)) / 2
    # Position of each sampled point in the template; beyond its ends there is the padding's zero.
    place = (torch.linspace(0, 1, _LENGTH) * (length - 1) - shift).remainder(length) + 1  # (N, 40)
    padded = pad(_TEMPLATES, (1, 2))[classes]
    low = place.floor().clamp(max=points + 1).long()
    left, right = padded.gather(1, low), padded.gather(1, low + 1)
    signals = torch.lerp(left, right, (place - low).clamp(0, 1)) * (1 + _AMPLITUDE_SPREAD * spread(samples, 1))
    kernel = torch.exp(-(torch.arange(-6.0, 7.0) ** 2) / (2 * 2.0**2))  # two points wide
    white = torch.randn(samples, 1, _LENGTH + 12, generator=generator)
    correlated = conv1d(white, (kernel / kernel.norm()).view(1, 1, -1)).squeeze(1)
    signals = signals + _CORRELATED * difficulty * correlated
    signals = signals + _SHEAR * spread(samples, 1) * torch.linspace(-0.5, 0.5, _LENGTH)
    return signals + noise * torch.randn(samples, _LENGTH, generator=generator), classes


class Mnist1DData(InMemoryData):
    """Forty numbers in ten classes, generated: studies of regularization in seconds, without a file.

    See :func:`mnist1d` for the signals. Batches are (signals, classes), standardized by the training signals.

    Args:
        samples: Total number of signals, at least 10.
        difficulty: Spread of the signals of a class, in [0, 2]: 0 for none, 1 for about that of the paper.
        noise: Standard deviation of the independent noise of each point, at least 0.
        shape: ``flat`` (40,), for an MLP; ``sequence`` (40, 1), for an RNN or a transformer; ``image`` (1, 1, 40), for
            convolutions.
        batch_size: Signals per batch and process.
        val_size: Part of the training signals to hold out for validation, stratified: a number or a fraction.
        test_size: Part of all signals to hold out for testing, the same whatever the seed: a number or a fraction; None
            for no test.
        train_size: Number or fraction of the remaining signals to train on; None for all.
        folds: Number of folds of all signals for cross-validation, in place of ``test_size``. One of them is for
            testing, or for validation where ``test_size`` is None. None for no folds.
        fold: Index of the held-out fold, from 0.
        repeat: Index of the test part, or of the partition into folds, for repeated splits.
        mix: Mixing of every training batch, on the device, such as ``Mixup``; None for none.
        mix_epochs: Number of epochs with mixing, after which signals stay as they are; None mixes in all epochs.
        num_workers: Worker processes that fetch batches; 0 is the fastest here.
        pin_memory: Whether to put batches into pinned memory, for faster transfer to a GPU.
        seed: Seed of splits, subsets, shuffling and mixing; the signals are the same for all seeds.

    Raises:
        SettingError: If a number is out of range.

    >>> data = Mnist1DData(samples=200)
    >>> data.task, data.num_classes, data.input_shape
    ('classification', 10, (40,))
    """

    _splits: dict[str, SampleDataset]

    def __init__(
        self,
        *,
        samples: int = 5000,
        difficulty: float = 1.0,
        noise: float = 0.02,
        shape: Literal["flat", "sequence", "image"] = "flat",
        batch_size: int = 128,
        val_size: int | float = 0.1,
        test_size: int | float | None = 0.2,
        train_size: int | float | None = None,
        folds: int | None = None,
        fold: int = 0,
        repeat: int = 0,
        mix: Mixing | None = None,
        mix_epochs: int | None = None,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            mix=mix,
            mix_epochs=mix_epochs,
            num_workers=num_workers,
            pin_memory=pin_memory,
            seed=seed,
        )
        check_count("samples", samples, low=len(_TEMPLATES))
        check_range("difficulty", difficulty, low=0, high=2)
        check_range("noise", noise, low=0)
        check_choice("shape", shape, list(_SHAPES))
        self.task: Task = "classification"
        self.classes = tuple("0123456789")
        self.num_targets = None
        self.input_shape: tuple[int, ...] = _SHAPES[shape]
        self._made = {"samples": samples, "difficulty": difficulty, "noise": noise}
        self._splitter = RowSplitter(
            val_size=val_size,
            test_size=test_size,
            train_size=train_size,
            folds=folds,
            fold=fold,
            repeat=repeat,
            seed=seed,
        )
        labels = torch.arange(samples) % len(_TEMPLATES)
        self._rows = self._splitter.split(Targets("classification", self.classes, labels))
        self._mean_and_std: tuple[float, float] | None = None
        save_plain_hyperparameters(self)

    @override
    def setup(self, stage: str) -> None:
        if self._splits:
            return
        made = self._made
        signals, labels = mnist1d(int(made["samples"]), difficulty=made["difficulty"], noise=made["noise"])
        if self._mean_and_std is None:
            train = signals[self._rows["train"]]
            self._mean_and_std = float(train.mean()), float(train.std())
        mean, std = self._mean_and_std
        inputs = ((signals - mean) / std).view(-1, *self.input_shape)
        for split, rows in self._rows.items():
            self._splits[split] = SampleDataset(inputs, labels, indices=rows)

    @override
    def sample_names(self, split: Literal["train", "val", "test"]) -> list[str]:
        """Returns the index of each signal of a split among all signals, in the order of its evaluation loader."""
        return [str(row) for row in self._rows[split].tolist()]

    @override
    def _without(self, split: str) -> str:
        return f"{split}_size must not be None where there is something to {split}"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "made": self._made,
            "split": self._splitter.settings,
            "mean_and_std": None if self._mean_and_std is None else list(self._mean_and_std),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in self._made.items():
            if state_dict["made"][name] != value:
                raise SettingError(f"{name} must be {state_dict['made'][name]}, as in the checkpoint, but is {value}")
        self._warn_of_another_split(state_dict.get("split", {}), self._splitter.settings)
        if state_dict["mean_and_std"] is not None:
            mean, std = state_dict["mean_and_std"]
            if not math.isclose(std, 0):
                self._mean_and_std = mean, std
                self._splits = {}
                self.setup("fit")
