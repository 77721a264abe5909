"""What each coalition of a joined job learns, in both languages, said once for all job types. SPEC.md, 4.

A job type says what its words are, and adds what is its own: what it opens and what it releases.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from typing import Final, TypeAlias

from protocols.ids import Role
from protocols.jobs.job_type import COORDINATOR, REQUESTER, Statement
from protocols.joined.params import DEALER, HELPER, MATCHER, Lists
from protocols.months import month_text
from protocols.releases.figures import Sentence
from protocols.tables.layout import Filter, decimal_text
from protocols.wire import JobSpec

Coalitions: TypeAlias = dict[frozenset[Role], tuple[Statement, ...]]
"""What each coalition learns beyond what its parts learn together."""

NO_MORE: Final = Sentence("", "")

LIST_SIZES: Final = Statement(
    "list-sizes",
    "how many rows and distinct keys each list has and when it was taken, as the admissions state",
    "各清单的行数、去重后的条数和数据时点(准入声明中已载明)",
)
TRAFFIC: Final = Statement(
    "traffic",
    "who sends frames to whom, when, how many and in which size class, how far each node is, and which guard "
    "failed if one did; number and size of frames follow from list sizes, the job and its limits alone, but "
    "how long a step takes may grow with what it handles",
    "谁在何时向谁发送多少帧及其大小档次、各节点进度、触发了哪项保护阈值; "
    "帧的数量和大小仅取决于清单条数、任务本身及其各项上限, 但各步骤耗时可能随处理量增加",
)
VENN: Final = Statement(
    "venn",
    "for each combination of lists, exactly how many keys that count are on those and no others; how many "
    "persons are joined, exactly; no key itself",
    "各清单每一种组合恰好有多少相同条目(精确韦恩图), 以及联合人口的确切人数; 不知道任何证件号码",
)
JOINED_SIZE: Final = Statement(
    "joined-size",
    "exactly how many persons are joined, and which random places of different lists are one person; no tag "
    "and no key",
    "联合人口的确切人数, 以及各清单中哪些随机位置属于同一人; 不知道任何标签和证件号码",
)
HELPERS_NOISE: Final = Statement(
    "helpers-noise",
    "every number that is opened, withheld ones too, with the noise of the helper alone, which is enough by "
    "itself",
    "每一个被还原的数字(包括未公布的), 仅含协助方一方的噪声; 该噪声本身已足够",
)
ONE_NOISE: Final = Statement(
    "one-noise",
    "the released numbers with the noise of the matcher alone, which is enough by itself",
    "扣除协助方噪声后的发布数字; 剩余的匹配方噪声本身已足够",
)


_COUNTS: Final = Sentence(
    "is on it, passes its filters, and has a place on each of its axes and an amount in each of its columns",
    "在清单中、通过其筛选条件, 且各分组、各数值列均有值",
)
"""What it tells of a person that it counts on a list."""


@dataclass(frozen=True, slots=True)
class Values:
    """What the words of a job's lists say, as parts of sentences.

    Attributes:
        rows: of each row of every list.
        joined: of each joined person, all lists together.
        others: of a joined person with a name, beside the own list.
    """

    rows: Sentence
    joined: Sentence
    others: Sentence


def nothing_more(computing: Role, owner: Role) -> Sentence:  # noqa: ARG001  # that of a job without more
    """Return what else matcher or helper tells an owner of its own rows: nothing."""
    return NO_MORE


def coalitions(
    lists: Lists,
    values: Values,
    *,
    dealt: bool,
    noisy: bool = False,
    also: Callable[[Role, Role], Sentence] = nothing_more,
    guessed: Sentence = NO_MORE,
) -> Coalitions:
    """Return what every joined job tells. A coalition that is not listed learns what its parts do, together.

    `requester` stands for the analyst, `coordinator` for whoever relays the frames.

    Args:
        lists: of the job.
        values: what its words say.
        dealt: whether there is a dealer.
        noisy: whether matcher and helper add noise to what is opened.
        also: what else matcher or helper, the first argument, tells a source of each of its own rows.
        guessed: what else is told of whoever is guessed.
    """
    table: Coalitions = {
        frozenset({Role(COORDINATOR)}): (LIST_SIZES, TRAFFIC),
        frozenset({MATCHER}): (LIST_SIZES, VENN, *((HELPERS_NOISE,) if noisy else ())),
        frozenset({HELPER}): (LIST_SIZES, JOINED_SIZE),
        frozenset({MATCHER, HELPER}): (_payloads(values),),
        frozenset({MATCHER, *lists.key_holders}): (_dictionary(guessed),),
    }
    if noisy:
        table[frozenset({Role(REQUESTER), HELPER})] = (ONE_NOISE,)
    if dealt:
        table[frozenset({DEALER})] = (LIST_SIZES,)
        for computing in (MATCHER, HELPER):
            table[frozenset({computing, DEALER})] = (_joined_words(values),)
    for owner in lists.owners:
        table[frozenset({owner})] = (LIST_SIZES,)
        table[frozenset({MATCHER, owner})] = (_rows_elsewhere(owner, also(MATCHER, owner)),)
        table[frozenset({HELPER, owner})] = (_rows_joined(owner, also(HELPER, owner)),)
        for two in combinations((MATCHER, HELPER, *((DEALER,) if dealt else ())), 2):
            table[frozenset({*two, owner})] = (_joined_records(owner, values),)
    return table


def kept_rows(lists: Lists, spec: JobSpec) -> Sentence:
    """Return which rows of the lists count at all, as the end of a phrase; nothing where all do.

    By the columns' own names: slots are named by whoever asks.
    """
    column = {(given.role, slot): name for given in spec.inputs for slot, name in given.columns.items()}
    kept = "; ".join(
        f"{each.source}: {column.get((each.source, each.kept.slot), each.kept.slot)} = {_kept(each.kept)}"
        for each in lists.filters
    )
    return Sentence(f", of their rows only those with {kept}", f", 仅计 {kept} 的记录") if kept else NO_MORE


def _kept(each: Filter) -> str:
    """Return what a filter keeps, the same in both languages."""
    if each.values:
        return " | ".join(each.values[:_NAMED]) + (" | …" if len(each.values) > _NAMED else "")
    return " … ".join("" if end is None else _end(each, end) for end in (each.low, each.high)).strip()


def _end(each: Filter, end: Fraction) -> str:
    return month_text(int(end)) if each.months else decimal_text(end)


_NAMED: Final = 5
"""Values of a filter that a sentence names; the job has them all."""


def add(table: Coalitions, *members: str, said: tuple[Statement, ...]) -> None:
    """Add what a coalition of one job type learns beyond what every joined job tells it."""
    coalition = frozenset(map(Role, members))
    table[coalition] = (*table.get(coalition, ()), *said)


def _payloads(values: Values) -> Statement:
    return Statement(
        "payloads",
        f"of every list each row's {values.rows.en}, joined or not, and which rows of the lists are one "
        "person; no identity",
        f"每份清单逐行的{values.rows.zh}(无论是否联合), 以及各清单中哪些行为同一人; 不含身份",
    )


def _joined_words(values: Values) -> Statement:
    return Statement(
        "joined-words",
        f"of each joined person, without identity, {values.joined.en}: who deals the triples can open shares",
        f"每一名联合人员(不含身份)的{values.joined.zh}: 发牌方与任一持份方联合即可还原份额",
    )


def _joined_records(owner: Role, values: Values) -> Statement:
    return Statement(
        "joined-records",
        f"for each person of {owner}'s list who is joined, by name, {values.others.en}",
        f"{owner} 清单中每一名联合人员(含身份){values.others.zh}",
    )


def _rows_elsewhere(owner: Role, also: Sentence) -> Statement:
    return Statement(
        "own-rows-elsewhere",
        f"for each row of {owner}'s list that counts, by name, joined or not, on which other lists the "
        f"person counts ({_COUNTS.en}){also.en}",
        f"{owner} 清单中每一条符合条件的记录(含身份), 无论是否联合, 该人在其他哪些清单中也符合条件"
        f"({_COUNTS.zh}){also.zh}",
    )


def _rows_joined(owner: Role, also: Sentence) -> Statement:
    return Statement(
        "own-rows-joined",
        f"for each row of {owner}'s list that counts, by name, whether the person is joined, and so counts "
        f"on every list that it has to be on ({_COUNTS.en}){also.en}",
        f"{owner} 清单中每一条符合条件的记录(含身份)是否属于联合人员, 即在任务要求的各清单中均符合条件"
        f"({_COUNTS.zh}){also.zh}",
    )


def _dictionary(also: Sentence) -> Statement:
    return Statement(
        "dictionary",
        f"for any guessed identifier, on which lists the person counts ({_COUNTS.en}){also.en}; all "
        "can be guessed",
        f"对任意猜测的证件号码, 可知该人在哪些清单中符合条件({_COUNTS.zh}){also.zh}; 证件号码可被穷举",
    )
