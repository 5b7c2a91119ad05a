import pytest
import torch
from torch import nn

from lightning_reg.core.selection import Selection, select_modules, select_parameters
from lightning_reg.settings import SettingError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight  # tied


def test_norms_and_biases_are_spared_and_tied_weights_count_once():
    assert list(select_parameters(Block())) == ["first.weight"]


def test_everything_can_be_included():
    names = set(select_parameters(Block(), exclude_norm_and_bias=False))
    assert names == {"first.weight", "first.bias", "norm.weight", "norm.bias", "second.bias"}


def test_globs_choose():
    assert list(select_parameters(Block(), include=("second.*",), exclude_norm_and_bias=False)) == ["second.bias"]
    chosen = select_parameters(Block(), exclude=("first.*",), exclude_norm_and_bias=False)
    assert set(chosen) == {"norm.weight", "norm.bias", "second.bias"}


def test_foreign_norms_are_recognized_by_name():
    class LlamaRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

    assert list(select_parameters(nn.Sequential(nn.Linear(4, 4), LlamaRMSNorm()))) == ["0.weight"]


def test_names_inside_a_compiled_submodule_are_the_users():
    network = nn.Sequential(torch.compile(nn.Linear(2, 2)))
    assert list(select_parameters(network, include=("0.weight",))) == ["0.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"include": ("frist.*",)}, r"include pattern 'frist.\*' matches no parameter; there are first"),
        ({"exclude": ("head.*",)}, r"exclude pattern 'head.\*' matches no parameter"),
        ({"include": ("norm.*",)}, "leaves no parameter"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        select_parameters(Block(), **settings)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_module_whose_parts_are_all_compiled_by_jit_has_none_to_choose():
    module = nn.Module()
    module.network = torch.jit.trace(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2))
    with pytest.raises(SettingError, match=r"include pattern '\*' matches no module; there are none$"):
        select_modules(module, include=("*",))


def test_what_is_chosen_follows_what_is_asked_for_from_step_to_step():
    block = Block()
    chosen = Selection(block, include=("*",), exclude=("second.*",), exclude_norm_and_bias=False)
    everything, frozen = list(block.parameters()), [block.norm.weight, block.second.bias]
    expected = [block.first.weight, block.first.bias, block.norm.weight, block.norm.bias]
    for _ in range(2):
        found = chosen.of(everything)
        assert [id(parameter) for parameter in found] == [id(parameter) for parameter in expected]
        found.clear()  # the caller's own
        assert [id(parameter) for parameter in chosen.of(frozen)] == [id(block.norm.weight)]
    block.third = nn.Linear(4, 4)
    assert any(parameter is block.third.weight for parameter in chosen.of(list(block.parameters())))
