"""Which of NVIDIA's two TensorRT libraries a GPU takes, where it is to be had, and how it is loaded.

TensorRT for RTX builds engines for several GPUs on a machine that has none, and compiles them on the robot's in
seconds; it knows GeForce, RTX and Ada workstation cards only. The others take TensorRT, which builds on the GPU itself.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from molmoact2_ros.policy.options import BackendMissingError

Capability = tuple[int, int]
"""Of a GPU: (8, 9) is what NVIDIA calls 8.9 or sm_89."""

RTX_CAPABILITIES: tuple[Capability, ...] = ((8, 6), (8, 9), (12, 0), (12, 1))
"""GPUs whose engines TensorRT for RTX builds ahead of time."""
LEAST_CAPABILITY: Capability = (8, 0)
"""Older GPUs have no bfloat16, in which the text model computes."""
JETSON_CAPABILITIES: tuple[Capability, ...] = ((8, 7), (10, 1), (11, 0))
"""Orin and Thor (whose number CUDA 13 changed): their libraries come with JetPack."""
LEAST_VERSION = (10, 13)
"""Of TensorRT; every name that this package calls is there from then on."""


@dataclass(frozen=True)
class Library:
    """One of the two.

    Attributes:
        name: as NVIDIA says it. modules: Python modules that may hold it, best first. install: what to type.
        ahead: whether it builds without a GPU.
        packages: distributions whose version is the library's.
    """

    name: str
    modules: tuple[str, ...]
    install: str
    ahead: bool
    packages: tuple[str, ...]


RTX = Library(
    "TensorRT for RTX",
    ("tensorrt_rtx_bindings", "tensorrt_rtx"),
    "pip install tensorrt_rtx_cu13_bindings==1.7.1.116 tensorrt_rtx_cu13_libs==1.7.1.116",
    True,
    ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx"),
)


def library_of(capability: Capability, cuda: str = "13", arm: bool = False) -> Library:
    """The library for a GPU.

    Args:
        cuda: version of the CUDA that torch was built with, "12.8" or "13". arm: the processor is an ARM.

    Raises:
        BackendMissingError: the GPU is too old for any.
    """
    if capability < LEAST_CAPABILITY:
        raise BackendMissingError(
            f"backend tensorrt needs a GPU with bfloat16, of compute capability {named(LEAST_CAPABILITY)} or more; "
            f"this one has {named(capability)}; use backend torch with dtype float16"
        )
    if capability in RTX_CAPABILITIES:
        return RTX
    if arm and capability in JETSON_CAPABILITIES:
        install = "sudo apt install python3-libnvinfer (of JetPack)"
    else:
        install = f"pip install 'tensorrt-cu{cuda.partition('.')[0] or '13'}>=10.13'"
    packages = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
    return Library("TensorRT", ("tensorrt",), install, False, packages)


def named(capability: Capability) -> str:
    """As NVIDIA writes it, "8.9"."""
    return f"{capability[0]}.{capability[1]}"


def parse_capabilities(words: Sequence[str]) -> tuple[Capability, ...]:
    """Capabilities from words such as "sm89", "8.9" or "sm_120", ascending and each once.

    Raises:
        ValueError: a word is none, or a GPU whose engines cannot be built ahead.
    """
    found = set()
    for word in words:
        match = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", word.strip().lower())
        capability = (int(match[1]), int(match[2])) if match else None
        if capability not in RTX_CAPABILITIES:
            known = ", ".join(f"sm{major}{minor}" for major, minor in RTX_CAPABILITIES)
            raise ValueError(
                f"engines are built ahead for {known}, not for {word!r}; for another GPU compile on its machine"
            )
        found.add(capability)
    return tuple(sorted(found))


def tensorrt_module(library: Library) -> Any:
    """The bindings of `library`.

    Raises:
        BackendMissingError: they are not installed, too old, or their libraries cannot be loaded.
    """
    reasons = []
    for name in library.modules:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:
            reasons.append(str(error))
            continue
        if not hasattr(module, "Builder"):
            raise BackendMissingError(f"the installed {name} cannot build engines (a lean runtime?); {library.install}")
        version = tuple(int(part) for part in re.findall(r"\d+", module.__version__)[:2])
        if not library.ahead and version < LEAST_VERSION:
            raise BackendMissingError(
                f"{name} {module.__version__} is too old, {'.'.join(map(str, LEAST_VERSION))} or later is needed; "
                f"{library.install}"
            )
        return module
    raise BackendMissingError(f"{library.name} is not installed ({'; '.join(reasons)}); {library.install}")
