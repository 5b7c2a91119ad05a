"""What is measured is what the loaders' samplers draw from, whatever they are; they draw afterwards as ever."""

import itertools
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_reg.callbacks import GeneralizationGap
from lightning_reg.settings import SettingError
from tests.monitors.gap import Reduces, by_hand, fit, samples

TRAIN, VALIDATION = range(45), range(45, 70)


class OddOnesFirst(Sampler):
    """Somebody's, with a generator of its own, and a list that is shuffled in place; without a length."""

    def __init__(self, rows, repeats=1, *, endless=False):
        self.rows, self.repeats, self.endless = list(rows), repeats, endless
        self.generator = torch.Generator().manual_seed(5)
        self.random = random.Random(5)
        self.epoch = 0

    def __iter__(self):
        for _ in itertools.count() if self.endless else range(self.repeats):
            self.epoch += 1
            self.random.shuffle(self.rows)
            random.shuffle(self.rows)
            order = torch.randperm(len(self.rows), generator=self.generator)
            yield from (self.rows[position] for position in sorted(order, key=lambda position: position % 2 == 0))


class InBatches:
    """A batch sampler that is nobody's subclass."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (list(self.rows[first : first + 8]) for first in range(0, len(self.rows), 8))

    def __len__(self):
        return math.ceil(len(self.rows) / 8)


class OnlyCertain(SubsetRandomSampler):
    """Draws some of its rows again and again, as one that balances classes."""

    def __iter__(self):
        return iter(list(self.indices[:3]) * 15)


class NotesItsOrder(OddOnesFirst):
    """Fills a list while it draws."""

    def __iter__(self):
        self.indices = list(super().__iter__())
        return iter(self.indices)


def notes_its_order(rows):
    sampler = NotesItsOrder(rows)
    sampler.indices = []
    return sampler


def weights(rows):
    return [float(index + 1) if index in rows else 0.0 for index in range(70)]


def drawing(sampler):
    return lambda rows: DataLoader(samples(), 16, sampler=sampler(rows))


WAYS = {
    "subset": drawing(SubsetRandomSampler),
    "tensor of rows": drawing(lambda rows: SubsetRandomSampler(torch.tensor(rows))),
    "list": drawing(list),
    "range": drawing(lambda rows: rows),
    "somebody's": drawing(OddOnesFirst),
    "repeats": drawing(lambda rows: OddOnesFirst(rows, repeats=3)),
    "endless": drawing(lambda rows: OddOnesFirst(rows, endless=True)),
    "notes its order": drawing(notes_its_order),
    "balances": drawing(OnlyCertain),
    "weights": drawing(lambda rows: WeightedRandomSampler(weights(rows), 30)),
    "batches": lambda rows: DataLoader(samples(), batch_sampler=BatchSampler(SubsetRandomSampler(rows), 8, True)),
    "own batches": lambda rows: DataLoader(samples(), batch_sampler=InBatches(rows)),
}
LIMITS = {"limit_train_batches": 3, "limit_val_batches": 2, "max_epochs": 2}


def measured(train, val, **limits):
    """What is logged, and the same by hand for given rows of the samples."""
    data = {"train_dataloaders": train, "val_dataloaders": val}
    gap = GeneralizationGap(max_samples=None, verbose=False)
    module, trainer = fit(gap, module=Reduces(), data=data, **{**LIMITS, **limits})

    def of(rows):
        return by_hand(module, TensorDataset(*samples()[list(rows)]))[0]

    return [trainer.callback_metrics[f"gap/{split}_loss"].item() for split in ("train", "val")], of


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`")
@pytest.mark.parametrize("way", WAYS)
def test_each_part_is_what_its_sampler_draws_from(way):
    logged, of = measured(WAYS[way](TRAIN), WAYS[way](VALIDATION))
    assert logged == pytest.approx([of(TRAIN), of(VALIDATION)], abs=1e-5)


def test_a_sampler_on_one_side_counts_there():
    part = DataLoader(Subset(samples(), VALIDATION), 16)
    logged, of = measured(WAYS["subset"](TRAIN), part)
    assert logged == pytest.approx([of(TRAIN), of(VALIDATION)], abs=1e-5)
    logged, of = measured(DataLoader(Subset(samples(), TRAIN), 16), WAYS["subset"](VALIDATION))
    assert logged == pytest.approx([of(TRAIN), of(VALIDATION)], abs=1e-5)


def test_all_samples_count_once_where_they_are_drawn_with_repetitions():
    repeating = DataLoader(samples(), 16, sampler=RandomSampler(samples(), replacement=True, num_samples=20))
    logged, of = measured(repeating, WAYS["subset"](VALIDATION))
    assert logged == pytest.approx([of(range(70)), of(VALIDATION)], abs=1e-5)


class ManyAtOnce(Dataset):
    """Takes a list of rows, and nothing else."""

    def __len__(self):
        return 70

    def __getitem__(self, rows):
        assert isinstance(rows, list)
        return samples()[rows]


def test_a_data_set_that_takes_lists_is_given_lists():
    train, val = (
        DataLoader(ManyAtOnce(), batch_size=None, sampler=BatchSampler(sampler, 8, drop_last=False))
        for sampler in (SubsetRandomSampler(TRAIN), SequentialSampler(VALIDATION))
    )
    logged, of = measured(train, val, limit_val_batches=1.0)
    assert logged == pytest.approx([of(TRAIN), of(range(25))], abs=1e-5)  # positions, as SequentialSampler yields


def test_as_many_as_are_asked_for_are_taken_of_what_is_drawn():
    gap = GeneralizationGap(max_samples=20, verbose=False)
    data = {"train_dataloaders": WAYS["subset"](range(50, 70)), "val_dataloaders": WAYS["subset"](VALIDATION)}
    module, trainer = fit(gap, module=Reduces(), data=data)
    assert gap.last_result.samples == {"train": 20, "validation": 20}
    expected = by_hand(module, TensorDataset(*samples()[list(range(50, 70))]))[0]
    assert trainer.callback_metrics["gap/train_loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("way", ["subset", "somebody's", "weights"])
def test_samplers_draw_what_they_would_have_drawn(way):
    found = []
    for callbacks in ([], [GeneralizationGap(verbose=False)]):
        train = WAYS[way](TRAIN)
        module, _ = fit(*callbacks, data={"train_dataloaders": train, "val_dataloaders": WAYS[way](VALIDATION)})
        weights = torch.cat([value.flatten().double() for value in module.state_dict().values()]).tolist()
        found.append((weights, getattr(train.sampler, "epoch", None), torch.get_rng_state().tolist()))
    assert found[0] == found[1]


class Uncopied(TensorDataset):
    """A data set too large for a second one."""

    def __reduce_ex__(self, protocol):
        raise MemoryError


class OnlyTheFirst(DistributedSampler):
    """Draws a part of what it is to distribute."""

    def __iter__(self):
        return (row for row in super().__iter__() if row in TRAIN)

    def __len__(self):
        return len(TRAIN)


def of_the_first(_):
    whole = samples()
    return DataLoader(whole, 16, sampler=OnlyTheFirst(whole, 1, 0))


def test_a_distributed_sampler_that_draws_its_own_way_is_asked():
    train = of_the_first(TRAIN)
    logged, of = measured(train, WAYS["subset"](VALIDATION))
    assert logged == pytest.approx([of(TRAIN), of(VALIDATION)], abs=1e-5)


@pytest.mark.parametrize(("shuffle", "rows"), [(False, range(1, 70, 2)), (True, range(70))])
def test_a_share_that_is_always_the_same_is_a_part(shuffle, rows):
    train = DataLoader(samples(), 16, sampler=DistributedSampler(samples(), 2, 1, shuffle=shuffle))
    logged, of = measured(train, WAYS["subset"](VALIDATION))
    assert logged == pytest.approx([of(rows), of(VALIDATION)], abs=1e-5)


@pytest.mark.parametrize("way", ["subset", "somebody's", "weights", "distributed", "batches"])
def test_weights_are_counted_for_each_sample_that_is_drawn(way):
    ways = {**WAYS, "distributed": of_the_first}
    gap = GeneralizationGap(verbose=False)
    module = Reduces()
    count = sum(parameter.numel() for parameter in module.parameters())
    module.more = torch.nn.Parameter(torch.zeros(450 - count))  # 10 for each of those that are drawn
    fit(gap, module=module, data={"train_dataloaders": ways[way](TRAIN), "val_dataloaders": WAYS["subset"](VALIDATION)})
    assert "450 trainable weights for 45 samples" in str(gap.signals)


FEW = {"limit_train_batches": 2, "limit_val_batches": 1}


def whole(size=8, **settings):
    return DataLoader(samples(), size, **settings)


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(
    ("limits", "train", "rows"),
    [
        (FEW, whole(), range(16)),
        (FEW, whole(shuffle=True), range(70)),
        (FEW, DataLoader(samples(), batch_sampler=BatchSampler(SequentialSampler(samples()), 8, True)), range(16)),
        (FEW, whole(sampler=DistributedSampler(samples(), 1, 0, shuffle=False)), range(16)),
        (FEW, whole(sampler=DistributedSampler(samples(), 1, 0)), range(70)),
        (FEW, WAYS["subset"](TRAIN), TRAIN),
        ({**FEW, "limit_train_batches": 1.0}, whole(), range(70)),
        ({"overfit_batches": 1, "limit_train_batches": None, "limit_val_batches": None}, whole(shuffle=True), range(8)),
    ],
)
def test_samples_that_no_epoch_reaches_are_not_measured(limits, train, rows):
    logged, of = measured(train, whole(), **limits)
    assert logged == pytest.approx([of(rows), of(range(8))], abs=1e-5)


class Counterpart(LightningDataModule):
    def train_dataloader(self):
        return whole()

    def val_dataloader(self):
        return whole(5)

    def evaluation_dataloader(self, split):
        return whole(32)


def test_of_a_clean_counterpart_the_same_samples_are_measured():
    gap = GeneralizationGap()
    fit(gap, module=Reduces(), data={"datamodule": Counterpart()}, **FEW)
    assert gap.last_result.samples == {"train": 16, "validation": 5}


def test_weights_are_counted_for_each_sample_that_is_reached():
    gap, module = GeneralizationGap(verbose=False), Reduces()
    fit(gap, module=module, data={"train_dataloaders": whole(), "val_dataloaders": whole()}, **FEW)
    weights = sum(parameter.numel() for parameter in module.parameters())
    assert f"{weights} trainable weights for 16 samples" in str(gap.signals)


class OfTheData(OddOnesFirst):
    def __init__(self, dataset, rows):
        super().__init__(rows)
        self.dataset = dataset


def test_a_sampler_is_copied_without_the_data_it_knows():
    whole = Uncopied(*samples().tensors)
    train = DataLoader(Subset(whole, range(60)), 16, sampler=OfTheData(whole, range(45)))
    logged, of = measured(train, WAYS["subset"](VALIDATION))
    assert logged == pytest.approx([of(TRAIN), of(VALIDATION)], abs=1e-5)


class ReadsAStream(Sampler):
    """Draws what a generator yields, which nobody can copy."""

    def __init__(self):
        self.stream = (row for row in range(1000))

    def __iter__(self):
        return itertools.islice(self.stream, 16)

    def __len__(self):
        return 16


def test_a_sampler_that_cannot_be_copied_is_refused_before_training():
    data = {
        "train_dataloaders": DataLoader(samples(), 16, sampler=ReadsAStream()),
        "val_dataloaders": WAYS["subset"](VALIDATION),
    }
    with pytest.raises(SettingError, match="training loader's sampler must be one that GeneralizationGap can copy"):
        fit(GeneralizationGap(), data=data)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from lightning.pytorch import Callback, Trainer
from torch.utils.data import TensorDataset
from lightning_reg.callbacks import GeneralizationGap
from tests.monitors.test_drawn_indices import WAYS
from tests.monitors.gap import Reduces, by_hand, samples
class Report(Callback):
    def on_train_end(self, trainer, pl_module):
        logged = [trainer.callback_metrics[f"gap/{split}_loss"].item() for split in ("train", "val")]
        rows = [list(range(44)), list(range(44, 70))]
        hand = [by_hand(pl_module, TensorDataset(*samples()[part]))[0] for part in rows]
        torch.save((logged, hand), f"{sys.argv[2]}/{trainer.global_rank}.pt")
way = WAYS[sys.argv[1]]
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    callbacks=[GeneralizationGap(max_samples=None, verbose=False), Report()])
trainer.fit(Reduces(), way(range(44)), way(range(44, 70)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["subset", "weights", "range"])
def test_two_processes_measure_shares_of_what_is_drawn(way, tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, way, str(tmp_path)]
    subprocess.run(command, check=True, timeout=120, cwd=Path(__file__).parents[2])
    (logged, hand), (others, _) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert logged == others
    assert logged == pytest.approx(hand, abs=1e-5)
