"""An auditor for tests: takes the decisions of a department's journal again, with the keys of its world."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from simulator import COLLABORATION, World

from audit.bundle import open_bundle
from audit.entries import Entry
from audit.findings import Checks
from audit.note import VerifierKey
from audit.redecide import Redecider
from audit.trust import Trust
from audit.verify import verify_directory
from protocols.envelope import key_id
from protocols.roots import Roots


def audited(
    world: World,
    name: str,
    entries: Sequence[Entry] | None = None,
    opened: Mapping[str, bytes] | None = None,
) -> Checks:
    """Return what an auditor finds in a department's journal, or in entries it might have signed instead.

    `opened`: releases as their recipients have opened them, by file name.
    """
    home, staff, checks = world.homes[name], world.staff[name], Checks()
    officers = frozenset(key_id(officer.public_key) for officer in (staff.dpo, staff.owner))
    roots = Roots.of(COLLABORATION, 2, [root.public_key for root in world.roots])
    with open_bundle(home.journal) as bundle:
        trust = Trust(roots=roots, officers=officers)
        redecider = Redecider(bundle, trust, checks, opened=dict(opened or {}))
        if entries is None:
            key = VerifierKey(home.origin, 1, home.signer.public_key)
            assert verify_directory(bundle, [key], visit=redecider.visit).ok
        for seq, entry in enumerate(entries or ()):
            redecider.visit(replace(entry, seq=seq))
        redecider.finish()
    return checks


def findings(checks: Checks) -> set[tuple[str, str]]:
    """Return the codes of all that was found, each with its question."""
    return {(check.question, found.code) for check in checks for found in check.findings}
