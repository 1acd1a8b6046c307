"""Starts the nodes of `specs.py` as processes, watches them, and leaves none behind. Knows nothing of rclpy.

Every node is a process group of its own, so that Ctrl-C reaches this process only and the nodes end in order
(`ending.py`): SIGTERM, once more, then SIGKILL, each with a deadline. A node that has just been started ends by the
first at once: Python leaves SIGTERM alone, where SIGINT would interrupt an import with a traceback. If this process is
killed, the kernel sends the nodes SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from molmoact2_ros.bringup.ending import DRIVERS, LAUNCHER, PARK_S, RESTART_DELAY_S, RESTARTS, OnEnd, stage_of
from molmoact2_ros.bringup.specs import NodeSpec, fastdds_profile

TERMINATE_S, AGAIN_S, KILL_S = 15.0, 4.0, 4.0
"""Deadlines of the three signals; closing a video or a bag takes a few seconds on a loaded machine, and a driver has
`PARK_S` for the first."""

_RECORD = re.compile(r"^(?:\[[^\]\n]*\] ?)+: |^(?=cannot )", re.MULTILINE)
"""Where a record of a node's log begins."""
_REFUSALS = ("cannot configure: ", "cannot activate: ", "cannot start: ")
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1
_DISCOVERY_PORTS = (0, 10, 12, 14, 16)
"""Of a domain: multicast, and the first four participants."""

_RENDERERS = {
    "egl": (("libEGL.so.1",), ("libOpenGL.so.0", "libGL.so.1", "libGLESv2.so.2")),
    "osmesa": (("libOSMesa.so.8",),),
}
"""For each of MuJoCo's renderers the libraries it needs: one of every group."""
_LIBC = ctypes.CDLL(None, use_errno=True)


class NodeEndedError(RuntimeError):
    """A node ended by itself that should not have; the message says why it could not start, or ends with the last
    lines of its log."""


@dataclass
class Process:
    """One running node."""

    spec: NodeSpec
    popen: subprocess.Popen[str]
    log: Path
    reported: bool = field(default=False)
    restarts: int = field(default=0)
    due_s: float | None = field(default=None)
    """When it is started again, on the monotonic clock."""

    def tail(self, lines: int = 12) -> str:
        """Last lines of the node's log, indented."""
        found = self.log.read_text(errors="replace").splitlines()[-lines:] if self.log.is_file() else []
        return "\n".join(f"    {line}" for line in found) or "    (it wrote nothing)"

    def refusal(self) -> str:
        """Why the node could not start, as it said itself; empty where it has not said so last."""
        found = self.log.read_text(errors="replace") if self.log.is_file() else ""
        records = _RECORD.split(found)
        said = [record.strip() for record in records if record.startswith(_REFUSALS)]
        return said[-1].removeprefix("cannot configure: ") if said else ""


class ProcessGroup:
    """The processes of one session. Use as a context manager: at its end every process is gone.

    Args:
        specs: the nodes to start.
        log_dir: folder for `<node>.log`, made anew for each session's nodes.
        environment: environment of the nodes, as `node_environment` returns it.
        piped: names of nodes whose standard output the caller reads; the others' goes to their log.
        fed: names of nodes whose standard input the caller writes.
    """

    def __init__(
        self,
        specs: Iterable[NodeSpec],
        log_dir: Path,
        environment: Mapping[str, str],
        piped: Iterable[str] = (),
        fed: Iterable[str] = (),
    ) -> None:
        self._specs = tuple(specs)
        self._log_dir = log_dir
        self._environment = dict(environment)
        self._piped, self._fed = frozenset(piped), frozenset(fed)
        self.processes: dict[str, Process] = {}

    def __enter__(self) -> ProcessGroup:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        try:
            for spec in self._specs:
                self.start(spec)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, spec: NodeSpec) -> Process:
        """Start one node.

        Raises:
            ValueError: a node of this name runs already.
        """
        if spec.name in self.processes:
            raise ValueError(f"node {spec.name!r} runs already")
        log = self._log_dir / f"{spec.name}.log"
        self.processes[spec.name] = Process(spec, self._open(spec, log, "w"), log)
        return self.processes[spec.name]

    def _open(self, spec: NodeSpec, log: Path, mode: str) -> subprocess.Popen[str]:
        parent = os.getpid()

        def die_with_parent() -> None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(1)

        with log.open(mode) as out:
            return subprocess.Popen(
                [sys.executable, "-m", spec.module, *spec.ros_arguments()],
                stdin=subprocess.PIPE if spec.name in self._fed else subprocess.DEVNULL,
                stdout=subprocess.PIPE if spec.name in self._piped else out,
                stderr=out,
                env={**self._environment, LAUNCHER: str(parent), **spec.environment},
                process_group=0,
                preexec_fn=die_with_parent,
                text=True,
            )

    def check(self, expected: Iterable[str] = ()) -> list[str]:
        """Look for nodes that ended, start those again that are to be, and return one line for each newly ended node
        that does not end the run.

        Args:
            expected: nodes that may end by themselves, such as the one that drives the episodes.

        Raises:
            NodeEndedError: a node ended without which the run cannot go on.
        """
        lines = []
        for name, process in self.processes.items():
            if process.due_s is not None and time.monotonic() >= process.due_s:
                process.due_s = None
                process.popen = self._open(process.spec, process.log, "a")
                process.reported = False
            status = process.popen.poll()
            if status is None or process.reported or name in expected:
                continue
            process.reported = True
            refusal = process.refusal() if status == 1 and not process.restarts else ""
            if refusal and process.spec.on_end is not OnEnd.REPORTED:  # it would say so again
                raise NodeEndedError(f"{name}: {refusal} (its log: {process.log})")
            what = f"node {name!r} {_ending(status)}"
            tail = f"its log {process.log} ends with\n{process.tail()}"
            if process.spec.on_end is OnEnd.ENDS_RUN:
                raise NodeEndedError(f"{what}; {tail}")
            if process.spec.on_end is OnEnd.RESTARTED and process.restarts < RESTARTS:
                process.restarts += 1
                process.due_s = time.monotonic() + RESTART_DELAY_S
                what += f", and is started again ({process.restarts} of {RESTARTS})"
            lines.append(f"{what}; {tail}")
        return lines

    def stop(self) -> None:
        """End every process, in the order of `ending.stage_of`: SIGTERM twice, SIGKILL. Safe to call twice.

        A Ctrl-C meanwhile goes to SIGKILL for all but the executor and the driver: an arm is brought to rest, and
        parked, before it is let go.
        """
        hurry = False

        def hasten(*_: object) -> None:
            nonlocal hurry
            hurry = True

        replaced: dict[signal.Signals, object] = {}
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                replaced[number] = signal.signal(number, hasten)
        try:
            for process in self.processes.values():
                process.due_s = None
            stages: dict[int, list[Process]] = {}
            for name, process in self.processes.items():
                stages.setdefault(stage_of(name), []).append(process)
            for _, processes in sorted(stages.items()):
                names = {process.spec.name for process in processes}
                limit_s = PARK_S if names & set(DRIVERS) else TERMINATE_S
                _end(processes, limit_s, _never if names & {"executor", *DRIVERS} else lambda: hurry)
        finally:
            for number, handler in replaced.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            for process in self.processes.values():
                for pipe in (process.popen.stdin, process.popen.stdout):
                    if pipe is not None:
                        with contextlib.suppress(BrokenPipeError):
                            pipe.close()


def _never() -> bool:
    return False


def _end(processes: list[Process], limit_s: float, hurry: Callable[[], bool]) -> None:
    def running() -> list[Process]:
        return [process for process in processes if process.popen.poll() is None]

    for seconds in (limit_s, AGAIN_S):
        # To the node only: its helpers (a video encoder) end when the node has closed their input.
        for process in running():
            process.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while running() and time.monotonic() < deadline and not hurry():
            time.sleep(_POLL_S)
    for process in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.popen.pid, signal.SIGKILL)
    deadline = time.monotonic() + KILL_S
    while running() and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    return f"was ended by {signal.Signals(-status).name}"


def node_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment that nodes need, from `base` (default: this process's).

    What the user has set stays, but for the paths of another ROS when this Python carries ROS of its own (the wheels of
    the package index): its numpy and its libraries clash with the pinned ones.
    """
    env = dict(os.environ if base is None else base)
    if find_spec("ros_wheels_bootstrapper") is not None:
        prefix = Path(sys.prefix)
        libraries = [p for p in env.get("LD_LIBRARY_PATH", "").split(os.pathsep) if p]
        kept = [p for p in libraries if Path(p).is_relative_to(prefix) or not (Path(p) / "librcl.so").exists()]
        env["LD_LIBRARY_PATH"] = os.pathsep.join(kept)
        if str(prefix / "lib") not in kept:  # not set up yet, or by another environment: the node does it again
            env.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
        own = [p for p in env.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if _is_overlay(p)]
        env["AMENT_PREFIX_PATH"] = os.pathsep.join([*own, str(prefix)])
    env.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(fastdds_profile()))
    env.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    if "ROS_DOMAIN_ID" not in env:
        env["ROS_DOMAIN_ID"] = str(free_domain_id())
    if not renderer():
        env |= _unpacked_graphics(env)
    env.setdefault("MUJOCO_GL", renderer() or "egl")
    env.setdefault("RCUTILS_COLORIZED_OUTPUT", "0")
    return env


def graphics_installed() -> bool:
    """Tell whether the simulated cameras can render: by the system's libraries or by those that set-up unpacked."""
    return bool(renderer()) or (Path(sys.prefix) / "graphics" / "usr").is_dir()


def _unpacked_graphics(env: Mapping[str, str]) -> dict[str, str]:
    """Variables that lead to the Mesa that `tools/graphics.sh` unpacks where there is no libEGL."""
    root = Path(sys.prefix) / "graphics" / "usr"
    if not root.is_dir():
        return {}
    libraries = next(root.glob("lib/*-linux-gnu"))
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(libraries), env.get("LD_LIBRARY_PATH", "")])),
        "LIBGL_DRIVERS_PATH": str(libraries / "dri"),
        "GBM_BACKENDS_PATH": str(libraries / "gbm"),
        "__EGL_VENDOR_LIBRARY_DIRS": str(root / "share/glvnd/egl_vendor.d"),
    }


def renderer() -> str:
    """Return what MuJoCo can render with on this machine without a display: `egl`, else `osmesa`, else nothing."""

    def loads(library: str) -> bool:
        try:
            ctypes.CDLL(library)
        except OSError:
            return False
        return True

    for name, groups in _RENDERERS.items():
        if all(any(map(loads, group)) for group in groups):
            return name
    return ""


def _is_overlay(prefix: str) -> bool:
    """Tell whether `prefix` is a workspace on top of this ROS, and not another ROS."""
    return bool(prefix) and not (Path(prefix) / "lib" / "librcl.so").exists() and Path(prefix) != Path(sys.prefix)


def left_behind(folder: Path = Path("/dev/shm")) -> set[int]:
    """Domains whose ports have shared memory of Fast DDS, of a process that runs or of one that was killed."""
    ports = (entry.name.removeprefix("fastrtps_port") for entry in folder.glob("fastrtps_port*"))
    return {(int(port) - 7400) // 250 for port in ports if port.isdigit()}


def free_domain_id() -> int:
    """Return a ROS domain id that nobody on this machine uses, so that two sessions never hear each other.

    A domain in use has somebody bound to its discovery port, 7400 + 250 * id. Above 101 these ports are in the range
    that Linux gives to outgoing connections. Domains in which a killed process has left shared memory behind come
    last: what is sent to such a port may never arrive.
    """
    candidates = list(range(1, 102))
    random.SystemRandom().shuffle(candidates)
    left = left_behind()
    for domain in sorted(candidates, key=lambda domain: domain in left):
        with contextlib.ExitStack() as stack:
            try:
                for offset in _DISCOVERY_PORTS:
                    probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    probe.bind(("0.0.0.0", 7400 + 250 * domain + offset))
            except OSError:
                continue
            return domain
    raise RuntimeError("every ROS domain id from 1 to 101 is in use on this machine; set ROS_DOMAIN_ID by hand")
