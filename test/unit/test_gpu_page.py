"""docs/gpu.md: its commands are ones that this version takes, and a dry run on the CPU writes the page's section."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from molmoact2_ros.cli import parser

ROOT = Path(__file__).parents[2]
COMMANDS = [line.strip() for line in (ROOT / "docs" / "gpu.md").read_text().splitlines() if line.startswith("    ")]


def on_a_cpu(command: str) -> list[str]:
    """The same words for a small model and a few calls on the CPU."""
    words = shlex.split(command)[1:]
    for old, new in (("full", "small"), ("cuda", "cpu"), ("DIR", "so101_cell"), ("tensorrt", "onnxruntime")):
        words = [new if word == old else word for word in words]
    return words


def test_every_command_is_one_that_this_version_takes() -> None:
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        assert command.startswith("molmoact2 ")
        parser().parse_args(shlex.split(command)[1:])


@pytest.mark.slow
def test_a_dry_run_of_the_benches_writes_their_sections(tmp_path: Path) -> None:
    page = tmp_path / "policy.md"
    benches = [on_a_cpu(command) for command in COMMANDS if " bench policy " in command and "--changed" in command]
    assert len(benches) >= 3
    for words in benches:
        made = subprocess.run(
            [sys.executable, "-m", "molmoact2_ros.cli", *words, "--repeats", "1", "--page", str(page)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert made.returncode == 0, made.stderr
    assert page.read_text().count("\n## ") >= 2 and "other codes" in page.read_text()
