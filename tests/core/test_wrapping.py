import functools

import pytest
import torch
from torch import nn

from lightning_reg.core.wrapping import around


class Owner:
    def method(self, value):
        return value + 1


def doubled(call, value):
    return 2 * call(value)


def negated(call, value):
    return -call(value)


def test_the_latest_layer_is_outermost_and_any_may_go_first():
    for first_to_go in (0, 1):
        owner = Owner()
        handles = [around(owner, "method", doubled), around(owner, "method", lambda call, value: 3 + call(value))]
        assert owner.method(1) == 7
        handles[first_to_go].remove()
        assert owner.method(1) == (5 if first_to_go == 0 else 4)
        handles[1 - first_to_go].remove()
        assert owner.method(1) == 2
        assert vars(owner) == {}


def test_what_stood_on_the_instance_is_put_back():
    owner = Owner()
    vars(owner)["method"] = own = lambda value: value
    handle = around(owner, "method", negated)
    assert owner.method(1) == -1
    handle.remove()
    assert vars(owner) == {"method": own}


@pytest.mark.parametrize("is_partial", [False, True])
def test_a_network_is_exported_with_the_layers_around_it(is_partial):
    network = nn.Linear(2, 3)
    if is_partial:  # as libraries do that move modules between devices
        network.forward = functools.partial(nn.Linear.forward, network)
    around(network, "forward", negated)
    inputs = torch.ones(4, 2)
    exported = torch.export.export(network, (inputs,)).module()
    torch.testing.assert_close(exported(inputs), -nn.functional.linear(inputs, network.weight, network.bias))
