"""`molmoact2 bench engines`: how large the engines of a random model are, and what the released size takes of a GPU."""

from __future__ import annotations

import os
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.benchmarking.policy.calls import TASK
from molmoact2_ros.benchmarking.policy.report import put_section
from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.policy import open_checkpoint
from molmoact2_ros.training.random_model import random_config, write_random_checkpoint


def bench_engines(size: str, robot_name: str, precision: str, targets: tuple[str, ...], page: Path) -> Path:
    """Build every engine of a random model of `size` for the GPUs `targets` ("sm89"), and write the table into `page`.

    Raises:
        ValueError: unknown size, robot or GPU.
        BackendMissingError: TensorRT for RTX is not installed.
    """
    from molmoact2_ros.policy.backends.cache import EngineCache
    from molmoact2_ros.policy.backends.tensorrt_build import build_engines
    from molmoact2_ros.policy.backends.tensorrt_engine import Built
    from molmoact2_ros.policy.backends.tensorrt_library import RTX, named, parse_capabilities, tensorrt_module

    robot, capabilities = embodiment(robot_name), parse_capabilities(targets)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        write_random_checkpoint(folder, size, robot, TASK)
        opened = open_checkpoint(folder, robot, robot.norm_tag)
        store = EngineCache(Path(scratch) / "cache", print)
        built, _ = build_engines(opened, robot, precision, 0, capabilities, store, lambda stage, doing: None)
    title = f"## Engines, random model, {size}, {precision}"
    lines = [
        title,
        "",
        f"- Date: {date.today().isoformat()}",
        *(f"- {key}: {value}" for key, value in machine().items()),
    ]
    lines += [
        f"- {RTX.name} {tensorrt_module(RTX).__version__}, for GPUs of capability "
        f"{', '.join(named(capability) for capability in capabilities)}, built without a GPU (`molmoact2 bench "
        f"engines --size {size} --for {','.join(targets)}`); copies: bytes of an engine over those of its weights",
        *(f"- Released size on a GPU, {what}: {count / 1e9:.2f} GB" for what, count in released_memory(robot).items()),
        f"- Seconds are with whatever else the machine did: load average over 15 minutes {os.getloadavg()[2]:.0f}",
        "- Beside the released size's memory come what contexts work in, CUDA and captured graphs: only a GPU tells",
        "",
        "| engine | layers | weights, MB | engine, MB | copies | seconds, with export |",
        "|---|---|---|---|---|---|",
    ]
    every = list(built.values())
    whole = Built(
        sum(about.layers for about in every),
        sum(about.weights for about in every),
        sum(about.bytes for about in every),
        sum(about.seconds for about in every),
    )
    for name, about in {**built, "all": whole}.items():
        sizes = f"{about.weights / 1e6:.1f} | {about.bytes / 1e6:.1f} | {about.bytes / about.weights:.2f}"
        lines.append(f"| {name} | {about.layers} | {sizes} | {about.seconds:.0f} |")
    put_section(page, title, lines)
    return page


def released_memory(robot: Embodiment) -> dict[str, int]:
    """What the released size takes of a GPU in bf16, computed from its configuration: bytes by what for."""
    from molmoact2_ros.policy.backends.bucket_sizes import buckets_for
    from molmoact2_ros.policy.backends.tensorrt_build import WINDOWS
    from molmoact2_ros.policy.loading import empty_model, load_processor

    config = random_config("full", robot, TASK)
    with tempfile.TemporaryDirectory() as scratch:
        write_random_checkpoint(Path(scratch), "full", robot, TASK, weights=False)
        opened = open_checkpoint(scratch, robot, robot.norm_tag)
        buckets = buckets_for(opened, config, load_processor(opened.processor), 0, WINDOWS)
    model = empty_model(config.to_dict())
    inner = model.model

    def size(part: Any) -> int:
        return 2 * sum(int(parameter.numel()) for parameter in part.parameters())

    engines = size(inner.vision_backbone) + size(inner.transformer.blocks) + size(inner.action_expert)
    text, expert = config.text_config, inner.action_expert
    row = 2 * int(text.num_hidden_layers) * int(text.num_key_value_heads) * int(text.head_dim) * 2
    # The store, the flow's copy of it, and what each pass of the text model gives; then the expert's own context.
    rows = 2 * buckets.tokens + buckets.prompt + sum(buckets.windows)
    context = 2 * len(expert.blocks) * int(expert.config.num_heads) * int(inner.action_expert.action_head_dim) * 2
    found = {
        "weights in engines": engines,
        "weights in torch (embeddings, head)": size(model) - engines,
        "keys, values and the flow's context": rows * row + buckets.tokens * context,
    }
    return {**found, "in all": sum(found.values())}
