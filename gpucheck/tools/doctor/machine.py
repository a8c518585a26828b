"""The machine as doctor sees it: every place it looks at, so that a test can put another there."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpucheck.host import gpu_state
from gpucheck.host.nvidia_smi import ask
from gpucheck.host.visible_gpus import VARIABLE, Gpu, Visible, parse_listing, visible
from gpucheck.library.library_option import Source, SourceKind


@dataclass
class Machine:
    """Where facts are read from; the defaults are the machine at hand."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    library: Source = Source(SourceKind.DEFAULT)
    proc: Path = Path("/proc")
    dev: Path = Path("/dev")
    sys: Path = Path("/sys")
    cgroup: Path = Path("/sys/fs/cgroup")
    statvfs: Callable[[str], os.statvfs_result] = os.statvfs
    rlimit: Callable[[int], tuple[int, int]] = resource.getrlimit
    cores: Callable[[], int] = lambda: len(os.sched_getaffinity(0))
    expect_gpus: int | None = None  # GPUs that a process must be able to use; None for no number
    smi_limit: float = gpu_state.LIMIT  # s that nvidia-smi may take
    deadline: float = 60.0  # s for one operation on a device
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _snapshot: gpu_state.Snapshot | None = field(default=None, repr=False)
    _visible: Visible | None = field(default=None, repr=False)

    def smi(self) -> gpu_state.Snapshot:
        """What nvidia-smi says; it is asked once, whoever comes first."""
        with self._lock:
            if self._snapshot is None:
                self._snapshot = gpu_state.snapshot(self.environ, self.smi_limit)
            return self._snapshot

    def visible(self) -> Visible:
        """The devices that CUDA_VISIBLE_DEVICES leaves; MIG instances are asked for where there may be some."""
        gpus, value = self.smi().gpus, self.environ.get(VARIABLE)
        with self._lock:
            if self._visible is None:
                listed = [Gpu(str(gpu.index), gpu.uuid, gpu.name) for gpu in gpus]
                if any(gpu.mig == "Enabled" for gpu in gpus) or "MIG-" in (value or ""):
                    answer = ask(["-L"], self.environ, self.smi_limit)
                    listed = [*parse_listing(answer.text).gpus] or listed
                self._visible = visible(listed, value)
            return self._visible

    def free(self, folder: Path) -> int | None:
        """Bytes free in a file system, or None where it cannot be asked."""
        try:
            space = self.statvfs(str(folder))
        except OSError:
            return None
        return space.f_bavail * space.f_frsize

    def size(self, folder: Path) -> int:
        """Bytes of a file system."""
        space = self.statvfs(str(folder))
        return space.f_blocks * space.f_frsize


def amount(size: float) -> str:
    """Bytes in words: ``"12.3 GiB"``."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
