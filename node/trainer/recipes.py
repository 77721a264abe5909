"""Recipes by name and digest: found among installed packages, checked file by file, loaded from what was
checked.

A job pins a recipe as {name, distribution, version, digest}; nothing in a job is code. `digest` covers every
Python file and every other file of the wheel, so all nodes of a job run the same text, whatever way it was
installed.
"""

import base64
import binascii
import hashlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, EntryPoint, PackagePath
from pathlib import Path, PurePosixPath
from types import CodeType, ModuleType
from typing import Any, Final

from protocols.errors import InputError
from protocols.training.work import Pin

GROUP: Final = "minshu.recipes"
"""Entry point group; the object is a `node.trainer.recipe.Recipe`."""

BUILT_IN: Final = "node.trainer.apps:BUILT_IN"
"""Minshu's own recipes, `module:object`. They are named, not pinned: they come with the node's program."""

MAX_FILES: Final = 500
MAX_FILE_BYTES: Final = 4 << 20

_DOMAIN: Final = b"minshu/recipe/1"

_PROGRAM: Final = frozenset(
    {"minshu", "protocols", "policies", "audit", "node", "coordinator", "demo", "bench"}
)
"""Packages of this program, which an editable install keeps elsewhere."""

_RUN_UNASKED: Final = frozenset({"sitecustomize", "usercustomize"})
"""Modules that Python imports at every start, the node's own included."""


def installed() -> list[tuple[str, str]]:
    """Return name and distribution of every recipe that is installed beside Minshu's own, in order."""
    entries = importlib.metadata.entry_points(group=GROUP)
    return sorted({(entry.name, entry.dist.name) for entry in entries if entry.dist is not None})


def pin(name: str, distribution: str) -> Pin:
    """Return the pin of a recipe as it is installed here; see `files` for errors."""
    found = _distribution(distribution)
    return Pin(name, found.name, found.version, digest(files(found)))


def check(pinned: Pin) -> dict[str, bytes]:
    """Return the files of a pinned recipe's distribution, path → content.

    Raises:
        InputError: not installed, altered since it was installed, or another than the pinned one.
    """
    found = files(_distribution(pinned.distribution))
    if digest(found) != pinned.digest:
        raise InputError(
            f"{pinned.distribution} is installed with other files than the job names",
            code="recipe-differs",
            hint=f"install {pinned.distribution} {pinned.version} as all participants have it",
        )
    return found


def digest(contents: Mapping[str, bytes]) -> str:
    """Return `sha256:…` over paths and contents, in order of paths."""
    all_of_it = hashlib.sha256(_DOMAIN)
    for path in sorted(contents):
        name = path.encode()
        all_of_it.update(len(name).to_bytes(4, "big") + name + hashlib.sha256(contents[path]).digest())
    return f"sha256:{all_of_it.hexdigest()}"


def files(distribution: Distribution) -> dict[str, bytes]:
    """Return what the wheel of a distribution put here, each file compared with the wheel's RECORD.

    Left out is what the installer adds or writes anew at every place: compiled files, and in the
    `.dist-info` folder everything but METADATA and entry_points.txt.

    Raises:
        InputError: no RECORD, an editable install, a file that is missing or differs, native code, too much,
        or files elsewhere than in packages of its own.
    """
    wanted = [path for path in distribution.files or () if _counts(path)]
    for path in wanted:
        _check_place(distribution, path)
    _check_alone(distribution, {path.parts[0] for path in wanted})
    if not any(path.suffix == ".py" for path in wanted) or len(wanted) > MAX_FILES:
        raise InputError(
            f"{distribution.name} is no recipe that can be pinned",
            code="recipe-not-pinned",
            hint="install it from a wheel, not as editable",
        )
    contents = {}
    for path in wanted:
        try:
            with Path(str(distribution.locate_file(path))).open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
        except OSError:
            content = b""
        if path.suffix in {".so", ".pyd", ".dylib"} or len(content) > MAX_FILE_BYTES:
            raise InputError(
                f"{distribution.name} holds native code or a large file", code="recipe-not-pinned"
            )
        if path.hash is None or path.hash.mode != "sha256" or _hash(path) != hashlib.sha256(content).digest():
            raise InputError(
                f"a file of {distribution.name} is not what was installed",
                code="recipe-altered",
                hint=f"install {distribution.name} again",
            )
        contents[path.as_posix()] = content
    return contents


def _distribution(name: str) -> Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"{name} is not installed here",
            code="recipe-missing",
            hint=f"install {name} into the environment of this node",
        ) from None


def _check_place(distribution: Distribution, path: PackagePath) -> None:
    """Check that a file lies in a package, or is a module that Python does not run unasked."""
    above = path.is_absolute() or ".." in path.parts
    loose = len(path.parts) == 1 and (path.suffix != ".py" or path.stem in _RUN_UNASKED)
    if above or loose or path.parts[0] in _RUN_UNASKED:
        raise InputError(
            f"{distribution.name} puts files elsewhere than in packages of its own",
            code="recipe-not-pinned",
            hint="build it without .pth files, scripts, data files and files outside of its package",
        )


def _check_alone(distribution: Distribution, tops: set[str]) -> None:
    """Check that no other distribution, and not this program, has files in the same packages."""
    taken = {top.removesuffix(".py") for top in tops} & _PROGRAM
    for other in importlib.metadata.distributions():
        if other.metadata["Name"] is not None and _plain(other.name) != _plain(distribution.name):
            record = "\n" + (other.read_text("RECORD") or "")
            taken |= {top for top in tops if f"\n{top}/" in record or f"\n{top}," in record}
    if taken:
        raise InputError(
            f"{distribution.name} puts files into a package of another distribution",
            code="recipe-not-pinned",
            hint="give the recipe's package a name of its own",
        )


def _plain(name: str) -> str:
    """Return a distribution's name as those that mean the same have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _counts(path: PackagePath) -> bool:
    if "__pycache__" in path.parts or path.suffix == ".pyc":
        return False
    folder = path.parts[0]
    return not folder.endswith(".dist-info") or path.name in {"METADATA", "entry_points.txt"}


def _hash(path: PackagePath) -> bytes:
    assert path.hash is not None
    try:
        return base64.urlsafe_b64decode(path.hash.value + "=" * (-len(path.hash.value) % 4))
    except binascii.Error:
        return b""


def load(recipe: str | Pin) -> Any:
    """Return one of Minshu's own recipes, or the object that a pinned entry point names.

    The modules of a pinned one come from the checked bytes alone: what lies beside them on disk at import,
    compiled files above all, is not looked at.

    Raises:
        InputError: as `check`; or the distribution has no such entry point, or takes another's module name.
    """
    if isinstance(recipe, str):
        module, _, attribute = BUILT_IN.partition(":")
        return getattr(importlib.import_module(module), attribute)
    contents = check(recipe)
    entry = _entry(recipe)
    finder = _FromChecked(contents)
    for top, path in finder.tops.items():
        spec = importlib.util.find_spec(top)
        place = str(_distribution(recipe.distribution).locate_file(path))
        taken = top in sys.stdlib_module_names or top in sys.modules
        if taken or spec is None or spec.origin != place:
            raise InputError(
                f"{recipe.distribution} brings a module {top} that is another's",
                code="recipe-shadows",
                hint="give the recipe's package a name of its own",
            )
    sys.meta_path.insert(0, finder)
    return entry.load()


def _entry(pinned: Pin) -> EntryPoint:
    entries = _distribution(pinned.distribution).entry_points.select(group=GROUP, name=pinned.name)
    if len(entries) != 1:
        raise InputError(
            f"{pinned.distribution} has no recipe {pinned.name}",
            code="recipe-missing",
            hint="`minshu-node recipe list` shows what is installed here",
        )
    return next(iter(entries))


class _FromChecked(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the modules of one distribution from bytes in memory."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        self._modules: dict[str, tuple[str, bytes]] = {}
        for path, content in contents.items():
            parts = PurePosixPath(path).with_suffix("").parts
            if path.endswith(".py"):
                name = parts[:-1] if parts[-1] == "__init__" else parts
                self._modules[".".join(name)] = (path, content)
        self.tops = {name: path for name, (path, _) in self._modules.items() if "." not in name}

    def find_spec(  # the interface has more than is needed here
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self.tops:
            return None
        if fullname not in self._modules:
            raise ModuleNotFoundError(f"the recipe has no module {fullname}", name=fullname)
        return importlib.util.spec_from_loader(fullname, self, is_package=self.is_package(fullname))

    def is_package(self, fullname: str) -> bool:
        return PurePosixPath(self._modules[fullname][0]).name == "__init__.py"

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._modules[fullname][1])

    def get_code(self, fullname: str) -> CodeType:
        path, content = self._modules[fullname]
        return self.source_to_code(content, f"<{path}>")

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        exec(self.get_code(module.__spec__.name), module.__dict__)  # noqa: S102 - the pinned recipe itself
