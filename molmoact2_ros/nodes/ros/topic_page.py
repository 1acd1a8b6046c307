"""docs/reference/topics.md, from what the nodes' modules ask ROS for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2]
SHARED = PACKAGE / "nodes" / "ros"
PUBLISHED, HEARD, SERVED, CALLED = "publisher", "subscription", "service", "client"
KINDS = {
    **{"output": PUBLISHED, "listen": HEARD, "hear": HEARD, "serve": SERVED, "client": CALLED},
    **{f"create_{kind}": kind for kind in (PUBLISHED, HEARD, SERVED, CALLED)},
}
QOS = {"SENSOR": "best effort", "RELIABLE": "reliable", "NEWEST": "reliable, newest", "LATCHED": "latched"}
INTRODUCTION = """# Topics and services

Made by `make pages` from the nodes' modules; do not edit.

Names are relative to the robot's namespace (`/so101`) unless they begin with a slash. `<name>` stands for a camera.
Names that a parameter gives are those of its default. Executor, policy, visualizer, recorder and calibration hear the
joints on `joint_state_topics`, the recorder all that it keeps; controllers get what [parameters](parameters.md) say.
"""


@dataclass(frozen=True)
class Use:
    """One call that makes a publisher, a subscription, a service or a client."""

    kind: str
    name: str
    type: str
    qos: str


def uses(path: Path) -> set[Use]:
    """What a module asks for, where the name can be told from its text."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in KINDS:
            if len(node.args) < 2 or not isinstance(node.args[0], ast.Name):
                continue
            given = [*node.args[2:], *(word.value for word in node.keywords)]
            qos = next((QOS[arg.id] for arg in given if isinstance(arg, ast.Name) and arg.id in QOS), "")
            for name in _texts(node.args[1], tree):
                if name.strip("<name>/"):
                    found.add(Use(KINDS[node.func.attr], name, node.args[0].id, qos))
    return found


def _texts(node: ast.expr, tree: ast.Module) -> list[str]:
    """Every text that an expression may be; <name> for what it does not say, none where it says nothing."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        texts = [""]
        for part in node.values:
            inner = part.value if isinstance(part, ast.FormattedValue) else part
            texts = [text + more for text in texts for more in _texts(inner, tree) or ["<name>"]]
        return texts
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "param":
        return _defaults(_texts(node.args[0], tree), tree)
    return _values(node.id, tree) if isinstance(node, ast.Name) else []


def _defaults(names: list[str], tree: ast.Module) -> list[str]:
    """The defaults of parameters that the module declares."""
    calls = [call for call in ast.walk(tree) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)]
    declared = [call.args for call in calls if call.func.id == "Parameter" and len(call.args) > 1]  # type: ignore[attr-defined]
    return [text for name, default, *_ in declared if _texts(name, tree) == names for text in _texts(default, tree)]


def _values(name: str, tree: ast.Module) -> list[str]:
    """What a name is given: by an assignment, or by a loop over texts that stand there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == [name]:
            return _texts(node.value, tree) if isinstance(node.value, ast.JoinedStr) else []
        if isinstance(node, ast.For) and isinstance(node.target, ast.Tuple) and isinstance(node.iter, ast.Tuple):
            names = [getattr(target, "id", "") for target in node.target.elts]
            if name in names:
                rows = [row.elts[names.index(name)] for row in node.iter.elts if isinstance(row, ast.Tuple)]
                return [text for row in rows for text in _texts(row, tree)]
    return []


def _shared_modules(path: Path) -> set[Path]:
    """Modules of `nodes/ros` that a module imports, and so on."""
    found, waiting = set(), [path]
    while waiting:
        for node in ast.walk(ast.parse(waiting.pop().read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("molmoact2_ros.nodes."):
                module = PACKAGE.parent / f"{(node.module or '').replace('.', '/')}.py"
                if module.is_file() and module not in found and module.parent in (SHARED, PACKAGE / "nodes"):
                    found.add(module)
                    waiting.append(module)
    return found


def nodes() -> dict[str, set[Use]]:
    """What each node asks for, by its name."""
    modules = [path for room in ("nodes", "nodes/sim") for path in sorted((PACKAGE / room).glob("*_node.py"))]
    base = PACKAGE / "nodes" / "driver_node.py"
    return {
        path.stem.removesuffix("_node"): uses(path).union(*(uses(shared) for shared in _shared_modules(path)))
        for path in modules
        if path != base
    }


def page() -> str:
    """The page, Markdown."""
    return "\n".join([INTRODUCTION, *_topics(), "", *_services()]) + "\n"


def _topics() -> Iterator[str]:
    yield "## Topics\n"
    yield "| topic | type | published by | heard by | delivery |"
    yield "|---|---|---|---|---|"
    yield from _table(PUBLISHED, HEARD, delivery=True)


def _services() -> Iterator[str]:
    yield "## Services\n"
    yield "| service | type | offered by | called by |"
    yield "|---|---|---|---|"
    yield from _table(SERVED, CALLED, delivery=False)


def _table(first: str, second: str, delivery: bool) -> Iterator[str]:
    rows: dict[tuple[str, str], dict[str, set[str]]] = {}
    for node, found in nodes().items():
        for use in found:
            if use.kind in (first, second):
                row = rows.setdefault((use.name, use.type), {first: set(), second: set(), "qos": set()})
                row[use.kind].add(f"`{node}`")
                row["qos"] |= {use.qos} - {""} if use.kind == PUBLISHED else set()
    for (name, kind), row in sorted(rows.items()):
        columns = [_listed(row[column]) for column in (first, second, *(["qos"] if delivery else []))]
        kind = kind if kind[0].isupper() else "the driver's own"
        yield f"| `{name}` | {kind} | {' | '.join(columns)} |"


def _listed(names: set[str]) -> str:
    return "every node" if len(names) == len(nodes()) else ", ".join(sorted(names))
