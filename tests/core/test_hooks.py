"""Hooks that copies of a module neither run nor keep."""

import copy
import io

import pytest
import torch
from torch import nn

from lightning_reg.core.hooks import add_forward_hook, add_forward_pre_hook


def hooks_of(module):
    return [hook for name, kept in vars(module).items() if "forward" in name and "hooks" in name for hook in kept]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("add", [add_forward_hook, add_forward_pre_hook])
def test_a_copy_runs_none_and_loses_it_with_the_original(add, again):
    module, seen = nn.Sequential(nn.Linear(2, 2)), []
    hook = add(module[0], lambda *args: seen.append(args[0]), with_kwargs=True)
    copied = copy.deepcopy(copy.deepcopy(module) if again else module)
    copied(torch.ones(1, 2))
    assert not seen
    module(torch.ones(1, 2))
    assert seen == [module[0]]
    hook.remove()
    hook.remove()
    assert not hooks_of(module[0])
    assert not hooks_of(copied[0])


def test_the_users_own_hook_stays_on_the_copy():
    module, seen = nn.Linear(2, 2), []
    module.register_forward_hook(lambda *_: seen.append(1))
    hook = add_forward_hook(module, lambda *_: seen.append(2))
    copied = copy.deepcopy(module)
    hook.remove()
    copied(torch.ones(1, 2))
    assert seen == [1]


def test_what_is_loaded_from_a_pickle_does_nothing():
    module, seen = nn.Linear(2, 2), []
    add_forward_hook(module, lambda *_: seen.append(1))
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert torch.equal(loaded(torch.ones(1, 2)), loaded(torch.ones(1, 2)))
    assert not seen
