import torch
from torch.utils.data import DataLoader

from lightning_reg.data.loader import ResumableLoader, SampleDataset, ShuffledSampler, as_fetched


def dataset(count=20, indices=None):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return SampleDataset(images, torch.arange(count), indices=indices)


def loader(*, seed=0, batch_size=3, position=lambda: 0, workers=0):
    data = dataset()
    sampler = ShuffledSampler(data, num_replicas=1, rank=0, seed=seed, position=position)
    return ResumableLoader(
        data,
        sampler=sampler,
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=as_fetched,
    )


def labels(batches):
    return [batch[1].tolist() for batch in batches]


def flat(batches):
    return [label for batch in labels(batches) for label in batch]


def test_a_batch_is_what_single_samples_would_make():
    data = dataset(indices=torch.tensor([3, 5, 8]))
    images, labels = data.__getitems__([2, 0])
    singles = [data[2], data[0]]
    assert torch.equal(images, torch.stack([image for image, _ in singles]))
    assert labels.tolist() == [8, 3]


def test_every_sample_comes_once_an_epoch_and_in_another_order():
    batches = loader()
    first = flat(batches)
    batches.sampler.set_epoch(1)
    second = flat(batches)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_order_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = labels(loader(seed=5))
    torch.manual_seed(2)
    assert labels(loader(seed=5)) == first
    assert labels(loader(seed=6)) != first


def test_resumed_loader_goes_on_where_the_saved_one_stood():
    whole = labels(loader())
    resumed = loader()
    resumed.load_state_dict(loader(position=lambda: 4).state_dict())
    assert labels(resumed) == whole[4:]
    assert labels(resumed) == whole
    assert len(resumed) == len(whole)


def test_worker_processes_fetch_the_same_batches():
    assert labels(loader(workers=1)) == labels(loader())


def test_ranks_share_the_samples():
    data = dataset()
    shards = [
        flat(DataLoader(data, batch_size=4, sampler=sampler, collate_fn=as_fetched))
        for sampler in (ShuffledSampler(data, num_replicas=2, rank=rank, seed=0) for rank in range(2))
    ]
    assert sorted(shards[0] + shards[1]) == list(range(20))
