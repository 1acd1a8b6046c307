"""`molmoact2 view`: the operator's panel beside robots that run already, on this machine or another one."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from molmoact2_ros.cli.arguments import FAILED, Commands, UsageError, check_panel, listed
from molmoact2_ros.panel import HOST, PORT

DOMAIN = "ROS_DOMAIN_ID"


def add(commands: Commands) -> None:
    """Add the command's parser."""
    view = commands.add_parser("view", help="the operator's panel in a browser, beside robots that run already")
    option = view.add_argument
    option("--namespace", default="so101", metavar="N,...", help="whose robots, each NAME or NAME=ROBOT (%(default)s)")
    option("--domain", type=int, metavar="ID", help="ROS domain that they are in (as ROS_DOMAIN_ID says, else 0)")
    option("--host", default="", help=f"where the page is served ({HOST}); beyond it --token-file is needed")
    option("--port", type=int, default=None, help=f"port of the page; 0: any free one ({PORT})")
    option("--token-file", default="", metavar="FILE", help="file with the token that browsers must show")
    option("--hold-to-run", action="store_true", help="a browser that is lost while the arm may move is a stop")
    option("--network", action="store_true", help="the robots are on another machine of this network; see SECURITY.md")
    option("--config", default="", metavar="FILE", help="parameter file of your own, for the node called panel")
    view.set_defaults(run=_run)


def robots_from(text: str) -> dict[str, str]:
    """The embodiment of each namespace that `text` lists, as NAME or NAME=ROBOT.

    Raises:
        ValueError: there is none, or a robot is not known.
    """
    from molmoact2_ros.embodiments import EMBODIMENTS, embodiment

    found: dict[str, str] = {}
    for entry in listed(text):
        name, _, robot = (part.strip() for part in entry.partition("="))
        # Where it is not said, the name may say it: a cell is named after its robot unless somebody named it.
        guessed = name.strip("/") if name.strip("/") in EMBODIMENTS else "so101"
        found[f"/{name.strip('/')}"] = embodiment(robot or guessed).name
    if not found:
        raise ValueError("--namespace names no robot, expected for instance so101, or left=yam,right=so101")
    return found


def _run(arguments: argparse.Namespace) -> int:
    from molmoact2_ros.bringup.options import Options
    from molmoact2_ros.bringup.processes import node_environment
    from molmoact2_ros.bringup.specs import NodeSpec, Value
    from molmoact2_ros.panel.gate import check_reach
    from molmoact2_ros.parameter_files import parameters_for, user_files
    from molmoact2_ros.policy.remote.links import read_token

    check_panel(Options(panel=True))
    robots = robots_from(arguments.namespace)
    written = parameters_for(user_files(arguments.config), "/panel")
    host = arguments.host or str(written.get("host", HOST))
    port = int(written.get("port", PORT)) if arguments.port is None else arguments.port
    named = arguments.token_file or str(written.get("token_file", ""))
    token_file = str(Path(named).expanduser().resolve()) if named else ""
    hold = arguments.hold_to_run or bool(written.get("hold_to_run", False))
    check_reach(host, read_token(token_file))
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, got {port}")
    environment = dict(os.environ)
    if arguments.domain is not None:
        environment[DOMAIN] = str(arguments.domain)
    environment.setdefault(DOMAIN, "0")
    if arguments.network:
        environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "SUBNET"
    environment = node_environment(environment)
    chosen = {"host": host, "port": port, "token_file": token_file, "hold_to_run": hold}
    parameters: dict[str, Value] = {**written, **chosen, "namespaces": list(robots), "robots": list(robots.values())}
    # A node called panel runs beside each robot that was started with one: this one has a name of its own.
    spec = NodeSpec("panel_node", f"panel_{os.getpid()}", "/", parameters=parameters)
    print(f"{', '.join(robots)} in ROS domain {environment[DOMAIN]}; Ctrl-C ends the panel, and no robot", flush=True)
    try:
        os.execve(sys.executable, [sys.executable, "-m", spec.module, *spec.ros_arguments()], environment)
    except OSError as error:
        print(f"molmoact2: {error}", file=sys.stderr)
        return FAILED
