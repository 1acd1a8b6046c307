"""Peak memory, and bytes copied, of what runs inside."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_COPYING = {"copy_", "clone", "_to_copy", "cat", "stack", "index_copy_", "index_put_", "repeat", "_reshape_copy"}
"""Operators that do nothing but write bytes that exist elsewhere already."""


class CopyCounter(TorchDispatchMode):
    """Adds up the bytes that torch's copying operators write while inside. What other libraries copy is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _COPYING:
            # In-place operators write what they are given, the others what they return.
            written = {"copy_": 1, "index_copy_": 3, "index_put_": 2}.get(name)
            tensor = out if written is None else args[written]
            if isinstance(tensor, torch.Tensor):
                self.bytes += tensor.numel() * tensor.element_size()
        return out


def bytes_copied(call: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Bytes that one `call` copies: on a GPU between host and device (`to_device`, `to_host`), on a CPU within torch
    (`within`)."""
    if device.type != "cuda":
        with CopyCounter() as counter:
            call()
        return {"within": counter.bytes}
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        call()
        torch.cuda.synchronize(device)
    found = {"to_device": 0, "to_host": 0}
    for event in profiler.profiler.kineto_results.events():
        name = event.name()
        for key, mark in (("to_device", "HtoD"), ("to_host", "DtoH")):
            if name.startswith("Memcpy") and mark in name:
                found[key] += int(event.nbytes())
    return found


def in_use(device: torch.device) -> int:
    """Bytes in use now: of the device's allocator, or of this process where the device is the CPU."""
    return int(torch.cuda.memory_allocated(device)) if device.type == "cuda" else _status("VmRSS")


def start_peak(device: torch.device) -> int:
    """Begin to watch the peak, and return what is in use."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux: 5 resets the high-water mark of the resident set.
        Path("/proc/self/clear_refs").write_text("5")
    return in_use(device)


def peak_bytes(device: torch.device) -> int:
    """The peak since `start_peak`, bytes."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; memory can only be measured on Linux")
