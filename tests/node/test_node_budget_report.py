"""`minshu-node budget --report`: what was spent as ε, in three ways, for officers; of nothing none."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from simulator import START, World, policy_text

from node import ledger
from node.activation import InForce, activate_policy
from node.cli import main
from policies.history import Past
from policies.sign import sign_policy
from protocols.dp.accounting import report
from protocols.dp.cost import Cost, decimal_up
from protocols.encoding import sha256_digest
from protocols.envelope import key_id
from protocols.ids import JobId
from protocols.wire import Constraints

RHO = """[budgets.rho]
dataset = "people"
notion = "zcdp"
limit = "0.50"
delta = "1e-9"
period = "calendar-quarter"
scope = "all-requesters"
"""
EPSILON = """[budgets.epsilon]
dataset = "people"
notion = "approximate-dp"
limit = "5"
delta = "1e-6"
period = "calendar-month"
scope = "per-purpose"
"""
PURE = """[budgets.pure]
dataset = "people"
notion = "pure-dp"
limit = "2"
period = "calendar-month"
scope = "all-requesters"
"""
PAGE = """\
预算 budget rho · 数据集 dataset people
  每自然季度最多 ρ = 0.5, δ = 0.000000001, 全部申请方合计 · 至 until 2027-01-01 00:00 (Asia/Shanghai)
  at most ρ = 0.5, δ = 0.000000001 in a calendar quarter, for everybody together
  已用 spent ρ = 0.3: 3 次加噪执行 · 3 attempts with noise
  折合 ε (δ = 0.000000001) · as ε at δ = 0.000000001:
       4.9299  账本换算: 以此为准
               by the ledger's own conversion: this one is binding
       4.8973  Rényi 会计: 把 ρ 看作高斯噪声, 把 ε 看作拉普拉斯噪声
               by a Rényi accountant that takes ρ for Gaussian noise, ε for Laplace noise
       4.6661  损失分布会计: 同样的噪声, 合成更精确
               by loss distributions: of the same noise, composed more exactly
  含义: 看到全部答案的人, 对某人的怀疑最多增至 139 倍, 例外的概率不超过 0.000000001
  meaning: whoever sees them all can raise a suspicion about somebody at most 139-fold,
    but for a chance of 0.000000001
"""
TENTH = Cost.zcdp(Fraction("0.1"))

Report = Callable[..., tuple[int, str, str]]


@pytest.fixture
def told(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Report:
    """Run the command at the health department's node; return its code, output and errors."""
    monkeypatch.setattr("node.page._now", world.clock)

    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["budget", *words, "--home", str(world.homes["health"].path)])
        return code, *capsys.readouterr()

    return run


def give(world: World, budgets: str, costs: Sequence[Cost] = (), *, charged: bool = True) -> None:
    """Put a policy with these budgets into force at the health department, and spend from its ledger."""
    staff, home = world.staff["health"], world.homes["health"]
    state = world.open("health")
    newest = state.policy()
    assert newest is not None
    text = policy_text(
        "health",
        *(key_id(key) for key in (world.analyst.public_key, staff.dpo.public_key, staff.owner.public_key)),
        version=newest.version + 1,
        previous=newest.digest,
    )
    text = text.replace(
        'personal = "personal"\n', 'personal = "personal"\nunit = { column = "id", max_rows = 1 }\n'
    ).replace("[datasets.people]\n", budgets + "[datasets.people]\n")
    envelope = sign_policy(text.encode(), staff.owner, sign_policy(text.encode(), staff.dpo)).encode()
    force = InForce.load(state, home.name, home.signer.public_key)
    activate_policy(state, force, envelope, world.clock)
    with state.journal.transaction() as connection:
        for number, cost in enumerate(costs):
            past = Past(
                job=JobId(sha256_digest(f"job {number}".encode())),
                attempt=1,
                time=START,
                requester=key_id(world.analyst.public_key),
                purpose="P-1",
                job_type="release/1",
                source="people",
                unit="id",
                cost=cost,
                query=None,
                charged=False,
                exact=False,
                rule="R1",
            )
            read = ledger.Ledger(connection)
            read.of("people")
            ledger.reserve(connection, ledger.Row(past), read.version("people"))
            if charged:
                ledger.charge(connection, past.job, 1, cost, ())
    state.close()


def epsilons(costs: Sequence[Cost], delta: str) -> dict[str, str]:
    found = report(costs, Fraction(delta))
    return {way: decimal_up(Fraction(getattr(found, way)), 4) for way in ("ledger", "rdp", "pld")}


def test_an_officer_reads_what_was_spent_and_what_it_means(world: World, told: Report) -> None:
    give(world, RHO, [TENTH] * 3)
    code, out, err = told("--report")
    assert (code, err) == (0, "")
    assert out == PAGE


def test_of_runs_in_rounds_an_officer_reads_how_many_rounds_were_paid_for(world: World, told: Report) -> None:
    give(world, RHO, [TENTH] * 2)
    state = world.open("health")
    row = state.ledger().rows("people")[0]
    with state.journal.transaction() as connection:
        rounds = ledger.Rounds(Constraints(), turns={"train": 40, "evaluate": 2}, last=42)
        ledger._store(connection, replace(row, rounds=rounds))
    state.close()
    _, out, _ = told("--report")
    assert "2 次加噪执行 (共 42 轮) · 2 attempts with noise, 42 rounds" in out
    _, out, _ = told("--report", "--json")
    assert [each["rounds"] for each in json.loads(out)["statements"]] == [42]


def test_programs_read_the_same(world: World, told: Report) -> None:
    costs = [TENTH, Cost.zcdp(Fraction("0.2"), Fraction("1e-10"))]
    give(world, RHO + EPSILON, costs)
    code, out, _ = told("--report", "--json", "--delta", "1e-8")
    assert code == 0
    epsilon, rho = json.loads(out)["statements"]
    assert rho == {
        "dataset": "people",
        "name": "rho",
        "notion": "zcdp",
        "scope": "all-requesters",
        "whose": "",
        "until": "2026-12-31T16:00:00Z",
        "limit": "0.5",
        "spent": "0.3",
        "rounds": 0,
        "attempts": 2,
        "delta": "0.00000001",
        "epsilon": epsilons(costs, "1e-8"),
    }
    # A budget about ε at a δ is reported at its own.
    assert (epsilon["name"], epsilon["whose"], epsilon["delta"]) == ("epsilon", "P-1", "0.000001")
    assert epsilon["epsilon"] == epsilons(costs, "1e-6")
    assert Fraction(epsilon["spent"]) <= Fraction(epsilon["epsilon"]["ledger"])


def test_pure_noise_is_reported_at_a_delta_as_well(world: World, told: Report) -> None:
    costs = [Cost.pure_dp(Fraction("0.25"))] * 4
    give(world, PURE, costs)
    [pure] = json.loads(told("--report", "--json")[1])["statements"]
    assert (pure["spent"], pure["attempts"], pure["delta"]) == ("1", 4, "0.000000001")
    assert pure["epsilon"] == epsilons(costs, "1e-9")
    assert Fraction(pure["epsilon"]["pld"]) <= 1


def test_a_budget_of_another_notion_has_no_measure_for_gaussian_noise(world: World, told: Report) -> None:
    give(world, PURE + RHO, [TENTH])
    pure, rho = json.loads(told("--report", "--json")[1])["statements"]
    assert (pure["spent"], rho["spent"]) == ("-", "0.1")
    assert pure["epsilon"] == rho["epsilon"]


def test_counts_alone_are_no_answer_with_noise(world: World, told: Report) -> None:
    give(world, RHO, [Cost(rows=100, queries=1), TENTH])
    [rho] = json.loads(told("--report", "--json")[1])["statements"]
    assert (rho["attempts"], rho["epsilon"]) == (1, epsilons([TENTH], "1e-9"))


def test_a_delta_that_the_answers_use_up_leaves_no_epsilon(world: World, told: Report) -> None:
    give(world, RHO, [Cost.zcdp(Fraction("0.1"), Fraction("1e-9"))])
    code, out, _ = told("--report")
    assert code == 0
    assert "请用更大的 --delta" in out
    assert "ask with a larger --delta" in out
    [rho] = json.loads(told("--report", "--json")[1])["statements"]
    assert rho["epsilon"] == {"ledger": None, "rdp": None, "pld": None}
    [more] = json.loads(told("--report", "--json", "--delta", "2e-9")[1])["statements"]
    assert None not in more["epsilon"].values()


def test_a_budget_of_which_nothing_is_spent_says_so_beside_one_that_is(world: World, told: Report) -> None:
    give(world, RHO + EPSILON, [TENTH])
    world.clock.at = START.replace(month=12, day=5)  # another month, the same quarter
    code, out, _ = told("--report")
    assert code == 0
    assert "本周期未使用 · nothing spent in this period" in out
    assert "已用 spent ρ = 0.1: 1 次加噪执行 · one attempt with noise" in out


@pytest.mark.parametrize(
    ("budgets", "costs", "charged", "said", "hint"),
    [
        ("", [TENTH], True, "no privacy budget", "quotas"),
        (RHO, [], True, "nothing is spent", "what is left"),
        (RHO, [TENTH], False, "nothing is spent", "only set aside"),
        (RHO, [Cost(rows=100, queries=1)], True, "nothing is spent", "what is left"),
    ],
)
def test_a_report_of_nothing_is_refused(
    world: World, told: Report, budgets: str, costs: list[Cost], *, charged: bool, said: str, hint: str
) -> None:
    give(world, budgets, costs, charged=charged)
    code, out, err = told("--report")
    assert (code, out) == (1, "")
    assert said in err
    assert hint in err


def test_a_report_of_a_damaged_ledger_is_refused(world: World, told: Report) -> None:
    give(world, RHO, [TENTH] * 2)
    state = world.open("health")
    with state.journal.transaction() as connection:
        cheaper = replace(TENTH, delta=0, rdp=(1,) * len(TENTH.rdp)).encode()
        connection.execute("UPDATE ledger SET cost = ? WHERE row = 1", (cheaper,))
    state.close()
    code, out, err = told("--report")
    assert (code, out) == (1, "")
    assert "the ledger is not as it was written" in err
    assert "keep node.db as evidence" in err


@pytest.mark.parametrize("delta", ["0", "1", "-1e-9", "1e-16", "nan", "x", "1e-999999999"])
def test_a_delta_that_is_none_is_wrong_usage(told: Report, delta: str) -> None:
    with pytest.raises(SystemExit) as left:
        told("--report", f"--delta={delta}")
    assert left.value.code == 2


def test_a_delta_without_a_report_is_refused(told: Report) -> None:
    code, _, err = told("--delta", "1e-9")
    assert code == 1
    assert "--report" in err
