"""`molmoact2 bench policy` measures what it says: every case with both backends, drafts that are half wrong, a page
whose other sections stay."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_checkpoints import TINY

from molmoact2_ros.benchmarking import random_model
from molmoact2_ros.benchmarking.policy import STAGES, Row, Settings, measure, write_section
from molmoact2_ros.cli import parser


def test_a_run_measures_every_case_and_writes_its_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random_model.SIZES, "small", TINY)
    page = tmp_path / "deep" / "policy.md"
    settings = Settings("small", "", cameras=3, changed=0.45, repeats=1, threads=1)
    written, result = measure(settings, page)
    assert written == page
    rows = {(row["backend"], row["case"]): row for row in result["rows"]}
    assert set(rows) == {
        *((backend, case) for backend in ("torch", "reference") for case in ("base", "think, unchanged")),
        *((backend, "think, 45% changed") for backend in ("torch", "reference")),
        ("torch", "think, identical pictures"),
    }
    assert rows["torch", "base"]["forwards"] == rows["reference", "base"]["forwards"] == 1
    assert rows["torch", "think, unchanged"]["forwards"] == 1
    assert rows["torch", "think, unchanged"]["cells"] == 0
    for backend in ("torch", "reference"):
        changed = rows[backend, "think, 45% changed"]
        assert (changed["cells"], changed["wrong"]) == (4, 2), "9 cells, 4 changed, every second code wrong"
    assert rows["reference", "think, 45% changed"]["forwards"] > rows["torch", "think, 45% changed"]["forwards"]
    assert result["think_over_base"] > 0 and result["ours_over_reference"] > 0
    text = page.read_text()
    assert "## random model, small, 3 cameras, CPU" in text and "torch 2." in text


def test_another_model_gets_its_own_section_and_the_same_one_replaces_it(tmp_path: Path) -> None:
    page = tmp_path / "policy.md"
    result = {"think_over_base": 1.1, "ours_over_reference": 0.4}

    def write(size: str, milliseconds: float) -> None:
        row = Row("torch", "base", dict.fromkeys(STAGES, milliseconds), milliseconds, 1, 0, 0)
        write_section(page, Settings(size, "", 1, 0.1, 5, 1), [row], result, 0.0)

    write("small", 11.5)
    write("mid", 22.5)
    write("small", 33.5)
    text = page.read_text()
    assert text.count("## random model, small, 1 camera, CPU") == 1 and "33.5" in text and "11.5" not in text
    assert "## random model, mid, 1 camera, CPU" in text and "22.5" in text
    assert text.count("# One call of the policy") == 1


@pytest.mark.parametrize(("name", "value"), [("cameras", 0), ("cameras", 4), ("changed", 1.5), ("repeats", 0)])
def test_settings_that_cannot_work_are_refused(name: str, value: float) -> None:
    options = {"size": "small", "checkpoint": "", "cameras": 2, "changed": 0.1, "repeats": 5, "threads": 1}
    with pytest.raises(ValueError, match=f"--{name}"):
        Settings(**{**options, name: value})  # type: ignore[arg-type]


def test_the_command_line_knows_it() -> None:
    arguments = parser().parse_args(["bench", "policy", "--size", "mid", "--cameras", "3", "--json"])
    assert (arguments.size, arguments.cameras, arguments.changed, arguments.json) == ("mid", 3, 0.1, True)
