"""Joined lists for tests: a plan, lists of persons with words, and all parties with seeded randomness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from crosscheck_case import CTX, seeded

from protocols.ids import Role
from protocols.jobs.job_type import source
from protocols.joined.field import WIDE, Field
from protocols.joined.parties import Dealer, Helper, Holder, Joining, Matcher, Noise, Totals
from protocols.party import Party, Sent, run
from protocols.psi.keyed_list import WAITING

MATCHER, HELPER, DEALER = (Role(name) for name in ("matcher", "helper", "dealer"))
S1, S2, S3, S4 = (source(i + 1) for i in range(4))

People = Mapping[int, Sequence[int]]
"""Person → the words of its row."""


def key_of(person: int, waits: str = "") -> bytes:
    """Return a person's key, that of one who waits on the list of a role if one is given."""
    return (WAITING + waits.encode() + b":") * bool(waits) + b"RIC:%018d" % person


@dataclass
class Listed:
    """One list: words and open codes by person, and who waits."""

    people: People
    codes: Mapping[int, Sequence[int]] = field(default_factory=dict)
    waiting: frozenset[int] = frozenset()

    def keys(self, role: Role) -> np.ndarray:
        found = [key_of(person, role if person in self.waiting else "") for person in self.people]
        return np.array(found, dtype="S40")


@dataclass
class Joined:
    """One attempt, ready to run."""

    joining: Joining
    lists: Sequence[Listed]
    parties: dict[Role, Party]
    totals: list[Totals]
    sent: list[Sent] = field(default_factory=list)

    def play(self) -> Totals:
        """Play it whole; `sent` has every message afterwards."""
        outputs = run(self.parties, observe=self.sent.append)
        assert outputs.pop(MATCHER) == ("published",)
        assert not any(outputs.values())
        (found,) = self.totals
        return found

    def bodies(self, sender: Role, to: Role, number: int) -> bytes:
        return b"".join(m.body for m in self.sent if (m.sender, m.to, m.round) == (sender, to, number))


def listed(people: People | Listed) -> Listed:
    return people if isinstance(people, Listed) else Listed(people)


def joined_case(
    given: Sequence[People | Listed],
    *,
    widths: Sequence[int] | None = None,
    field: Field = WIDE,
    product: Any = None,
    open_sizes: Sequence[Sequence[int]] = (),
    noise: Noise | None = None,
    admit: Callable[[int], None] = lambda n: None,
    seed: object = 0,
    ctx: bytes = CTX,
) -> Joined:
    """Return an attempt over these lists, of one word each unless `widths` says otherwise."""
    lists = [listed(each) for each in given]
    owners = [source(i + 1) for i in range(len(lists))]
    joining = Joining.of(
        owners,
        owners[:2],
        [len(each.people) for each in lists],
        ctx,
        matcher=MATCHER,
        helper=HELPER,
        dealer=None if product is None else DEALER,
        field=field,
        widths=widths or [1] * len(lists),
        open_sizes=open_sizes,
        product=product,
    )
    totals: list[Totals] = []

    def publish(found: Totals) -> Any:
        totals.append(found)
        return ("published",)

    parties: dict[Role, Party] = {
        owner: holder(joining, owner, each, seeded(f"{seed}/{owner}"))
        for owner, each in zip(owners, lists, strict=True)
    }
    parties[MATCHER] = Matcher(joining, seeded(f"{seed}/m"), admit=admit, noise=noise, publish=publish)
    parties[HELPER] = Helper(joining, seeded(f"{seed}/h"), noise=noise)
    if product is not None:
        parties[DEALER] = Dealer(joining, seeded(f"{seed}/d"))
    return Joined(joining, lists, parties, totals)


def holder(joining: Joining, owner: Role, each: Listed, rand: Any) -> Holder:
    index = joining.tags.owners.index(owner)
    width, axes = joining.widths[index], len(joining.open_sizes[index])
    rows = [list(each.people[person]) for person in each.people]
    words = np.array(rows, dtype=np.int64).reshape(len(rows), width)
    words[[person in each.waiting for person in each.people]] = 0
    codes = [list(each.codes.get(person, [0] * axes)) for person in each.people]
    return Holder(
        joining,
        owner,
        each.keys(owner),
        lambda places: words[places],
        np.array(codes, dtype=np.uint16).reshape(len(rows), axes),
        rand,
    )


@dataclass
class Truth:
    """What the lists have in common, reckoned in the clear with whole numbers of any size."""

    n: int
    sizes: list[int]
    sums: list[list[int]]
    products: list[list[int]]


def truth(case: Joined) -> Truth:
    """Return the right answers of an attempt."""
    joining, lists = case.joining, case.lists
    alike = set.intersection(*(set(each.people) - each.waiting for each in lists))
    sizes = [0] * joining.groups
    sums = [[0] * joining.width for _ in sizes]
    left, right = joining.product_size
    products = [[0] * right for _ in range(left)]
    for person in alike:
        group = 0
        for each, axes in zip(lists, joining.open_sizes, strict=True):
            for code, size in zip(each.codes.get(person, ()), axes, strict=True):
                group = group * size + code
        row = [word for each in lists for word in each.people[person]]
        sizes[group] += 1
        sums[group] = [one + word for one, word in zip(sums[group], row, strict=True)]
        one, other = (row, row)
        if isinstance(joining.product, tuple):
            one, other = (list(lists[at].people[person]) for at in joining.product)
        for i in range(left):
            for j in range(right):
                products[i][j] += one[i] * other[j]
    return Truth(len(alike), sizes, sums, products)


def check(case: Joined) -> Totals:
    """Play an attempt and compare all of it with the truth."""
    found, expected = case.play(), truth(case)
    assert found.n == expected.n
    assert found.group_sizes.tolist() == expected.sizes
    assert found.sums.tolist() == expected.sums
    if case.joining.product is None:
        assert found.products is None
    else:
        assert found.products is not None
        assert found.products.tolist() == expected.products
    return found


def frames(case: Joined) -> list[tuple[Any, ...]]:
    """Return all that who relays the frames sees."""
    return [(m.sender, m.to, m.round, len(m.body), m.last) for m in case.sent]
