"""Imports point down, and protocols touch nothing outside their arguments."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).with_name("lint-imports")
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
SOURCES = sorted((ROOT / "protocols").rglob("*.py"))


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of pyproject.toml on the packages below `folder`."""
    command = [LINT, "--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_every_import_contract_is_kept():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(CONFIG['contracts'])} kept, 0 broken" in result.stdout


VIOLATIONS = [
    ("protocols/bad.py", "import policies"),
    ("protocols/bad.py", "import socket"),
    ("protocols/bad.py", "def late():\n    import asyncio"),
    ("protocols/bad.py", "from time import sleep"),
    ("protocols/bad.py", "import secrets"),
    ("protocols/bad.py", "import minshu"),
    ("policies/bad.py", "import audit"),
    ("audit/bad.py", "import node"),
    ("audit/bad.py", "import grpc"),
    ("node/bad.py", "from coordinator import bad"),
    ("coordinator/bad.py", "import demo"),
    ("demo/bad.py", "import bench"),
    ("minshu/v1/bad.py", "import protocols"),
]


def write_what_contracts_name(folder: Path) -> None:
    """Write the modules whose imports are excepted: an exception that excepts nothing is an error."""
    for contract in CONFIG["contracts"]:
        for name in contract.get("source_modules", ()):
            module_file(folder, name)
        for excepted in contract.get("ignore_imports", ()):
            importer, imported = excepted.split(" -> ")
            with module_file(folder, importer).open("a") as file:
                file.write(f"import {imported}\n")


def module_file(folder: Path, name: str) -> Path:
    """Return the file of a module below `folder`, made with its packages where there is none."""
    if (package := folder.joinpath(*name.split("."))).is_dir():
        return package / "__init__.py"
    made = package.with_suffix(".py")
    made.parent.mkdir(parents=True, exist_ok=True)
    for each in (made, *(parent / "__init__.py" for parent in made.relative_to(folder).parents)):
        (folder / each).touch()
    return made


@pytest.mark.parametrize(("path", "line"), VIOLATIONS, ids=[f"{p}: {line}" for p, line in VIOLATIONS])
def test_the_contracts_find_an_import_that_points_up_or_out(tmp_path, path, line):
    for package in (*CONFIG["root_packages"], "minshu/v1"):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "bad.py").touch()
    (tmp_path / "minshu/__init__.py").write_text("def __getattr__(name):\n    import coordinator\n")
    write_what_contracts_name(tmp_path)
    assert lint(tmp_path).returncode == 0
    (tmp_path / path).write_text(line + "\n")
    result = lint(tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout


def test_every_package_has_its_place_in_the_layers():
    placed = {name.strip() for layer in CONFIG["contracts"][0]["layers"] for name in layer.split("|")}
    assert placed == {"minshu.v1" if name == "minshu" else name for name in CONFIG["root_packages"]}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"minshu"}
    assert packages == set(CONFIG["root_packages"])


def test_only_the_group_module_loads_libsodium():
    graph = grimp.build_graph(*CONFIG["root_packages"], include_external_packages=True, cache_dir=None)
    users = graph.find_modules_that_directly_import("rbcl") if "rbcl" in graph.modules else set()
    assert users <= {"protocols.psi.group"}


# What an import contract cannot see: a built-in, or a part of a module that is allowed otherwise.
FORBIDDEN_CALLS = {"now", "today", "utcnow", "urandom", "getrandbits", "token_bytes", "uuid4"}
FORBIDDEN_FILE_CALLS = {"read_text", "read_bytes", "write_text", "write_bytes"}
FORBIDDEN_SUBMODULES = {
    f"pyarrow.{name}" for name in ("parquet", "csv", "json", "dataset", "fs", "feather", "flight")
}
BUILT_IN = {"open", "input", "print", "eval", "exec", "compile", "__import__"}


def reaches_out(source: str) -> list[str]:
    """Return what `source` calls or imports that a protocol must be given instead, with lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names = [node.func.id] if node.func.id in BUILT_IN | FORBIDDEN_CALLS else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            names = [node.func.attr] if node.func.attr in FORBIDDEN_CALLS | FORBIDDEN_FILE_CALLS else []
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in FORBIDDEN_SUBMODULES]
        elif isinstance(node, ast.ImportFrom):
            full = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            names = sorted(full & FORBIDDEN_SUBMODULES)
        found += [f"line {node.lineno}: {name}" for name in names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_protocol_takes_clock_randomness_and_bytes_as_arguments(path):
    assert reaches_out(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "open('x')",
        "datetime.now(UTC)",
        "os.urandom(32)",
        "Path('x').read_text()",
        "import pyarrow.parquet",
        "from pyarrow import csv",
        "from pyarrow.parquet import read_table",
        "print('x')",
    ],
)
def test_reaching_out_is_found(source):
    assert reaches_out(source)
