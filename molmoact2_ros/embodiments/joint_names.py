"""What a driver calls the joints of a robot, where it calls them otherwise than this package does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from molmoact2_ros.embodiments.embodiment import Embodiment

ANY = "*"


class JointNames:
    """Translates joint names in both directions.

    Args:
        entries: `theirs=ours`. One `*` on each side stands for the same part of both names: `fr3v2_*=fr3_*` changes a
            prefix, `left_*_joint=*` takes a prefix and a suffix away. What is named in full goes before a pattern;
            joints that no entry speaks of keep their name. Empty entries mean nothing.

    Attributes:
        theirs: the driver's names, in ROS order.

    Raises:
        ValueError: an entry has another form, fits no joint of the robot or one that has an entry already, or two
            joints would have one name.
    """

    def __init__(self, robot: Embodiment, entries: Iterable[str]) -> None:
        found: dict[str, str] = {}
        pairs = [_pair(entry) for entry in entries if entry.strip()]
        for theirs, ours in sorted(pairs, key=lambda pair: ANY in pair[1]):  # those in full first
            fitting = {
                name: _filled(theirs, part) for name in robot.joint_names if (part := _part(ours, name)) is not None
            }
            fresh = {name: value for name, value in fitting.items() if name not in found}
            if not fresh:
                wrong = "is named twice" if fitting else f"is no joint of {robot.name}: {', '.join(robot.joint_names)}"
                raise ValueError(f"joint_map has {theirs}={ours}, but {ours} {wrong}")
            found.update(fresh)
        self.theirs = tuple(found.get(name, name) for name in robot.joint_names)
        twice = sorted({name for name in self.theirs if self.theirs.count(name) > 1})
        if twice:
            raise ValueError(f"joint_map gives two joints of {robot.name} the name {', '.join(twice)}")
        self._ours = dict(zip(self.theirs, robot.joint_names, strict=True))
        self._taken = set(robot.joint_names) - set(self.theirs)

    def ours(self, names: Sequence[str]) -> list[str]:
        """The names of a driver's message as this package has them; those of joints that are none of the robot's stay,
        and do not pass for one."""
        return [self._ours.get(name, f"{name} (not in joint_map)" if name in self._taken else name) for name in names]


def _pair(entry: str) -> tuple[str, str]:
    theirs, equals, ours = (part.strip() for part in entry.partition("="))
    if not equals or not theirs or not ours or theirs.count(ANY) != ours.count(ANY) or ours.count(ANY) > 1:
        raise ValueError(
            f"joint_map has {entry!r}, expected theirs=ours with one * on each side or none, for instance fr3v2_*=fr3_*"
        )
    return theirs, ours


def _part(pattern: str, name: str) -> str | None:
    """What of `name` the `*` of the pattern stands for; None where it does not fit."""
    before, star, after = pattern.partition(ANY)
    if not star:
        return "" if name == pattern else None
    fits = name.startswith(before) and name.endswith(after) and len(name) >= len(before) + len(after)
    return name[len(before) : len(name) - len(after)] if fits else None


def _filled(pattern: str, part: str) -> str:
    return pattern.replace(ANY, part)
