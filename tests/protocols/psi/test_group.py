"""ristretto255: published vectors, strict decoding, and what importing rbcl leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from crosscheck_case import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ProtocolAborted
from protocols.psi import group

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/vectors/ristretto255.json").read_text())
ONE = (1).to_bytes(32, "little")


def encoded(*hexes: str) -> group.Points:
    return group.points(bytes.fromhex("".join(hexes)))


def test_multiples_of_the_base_are_those_of_rfc_9496():
    base = encoded(VECTORS["multiples"][1])
    assert base.tobytes() == group.BASE
    for factor, multiple in enumerate(VECTORS["multiples"][1:], start=1):
        assert group.power(base, factor.to_bytes(32, "little")).tobytes().hex() == multiple


@pytest.mark.parametrize("vector", VECTORS["invalid"], ids=lambda v: f"{v['why']} {v['encoding'][:8]}")
def test_an_invalid_encoding_of_rfc_9496_is_refused_wherever_it_stands(vector):
    good = VECTORS["multiples"][2]
    for batch in (
        [vector["encoding"]],
        [good, vector["encoding"]],
        [good] * 200 + [vector["encoding"]] + [good] * 3,
    ):
        with pytest.raises(ProtocolAborted) as refused:
            group.power(encoded(*batch), ONE)
        assert refused.value.code == "bad-point"


def test_the_identity_is_refused():
    with pytest.raises(ProtocolAborted) as refused:
        group.power(encoded(VECTORS["multiples"][0]), ONE)
    assert refused.value.code == "bad-point"


def test_the_top_bit_is_refused():
    # libsodium 1.0.18 decodes such an encoding to the same point as without the bit.
    with pytest.raises(ProtocolAborted) as refused:
        group.power(group.points(group.BASE[:-1] + bytes([group.BASE[-1] | 0x80])), ONE)
    assert refused.value.code == "bad-point"


def test_an_encoding_above_the_field_is_refused_with_and_without_the_top_bit():
    # Even values, so that the sign bit cannot be what refuses them.
    p = 2**255 - 19
    for value in (p + 1, p + 3, p + 17):
        for top in (0, 1 << 255):
            with pytest.raises(ProtocolAborted):
                group.power(group.points((value + top).to_bytes(32, "little")), ONE)


@pytest.mark.parametrize("body", [b"", bytes(31), bytes(33)])
def test_a_body_that_is_no_whole_number_of_points_is_refused(body):
    with pytest.raises(ProtocolAborted) as refused:
        group.points(body)
    assert refused.value.code == "bad-length"


def test_uniform_bytes_map_to_the_points_of_rfc_9496():
    uniform = np.array(
        [np.frombuffer(bytes.fromhex(v["uniform"]), dtype=np.uint8) for v in VECTORS["from_uniform"]]
    )
    assert group.from_uniform(uniform).tobytes().hex() == "".join(v["point"] for v in VECTORS["from_uniform"])


@pytest.mark.parametrize("vector", VECTORS["oprf"]["cases"])
def test_hash_to_group_gives_the_blinded_and_evaluated_elements_of_rfc_9497(vector):
    oprf = VECTORS["oprf"]
    hashed = group.hash_to_group([bytes.fromhex(vector["input"])], bytes.fromhex(oprf["dst"]))
    blinded = group.power(hashed, bytes.fromhex(oprf["blind"]))
    assert blinded.tobytes().hex() == vector["blinded"]
    assert group.power(blinded, bytes.fromhex(oprf["secret_key"])).tobytes().hex() == vector["evaluated"]


def test_a_domain_tag_longer_than_255_bytes_is_hashed_first():
    # RFC 9380, 5.3.3: such a tag stands for H("H2C-OVERSIZE-DST-" ‖ tag).
    import hashlib

    long = b"x" * 256
    short = hashlib.sha512(b"H2C-OVERSIZE-DST-" + long).digest()
    assert (group.hash_to_group([b"a"], long) == group.hash_to_group([b"a"], short)).all()
    assert (group.hash_to_group([b"a"], long[:255]) != group.hash_to_group([b"a"], long)).any()
    with pytest.raises(ValueError, match="empty"):
        group.hash_to_group([b"a"], b"")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 400), st.integers(1, 3))
def test_the_number_of_workers_changes_nothing(count, workers):
    items = [f"item {number}".encode() for number in range(count)]
    scalar = group.random_scalar(seeded("workers"))
    expected = b"".join(
        group.power(group.hash_to_group([item], b"test"), scalar).tobytes() for item in items[:3]
    )
    before, group.WORKERS = group.WORKERS, workers
    try:
        found = group.power(group.hash_to_group(items, b"test"), scalar)
    finally:
        group.WORKERS = before
    assert found.shape == (count, 32)
    assert found.tobytes()[: len(expected)] == expected


def test_scalars_invert_and_multiply_modulo_the_order():
    rand = seeded("scalars")
    a, b = group.random_scalar(rand), group.random_scalar(rand)
    product = int.from_bytes(a, "little") * int.from_bytes(b, "little") % group.ORDER
    assert int.from_bytes(group.multiply(a, b), "little") == product
    assert group.multiply(a, group.invert(a)) == ONE
    with pytest.raises(ValueError, match="zero"):
        group.invert(bytes(32))


def test_a_random_scalar_is_never_zero():
    drawn = iter([bytes(64), group.ORDER.to_bytes(64, "little"), (group.ORDER + 7).to_bytes(64, "little")])
    assert int.from_bytes(group.random_scalar(lambda _: next(drawn)), "little") == 7


def test_a_permutation_is_drawn_again_when_two_words_are_equal():
    tied, clear = np.array([5, 5, 1], dtype=np.uint64), np.array([9, 2, 4], dtype=np.uint64)
    drawn = iter([tied.tobytes(), clear.tobytes()])
    assert group.permutation(3, lambda _: next(drawn)).tolist() == [1, 2, 0]
    assert group.permutation(0, seeded(0)).tolist() == []
    assert group.permutation(1, seeded(0)).tolist() == [0]


def test_every_permutation_of_three_is_equally_likely():
    # 6,000 draws from a fixed seed; chi-square with 5 degrees of freedom above 20.5 has probability 0.001.
    rand = seeded("permutation")
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(6000):
        order = tuple(group.permutation(3, rand).tolist())
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in seen.values()) < 20.5


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_loading_leaves_nothing_in_the_temporary_directory(tmp_path):
    other = tmp_path / "tmpother.so"
    other.write_bytes(b"another process's file")
    done = python(
        "from protocols.psi import group; group.load(); print(len(group.BASE))", TMPDIR=str(tmp_path)
    )
    assert (done.returncode, done.stdout) == (0, "32\n"), done.stderr
    assert list(tmp_path.iterdir()) == [other]


def test_importing_the_module_alone_loads_nothing(tmp_path):
    done = python("import sys, protocols.jobs; print('rbcl' in sys.modules)", TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


REPORT = """
from protocols.errors import InputError
from protocols.psi import group
try:
    group.load()
except InputError as error:
    print(error.code, '|', error.hint)
"""


def test_a_temporary_directory_without_execution_is_named_and_left_clean(tmp_path):
    # What dlopen says on a file system mounted noexec.
    noexec = "import ctypes\ndef refuse(*_): raise OSError('failed to map segment from shared object')\n"
    done = python(noexec + "ctypes.cdll.LoadLibrary = refuse\n" + REPORT, TMPDIR=str(tmp_path))
    assert done.stdout.startswith("temp-not-executable | point TMPDIR"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_directory_is_named_and_left_clean(tmp_path):
    full = (
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    )
    done = python(full + REPORT, TMPDIR=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    assert done.stdout.startswith("temp-not-executable | point TMPDIR"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_only_this_module_imports_rbcl():
    packages = ["protocols", "policies", "audit", "node", "coordinator", "demo"]
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    importers = [
        path.relative_to(ROOT).as_posix()
        for path in files
        if any(
            line.strip().startswith(("import rbcl", "from rbcl")) for line in path.read_text().splitlines()
        )
    ]
    assert importers == ["protocols/psi/group.py"]
