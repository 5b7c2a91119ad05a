"""Sharded tensors, on meshes of processes that aren't there: which part a process has, and norms of the whole."""

from contextlib import contextmanager

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_reg.core.gradients import gradient_norms, local, shard_of


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


@pytest.mark.parametrize("norm_type", [2.0, 1.0, torch.inf])
def test_norms_of_what_is_shared_out_in_several_ways_and_of_what_is_whole(norm_type):
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(4, 3, generator=generator) for _ in range(4)]
    with mesh_of(1, 1) as mesh:
        placed = [
            values[0],
            distribute_tensor(values[1], mesh, [Replicate(), Shard(0)]),
            DTensor.from_local(values[2], mesh, [Replicate(), Partial()], run_check=False),
            distribute_tensor(values[3], mesh, [Shard(0), Shard(1)]),
        ]
        parameters = [nn.Parameter(torch.zeros_like(value)) for value in placed]
        for parameter, gradient in zip(parameters, placed, strict=True):
            parameter.grad = gradient
        norms = gradient_norms(parameters, norm_type)
    expected = torch.stack([torch.linalg.vector_norm(value, norm_type) for value in values])
    torch.testing.assert_close(norms, expected)


def test_a_process_that_has_nothing_of_a_gradient_takes_part_in_its_norm():
    with mesh_of(2, rank=1) as mesh:
        parameter = nn.Parameter(distribute_tensor(torch.zeros(1), mesh, [Shard(0)]))
        parameter.grad = distribute_tensor(torch.ones(1), mesh, [Shard(0)])
        assert not local(parameter.grad).numel()
        assert gradient_norms([parameter], torch.inf).shape == (1,)
