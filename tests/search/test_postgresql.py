"""Several drivers of one search share a database: a real server, where there is one."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from lightning_reg.search import search
from lightning_reg.search.trials import storage
from lightning_reg.search.trials.storage import Driver, silenced, stored
from lightning_reg.search.trials.trials import Trials
from lightning_reg.settings import SettingError
from tests.search.helpers import first_of, make_space
from tests.search.test_python import SPACE, make
from tests.search.test_trials import ask_and_tell

PASSWORD = "s3cret/w0rd"


def _programs():
    """Returns the folder of the server's programs; None where there is no server."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


def _as_its_own_user():
    """A server refuses to be root's."""
    if os.getuid() != 0:
        return {}
    with contextlib.suppress(KeyError):
        return {"user": pwd.getpwnam("postgres").pw_uid, "group": pwd.getpwnam("postgres").pw_gid}
    return None


pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(
    _programs() is None or _as_its_own_user() is None, reason="there is no PostgreSQL server"
)


@pytest.fixture(scope="module")
def server():
    """The address of a server that ends with the tests."""
    programs, user = _programs(), _as_its_own_user()
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if user:
            os.chown(folder, user["user"], user["group"])
            os.chown(folder / "password", user["user"], user["group"])
        initialized = [programs / "initdb", "-D", folder / "data", "-U", "me", "--auth=scram-sha-256"]
        made = subprocess.run(
            [*initialized, f"--pwfile={folder / 'password'}", "--no-sync"],
            capture_output=True,
            cwd=folder,
            check=False,
            **user,
        )
        assert made.returncode == 0, made.stderr
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        process = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", "-p", str(port), *settings],
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **user,
        )
        try:
            url = f"postgresql+psycopg://me:{PASSWORD.replace('/', '%2F')}@127.0.0.1:{port}/postgres"
            _wait_for(url.replace("+psycopg", ""), process)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # a shutdown that waits for no client
            process.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(address, process):
    """Waits until somebody can log in: the server answers before it lets anybody."""
    import psycopg

    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert process.poll() is None, "the server has ended"
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(address, connect_timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError("the server lets nobody log in")


def drive(opened, driver):
    space = make_space()
    return Trials(opened, "hearts", space, first_of(space), prefers_less=False, seed=0, driver=driver)


def test_drivers_share_one_search_and_tell_nobody_the_password(server, tmp_path, capsys):
    settings = {"space": SPACE, "metric": "val_loss", "confirm": 0, "quiet": True, "storage": server}
    one = search(make, trials=4, output=tmp_path / "one" / "mine", **settings)
    other = search(make, trials=7, output=tmp_path / "other" / "mine", **settings)
    assert len(one.outcome.tried) == 4
    assert len(other.outcome.tried) == 7
    assert other.outcome.tried[:4] == one.outcome.tried
    shown = capsys.readouterr()
    for secret in (PASSWORD, PASSWORD.replace("/", "%2F")):
        assert secret not in shown.out + shown.err
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def test_a_wrong_password_is_told_without_it(server, tmp_path):
    wrong = server.replace("s3cret", "gu3ss")
    with pytest.raises(SettingError, match=r"can't: .*password authentication failed") as caught:
        search(make, space=SPACE, metric="val_loss", storage=wrong, output=tmp_path / "s")
    assert "gu3ss" not in str(caught.value)
    assert not (tmp_path / "s").exists()


def test_orphans_of_a_driver_whose_heart_has_stopped_are_adopted_and_no_others(server, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "_HEARTBEAT", 1)
    monkeypatch.setattr(storage, "_GRACE", 2)
    with silenced(), stored(tmp_path, server) as one, stored(tmp_path, server) as other:
        dead, living = drive(one, Driver(tmp_path / "dead")), drive(other, Driver(tmp_path / "living"))
        lost, kept = dead.ask(), living.ask()
        dead.heartbeat([lost])
        end = time.monotonic() + 30
        while time.monotonic() < end and not living.adopt_orphans():
            living.heartbeat([kept])
            time.sleep(0.5)
        again = living.ask()
        assert (again.position, again.name, again.cocktail) == (lost.position, lost.name, lost.cocktail)
        assert living.begun == 2  # its own and what it has adopted
        ask_and_tell(living, 5)
