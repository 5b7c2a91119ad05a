import contextlib
import math

import pytest

from lightning_reg.settings import SettingError, as_sequence, check_count, check_range, named_or_imported


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan, math.inf])
def test_range_refuses_what_is_outside_and_what_is_no_number(value):
    with pytest.raises(SettingError, match=r"p must be in \[0, 1\), but is"):
        check_range("p", value, low=0, high=1, high_open=True)


def test_bounds_belong_to_a_range_unless_they_are_open():
    def accepted(**bounds):
        found = []
        for value in (-0.1, 0.0, 0.5, 0.999, 1.0, 1.1):
            with contextlib.suppress(SettingError):
                check_range("p", value, **bounds)
                found.append(value)
        return found

    assert accepted(low=0, high=1) == [0.0, 0.5, 0.999, 1.0]
    assert accepted(low=0, high=1, high_open=True) == [0.0, 0.5, 0.999]
    assert accepted(low=0, high=1, low_open=True) == [0.5, 0.999, 1.0]
    assert accepted(low=0) == [0.0, 0.5, 0.999, 1.0, 1.1]


def test_infinity_is_refused_even_without_a_bound():
    with pytest.raises(SettingError, match=r"weight must be in \[0, ∞\), but is inf"):
        check_range("weight", math.inf, low=0)


@pytest.mark.parametrize("value", [1e39, -1e300, 10**400])
def test_numbers_beyond_float32_are_refused_in_one_sentence(value):
    with pytest.raises(SettingError, match=r"weight must be within ±3.4e\+38, the range of float32, but is beyond"):
        check_range("weight", value)


def test_count_has_an_end_where_it_is_given():
    check_count("bins", 8, high=8)
    with pytest.raises(SettingError, match="bins must be a whole number of at least 1 and at most 8, but is 9"):
        check_count("bins", 9, high=8)


@pytest.mark.parametrize("value", [5, None, "abc"])
def test_sequence_refuses_what_has_no_entries(value):
    with pytest.raises(SettingError, match="sizes must be a list, but is"):
        as_sequence("sizes", value)


@pytest.mark.parametrize("value", [0, 1.5, True, "3"])
def test_count_refuses_what_is_no_whole_number_from_its_bound(value):
    with pytest.raises(SettingError, match="size must be a whole number of at least 1"):
        check_count("size", value)


def test_import_path_that_leads_nowhere_is_refused():
    with pytest.raises(SettingError, match=r"import path of a callable, but is 'torch.nn.Norm9'"):
        named_or_imported("norm", "torch.nn.Norm9", ["batch"])
