"""Panel node: the operator's page in a browser, for one robot or several, on the robot's machine or another one.

Everything that a page asks for goes the way of everybody's requests (`OperatorDesk`) and obeys the same refusals. STOP
presses `e_stop` of every robot in the thread that hears the page, whatever the nodes or this one do meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus

from molmoact2_ros.embodiments import Embodiment, embodiment
from molmoact2_ros.nodes.ros.joint_topics import JOINT_STATE_PARAMETERS
from molmoact2_ros.nodes.ros.node_base import MolmoNode, main_of
from molmoact2_ros.nodes.ros.operator_requests import Asked
from molmoact2_ros.nodes.ros.panel_robot import PanelRobot, Tell
from molmoact2_ros.nodes.ros.parameters import Parameter
from molmoact2_ros.panel import HOST, PORT
from molmoact2_ros.panel.gate import Gate, check_reach
from molmoact2_ros.panel.hold_to_run import HoldToRun
from molmoact2_ros.panel.scene import Scene
from molmoact2_ros.panel.server import Hooks, PanelServer
from molmoact2_ros.panel.view import checked
from molmoact2_ros.policy.remote.links import read_token

BEAT_S = 0.2
MOVING = ("arm", "start")


class PanelNode(MolmoNode):
    """See the module."""

    PARAMETERS = (
        *JOINT_STATE_PARAMETERS,
        Parameter("namespaces", [""], "Robots that are shown, by namespace; empty: the node's own."),
        Parameter("robots", [""], "Embodiment of each namespace; empty: robot for all of them."),
        Parameter("host", HOST, "Where the page is served; anything but this machine needs token_file."),
        Parameter("port", PORT, "Port of the page; 0: any free one.", 0, 65535),
        Parameter("token_file", "", "File with the token that browsers must show; empty: none, on this machine only."),
        Parameter(
            "hold_to_run", False, "Stop an arm that may move when the browser that armed it, or the last, is lost."
        ),
        Parameter("hold_timeout_s", 1.0, "A browser that is silent for longer is lost, s.", 0.6, 10.0),
        Parameter("view_hz", 5.0, "How often pages are told the state, Hz.", 1.0, 20.0),
        Parameter("scene_hz", 12.0, "How often the robot moves in the 3D view, Hz.", 1.0, 30.0),
        Parameter("image_hz", 10.0, "Images a second of each camera, Hz.", 0.5, 30.0),
        Parameter("meshes", True, "Show the vendors' meshes where their package is installed, or simple shapes."),
    )

    def __init__(self) -> None:
        super().__init__("panel")
        self._robots: dict[str, PanelRobot] = {}
        self._server: PanelServer | None = None
        self._scene: Scene | None = None
        self._hold = HoldToRun(1.0)
        self._problem = ""

    # -- lifecycle --------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        token, host = read_token(self.param("token_file")), self.param("host")
        check_reach(host, token)
        self._hold = HoldToRun(self.param("hold_timeout_s"))
        chosen = robots_of(self.param("namespaces"), self.param("robots"), self.get_namespace(), self.param("robot"))
        try:
            self._scene = Scene()
        except ImportError as error:
            raise ValueError(f"{error}; the panel needs viser: pip install -r requirements/panel.txt") from None
        for index, (namespace, name) in enumerate(chosen.items()):
            robot = embodiment(name)
            looks = self._scene.robot(namespace, robot, index, self.param("meshes"))
            if looks.plain and self.param("meshes"):
                self.get_logger().info(f"{namespace} in simple shapes: {looks.plain}")
            tell = Tell(partial(self._on_answer, namespace), partial(self._on_picture, namespace), self._show)
            self._robots[namespace] = PanelRobot(self, namespace, robot, looks, self.param("image_hz"), tell)
            self._robots[namespace].desk.beat()  # an executor that waits to hear a button hears this one
        self._scene.look_at(max(reach_of(embodiment(name)) for name in chosen.values()), len(chosen))
        hooks = Hooks(self._on_stop, self._on_ask, self._on_alive, self._on_came, self._on_went)
        self._server = PanelServer(host, self.param("port"), Gate(token), self._scene.port, hooks).start()
        shown = f"[{host}]" if ":" in host else host
        self.get_logger().info(f"panel: http://{shown}:{self._server.port}/{'' if not token else ' (with the token)'}")
        self.every(1.0 / self.param("view_hz"), self._show, inactive=True, steady=True)
        self.every(1.0 / self.param("scene_hz"), self._draw, inactive=True, steady=True)
        self.every(1.0, self._look, inactive=True, steady=True)
        self.every(BEAT_S, self._watch_hold, inactive=True, steady=True)

    def teardown(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        while self._robots:
            self._robots.popitem()[1].close()
        scene, self._scene = self._scene, None
        if scene is not None:
            scene.close()

    def diagnose(self) -> tuple[bytes, str, Mapping[str, object]]:
        if self._server is None:
            return super().diagnose()
        pages = self._server.pages()
        level = DiagnosticStatus.WARN if self._problem else DiagnosticStatus.OK
        return level, self._problem or f"{pages} browsers on port {self._server.port}", {"pages": pages}

    # -- timers -----------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        server = self._server
        if server is not None:
            robots = [robot.shown() for robot in self._robots.values()]
            if server.pages():
                server.show({"type": "view", "hold_to_run": self.param("hold_to_run"), "robots": robots})

    def _look(self) -> None:
        for robot in self._robots.values():
            robot.look(self._server is not None and self._server.pages() > 0)

    def _draw(self) -> None:
        for robot in self._robots.values():
            robot.draw()

    def _watch_hold(self) -> None:
        """With `hold_to_run`: say that somebody is there, and stop what nobody holds any more."""
        if not self.param("hold_to_run"):
            return
        now = time.monotonic()
        why = self._hold.lost(now, any(robot.view.moves for robot in self._robots.values()))
        if why and why != self._problem:
            self.get_logger().error(f"STOP: {why}")
        if why:
            self._stop_all()
        elif self._hold.there(now):
            for robot in self._robots.values():
                robot.desk.beat()
        self._problem = why

    # -- pages (the server's thread) --------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        for robot in tuple(self._robots.values()):
            robot.desk.stop()

    def _on_stop(self, page: int) -> None:
        self._stop_all()
        self.get_logger().warning(f"STOP was pressed on page {page}")

    def _on_ask(self, page: int, asked: Any) -> None:
        try:
            namespace, request = checked(asked, list(self._robots))
        except ValueError as error:
            if self._server is not None:
                self._server.tell({"type": "refused", "message": str(error)}, page)
            return
        if request["ask"] in MOVING:
            self._hold.armed_by(page)
        self._robots[namespace].desk.ask({**request, "page": page})

    def _on_alive(self, page: int) -> None:
        self._hold.heard(page, time.monotonic())

    def _on_came(self, page: int) -> None:
        self._on_alive(page)

    def _on_went(self, page: int) -> None:
        self._hold.gone(page)

    # -- robots (the spinning thread) -------------------------------------------------------------------------------

    def _on_answer(self, namespace: str, page: int, asked: Asked, ok: bool, message: str) -> None:
        if self._server is not None:
            answer = {"type": "answer", "robot": namespace, "ask": asked["ask"], "ok": ok, "message": message}
            self._server.tell(answer, page)

    def _on_picture(self, namespace: str, camera: str, overlay: bool, jpeg: bytes) -> None:
        if self._server is not None:
            header = {"robot": namespace, "camera": camera, "overlay": overlay}
            self._server.picture(f"{namespace} {camera}", header, jpeg)


def robots_of(namespaces: list[str], robots: list[str], own: str, robot: str) -> dict[str, str]:
    """The embodiment of each namespace, in order.

    Raises:
        ValueError: there are more or fewer robots than namespaces, or a namespace is named twice.
    """
    named = [f"/{name.strip('/')}" if name else own for name in namespaces] or [own]
    bodies = [name or robot for name in robots] if any(robots) else [robot] * len(named)
    if len(bodies) != len(named) or len(set(named)) != len(named):
        raise ValueError(f"namespaces {named} need one robot each, and each namespace once; got robots {bodies}")
    return dict(zip(named, bodies, strict=True))


def reach_of(robot: Embodiment) -> float:
    """How far the tips are from the base at rest, m; at least as far as a small arm's."""
    tips = [chain.tip(robot.rest_position[list(joints)])[:3, 3] for chain, joints in robot.chains]
    return max(0.35, *(float(np.linalg.norm(tip)) for tip in tips))


main = main_of(PanelNode)

if __name__ == "__main__":
    main()
