"""The memory of this process by itself, as Linux tells it.

Not `ru_maxrss` of `resource.getrusage`: a process that was started has its parent's peak in it, so that whatever takes less than the
script that starts it would be told as that script's.
"""

from __future__ import annotations

from pathlib import Path


def held() -> int:
    """Bytes in memory now."""
    return _status("VmRSS")


def peak() -> int:
    """Bytes in memory at most, since the process began or `forget_peak`."""
    return _status("VmHWM")


def forget_peak() -> None:
    """The peak is what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
