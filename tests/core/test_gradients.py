"""Which part of a sharded tensor a process has, on meshes of processes that aren't there."""

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_reg.core.gradients import shard_of


@pytest.mark.parametrize(
    ("placements", "parts"),
    [
        ([Replicate(), Shard(0)], [(0,), (1,), (0,), (1,)]),  # what HSDP does: copies of shards
        ([Shard(0), Shard(1)], [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ([Replicate(), Replicate()], [()] * 4),
    ],
    ids=["copies of shards", "shards of shards", "copies"],
)
def test_copies_of_a_shard_are_one_part(placements, parts):
    found = []
    for rank in range(4):
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
        try:
            mesh = init_device_mesh("cpu", (2, 2))
            found.append(shard_of(distribute_tensor(torch.zeros(4, 4), mesh, placements)))
        finally:
            distributed.destroy_process_group()
    assert found == parts


def test_a_plain_tensor_is_whole():
    assert shard_of(torch.zeros(2)) == ()
