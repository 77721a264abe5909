"""Pictures of the scenarios: both forms, the same bytes again, and words in a font that has them."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from demo.scenarios import pictures
from demo.scenarios.comparing import Released
from demo.scenarios.pictures import Estimate, Gap, Uncounted

NAN = float("nan")
GONE = Estimate(NAN, NAN, NAN, 7, shown=False)
DISTRICTS = ("990101", "990102")


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 5, value + 5, value + 1)


def draw_separation(stem: Path) -> None:
    exact = {(r, c): 40 for r in (*DISTRICTS, "") for c in (*DISTRICTS, "")}
    exact["990101", "990102"] = None
    streets = {"990101001": estimate(40), "990101002": GONE}
    pictures.separation(stem, DISTRICTS, exact, streets, minimum=10)


def draw_school_places(stem: Path) -> None:
    gaps = [
        Gap("990101001", 20, estimate(40), "lacking"),
        Gap("990101002", 60, estimate(40), "enough"),
        Gap("990102001", 42, estimate(40), "open"),
        Gap("990102002", 42, GONE, "open"),
    ]
    districts = {"990101": (80.0, estimate(80)), "990102": (84.0, estimate(50))}
    pictures.school_places(stem, districts, gaps, years=("2026", "2031"))


def draw_villages(stem: Path) -> None:
    each = {"990101001V01": estimate(200), "990101001V02": GONE}
    pictures.villages(stem, {"990101": estimate(200)}, each, minimum=50, departments=3)


def draw_uncancelled(stem: Path) -> None:
    one = Uncounted(20, {"990101": (20, 21), "990102": (None, 3)}, {"60-69": 24}, {0: (0, 5), 3: (24, 0)})
    none = Uncounted(None, {"990101": (None, 0)}, {"60-69": 0}, {0: (0, 0)})
    owed = Estimate(9e7, 6e7, 1.2e8, 8e7)
    pictures.uncancelled(stem, {"register": one, "pension": none}, minimum=10, grace_days=60, overpaid=owed)


def draw_nothing_owed(stem: Path) -> None:
    one = Uncounted(20, {"990101": (20, 21)}, {"60-69": 24}, {3: (24, 0)})
    pictures.uncancelled(stem, {"register": one}, minimum=10, grace_days=60, overpaid=GONE)


def draw_differing(stem: Path) -> None:
    pairs = {("single", "married"): 30, ("widowed", "married"): None}
    pictures.differing(stem, pairs, {"990101": 30, "990102": None}, minimum=10)


def draw_flexible_work(stem: Path) -> None:
    exact = {"insured": Estimate(0.01, -0.02, 0.04, 0.01), "open": Estimate(-0.01, -0.02, 0.01, -0.01)}
    noisy = {
        ("persons", "", ""): estimate(100),
        ("mean", "base", ""): estimate(50),
        ("correlation", "base", "tax"): GONE,
    }
    pictures.flexible_work(stem, exact, noisy, persons=(448, 2476))


def draw_hardship(stem: Path) -> None:
    outcomes = {"found": 216, "missed": 71, "helped": 18, "wrong": 91}
    pictures.hardship(stem, outcomes, [(0.9, 0.6), (0.75, 0.7), (0.5, 0.8)], (0.75, 0.7))


def draw_vaccination(stem: Path) -> None:
    few = pictures.Course([(10, 0.5), (20, 0.4)], [(10, 0.7), (20, 0.8)], [(1, 0.2), (2, 0.3)], (0.7, 0.9))
    none = pictures.Course([], [], [(1, 0.5)])
    pictures.vaccination(
        stem,
        {"districts": few, "joined": none},
        [pictures.Ability("交付", "released", 0.8, 0.7, 0.9, released=True),
         pictures.Ability("集中", "in one place", 0.85, 0.8, 0.9, released=False)],
        {"districts": [(0.1, 0.2), (0.8, 0.7)]},
        {"register": [(0.2, 0.3), (0.6, 0.5)], "floating": [(0.1, 0.1), (0.2, 0.3)]},
        ages=("15–59", "60+"),
    )  # fmt: skip


def draw_latencies(stem: Path) -> None:
    pictures.latencies(stem, [3.5, 4.0, 12.0, 3.6], people=137)


DRAWN = [
    draw_separation, draw_school_places, draw_villages, draw_uncancelled, draw_nothing_owed,
    draw_flexible_work, draw_hardship, draw_vaccination, draw_differing, draw_latencies
]  # fmt: skip


@pytest.mark.parametrize("draw", DRAWN)
def test_a_picture_is_written_as_png_and_svg(tmp_path: Path, draw) -> None:
    draw(tmp_path / "one")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert ET.parse(tmp_path / "one.svg").getroot().tag.endswith("}svg")


@pytest.mark.alone  # each is drawn twice, 15 s together
@pytest.mark.parametrize("draw", DRAWN)
def test_a_picture_comes_out_the_same_again(tmp_path: Path, draw) -> None:
    for name in ("one", "two"):
        draw(tmp_path / name)
    for ending in (".png", ".svg"):
        one, two = (tmp_path / f"{name}{ending}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("draw", DRAWN)
def test_without_a_chinese_font_all_words_are_english(
    tmp_path: Path, draw, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(pictures, "CHINESE_FONTS", ())
    draw(tmp_path / "picture")
    # matplotlib writes each text beside its outlines, and warns of every character that it has no outline of.
    text = (tmp_path / "picture.svg").read_text("utf-8")
    assert not any("一" <= character <= "鿿" for character in text)
    assert not [warning for warning in recwarn if "missing from font" in str(warning.message)]


def test_words_are_in_both_languages_where_the_font_has_them() -> None:
    both, english = pictures.Words("Noto Sans CJK SC"), pictures.Words(None)
    assert (both.line("人", "people"), english.line("人", "people")) == ("人  people", "people")
    assert (both.lines("人", "people"), english.lines("人", "people")) == ("人\npeople", "people")


def test_a_withheld_figure_is_not_shown() -> None:
    assert not Estimate.of(Released(NAN, NAN, NAN), 7).shown
    assert Estimate.of(Released(12, 9, 15), 11) == Estimate(12, 9, 15, 11)
