"""Sharded tensors, on meshes of processes that aren't there: which part a process has, and norms of the whole."""

from contextlib import contextmanager

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_reg.core.gradients import gradient_norms, shard_of


@contextmanager
def mesh_of(*shape, rank=0):
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=torch.Size(shape).numel())
    try:
        yield init_device_mesh("cpu", shape)
    finally:
        distributed.destroy_process_group()


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
        with mesh_of(2, 2, rank=rank) as mesh:
            found.append(shard_of(distribute_tensor(torch.zeros(4, 4), mesh, placements)))
    assert found == parts


def test_a_plain_tensor_is_whole():
    assert shard_of(torch.zeros(2)) == ()


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
def test_norms_of_shards_in_sixteen_bits_are_taken_in_thirty_two(norm_type):
    values = torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.linalg.vector_norm(values.float(), norm_type)
    with mesh_of(1) as mesh:
        parameter = nn.Parameter(distribute_tensor(torch.zeros_like(values), mesh, [Shard(0)]))
        parameter.grad = distribute_tensor(values, mesh, [Shard(0)])
        norms = gradient_norms([parameter], norm_type)
    torch.testing.assert_close(norms, expected.unsqueeze(0))
