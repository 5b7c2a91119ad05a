"""Files that are there whole or not at all."""

import threading

import pytest

from lightning_reg.files import write_atomically


def test_the_text_is_there_to_the_byte_and_nothing_beside_it(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("old")
    write_atomically(path, "a,é\r\n1,2\n")
    assert path.read_bytes() == "a,é\r\n1,2\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writers_at_the_same_time_leave_the_whole_text_of_one(tmp_path):
    path = tmp_path / "report.html"
    texts = {letter * 200_000 for letter in "abcd"}
    errors = []

    def write(text):
        try:
            for _ in range(10):
                write_atomically(path, text)
        except OSError as error:  # such as a temporary file that another writer has moved away
            errors.append(error)

    writers = [threading.Thread(target=write, args=(text,)) for text in texts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not errors
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
