"""How the doctor looks at a machine. Tests put another machine in its place."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_WRITE_MB = 64


class Machine:
    """The machine that this runs on. No method raises for what is not there."""

    def architecture(self) -> str:
        """Of the processor, "x86_64" or "aarch64"."""
        return platform.machine()

    def run(self, *command: str, timeout_s: float = 10.0) -> tuple[int, str]:
        """Run `command`; returns its status (127 when it is not installed) and what it wrote."""
        if shutil.which(command[0]) is None:
            return 127, f"{command[0]}: not installed"
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
        except (OSError, subprocess.TimeoutExpired) as error:
            return 1, str(error)
        return done.returncode, done.stdout + done.stderr

    def read(self, path: str) -> str:
        """Text of a file; empty when it cannot be read."""
        try:
            return Path(path).read_text(errors="replace").strip()
        except OSError:
            return ""

    def listed(self, folder: str, pattern: str = "*") -> list[str]:
        """Paths in `folder` that match `pattern`, sorted."""
        return sorted(map(str, Path(folder).glob(pattern)))

    def exists(self, path: str) -> bool:
        """Tell whether the path is there."""
        return Path(path).exists()

    def may_use(self, path: str) -> bool:
        """Tell whether this user may read and write the path."""
        return os.access(path, os.R_OK | os.W_OK)

    def version(self, package: str) -> str:
        """Version of an installed Python package; empty when it is not installed."""
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def origin(self, module: str) -> str:
        """File that `import module` would load; empty when there is none."""
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return ""
        return spec.origin or "" if spec is not None else ""

    def environment(self, name: str) -> str:
        """Environment variable; empty when it is not set."""
        return os.environ.get(name, "")

    def realtime_limit(self) -> int:
        """Highest real-time priority that this user's processes may take."""
        import resource

        limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[1] if hasattr(resource, "RLIMIT_RTPRIO") else 0
        return 99 if limit == resource.RLIM_INFINITY or os.geteuid() == 0 else int(limit)

    def free_gb(self, folder: str) -> float:
        """Free space, GB, of the disk of `folder`, or of its nearest parent that is there."""
        return shutil.disk_usage(_present(Path(folder))).free / 1e9

    def write_mb_s(self, folder: str) -> float:
        """Speed, MB/s, of writing 64 MB to the disk of `folder`; 0 when it cannot be written to."""
        block = os.urandom(1 << 20)
        try:
            with tempfile.TemporaryFile(dir=_present(Path(folder))) as file:
                begun = time.monotonic()
                for _ in range(_WRITE_MB):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
                return _WRITE_MB / (time.monotonic() - begun)
        except OSError:
            return 0.0

    def torch_cuda(self) -> tuple[bool, str]:
        """Whether torch sees a GPU, and its name or the reason why not."""
        code = (
            "import torch; ok = torch.cuda.is_available(); "
            "print(int(ok), torch.cuda.get_device_name(0) if ok else f'torch {torch.__version__} sees no GPU')"
        )
        status, out = self.run(sys.executable, "-c", code, timeout_s=120.0)
        flag, _, rest = (out.strip().splitlines() or ["0"])[-1].partition(" ")
        return status == 0 and flag == "1", rest if status == 0 else "torch does not import"


def _present(folder: Path) -> Path:
    folder = folder.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    return folder
