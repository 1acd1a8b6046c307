"""A stand-in for what TensorRT does on a GPU: engines that are loaded and run. It records the calls that it gets and
answers as documented; it computes nothing, so it shows their order and arguments and no more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class FakeTensorRT:
    """`tensors` holds each tensor's shape (-1 for a free size) and type; `profiles` the sizes of the free inputs.
    `broken` makes one step fail as TensorRT reports it: load, context, profile, shape, address or enqueue."""

    __version__ = "1.7.1"

    def __init__(
        self, tensors: dict[str, tuple[tuple[int, ...], str]], profiles: list[dict[str, Any]], broken: str = ""
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.tensors, self.profiles, self.broken = tensors, profiles, broken
        self.ILogger = type("ILogger", (), {"ERROR": 1, "__init__": lambda self: None})
        self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
        self.loggers: list[Any] = []
        self.Runtime = self._runtime

    def _runtime(self, logger: Any) -> Any:
        self.loggers.append(logger)
        return SimpleNamespace(deserialize_cuda_engine=self._engine)

    def _note(self, *what: Any) -> bool:
        self.calls.append(what)
        if self.broken == what[0]:
            self.loggers[0].log(1, f"no {what[0]} today\n")
            self.loggers[0].log(2, "a warning")
        return self.broken != what[0]

    def _engine(self, plan: bytes) -> Any:
        if not self._note("load", bytes(plan)):
            return None
        names = list(self.tensors)
        cache = SimpleNamespace(
            deserialize=lambda blob: self._note("read cache", bytes(blob)), serialize=lambda: b"compiled"
        )
        config = SimpleNamespace(
            set_execution_context_allocation_strategy=lambda how: self._note("memory", how),
            create_runtime_cache=lambda: cache,
            set_runtime_cache=lambda given: self._note("cache", given is cache),
        )
        return SimpleNamespace(
            num_io_tensors=len(names),
            num_optimization_profiles=len(self.profiles),
            device_memory_size_v2=1000,
            get_tensor_name=names.__getitem__,
            get_tensor_shape=lambda name: self.tensors[name][0],
            get_tensor_dtype=lambda name: f"DataType.{self.tensors[name][1]}",
            get_tensor_profile_shape=lambda name, index: [self.profiles[index][name]] * 3,
            create_runtime_config=lambda: config,
            create_execution_context=lambda how: self._context() if self._note("context", how) else None,
        )

    def _context(self) -> Any:
        return SimpleNamespace(
            set_device_memory=lambda address, size: self._note("device memory", address, size),
            set_optimization_profile_async=lambda index, stream: self._note("profile", index, stream),
            set_input_shape=lambda name, shape: self._note("shape", name, shape),
            set_tensor_address=lambda name, address: self._note("address", name, address),
            execute_async_v3=lambda stream: self._note("enqueue", stream),
        )
