"""The installed distribution: its names, commands, stubs, and what importing it costs."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SCRIPTS = PYPROJECT["project"]["scripts"]
PACKAGES = ["coordinator", "node", "protocols", "policies", "audit", "demo", "minshu"]
STUBS = ROOT / "proto" / "minshu" / "v1"


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload, no-any-return]  # options are subprocess's own


# ---------------------------------------------------------------- names


def test_the_wheel_holds_exactly_our_packages():
    listed = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(Path(folder).name for folder in listed) == sorted(PACKAGES)
    assert all((ROOT / folder / "__init__.py").is_file() for folder in listed)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_other_distribution_owns_our_package_name(package):
    owners = importlib.metadata.packages_distributions().get(package, [])
    assert set(owners) <= {PYPROJECT["project"]["name"]}
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).is_relative_to(ROOT)


def test_the_installed_distribution_is_this_one():
    installed = importlib.metadata.distribution("minshu")
    assert installed.version == PYPROJECT["project"]["version"]
    commands = {e.name: e.value for e in installed.entry_points if e.group == "console_scripts"}
    assert commands == SCRIPTS


@pytest.mark.parametrize("command", SCRIPTS)
def test_a_console_command_resolves(command):
    main = EntryPoint(command, SCRIPTS[command], "console_scripts").load()
    assert callable(main)


# ---------------------------------------------------------------- stubs


def test_the_committed_stubs_are_what_the_proto_files_generate(tmp_path):
    result = run(sys.executable, ROOT / "proto" / "generate.py", tmp_path)
    assert result.returncode == 0, result.stderr
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "minshu" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in STUBS.glob("*_pb2*")}
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == []
    protos = {path.stem for path in STUBS.glob("*.proto")}
    assert {name.partition("_pb2")[0] for name in committed} == protos


def test_the_proto_files_are_clean_by_buf_lint():
    result = run(Path(sys.executable).with_name("buf"), "lint", "proto", cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_buf_lint_asks_for_a_comment_on_everything(tmp_path):
    folder = tmp_path / "minshu" / "v1"
    folder.mkdir(parents=True)
    (tmp_path / "buf.yaml").write_bytes((ROOT / "proto" / "buf.yaml").read_bytes())
    (folder / "bare.proto").write_text(
        'syntax = "proto3";\npackage minshu.v1;\nmessage Bare {\n  bytes x = 1;\n}\n'
    )
    result = run(Path(sys.executable).with_name("buf"), "lint", tmp_path, cwd=tmp_path)
    assert result.returncode != 0
    assert "comment" in result.stdout


# ---------------------------------------------------------------- what an import loads

HEAVY = [
    "torch", "duckdb", "pyarrow", "pandas", "sqlalchemy", "opacus", "flwr",
    "tenseal", "opendp", "scipy", "dp_accounting", "matplotlib", "mpyc", "statsmodels",
]  # fmt: skip


def loaded_by(statement: str) -> tuple[list[str], str]:
    """Return the heavy modules that `statement` loads in a fresh interpreter, and the import times."""
    probe = f"import json, sys\n{statement}\nprint(json.dumps(sorted(set(sys.modules) & {set(HEAVY)!r})))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = run(sys.executable, "-X", "importtime", "-c", probe, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


@pytest.mark.parametrize("package", [
        "node", "coordinator", "minshu", "policies", "audit",
        "policies.cli", "audit.cli", "node.cli", "coordinator.client.cli",
        "node.workers", "node.trainer.process", "node.trainer.recipes", "protocols.training.parties",
    ])  # fmt: skip
def test_importing_a_package_stays_light(package):
    heavy, times = loaded_by(f"import {package}")
    assert heavy == [], "\n".join(line for line in times.splitlines() if line.split("|")[-1].strip() in heavy)


def test_a_heavy_import_is_found():
    assert loaded_by("import duckdb")[0] == ["duckdb"]
