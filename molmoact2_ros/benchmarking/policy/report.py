"""The page of `molmoact2 bench policy`: a section for each model, and the ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from molmoact2_ros.benchmarking.machine import machine
from molmoact2_ros.benchmarking.policy.calls import PICTURE
from molmoact2_ros.benchmarking.policy.lanes import STAGES, WARM_UP, Measured, Row
from molmoact2_ros.benchmarking.policy.settings import IDENTICAL, PolicyBench

HEAD = "# One call of the policy"
INTRO = """Written by `molmoact2 bench policy`. Medians in milliseconds by stage, without overlap; ratios are of the
medians of whole calls, and `best` is the fastest call. Backends take turns, call by call. `base` runs the same weights
with the prompt that asks for no depth. Every image differs from the last by camera noise, so every call encodes all
of them, except in `identical pictures` (a frame used twice). Where cells changed, the draft has a wrong code in every
second changed cell; with random weights it is made so (see `benchmarking/policy_calls.py`). `other codes` counts depth
codes that differ from those of the first backend in the table, over all calls. Peak memory is what the backend adds to
the process on a CPU, interpreter and libraries included, and the allocator's on a GPU. Bytes copied are those of one
call: on a CPU what torch's copying operators write (copies inside other libraries are not seen), on a GPU between host
and device."""


def result_of(settings: PolicyBench, measured: Measured) -> dict[str, Any]:
    """The last line of `--json`. `think_over_base` and `ours_over_reference` are those of our fastest backend; each
    backend's own are in `backends`. None where a case was not measured."""
    usual = {(row.backend, row.case): row.milliseconds["total"] for row in measured.rows}
    case = settings.ratio_case

    def ratio(above: tuple[str, str], below: tuple[str, str]) -> float | None:
        return round(usual[above] / usual[below], 3) if above in usual and below in usual else None

    ours = [name for name in dict.fromkeys(row.backend for row in measured.rows) if name != "reference"]
    backends = {
        name: {
            "think_over_base": ratio((name, case), (name, "base")),
            "over_reference": ratio((name, case), ("reference", case)),
            "base_over_reference": ratio((name, "base"), ("reference", "base")),
        }
        for name in ours
    }
    asked = case if any(key in usual for key in ((name, case) for name in ours)) else "base"
    fastest = min(ours, key=lambda name: usual[name, asked]) if ours else None
    chosen = backends[fastest] if fastest else {}
    over = chosen.get("over_reference") if asked == case else chosen.get("base_over_reference")
    return {
        **asdict(settings),
        "ours": fastest,
        "think_over_base": chosen.get("think_over_base"),
        "ours_over_reference": over,
        "backends": backends,
        "peak_bytes": dict(measured.peaks),
        "flips": {name: asdict(flips) for name, flips in measured.flips.items()},
        "rows": [asdict(row) for row in measured.rows],
    }


def title_of(settings: PolicyBench, where: str) -> str:
    """The heading of a section."""
    name = f"checkpoint {Path(settings.checkpoint).name}" if settings.checkpoint else f"random model, {settings.size}"
    chunk = f", chunks of {settings.chunk}" if settings.chunk else ""
    share = "" if settings.changed is None else f", {settings.changed:.0%} changed"
    return f"## {name}, {settings.cameras} camera{'s' if settings.cameras > 1 else ''}{chunk}{share}, {where}"


def write_section(
    page: Path, settings: PolicyBench, measured: Measured, result: Mapping[str, Any], load_before: float, where: str
) -> None:
    """Put the measurement into `page`, in the place of an older one of the same title."""
    title = title_of(settings, where)
    lines = [title, ""]
    lines += [f"- Date: {date.today().isoformat()}", *(f"- {key}: {value}" for key, value in machine().items())]
    lines += [
        f"- {settings.threads or 'all'} threads, median of {settings.repeats} rounds after {WARM_UP}, images of "
        f"{PICTURE[1]} x {PICTURE[0]}, load average before the run {load_before:.1f}, "
        f"processor time taken by the hypervisor {measured.stolen:.0%}",
        *(f"- {line}" for line in _ratios(settings, result)),
        *(f"- Peak memory, {name}: {peak / 1e9:.2f} GB" for name, peak in measured.peaks.items()),
        *(_flips(name, flips) for name, flips in measured.flips.items()),
        "",
        "| backend | case | " + " | ".join(STAGES) + " | best | forwards | cells anew | wrong in draft | other codes |",
        "|---" * (len(STAGES) + 7) + "|",
        *(_line(row) for row in measured.rows),
    ]
    lines += _copies(measured.rows)
    put_section(page, title, lines)


def put_section(page: Path, title: str, lines: list[str]) -> None:
    """Put `lines`, which begin with `title` (`## ...`), into `page`; its other sections stay."""
    sections: dict[str, str] = {}
    if page.is_file():
        for part in page.read_text().split("\n## ")[1:]:
            sections["## " + part.splitlines()[0]] = "## " + part.rstrip()
    sections[title] = "\n".join(lines)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n\n".join((HEAD, INTRO, *sections.values())) + "\n")


def _ratios(settings: PolicyBench, result: Mapping[str, Any]) -> list[str]:
    found = []
    for name, ratios in result["backends"].items():
        said = {
            f"{settings.ratio_case} over base": ratios["think_over_base"],
            "of the reference's same call": ratios["over_reference"],
            "base of the reference's base": ratios["base_over_reference"],
        }
        shown = "; ".join(f"{what} {value:.3f}" for what, value in said.items() if value is not None)
        if shown:
            found.append(f"Medians, {name}: {shown}")
    return found


def _flips(name: str, flips: Any) -> str:
    at = f", at a top-2 margin of at most {flips.largest_margin:.3f}" if flips.differing else ""
    error = "" if flips.action_error is None else f"; else actions differ by {flips.action_error:.1e} of their spans"
    return (
        f"- {name} against float32 (torch, the same codes before each cell): {flips.differing} of {flips.cells} codes "
        f"differ{at} (median margin of all {flips.median_margin:.3f}); {flips.frames_differing} of {flips.frames} free "
        f"runs differ{error}"
    )


def _line(row: Row) -> str:
    times = " | ".join(f"{row.milliseconds[stage]:.1f}" for stage in STAGES)
    counts = f"{row.forwards} | {row.cells} | {row.wrong} | {row.other_codes}"
    return f"| {row.backend} | {row.case} | {times} | {row.best_ms:.1f} | {counts} |"


def _copies(rows: list[Row]) -> list[str]:
    known = [row for row in rows if row.copied and row.case != IDENTICAL]
    if not known:
        return []
    words = {"within": "within torch", "to_device": "host to device", "to_host": "device to host"}
    kinds = list(known[0].copied)
    lines = ["", "| backend | case | " + " | ".join(f"{words[kind]}, MB" for kind in kinds) + " |"]
    lines.append("|---" * (len(kinds) + 2) + "|")
    for row in known:
        lines.append(
            f"| {row.backend} | {row.case} | " + " | ".join(f"{row.copied[k] / 1e6:.2f}" for k in kinds) + " |"
        )
    return lines
