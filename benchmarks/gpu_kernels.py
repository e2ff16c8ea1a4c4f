"""Where a GPU's time goes, kernel by kernel: `gpu_entries --kernels`. PyTorch's profiler sees all kernels of the process, ours and
those of recordings too, and waits for none of them, as `cdad profile` does for nodes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUNS = 3
WORK = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of a trace


def trace_of(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The events of RUNS runs, which were warm before."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(RUNS):
            run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def lines(events: list[dict[str, Any]], most: int, runs: int = RUNS) -> list[str]:
    """What a run takes of the device in all, and by kernel, and the longest times in which it does nothing."""
    work = sorted((e["ts"], e["dur"], e["name"]) for e in events if e.get("cat") in WORK)
    if not work:
        return ["nothing ran on a GPU"]
    total: dict[str, tuple[int, float]] = {}
    for _, duration, name in work:
        count, so_far = total.get(name, (0, 0.0))
        total[name] = count + 1, so_far + duration
    told = [f"{sum(ms for _, ms in total.values()) / runs / 1e3:.2f} ms of kernels, {len(work) / runs:.0f} launches"]
    for name, (count, us) in sorted(total.items(), key=lambda item: -item[1][1])[:most]:
        told.append(f"{us / runs / 1e3:9.3f} ms {count / runs:7.1f}  {name[:120]}")
    gaps, end, last = [], work[0][0], ""
    for start, duration, name in work:
        if start > end:
            gaps.append((start - end, last, name))
        if start + duration > end:
            end, last = start + duration, name
    told.append(f"{sum(us for us, *_ in gaps) / runs / 1e3:.2f} ms between them")
    told += [f"{us / 1e3:9.3f} ms between {a[:60]} and {b[:60]}" for us, a, b in sorted(gaps, reverse=True)[: most // 4]]
    return told
