"""Files of strangers are data within limits, and files of ours are there whole or not at all."""

import os
import pickle
import re
import threading
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from lightning_reg.files import (
    CutOffError,
    UntrustedError,
    check_yaml,
    opened,
    read_checkpoint,
    read_json,
    read_text,
    read_yaml,
    write_atomically,
)
from lightning_reg.settings import SettingError

pytestmark = pytest.mark.timeout(60)  # what waits for a pipe waits forever


class Payload:
    """Leaves a file behind wherever it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _refused(read, *args, **settings):
    with pytest.raises(SettingError) as caught:
        read(*args, **settings)
    assert not Path("executed").exists()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml, read_checkpoint])
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (os.mkfifo, "is a named pipe"),
        (os.mkdir, "is a folder"),
        (lambda name: os.symlink("/dev/zero", name), "is a device"),
        (lambda name: os.symlink(name, name), "can't be read: Too many levels of symbolic links"),
        (lambda _: None, "must be a file that exists"),
    ],
    ids=["pipe", "folder", "device", "link to itself", "nothing"],
)
def test_what_is_no_regular_file_is_refused_without_waiting(read, make, found):
    make("thing")
    assert found in _refused(read, "config", "thing")


def test_path_with_a_zero_byte_is_refused():
    assert "can't be read" in _refused(read_text, "config", "a\0b")


def test_pipe_that_takes_the_place_of_a_file_is_refused(monkeypatch):
    Path("file").write_text("a")
    regular = os.stat("file")
    os.mkfifo("pipe")
    monkeypatch.setattr(os, "stat", lambda _: regular)
    with pytest.raises(SettingError, match="is a named pipe"), opened("config", "pipe"):
        pass


def test_size_is_seen_before_anything_is_read():
    with Path("large").open("wb") as file:
        file.truncate(2**40)
    assert "must have at most 1,048,576 bytes" in _refused(read_text, "config", "large")


def test_a_file_that_is_longer_than_it_says_is_refused_rather_than_cut_off():
    path = Path("/proc/self/status")
    if not path.exists():
        pytest.skip("needs a file that has no size")
    assert "must have at most 10 bytes, but '/proc/self/status' has more" in _refused(
        read_text, "config", path, limit=10
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("a: 1".encode("utf-16"), "its byte 0 is 0xff"),
        ("a: ä".encode("latin-1"), "its byte 3 is 0xe4"),
        (b"\xef\xbb\xbfa: \xe4", "its byte 6 is 0xe4"),
        (bytes(range(256)), "its byte 128 is 0x80"),
        (b"a: \0", "isn't plain YAML"),
        (b"a:\n\tb: 1", "isn't plain YAML: .* line 2"),
        (b"a: [1, 2", "isn't plain YAML"),
        (b"a: 1\n---\nb: 2", "line 2 begins another"),
        (b"a: 1\nb: {c: 1, c: 2}", "line 2 has 'c' again"),
        (b"a: 1\n'a': 2", "line 2 has 'a' again"),
        (b"? [1, 2]\n: 3", "line 1 has a list or a mapping in a key's place"),
        (b"a: &x {b: *x}", r"line 1 has an alias \*x of what it lies in"),
        (b"a: &x [*x]", r"line 1 has an alias \*x of what it lies in"),
        (b"a: *x", r"\*x stands for nothing before it in line 1"),
        (b"[" * 100 + b"]" * 100, "at most 64 levels deep"),
        (b"[" * 3000 + b"]" * 3000, "levels deep|nesting depth"),
        (b"[" * 500_000, "levels deep|nesting depth"),
        (b"{a: " * 100, "at most 64 levels deep"),
        (b"a: !!python/object/apply:os.system ['touch executed']", "tag !!python/object/apply:os.system"),
        (b"!!python/object/new:os.system ['touch executed']", "tag !!python/object/new:os.system"),
        (b"a: !mine b", "the tag !mine"),
        (b"a: [1, =]", "= is text in quotes alone, '=' in line 1, column 8"),
        (b"a: 2001-99-99", "isn't plain YAML"),
        (b"[" + b"1," * 200_000 + b"]", "at most 100,000 values"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_yaml_that_is_no_plain_data_is_refused(content, fault):
    Path("file").write_bytes(content)
    assert re.search(fault, _refused(read_yaml, "config", "file"))


def test_aliases_count_for_what_they_stand_for():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]" for level in range(1, 10)]
    Path("bomb").write_text("\n".join(lines))
    assert "at most 100,000 values" in _refused(read_yaml, "config", "bomb")


def test_aliases_within_reason_are_read_as_yaml_reads_them():
    text = "base: &b {lr: 0.1, sizes: &s [1, 2]}\nother: {<<: *b, lr: 0.2}\nagain: [*s, *s, *b]\ntext: !!str 5"
    Path("file").write_text(text)
    assert read_yaml("config", "file") == yaml.safe_load(text)
    check_yaml("config", text)


def test_equals_sign_is_text_in_quotes_and_as_a_key():
    Path("file").write_text("{=: '=', a: '='}")
    assert read_yaml("config", "file") == {"=": "=", "a": "="}


def test_numbers_are_read_as_command_lines_read_them():
    Path("file").write_text("\ufeff{a: 1e-4, b: 1, c: -2E5, d: 1.5}", encoding="utf-8")
    assert read_yaml("config", "file") == {"a": 1e-4, "b": 1, "c": -2e5, "d": 1.5}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "result must be JSON, but 'file' isn't: .*line 1 column 2"),
        (b"[" * 100_000, "result must be JSON, but 'file' isn't: .*decoding a JSON array"),
        (b"\xff", "result must be text in UTF-8, but 'file' isn't: its byte 0 is 0xff"),
        (b"", "result must be JSON, but 'file' isn't: .*line 1 column 1"),
    ],
    ids=["cut off", "deep", "binary", "empty"],
)
def test_what_is_no_json_is_refused(content, fault):
    Path("file").write_bytes(content)
    assert re.search(fault, _refused(read_json, "result", "file"))


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "older format"])
def test_checkpoint_is_data(archive):
    content = {"state_dict": {"weight": torch.arange(6.0).reshape(2, 3)}, "epoch": 3}
    torch.save(content, "good.ckpt", _use_new_zipfile_serialization=archive)
    found = read_checkpoint("ckpt_path", "good.ckpt")
    assert found["epoch"] == 3
    torch.testing.assert_close(found["state_dict"], content["state_dict"], rtol=0, atol=0)
    torch.save({**content, "more": Payload()}, "bad.ckpt", _use_new_zipfile_serialization=archive)
    message = _refused(read_checkpoint, "ckpt_path", "bad.ckpt")
    assert "holds more than data" in message
    assert "--weights_only false" in message
    assert ("posix.system" in message) is archive
    with pytest.raises(UntrustedError):
        read_checkpoint("ckpt_path", "bad.ckpt")
    read_checkpoint("ckpt_path", "bad.ckpt", weights_only=False)
    assert Path("executed").exists()


def test_pickle_of_something_else_runs_nothing():
    Path("bad.ckpt").write_bytes(pickle.dumps(Payload()))
    assert "is not a Lightning checkpoint" in _refused(read_checkpoint, "ckpt_path", "bad.ckpt")


def test_cut_off_checkpoint_is_said_to_be_with_the_newest_that_can_be_read():
    torch.save({"state_dict": {}, "weight": torch.zeros(5000)}, "older.ckpt")
    whole = Path("older.ckpt").read_bytes()
    Path("newer.ckpt").write_bytes(whole)
    os.utime("older.ckpt", (1, 1))
    Path("newest.ckpt").write_bytes(whole[:5000])
    torch.save({"more": Payload()}, "hostile.ckpt")
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        Path("last.ckpt").write_bytes(whole[:length])
        message = _refused(read_checkpoint, "ckpt_path", "last.ckpt")
        assert "'last.ckpt' is cut off" in message
        assert message.endswith("the newest beside it that can be read is 'newer.ckpt'")
    for name in ("older.ckpt", "newer.ckpt", "hostile.ckpt"):
        Path(name).unlink()
    with pytest.raises(CutOffError, match="none beside it can be read"):
        read_checkpoint("ckpt_path", "last.ckpt")


def test_archive_that_becomes_larger_than_it_is_is_refused():
    with zipfile.ZipFile("bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + bytes(2**25))
    assert "claim more bytes than it has" in _refused(read_checkpoint, "ckpt_path", "bomb.ckpt")


NO_CHECKPOINT = "ckpt_path 'file' is not a Lightning checkpoint"


@pytest.mark.parametrize(
    ("content", "trusted"),
    [
        (b"text", f"{NO_CHECKPOINT}$"),
        (b"\x80", "ckpt_path 'file' can't be loaded: UnpicklingError: "),
        (b"\x80\x02.", "ckpt_path 'file' can't be loaded: UnpicklingError: "),
        (b"PK\3\4" + b"PK\5\6" + bytes(18), "ckpt_path 'file' can't be loaded: RuntimeError: "),
    ],
    ids=["text", "cut off pickle", "empty pickle", "empty archive"],
)
def test_what_is_no_checkpoint_is_refused(content, trusted):
    Path("file").write_bytes(content)
    assert _refused(read_checkpoint, "ckpt_path", "file") == NO_CHECKPOINT
    assert re.match(trusted, _refused(read_checkpoint, "ckpt_path", "file", weights_only=False))


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
