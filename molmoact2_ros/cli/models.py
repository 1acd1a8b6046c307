"""`molmoact2 models`: the public checkpoints that are known, from a data file; nothing is asked of the network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from molmoact2_ros.cli.arguments import OK, Commands

FACTS = Path(__file__).resolve().parents[1] / "data" / "models.json"


def add(commands: Commands) -> None:
    """Add the command's parser."""
    models = commands.add_parser("models", help="public checkpoints: robot, layout, size, memory, depth")
    models.add_argument("--robot", default="", metavar="NAME", help="only those that drive it")
    models.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    models.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.embodiments import embodiment

    facts = json.loads(FACTS.read_text())
    robot = embodiment(arguments.robot).name if arguments.robot else ""
    models = [model for model in facts["models"] if not robot or robot in model["robots"]]
    memory = facts["memory_gb"]
    if arguments.json:
        print(json.dumps({**facts, "models": models}))
        return OK
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("checkpoint", "robots", "layout", "cameras", "rows", "depth", "on disk"):
        table.add_column(name, no_wrap=True)
    for model in models:
        table.add_row(
            model["id"],
            ", ".join(model["robots"]) or model["for"],
            model["layout"],
            ", ".join(model["cameras"]) or "-",
            str(model["rows"]),
            "yes" if model["depth"] else "no",
            f"{model['disk_gb']} GB",
        )
    # A table that is folded into a narrow terminal, or into a pipe, cannot be read.
    Console(width=max(Console().width, 200)).print(table)
    print(f"To run one: {memory['bfloat16']} GB of memory in bfloat16, {memory['float32']} GB in float32.")
    print(f"From {facts['source']}.")
    return OK
