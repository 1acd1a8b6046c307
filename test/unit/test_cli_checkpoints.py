"""`inspect-checkpoint` and `models`: what is said of a folder, and with which exit status; no weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lerobot_checkpoints import arm_statistics, new_policy, write_policy
from small_checkpoints import ROBOT, make_checkpoint

from molmoact2_ros.cli import run
from molmoact2_ros.embodiments import EMBODIMENTS

TAG = ROBOT.norm_tag


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("tuned"), new_policy(base), arm_statistics())


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("molmoact2_ros.policy.loading.read_tensors", lambda *_: pytest.fail("weights were read"))


def looked(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, dict[str, Any]]:
    status = run(["inspect-checkpoint", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_released_folder_is_told_with_what_fits(
    base: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = looked(capsys, base)
    assert status == 0 and found["usable"]
    assert found["what"]["what"] == "released layout" and found["what"]["norm tag"] == TAG
    assert {name for name, problems in found["fits"].items() if not problems} == {"so100", "so101"}
    assert set(found["fits"]) == set(EMBODIMENTS)


def test_a_fine_tune_is_told_with_what_was_inferred(
    tuned: Path, no_weights: None, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = looked(capsys, tuned, "--robot", "so101")
    assert status == 0
    assert found["what"]["what"] == "LeRobot layout, full" and found["what"]["joint frame"] == "arm"
    for part in ("fine-tuned from", "joint frame", "chunks of 9 rows", "data set's rate"):
        assert any(part in note for note in found["notes"]), part


def test_another_robot_is_refused_with_status_1_and_a_table(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect-checkpoint", str(base), "--robot", "franka"]) == 1
    text = capsys.readouterr().out
    assert "franka: cannot be driven" in text and "state size" in text and "!=  6" in text


def test_files_that_do_not_go_together_cannot_drive(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(base, tmp_path / "mixed"))
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (directory / "config.json").write_text(json.dumps(config))
    status, found = looked(capsys, directory, "--robot", "so101")
    assert status == 1 and "the weights do not fit config.json" in found["fits"]["so101"][0]


def cut(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def foreign(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"type": "pi0"}))


def no_processors(directory: Path) -> None:
    (directory / "policy_preprocessor.json").unlink()


def other_processors(directory: Path) -> None:
    path = directory / "policy_postprocessor.json"
    path.write_text(path.read_text().replace("molmoact2_clamp_action", "molmoact3_clamp_action"))


def no_statistics(directory: Path) -> None:
    next(directory.glob("policy_postprocessor_*.safetensors")).unlink()


def no_cameras(directory: Path) -> None:
    for name in ("policy_preprocessor.json", "config.json"):
        content = json.loads((directory / name).read_text())
        for step in content.get("steps", []):
            if "image_keys" in step["config"]:
                step["config"]["image_keys"] = []
        content["input_features"] = {}
        (directory / name).write_text(json.dumps(content))


def half_a_transform(directory: Path) -> None:
    path = directory / "policy_preprocessor.json"
    path.write_text(path.read_text().replace('"joint_signs": null', '"joint_signs": [1, 1, 1, 1, 1, 1]'))


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (cut, "cut short"),
        (foreign, "not a MolmoAct2 checkpoint"),
        (no_processors, "missing policy_preprocessor.json: without its processors nothing says"),
        (other_processors, "step 'molmoact3_clamp_action' is not one of lerobot 0.6's"),
        (no_statistics, "with the statistics; fetch it again"),
        (no_cameras, "image_keys is empty, and input_features has no picture"),
        (half_a_transform, "not the published SO transform"),
    ],
)
def test_a_wrong_folder_is_one_line(
    tuned: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    part: str,
) -> None:
    directory = Path(shutil.copytree(tuned, tmp_path / "wrong"))
    spoil(directory)
    assert run(["inspect-checkpoint", str(directory), "--robot", "so101"]) == 2
    shown = capsys.readouterr()
    assert part in shown.err and len(shown.err.splitlines()) == 1, shown.err
    assert not shown.out


def test_statistics_of_another_width_do_not_fit(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stats = {
        key: {name: value[:5] if len(value) > 1 else value for name, value in values.items()}
        for key, values in arm_statistics().items()
    }
    directory = write_policy(tmp_path / "five", new_policy(base, dof=5), stats)
    status, found = looked(capsys, directory, "--robot", "so101")
    assert status == 1
    assert any("state has 5 dimensions, so101 has 6" in problem for problem in found["fits"]["so101"])


def test_an_adapter_alone_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert run(["inspect-checkpoint", str(tmp_path)]) == 2
    assert "a LoRA adapter alone" in capsys.readouterr().err


def test_the_known_models_are_listed_by_robot(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    for model in models:
        assert set(model["robots"]) <= set(EMBODIMENTS)
        for robot in model["robots"]:
            if model["tag"]:
                assert EMBODIMENTS[robot].norm_tag == model["tag"] and EMBODIMENTS[robot].horizon == model["rows"]
    assert run(["models", "--robot", "yam"]) == 0
    assert "allenai/MolmoAct2-BimanualYAM" in capsys.readouterr().out.replace("\n", "").replace(" ", "")
