"""The machine that a study or a benchmark runs on."""

import platform
from pathlib import Path

__all__ = ["processor"]


def processor() -> str:
    """Returns the name of the processor, as reported by the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
