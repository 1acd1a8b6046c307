"""CUDA graphs over whole stages, and compiled torch: runners that fall back to plain torch and say why.

A stage is some thousand kernel launches; replaying a captured graph is one. Buffers are fixed (`buckets.py`), so a
graph is captured once. Its first replay is held against the plain run: a capture that computes something else is not
used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from molmoact2_ros.policy.backends.buckets import Buffers, EagerRunner, Runner
from molmoact2_ros.policy.backends.graphs import Graph

WARM_UPS = 3
"""Runs before a capture: libraries choose their kernels and allocate in them."""


class CapturedRunner:
    """Captures each graph's run by `inner` and replays it.

    Args:
        inner: what is captured, and what runs where capturing fails.
        log: takes one line, with the reason, when it does.
    """

    def __init__(self, inner: Runner, device: torch.device, log: Callable[[str], None]) -> None:
        self._inner, self._device, self._log = inner, device, log
        self._captured: dict[str, Any] = {}
        self._pool: Any = None
        self.reason = _no_graphs(device)
        if self.reason:
            log(f"no CUDA graphs: {self.reason}; stages are launched one kernel at a time")

    def run(self, graph: Graph, buffers: Buffers) -> None:
        """See `Runner`."""
        if self.reason:
            self._inner.run(graph, buffers)
            return
        captured = self._captured.get(graph.key)
        if captured is None:
            try:
                captured = self._captured[graph.key] = self._capture(graph, buffers)
            except Exception as error:
                # Whatever went wrong, the plain run is right; what is captured already stays in use no longer either.
                self.reason = f"capturing {graph.name} failed ({first_line(error)})"
                self._log(f"no CUDA graphs: {self.reason}; stages are launched one kernel at a time")
                self._captured.clear()
                self._inner.run(graph, buffers)
                return
        captured.replay()

    def _capture(self, graph: Graph, buffers: Buffers) -> Any:
        current = torch.cuda.current_stream(self._device)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._inner.run(graph, buffers)
        current.wait_stream(side)
        expected = {port.name: buffers[port.name].clone() for port in graph.outputs}
        made = torch.cuda.CUDAGraph()
        with torch.cuda.graph(made, pool=self._pool, stream=side):
            self._inner.run(graph, buffers)
        self._pool = self._pool or made.pool()
        for port in graph.outputs:
            buffers[port.name].zero_()
        made.replay()
        for name, tensor in expected.items():
            if not torch.allclose(buffers[name].float(), tensor.float(), rtol=1e-2, atol=1e-2):
                raise RuntimeError(f"the replay gives another {name} than the plain run")
        return made


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, if anything."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no message')}"


def _no_graphs(device: torch.device) -> str:
    """Why there are no CUDA graphs on this device; empty where there are."""
    if device.type != "cuda":
        return f"the device is {device}"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return ""


class CompiledRunner:
    """`torch.compile` over each graph's module; a graph that does not compile runs eagerly, and the log says why."""

    def __init__(self, log: Callable[[str], None], backend: str = "inductor") -> None:
        self._log, self._backend = log, backend
        self._eager = EagerRunner()
        self._compiled: dict[str, Graph] = {}

    def run(self, graph: Graph, buffers: Buffers) -> None:
        """See `Runner`."""
        known = self._compiled.get(graph.key)
        if known is None:
            # Sizes are fixed: one compilation a graph, and none later.
            module: Any = torch.compile(graph.module, backend=self._backend, dynamic=False, fullgraph=True)
            known = self._compiled[graph.key] = Graph(graph.name, module, graph.inputs, graph.outputs)
        if known is graph:
            self._eager.run(graph, buffers)
            return
        try:
            self._eager.run(known, buffers)
        except Exception as error:
            self._log(f"{graph.name} is not compiled ({first_line(error)}); it runs eagerly")
            self._compiled[graph.key] = graph
            self._eager.run(graph, buffers)
