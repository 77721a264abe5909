"""What can go wrong while a node prepares a job is said in Chinese, too: of every code, not in general."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.answers import IN_CHINESE

ROOT = Path(__file__).parents[2]
PREPARES = sorted(
    {
        *(ROOT / "node" / "sources").glob("*.py"),
        *(ROOT / "node").glob("quality.py"),
        *(ROOT / "protocols" / "codes").glob("*.py"),
        *(ROOT / "protocols").glob("quality*.py"),
        *(
            ROOT / "node" / f"{name}.py"
            for name in (
                *("admission", "compute", "datasets", "mapping"),
                *("scratch", "series", "shelf"),
            )
        ),
        *(ROOT / "protocols" / name for name in ("resources.py", "tables/grouped.py", "psi/keyed_list.py")),
        ROOT / "protocols" / "jobs" / "crosscheck_series.py",
        ROOT / "protocols" / "psi" / "series.py",
    }
)
"""What runs between an attempt that is offered and its admission, reading, mapping and measuring included."""

ERRORS = {"StateConflict", "Refused", "Unreachable"}
"""What is raised, beside all that is called an error. `ProtocolAborted` comes of others' messages, later."""

CHECKED_BEFORE = {"bad-params"}
"""Of a job that is not well-formed, see `policies.faults`."""

OWN = {"bad-series"}
"""Of what this node itself keeps; whoever loads it raises `series-lost` in its place."""


class Codes(ast.NodeVisitor):
    """Collects the codes of all errors that one module makes, however they are spelt out."""

    def __init__(self, tree: ast.Module) -> None:
        self.found: set[str] = set()
        self.unknown: list[int] = []
        self._inside: list[ast.FunctionDef] = []
        self._tables = {
            target.id: each.value
            for each in tree.body
            if isinstance(each, ast.AnnAssign | ast.Assign)
            for target in ([each.target] if isinstance(each, ast.AnnAssign) else each.targets)
            if isinstance(target, ast.Name) and isinstance(each.value, ast.Dict)
        }
        self._tree = tree
        self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._inside.append(node)
        self.generic_visit(node)
        self._inside.pop()

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and (node.func.id in ERRORS or node.func.id.endswith("Error")):
            for word in node.keywords:
                if word.arg == "code":
                    codes = set(self._spelt(word.value))
                    if not codes:
                        self.unknown.append(node.lineno)
                    self.found |= codes
        self.generic_visit(node)

    def _spelt(self, code: ast.expr) -> Iterator[str]:
        match code:
            case ast.Constant(value=str(word)):
                yield word
            case ast.IfExp(body=one, orelse=other):
                yield from self._spelt(one)
                yield from self._spelt(other)
            case ast.Subscript(value=ast.Name(id=table)) if table in self._tables:
                for value in self._tables[table].values:
                    yield from self._spelt(value)
            case ast.Name(id=name):
                yield from self._looked_up(name) or self._given(name)

    def _looked_up(self, name: str) -> set[str]:
        """Return the keys of the table in which a function looks its code up."""
        return {
            word
            for each in ast.walk(self._inside[-1])
            if isinstance(each, ast.Subscript)
            and isinstance(each.value, ast.Name)
            and each.value.id in self._tables
            and isinstance(each.slice, ast.Name)
            and each.slice.id == name
            for key in self._tables[each.value.id].keys
            if key is not None
            for word in self._spelt(key)
        }

    def _given(self, name: str) -> Iterator[str]:
        """Yield what callers in the module give as the argument of that name."""
        function = self._inside[-1]
        place = [argument.arg for argument in function.args.args].index(name)
        for each in ast.walk(self._tree):
            match each:
                case ast.Call(func=ast.Name(id=function.name), args=args) if len(args) > place:
                    yield from self._spelt(args[place])


def codes_of(path: Path) -> Codes:
    return Codes(ast.parse(path.read_text("utf-8")))


def test_codes_are_found_in_every_way_in_which_they_are_spelt_out() -> None:
    source = """
from typing import Final
_TABLE: Final = {"a": "of-a-table"}
_SAID = {"looked-up": ("sentence", "hint")}
def one(code):
    return InputError(_SAID[code][0], code=code)
def two(what, code):
    raise StateConflict(what, code=code)
def three(full, kind):
    two("x", "given")
    raise InputError("x", code="full" if full else _TABLE[kind])
def four(error):
    raise InputError("x", code=error.code)
"""
    found = Codes(ast.parse(source))
    assert found.found == {"of-a-table", "looked-up", "given", "full"}
    assert found.unknown == [13]


@pytest.mark.parametrize("path", PREPARES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_code_that_preparing_a_job_may_end_in_has_its_chinese(path: Path) -> None:
    codes = codes_of(path)
    assert not codes.unknown, f"{path.name}: codes that are not spelt out, in lines {codes.unknown}"
    lacking = codes.found - set(IN_CHINESE) - CHECKED_BEFORE - OWN
    assert lacking == set()


def test_the_places_where_codes_come_from_are_read() -> None:
    found = {code for path in PREPARES for code in codes_of(path).found}
    assert found >= CHECKED_BEFORE | OWN
    assert {
        "not-gb18030", "file-missing", "formula-cell", "source-timeout", "column-type-changed",
        "bad-code-table", "compute-lost", "disk-full", "scratch-failed", "series-over", "no-usable-key",
    } <= found  # fmt: skip


def test_each_is_said_in_chinese_with_what_to_do() -> None:
    for code, (sentence, hint) in IN_CHINESE.items():
        for text in (sentence, hint):
            assert sum("\u4e00" <= character <= "\u9fff" for character in text) >= 3, code
            assert 0 < len(text) < 100, code
            assert text.isprintable(), code
        assert sentence.endswith("。"), code
        assert not hint.endswith((".", "。")), code
