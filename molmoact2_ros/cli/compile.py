"""`molmoact2 compile`: the files that a backend runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from molmoact2_ros.cli.arguments import FAILED, OK, Commands, listed

if TYPE_CHECKING:
    from molmoact2_ros.embodiments import Embodiment


def add(commands: Commands) -> None:
    """Add the command's parser."""
    build = commands.add_parser("compile", help="make the files of a backend for a checkpoint, and hold them to torch")
    build.add_argument("--checkpoint", default="", metavar="DIR|ID", help="which (the cell's own)")
    build.add_argument("--backend", default="onnxruntime", metavar="B", help="onnxruntime or tensorrt (%(default)s)")
    build.add_argument("--precision", default="", metavar="P", help="tensorrt: bf16 (default) or fp16")
    build.add_argument("--robot", default="so101", help="whose checkpoint it is (%(default)s)")
    build.add_argument("--norm-tag", default="", metavar="TAG", help="tag in norm_stats.json (the robot's)")
    build.add_argument("--cameras", default="", metavar="A,B", help="where the checkpoint's names do not say it")
    build.add_argument("--tokens", type=int, default=0, metavar="N", help="tensorrt: room for a longer task")
    build.add_argument(
        "--for", dest="targets", default="", metavar="SM", help="tensorrt: GPUs of other machines, sm89,sm120"
    )
    build.add_argument("--cache", default="", metavar="DIR", help="where files are kept (~/.cache/molmoact2_ros)")
    build.add_argument("--self-test", action="store_true", help="build a small random model instead, and run it")
    build.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.policy.backends.compiling import Request, run_compile

    request = Request(
        checkpoint=arguments.checkpoint,
        backend=arguments.backend,
        precision=arguments.precision,
        robot=arguments.robot,
        norm_tag=arguments.norm_tag,
        cameras=listed(arguments.cameras),
        tokens=arguments.tokens,
        cache=arguments.cache,
        self_test=arguments.self_test,
        targets=listed(arguments.targets),
    )

    def write_random(directory: Path, robot: Embodiment, task: str) -> None:
        from molmoact2_ros.training.random_model import write_random_checkpoint

        write_random_checkpoint(directory, "small", robot, task)

    return OK if run_compile(request, write_random) else FAILED
