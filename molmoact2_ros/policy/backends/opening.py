"""Which backend, and its stages: what a name such as "onnxruntime" or "auto" means on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from molmoact2_ros.policy.backends import amx
from molmoact2_ros.policy.backends.bucket_sizes import buckets_for
from molmoact2_ros.policy.backends.buckets import EagerRunner, Runner, bucketed_stages
from molmoact2_ros.policy.backends.build import exported_all, free_graphs, image_sample, is_exported
from molmoact2_ros.policy.backends.cache import EngineCache, default_root
from molmoact2_ros.policy.backends.captured import CapturedRunner, CompiledRunner
from molmoact2_ros.policy.backends.tensorrt_build import tensorrt_stages
from molmoact2_ros.policy.checkpoint import Checkpoint
from molmoact2_ros.policy.loading import load_processor
from molmoact2_ros.policy.options import BackendMissingError, InferenceOptions
from molmoact2_ros.policy.stages.stage_set import OpenStages, Stages, torch_stages

STAGED = ("torch", "onnxruntime", "tensorrt")
"""Backends that are stages under `StagedModel`."""


def choose(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, log: Callable[[str], None]) -> str:
    """The backend behind "auto", with the reason in the log: torch on a GPU and on a CPU with a matrix unit; on another
    CPU onnxruntime where the checkpoint is compiled for it, else torch."""
    if device.type != "cpu":
        log(f"backend torch: the device is {device}")
        return "torch"
    if dtype != torch.float32:
        log(f"backend torch: onnxruntime computes in float32 on a CPU, {dtype} was asked for")
        return "torch"
    if not amx.reason_against():
        log("backend torch: the CPU has a matrix unit (AMX), which onnxruntime does not use")
        return "torch"
    if importlib.util.find_spec("onnxruntime") is None:
        log("backend torch: onnxruntime is not installed (pip install onnxruntime onnx onnxscript)")
        return "torch"
    if not is_exported(checkpoint, EngineCache(default_root(), log)):
        log(
            "backend torch: this checkpoint is not compiled for onnxruntime, which is faster on a CPU; run "
            f"molmoact2 compile --backend onnxruntime --checkpoint {checkpoint.directory}"
        )
        return "torch"
    log("backend onnxruntime: the device is a CPU, and the checkpoint is compiled for it")
    return "onnxruntime"


def _graphs(model: Any, dof: int, checkpoint: Checkpoint) -> list[Any]:
    return free_graphs(torch_stages(model, dof), *image_sample(load_processor(checkpoint.processor)))


def open_stages(
    backend: str,
    checkpoint: Checkpoint,
    device: torch.device,
    options: InferenceOptions | None = None,
    store: EngineCache | None = None,
    log: Callable[[str], None] = print,
) -> OpenStages:
    """What makes the stages of `backend` for `checkpoint` on `device`.

    Args:
        options: of these `amx`, `compile`, `cuda_graphs` and `precision`.
        store: where compiled files are; by default the user's.

    Raises:
        BackendMissingError: it is not installed, or this machine cannot run it.
        ValueError: unknown backend.
    """
    kept, options = store or EngineCache(default_root(), log), options or InferenceOptions()
    if backend == "torch":
        return _torch(checkpoint, device, options, log)
    if backend == "onnxruntime":
        return _onnx(checkpoint, device, kept, log)
    if backend == "tensorrt":
        return tensorrt_stages(checkpoint, device, options.precision, kept, log)
    raise ValueError(f"backend {backend!r} has no stages; use {', '.join(STAGED)}")


def _torch(
    checkpoint: Checkpoint, device: torch.device, options: InferenceOptions, log: Callable[[str], None]
) -> OpenStages:
    graphs = options.cuda_graphs if options.cuda_graphs is not None else device.type == "cuda"
    if not graphs and not options.compile:
        return partial(_plain, device=device, options=options, log=log)

    def opened(model: Any, dof: int) -> Stages:
        runner: Runner = CompiledRunner(log) if options.compile else EagerRunner()
        if graphs:
            captured = CapturedRunner(runner, device, log)
            if captured.reason and not options.compile:
                return _plain(model, dof, device, options, log)
            runner = captured
        buckets = buckets_for(checkpoint, model.config, load_processor(checkpoint.processor), 0)
        return bucketed_stages(model, dof, buckets, runner, log)

    return opened


def _plain(model: Any, dof: int, device: torch.device, options: InferenceOptions, log: Callable[[str], None]) -> Stages:
    """Torch's stages, with products on the CPU's matrix unit where it has one."""
    stages = torch_stages(model, dof)
    if options.amx == "off" or device.type != "cpu" or next(model.parameters()).dtype != torch.float32:
        return stages
    reason = amx.reason_against()
    if reason:
        if options.amx != "auto":
            log(f"no products on AMX: {reason}")
        return stages
    fitted, tried = amx.use_pieces(stages, "high" if options.amx == "auto" else options.amx, amx.LEAST_WEIGHTS)
    if tried > fitted:
        log(f"not on AMX: {tried - fitted} of {tried} large layers, whose weights are not bfloat16's")
    return replace(stages, row_cost=amx.ROW_COST) if fitted else stages


def _onnx(checkpoint: Checkpoint, device: torch.device, store: EngineCache, log: Callable[[str], None]) -> OpenStages:
    if importlib.util.find_spec("onnxruntime") is None:
        raise BackendMissingError("backend onnxruntime is not installed; pip install onnxruntime onnx onnxscript")
    if device.type != "cpu":
        raise BackendMissingError(f"backend onnxruntime runs on the CPU, the device is {device}; use device cpu")
    from molmoact2_ros.policy.backends.onnx_stages import Session, onnx_stages

    def say(graph: str, doing: str) -> None:
        if doing == "exporting":
            log(f"onnxruntime: {graph} is exported for this checkpoint, once")

    def opened(model: Any, dof: int) -> Stages:
        if next(model.parameters()).dtype != torch.float32:
            raise BackendMissingError("backend onnxruntime computes in float32; use dtype auto or float32")
        graphs = _graphs(model, dof, checkpoint)
        sessions = {
            graph.name: Session(path, torch.get_num_threads())
            for graph, path, _ in exported_all(graphs, checkpoint, store, say)
        }
        return onnx_stages(model, dof, graphs[0], sessions)

    return opened
