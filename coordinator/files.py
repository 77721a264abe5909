"""Files of a home: read with a bound, written whole or not at all."""

import os
import secrets
from pathlib import Path

from protocols.errors import InputError, StateConflict


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the bytes of `path`.

    Raises:
        InputError: it cannot be read, or is longer than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror})",
            code="file-unreadable",
            hint="correct the path, or name the right folder with --home",
        ) from None
    if len(data) > limit:
        raise InputError(
            f"{path} is longer than the {limit} bytes accepted", code="too-long", hint="is it the right file?"
        )
    return data


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist yet, durably.

    Raises:
        StateConflict: it exists.
        InputError: it cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise StateConflict(
            f"{path} exists already and is not overwritten",
            code="file-exists",
            hint="choose another name, or move it away",
        ) from None
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", code="file-unwritable") from None


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file so that readers see the old bytes or the new ones, nothing between.

    Raises:
        InputError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", code="file-unwritable") from None


def flush_folder(folder: Path) -> None:
    """Make a folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
