"""Which camera of the cell each view of a checkpoint is: as the user says, else by name, else refused.

The order of a prompt's pictures is what the model was trained on, so nothing is taken in the order in which it happens
to stand where the names do not agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from molmoact2_ros.policy.checkpoints.settings import CheckpointError

MOST_VIEWS = 4
"""Pictures of a prompt at most, where the checkpoint does not say: what the released SO checkpoint was trained with."""


@dataclass(frozen=True)
class View:
    """One picture that a checkpoint wants: its name, and what it is called in the data that it was trained on."""

    name: str
    aliases: tuple[str, ...] = ()


def view(key: str, *aliases: str) -> View:
    """The view of a feature's key, such as `observation.images.wrist`."""
    return View(key.rsplit(".", 1)[-1], tuple(alias.rsplit(".", 1)[-1] for alias in aliases))


def cameras_of(
    views: Sequence[View], cell: Sequence[str], usual: Sequence[str], chosen: Sequence[str], notes: list[str]
) -> tuple[str, ...]:
    """The camera of each picture of the prompt, in its order; one may serve more than once.

    Args:
        views: what the checkpoint wants; empty where it does not say.
        cell: cameras that there are. usual: taken where nobody said which there are.
        chosen: the user's: a camera a picture, in order, or "view=camera" for each view.
        notes: takes a line for whatever was inferred.

    Raises:
        CheckpointError: they cannot be told; the message has both lists and the line to write.
    """
    if chosen:
        found = _chosen(views, chosen, notes)
        absent = [camera for camera in dict.fromkeys(found) if cell and camera not in cell]
        if absent:
            raise CheckpointError(f"cameras: the cell has no {', '.join(absent)}; its cameras are {', '.join(cell)}")
        return found
    if not views:
        used = tuple((cell or usual)[:MOST_VIEWS])
        notes.append(f"the checkpoint names no cameras: its pictures are {', '.join(used)}, in this order")
        return used
    cell = cell or usual
    matches = [camera_named(wanted, cell) for wanted in views]
    if None in matches or not _may_repeat(views, [str(name) for name in matches]):
        raise CheckpointError(_refusal(views, cell))
    found = tuple(str(name) for name in matches)
    if any(camera != wanted.name for camera, wanted in zip(found, views, strict=True)):
        pairs = ", ".join(f"{wanted.name} is {camera}" for camera, wanted in zip(found, views, strict=True))
        notes.append(f"cameras by name: {pairs}")
    return found


def _chosen(views: Sequence[View], chosen: Sequence[str], notes: list[str]) -> tuple[str, ...]:
    pairs = [entry.partition("=") for entry in chosen]
    if any(not camera.strip() for name, mark, camera in pairs if mark) or any(not name.strip() for name, _, _ in pairs):
        raise CheckpointError(f"cameras: expected camera names or view=camera, got {', '.join(chosen)}")
    marks = {bool(mark) for _, mark, _ in pairs}
    if len(marks) > 1:
        raise CheckpointError(f"cameras: write view=camera for all pictures or for none, got {', '.join(chosen)}")
    if not marks.pop():
        cameras = tuple(entry.strip() for entry in chosen)
        names = [wanted.name for wanted in views]
        if len(set(names)) == len(names) and sorted(names) == sorted(cameras) and list(cameras) != names:
            raise CheckpointError(
                f"cameras are given as {', '.join(cameras)}, but the checkpoint was trained on {', '.join(names)}; "
                "give them in its order, or as view=camera where another camera shall stand in"
            )
        if views and len(cameras) != len(views):
            notes.append(
                f"{len(cameras)} pictures as you say ({', '.join(cameras)}); the checkpoint names {len(views)} "
                f"({', '.join(names)})"
            )
        elif views and list(cameras) != names:
            said = ", ".join(f"{name} is {camera}" for name, camera in zip(names, cameras, strict=True))
            notes.append(f"cameras as you say, in order: {said}")
        return cameras
    if not views:
        raise CheckpointError(
            "cameras: this checkpoint names no views, so there is nothing for view=camera; give the cameras in order"
        )
    mapped = {name.strip(): camera.strip() for name, _, camera in pairs}
    known = {wanted.name: wanted for wanted in views}
    unknown, absent = [name for name in mapped if name not in known], [name for name in known if name not in mapped]
    if unknown or absent or len(mapped) != len(pairs):
        raise CheckpointError(
            f"cameras: expected one view=camera for each of {', '.join(known)}, got {', '.join(chosen)}"
        )
    notes.append("cameras as you say: " + ", ".join(f"{name} is {mapped[name]}" for name in known))
    return tuple(mapped[name] for name in known)


def camera_named(wanted: View, cell: Sequence[str]) -> str | None:
    """The one camera of the cell that has this name, or whose name is within it or around it."""
    for names in ((wanted.name,), wanted.aliases):
        for name in names:
            if name in cell:
                return name
            mine = _words(name)
            near = [camera for camera in cell if _words(camera) <= mine or mine <= _words(camera)]
            if len(near) == 1:
                return near[0]
    return None


def _words(name: str) -> frozenset[str]:
    """Words of a name; numbers and words that every camera's name may have say nothing."""
    return frozenset(re.findall(r"[a-z]+", name.lower())) - {"cam", "camera", "image", "img", "rgb", "view"} or (
        frozenset({name})
    )


def _may_repeat(views: Sequence[View], matches: Sequence[str]) -> bool:
    """One camera may serve two views only where these differ in a number alone, as DROID's two exterior ones do."""
    for camera in set(matches):
        plain = {re.sub(r"\d+", "", wanted.name) for wanted, name in zip(views, matches, strict=True) if name == camera}
        if len(plain) > 1:
            return False
    return True


def _refusal(views: Sequence[View], cell: Sequence[str]) -> str:
    names = [wanted.name for wanted in views]
    example = ", ".join(
        f'"{name}={camera_named(wanted, cell) or "?"}"' for name, wanted in zip(names, views, strict=True)
    )
    return (
        f"the checkpoint wants {len(names)} cameras ({', '.join(names)}), the cell has {len(cell)} "
        f"({', '.join(cell) or 'none'}), and their names do not say which is which; write in the policy's parameters "
        f"cameras: [{example}] with a camera of yours for each ? (the same one may serve twice)"
    )
