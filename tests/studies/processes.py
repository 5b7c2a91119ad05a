"""Tasks for processes that import nothing large, and what tells of processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def hold(folder):
    """Notes this process and one that it starts, and ends when a file says so."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    part = Path(folder) / f".{os.getpid()}"
    part.write_text(f"{os.getpid()} {child.pid}")
    part.rename(Path(folder) / f"holding-{os.getpid()}")
    wait_for((Path(folder) / "let go").exists)
    child.kill()
    child.wait()
    return os.getpid()


def die(folder, times):
    """Ends its process as the kernel would that runs out of memory, the first times that it is done."""
    attempt = len(list(Path(folder).iterdir()))
    (Path(folder) / str(attempt)).touch()
    if attempt < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def held(folder, count):
    """Waits until so many tasks are being held, and returns their processes' numbers and their children's."""
    wait_for(lambda: len(list(Path(folder).glob("holding-*"))) >= count)
    return [tuple(map(int, path.read_text().split())) for path in sorted(Path(folder).glob("holding-*"))]


def is_alive(pid):
    """Whether a process runs; one that has ended and that nobody asks for its status doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def python(code, **settings):
    """Starts a process that ends with what it starts, whoever is killed."""
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], start_new_session=True, **settings
    )
