"""What a full tile makes superfluous is out of sight at once, and off the disk a few files at a time."""

from pathlib import Path

from audit.folder import Folder
from audit.merkle import Tile

FULL = Tile(0, 0, 256)


def partials(folder: Path, count: int) -> Folder:
    files = Folder(folder)
    for width in range(1, count + 1):
        files.write(Tile(0, 0, width).path, b"x" * width)
    files.write(FULL.path, b"whole")
    return files


def left(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def test_partial_tiles_go_out_of_sight_at_once_and_off_the_disk_a_few_at_a_time(tmp_path: Path) -> None:
    files = partials(tmp_path, 20)
    files.remove_partial(FULL)
    assert [path.name for path in (tmp_path / "tile" / "0").iterdir()] == ["000"]
    assert left(tmp_path) == 21
    for remaining in (13, 5, 1):
        files.sweep(8)
        assert left(tmp_path) == remaining
    files.sweep(8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tile"]


def test_what_a_crash_left_half_removed_goes_at_the_next_start(tmp_path: Path) -> None:
    files = partials(tmp_path, 20)
    files.remove_partial(FULL)
    files.sweep(8)
    Folder(tmp_path).discard_temporary()
    assert left(tmp_path) == 1
