"""Tables and durations for terminals."""

import pytest

from lightning_reg.text import duration, table


def test_columns_begin_and_end_where_they_should():
    rows = [["name", "value", "what"], ["a", "1.5", "first"], ["longer name", "12.25", ""]]
    lines = table(rows, right=[1], indent="  ")
    assert lines == ["  name         value  what", "  a              1.5  first", "  longer name  12.25"]


def test_no_rows_are_no_lines():
    assert table([]) == []


def test_a_long_last_column_is_wrapped_below_itself():
    text = " ".join(["word"] * 30)
    lines = table([["place", "settings"], ["loss", text]], width=40)
    assert len(lines) > 3
    assert max(map(len, lines)) <= 40
    assert " ".join(line[7:] for line in lines[1:]) == text
    assert all(line.startswith(" " * 7 + "word") for line in lines[2:])


def test_a_word_beyond_the_width_stays_whole_where_there_is_little_room():
    name, word = "n" * 30, "w" * 20
    assert table([[name, f"a {word}"]], width=40) == [f"{name}  a", f"{'':32}{word}"]


def test_a_row_wider_than_the_width_is_kept_where_its_last_cell_is_empty():
    assert table([["n" * 50, ""]], width=40) == ["n" * 50]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (90061, "25 h 1 min"),
    ],
)
def test_durations_never_show_a_full_unit_of_the_next(seconds, shown):
    assert duration(seconds) == shown
