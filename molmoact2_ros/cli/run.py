"""`molmoact2 run`: a real robot, or its real driver on an emulated bus, with a person at the keys."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from molmoact2_ros.cli.arguments import (
    FAILED,
    OK,
    Commands,
    UsageError,
    check_panel,
    check_renderer,
    checkpoint_from,
    panel_address,
    shown,
)

if TYPE_CHECKING:
    from rich.console import Console as Screen

    from molmoact2_ros.bringup.options import Options
    from molmoact2_ros.bringup.specs import NodeSpec

DOMAIN = "ROS_DOMAIN_ID"


def add(commands: Commands) -> None:
    """Add the command's parser."""
    run = commands.add_parser("run", help="drive a real robot, with keys to arm, stop and tell it what to do")
    option = run.add_argument
    option("--robot", default="so101", help="which robot: so101, yam, franka or a variant (%(default)s)")
    option("--port", "--ports", default="", metavar="P", help="serial port of an SO arm, CAN channels of YAM")
    option("--robot-ip", default="", metavar="IP", help="of a Franka, for this package's own driver")
    option("--calibration-id", default="", metavar="ID", help="what lerobot-calibrate was told as --robot.id")
    option(
        "--teleop", default="", metavar="T", help="so101_leader:[ID@]PORT, gamepad, ...; the key h takes over with it"
    )
    option("--cameras", default="", metavar="N=S,...", help="front=v4l2:/dev/v4l/by-path/...,wrist=realsense:SERIAL")
    option("--checkpoint", default="", metavar="DIR|ID", help="checkpoint directory or Hugging Face id")
    option("--policy", choices=("molmoact2", "expert", "none"), default="molmoact2", help="who decides (%(default)s)")
    option("--task", default="", metavar="T", help="told once the policy is there; later with the key t")
    option("--record", default="", metavar="DIR", help="have a recorder write bags into DIR; the key e begins one")
    option("--speed-scale", type=float, default=0.0, metavar="X", help="times the arm's speed: 0.3 for a first run")
    option("--config", default="", metavar="FILE", help="parameter file of your own, on top of the robot's")
    option("--namespace", default="", metavar="N", help="ROS namespace (the robot's name)")
    option("--visualize", action="store_true", help="start the visualizer, too: what RViz or Foxglove shows of a run")
    option(
        "--view", action="store_true", help="serve the operator's panel to a browser; with overlays by the visualizer"
    )
    option("--emulated", action="store_true", help="the real driver on an emulated bus, the simulated cell behind it")
    option("--seed", type=int, default=1000, help="of the emulated cell: where the cube lies (%(default)s)")
    option("--out", type=Path, default=Path("out"), metavar="DIR", help="logs (%(default)s)")
    run.set_defaults(run=_run, orderly=True)


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console as Screen

    from molmoact2_ros.bringup.console import Console
    from molmoact2_ros.bringup.keys import keyboard
    from molmoact2_ros.bringup.operating import operate
    from molmoact2_ros.bringup.preflight import check_checkpoint
    from molmoact2_ros.bringup.session import orderly_signals
    from molmoact2_ros.bringup.specs import nodes
    from molmoact2_ros.recording.episode_recorder import finished_bags

    screen = Screen()
    keys = sys.stdin.fileno() if screen.is_terminal and _has_descriptor() and keyboard(sys.stdin.fileno()) else None
    options = options_from(arguments, "lines" if keys is None else "keys")
    specs = nodes(options)
    check_panel(options)
    check_port(specs)
    if options.emulated:
        check_renderer()
    if not examined(options, specs, screen):
        return FAILED
    check_checkpoint(specs)
    log = arguments.out.resolve() / "log"
    log.mkdir(parents=True, exist_ok=True)
    environment = environment_of(options)
    screen.print(reach(environment, options), highlight=False, markup=False, soft_wrap=True)
    if arguments.view:
        screen.print(panel_address(specs), highlight=False, markup=False, soft_wrap=True)
    names = [spec.name for spec in specs]
    title = f"{options.robot}{', emulated' if options.emulated else ''}"
    console = Console(title, names, task=options.task if arguments.task else "", records=bool(options.record))
    before = {path.name for path in Path(options.record).glob("episode_*")} if options.record else set()
    with orderly_signals():
        operate(specs, log, environment, console, screen, keys)
    if options.record:
        bags = finished_bags(Path(options.record), before)
        screen.print(f"{len(bags)} bags in {shown(options.record)}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"every node has ended; logs in {shown(str(log))}", highlight=False, markup=False, soft_wrap=True)
    return OK


def _has_descriptor() -> bool:
    """Whether there is a standard input at all."""
    try:
        return sys.stdin is not None and sys.stdin.fileno() >= 0
    except (OSError, ValueError):
        return False


def options_from(arguments: argparse.Namespace, operator: str) -> Options:
    """Return the bringup options for the parsed `arguments`.

    Raises:
        UsageError: the checkpoint is neither a directory nor a Hugging Face id.
    """
    from molmoact2_ros.bringup.options import Options

    def parts(text: str) -> tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",")) if text else ()

    return Options(
        robot=arguments.robot,
        sim=arguments.emulated,
        emulated=arguments.emulated,
        policy=arguments.policy,
        checkpoint=checkpoint_from(arguments.checkpoint),
        task=arguments.task or Options.task,
        episodes=0,
        seed=arguments.seed,
        record=str(Path(arguments.record).expanduser().resolve()) if arguments.record else "",
        visualize=arguments.visualize or arguments.view,
        panel=arguments.view,
        namespace=arguments.namespace,
        link_prefix=f"molmoact2_{os.getpid()}" if arguments.emulated else "",
        config=arguments.config,
        robot_ip=arguments.robot_ip,
        ports=parts(arguments.port),
        calibration_id=arguments.calibration_id,
        cameras=parts(arguments.cameras),
        speed_scale=arguments.speed_scale,
        operator=operator,
        teleop=arguments.teleop,
    )


def check_port(specs: Iterable[NodeSpec]) -> None:
    """Raise UsageError where nothing says which arm is meant."""
    from molmoact2_ros.bringup.preflight import parameters_of

    for spec in specs:
        if spec.name == "so101_driver" and not parameters_of(spec).get("port"):
            raise UsageError(
                "nothing says which arm: --port /dev/serial/by-id/... (lerobot-find-port finds it), or port of "
                "so101_driver in a file of your own (--config)"
            )


def examined(options: Options, specs: Iterable[NodeSpec], screen: Screen) -> bool:
    """Make the doctor's checks that concern this robot and show what is not as it should be; False where a fault must
    be mended first."""
    from molmoact2_ros.bringup.preflight import parameters_of
    from molmoact2_ros.diagnostics import Level
    from molmoact2_ros.doctor.checks import checks_before, examine
    from molmoact2_ros.doctor.finding import Cell
    from molmoact2_ros.doctor.probe import Machine
    from molmoact2_ros.doctor.report import as_text, worst
    from molmoact2_ros.embodiments import embodiment

    cell = Cell(embodiment(options.robot).family, {s.name: parameters_of(s) for s in specs}, options.record or "bags")
    checks = checks_before(options.policy == "molmoact2", not options.emulated, bool(options.record))
    found = [finding for finding in examine(Machine(), cell, checks) if finding.level > Level.OK]
    if found:
        screen.print(as_text(found), highlight=False, markup=False, soft_wrap=True)
    if worst(found) < Level.ERROR:
        return True
    faults = ", ".join(dict.fromkeys(finding.check for finding in found if finding.level is Level.ERROR))
    print(f"molmoact2: not started: {faults} must be mended first", file=sys.stderr)
    return False


def environment_of(options: Options) -> dict[str, str]:
    """What the nodes are given. A real robot is in ROS's own domain, where other programs look for it; an emulated one
    in a domain of its own."""
    from molmoact2_ros.bringup.processes import node_environment

    base = dict(os.environ)
    if not options.emulated:
        base.setdefault(DOMAIN, "0")
    return node_environment(base)


def reach(environment: Mapping[str, str], options: Options) -> str:
    """Where other programs find the robot."""
    from molmoact2_ros.bringup.options import namespace_of

    who = environment.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "")
    where = f"{namespace_of(options)} in ROS domain {environment[DOMAIN]}"
    return f"{where}, {'heard on this machine only' if who == 'LOCALHOST' else f'discovery range {who}'}"
