"""Trials survive kills, and passwords are told nobody."""

import sys

import pytest

from lightning_reg.search.trials.storage import Driver, masked, open_storage, silenced, stored
from lightning_reg.settings import SettingError
from tests.search.helpers import make_trials
from tests.search.test_trials import ask_and_tell


def test_half_a_line_that_a_kill_left_is_cut_off(tmp_path):
    ask_and_tell(make_trials(tmp_path), 6)
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    trials = make_trials(tmp_path)
    ask_and_tell(trials, 12)
    assert [trial.position for trial in trials.tried] == list(range(12))


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\xff", b"\0" * 4096, b"hello\n", b"[1]\n", b"5\n", b'{"op_code":99}\n', b'{"a":1}\n', b'{"a":"\xff"}\n'],
)
def test_what_is_no_journal_is_refused_and_stays_as_it_is(tmp_path, content):
    (tmp_path / "journal.log").write_bytes(content)
    with pytest.raises(SettingError, match=r"journal.log of '.*' can't be read .*; give another --output"):
        open_storage(tmp_path)
    assert (tmp_path / "journal.log").read_bytes() == content


def test_a_folder_is_no_journal(tmp_path):
    (tmp_path / "journal.log").mkdir()
    with pytest.raises(SettingError, match=r"journal must be a regular file, but '.*journal.log' is a folder"):
        open_storage(tmp_path)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_in_memory_is_refused(tmp_path, url):
    with pytest.raises(SettingError, match="storage must be a database that stays, in a file or on a server, but"):
        open_storage(tmp_path, url)


def test_a_driver_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(SettingError, match=r"mysql://a:\*\*\*@h/x can't: it needs .* MySQLdb, which isn't installed"):
        open_storage(tmp_path, "mysql://a:b@h/x")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@127.0.0.1:1/db",
        "postgresql+psycopg://me:p%40ss%2Fw@127.0.0.1:1/db",
        "mysql://me:s3cret@nowhere.invalid/db",
        "nonsense://me:s3cret@x",
        "sqlite:////nowhere/at/all.db",
    ],
)
def test_a_storage_out_of_reach_is_told_without_its_password(tmp_path, url):
    with pytest.raises(SettingError, match="storage must be a database that can be reached, but") as caught, silenced():
        open_storage(tmp_path, url)
    for secret in ("s3cret", "p%40ss", "p@ss"):
        assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_password_is_masked_wherever_it_stands():
    url = "postgresql://me:p%40ss@host/db"
    assert masked(f"could not connect to {url}", url) == "could not connect to postgresql://me:***@host/db"
    assert masked("authentication failed for p@ss", url) == "authentication failed for ***"
    assert masked("No module named 'MySQLdb'", "mysql://a:b@h/x") == "No module named 'MySQLdb'"
    assert masked("b is wrong in password='b'", "mysql://a:b@h/x") == "*** is wrong in password='***'"
    assert masked("nothing", None) == "nothing"
    assert masked("sqlite:///a.db", "sqlite:///a.db") == "sqlite:///a.db"


def test_a_database_can_be_shared(tmp_path):
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    with silenced(), stored(tmp_path, url) as opened:
        assert opened.get_all_studies() == []


def test_a_driver_says_whether_it_lives(tmp_path):
    one, other = Driver(tmp_path), Driver(tmp_path)
    with one.alive():
        assert other.is_dead(one.id) is False
        assert one.is_dead(one.id) is False
    assert other.is_dead(one.id) is None  # it has ended in order
    path = tmp_path / "drivers" / f"{one.id}.lock"
    path.touch()  # what a kill leaves behind: a lock file that nobody holds
    assert other.is_dead(one.id) is True
    assert not path.exists()
