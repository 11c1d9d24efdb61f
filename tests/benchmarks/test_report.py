from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.report import HEADINGS, Figure, Section, Target, Unit, as_json, row, shown, shown_target, table, write


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12345.6, "/s", "12,346/s"),
        (99.94, "µs", "99.9 µs"),
        (1.2345, "s", "1.23 s"),
        (0.0, "%", "0.00%"),
        (-1234, "ms", "-1,234 ms"),
    ],
)
def test_values_are_shown_with_three_digits_and_their_unit(value: float, unit: Unit, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target(0.6, ">="), 0.6, True),
        (Target(0.6, ">="), 0.59, False),
        (Target(2, "<="), 2, True),
        (Target(2, "<="), 2.1, False),
        (Target(1, "<"), 0.99, True),
        (Target(1, "<"), 1, False),
    ],
)
def test_a_target_says_what_meets_it(target: Target, value: float, met: bool) -> None:
    assert target.met_by(value) is met


def test_a_target_is_shown_in_the_unit_of_what_it_judges() -> None:
    assert shown_target(Target(150, "<="), "µs") == "<= 150 µs"
    assert shown_target(Target(0.6, ">=", "ratio"), "/s") == ">= 0.6x"
    assert shown_target(None, "/s") == ""


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    figure = Figure("rate", "/s", (60.0, 10.0, 90.0), (100.0, 10.0, 100.0), Target(0.9, ">=", "ratio"))
    assert figure.value == 60
    assert figure.peer_value == 100
    assert figure.ratio == pytest.approx(0.9)  # of 0.6, 1.0 and 0.9; that of the medians would be 0.6
    assert figure.verdict == "pass"


def test_rounds_without_their_counterpart_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        assert Figure("rate", "/s", (1.0, 2.0), (1.0,)).ratio


def test_a_figure_is_judged_by_value_where_its_target_says_so() -> None:
    figure = Figure("p50", "µs", (140.0, 160.0, 170.0), (1.0, 1.0, 1.0), Target(150, "<="))
    assert figure.verdict == "short"


def test_a_ratio_without_a_peer_is_short_not_passed() -> None:
    assert Figure("rate", "/s", (1.0,), target=Target(0.6, ">=", "ratio")).verdict == "short"


def test_a_figure_for_information_has_no_verdict() -> None:
    figure = Figure("p99", "µs", (5.0,))
    assert (figure.verdict, figure.ratio, figure.peer_value) == ("", None, None)
    assert row(figure) == ("p99", "5.00 µs", "", "", "", "", "", "")


SECTIONS = (
    Section(
        "HTTP",
        (
            Figure("requests", "/s", (600.0, 700.0), (1000.0, 1000.0), Target(0.6, ">=", "ratio")),
            Figure("a much longer name", "µs", (5.0,)),
        ),
        peer="the peer",
        remarks=("a remark",),
    ),
    Section("handles", failure="OSError: no"),
)


def test_the_table_has_its_columns_below_each_other() -> None:
    lines = table(SECTIONS).splitlines()
    first, second = next(line for line in lines if "requests" in line), next(line for line in lines if "longer" in line)
    assert first.index("650/s") + len("650/s") == second.index("5.00 µs") + len("5.00 µs")
    assert lines[0].split() == " ".join(HEADINGS).split()
    assert first.split() == ["requests", "650/s", "1,000/s", "0.65x", ">=", "0.6x", "pass", "600/s", "700/s"]


def test_the_table_says_what_is_beside_and_what_could_not_be_measured() -> None:
    text = table(SECTIONS)
    assert "HTTP; beside: the peer" in text
    assert "  a remark" in text
    assert "not measured: OSError: no" in text


def test_the_file_holds_every_round(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latest.json"
    write(path, as_json({"date": "today"}, SECTIONS))
    read = msgspec.json.decode(path.read_bytes())
    assert read["date"] == "today"
    first = read["sections"][0]["figures"][0]
    assert (first["rounds"], first["peer_rounds"], first["verdict"]) == ([600, 700], [1000, 1000], "pass")
    assert first["target"] == {"limit": 0.6, "sense": ">=", "of": "ratio"}
    assert read["sections"][1]["failure"] == "OSError: no"
    assert [file.name for file in path.parent.iterdir()] == ["latest.json"]
