"""The package as ROS, pip and colcon see it."""

import configparser
import importlib.util
import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path

import pytest
import yaml

import molmoact2_ros

ROOT = Path(__file__).parents[2]


def console_scripts() -> dict[str, str]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines)}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text().split()
    return dict(line.split("==") for line in lines)


def clean_environment(**more: str) -> dict[str, str]:
    own = ("PYTHONPATH", "AMENT_PREFIX_PATH")
    return {**{key: value for key, value in os.environ.items() if key not in own}, **more}


def test_package_xml_is_valid_and_agrees_with_setup_cfg():
    from catkin_pkg.package import parse_package

    warnings: list[str] = []
    package = parse_package(str(ROOT / "package.xml"), warnings=warnings)
    package.validate(warnings=warnings)
    assert warnings == []
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert package.package_format == 3
    assert package.name == config["metadata"]["name"] == "molmoact2_ros"
    assert package.version == molmoact2_ros.__version__
    assert package.description == config["metadata"]["description"]
    assert [str(export) for export in package.exports if export.tagname == "build_type"]
    assert (ROOT / "resource" / package.name).is_file()


def test_package_xml_names_every_message_package_that_the_nodes_import():
    from catkin_pkg.package import parse_package

    depends = {depend.name for depend in parse_package(str(ROOT / "package.xml")).exec_depends}
    used = set()
    for path in (ROOT / "molmoact2_ros" / "nodes").rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]):
                root = words[1].partition(".")[0]
                if root.endswith(("_msgs", "_srvs", "_interfaces")):
                    used.add(root)
    assert used <= depends


@pytest.mark.parametrize(("script", "target"), console_scripts().items())
def test_every_console_script_has_its_function_and_its_executable_for_ros2_run(script: str, target: str):
    module, _, function = target.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} does not exist"
    text = Path(spec.origin).read_text()
    assert f"\n{function} = main_of(" in text or f"\ndef {function}(" in text
    executable = Path(sys.prefix) / "lib" / "molmoact2_ros" / script
    assert os.access(executable, os.X_OK), "run make setup"


def test_nothing_else_is_offered_to_ros2_run():
    found = {path.name for path in (Path(sys.prefix) / "lib" / "molmoact2_ros").iterdir() if path.exists()}
    assert found == set(console_scripts())


@pytest.mark.slow
@pytest.mark.parametrize(("script", "target"), console_scripts().items())
def test_every_console_script_imports(script: str, target: str):
    module, _, function = target.partition(":")
    code = f"import {module} as m; assert callable(m.{function})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr


def test_pins_are_exact_and_the_runtime_set_is_part_of_the_test_set():
    runtime, test = pins("runtime.txt"), pins("test.txt")
    assert runtime.items() <= test.items()
    assert "lark" not in test  # it and lark-parser overwrite each other's files
    for path in (ROOT / "requirements").iterdir():
        assert "://" not in path.read_text(), f"{path} names an index"


@pytest.mark.slow
def test_colcon_builds_it_and_ros_finds_it(tmp_path):
    source = tmp_path / "src" / "molmoact2_ros"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    env = clean_environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for extra in ([], ["--symlink-install"]):
        base = ["--build-base", f"b{len(extra)}", "--install-base", f"i{len(extra)}"]
        command = [sys.executable, "-m", "colcon", "build", *base, *extra]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        prefix = tmp_path / f"i{len(extra)}" / "molmoact2_ros"
        share = prefix / "share" / "molmoact2_ros"
        assert (prefix / "share/ament_index/resource_index/packages/molmoact2_ros").exists()
        for path in ("package.xml", "launch/so101.launch.py", "config/so101.yaml", "urdf/so101.urdf"):
            assert (share / path).is_file(), path
        command = f". {share}/package.bash && {prefix}/lib/molmoact2_ros/molmoact2 --version"
        run = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60)
        assert run.stdout.strip() == f"molmoact2_ros {molmoact2_ros.__version__}", run.stderr


@pytest.mark.slow
def test_pip_installs_the_same_console_scripts_and_data(tmp_path):
    source = tmp_path / "source"
    left_out = shutil.ignore_patterns(".git", ".venv", "out", "runs", "build", "*.egg-info")
    shutil.copytree(ROOT, source, symlinks=True, ignore=left_out)
    target = tmp_path / "target"
    # Without --ignore-installed pip would first remove this environment's own installation.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--ignore-installed"]
    pip += ["--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--prefix", str(target), str(source)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (target / "bin").iterdir()} == set(console_scripts())
    assert {path.name for path in (target / "lib" / "molmoact2_ros").iterdir()} == set(console_scripts())
    assert (target / "share/molmoact2_ros/config/so101.yaml").is_file()
    (package,) = target.glob("lib/python3*/site-packages/molmoact2_ros")
    here = {p.relative_to(ROOT / "molmoact2_ros/data") for p in (ROOT / "molmoact2_ros/data").rglob("*") if p.is_file()}
    assert {p.relative_to(package / "data") for p in (package / "data").rglob("*") if p.is_file()} == here
    # What somebody gets who installs it with an extra, in an environment that has nothing yet.
    (installed,) = package.parent.glob("molmoact2_ros-*.dist-info")
    asked = Distribution.at(installed).requires or []
    for extra, files in {"robot": ["robot"], "sim": ["runtime"], "policy": ["runtime", "serve"]}.items():
        pinned = {line for file in files for line in (ROOT / f"requirements/{file}.txt").read_text().splitlines()}
        own = {line.partition(";")[0].strip() for line in asked if f'extra == "{extra}"' in line}
        assert own == pinned, extra


def test_what_others_read_of_the_repository_is_valid_and_current():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == molmoact2_ros.__version__ and citation["license"] == "Apache-2.0"
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["check"]
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        fields = yaml.safe_load(form.read_text()).get("body", [])
        assert all(field["type"] == "markdown" or field["id"] for field in fields), form
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert all(hook["entry"].startswith("sh tools/run.sh ") for hook in hooks)
