"""`molmoact2 serve`: the policy for robots whose own computer has no GPU."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from contextlib import suppress

from molmoact2_ros.cli.arguments import OK, Commands, UsageError, listed

NEEDED = ("fastapi", "uvicorn", "websockets", "msgpack", "prometheus_client", "PIL", "cv2")


def add(commands: Commands) -> None:
    """Add the command's parser."""
    serve = commands.add_parser("serve", help="run the policy here for robots elsewhere (openpi's and Ai2's protocols)")
    add = serve.add_argument
    add("--checkpoint", default="", metavar="DIR|ID", help="which (the simulated cell's own)")
    add("--robot", default="so101", help="whose checkpoint it is (%(default)s)")
    add("--norm-tag", default="", metavar="TAG", help="tag in norm_stats.json (the robot's)")
    add("--base-checkpoint", default="", metavar="DIR|ID", help="what a fine-tune was made from")
    add("--joint-frame", default="auto", help="SO arms: auto, arm or released (%(default)s)")
    add("--cameras", default="", metavar="A,B", help="a camera a picture in prompt order, or view=camera for each")
    add("--backend", default="auto", metavar="B", help="auto, torch, onnxruntime or tensorrt (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16 or mixed (%(default)s)")
    add("--threads", type=int, default=0, metavar="N", help="CPU threads of the model; 0 is torch's own choice")
    add("--action-mode", default="continuous", help="continuous or discrete (%(default)s)")
    add("--depth-mode", default="adaptive", help="adaptive or full (%(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on; others need --token-file (%(default)s)")
    add("--port", type=int, default=8000, help="both protocols are on it (%(default)s)")
    add("--token-file", default="", metavar="FILE", help="only clients with this token are served")
    add("--insecure", action="store_true", help="serve a network without a token")
    add("--idle", type=float, default=60.0, metavar="S", help="a session ends that is not used so long (%(default)s)")
    add("--message-mb", type=float, default=16.0, metavar="MB", help="longest message that is read (%(default)s)")
    serve.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"serve needs {', '.join(missing)}: pip install 'molmoact2_ros[policy]'")
    if arguments.idle <= 0.0 or arguments.message_mb <= 0.0 or not 0 <= arguments.port < 65536:
        raise ValueError("--idle and --message-mb must be above 0, --port a port number")
    from molmoact2_ros.embodiments import embodiment
    from molmoact2_ros.policy.remote.links import read_token
    from molmoact2_ros.policy.remote.pictures import MOST_PIXELS
    from molmoact2_ros.serving.access import check_exposure
    from molmoact2_ros.serving.running import PolicyServer, ServeOptions
    from molmoact2_ros.serving.sessions import Sessions, open_served

    # OpenCV reads it once: whatever a picture's header says, it takes no more memory than the largest that is taken.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MOST_PIXELS)
    # Before the model is read, which takes minutes.
    check_exposure(arguments.host, read_token(arguments.token_file), arguments.insecure)
    robot = embodiment(arguments.robot)
    policy = open_served(
        arguments.checkpoint,
        robot,
        arguments.norm_tag,
        base=arguments.base_checkpoint,
        joint_frame=arguments.joint_frame,
        cameras=listed(arguments.cameras),
        backend=arguments.backend,
        device=arguments.device,
        dtype=arguments.dtype,
        threads=arguments.threads,
        action_mode=arguments.action_mode,
        depth_mode=arguments.depth_mode,
        log=_say,
    )
    sessions = Sessions(policy, robot, idle_s=arguments.idle, log=_say)
    server = PolicyServer(
        sessions,
        ServeOptions(
            arguments.host,
            arguments.port,
            arguments.token_file,
            arguments.insecure,
            round(arguments.message_mb * 1e6),
        ),
    )
    sessions.warm_up()
    opened = policy.checkpoint
    where = f"{f'[{arguments.host}]' if ':' in arguments.host else arguments.host}:{server.port}"
    _say(f"{opened.name} ({opened.layout}), tag {opened.norm_tag}, pictures {', '.join(opened.cameras)}")
    _say(f"ws://{where} (openpi) and http://{where}/act (Ai2); {'token' if arguments.token_file else 'no token'}")
    with suppress(KeyboardInterrupt):
        server.run()
    _say("ended")
    return OK


def _say(line: str) -> None:
    print(f"serve: {line}", file=sys.stderr, flush=True)
