"""The tables and the verdict of a study: means, deviations, Markdown, LaTeX, and the leads that may be chance."""

import csv
import dataclasses
import io
import math
import statistics

import pytest
from studies import groups, row

from fastlip.study.formats import constant, to_csv, to_latex, to_markdown, to_text
from fastlip.study.verdict import standard_error, verdict

HIGH, LOW = [0.5] * 9 + [0.0], [0.5] * 6 + [0.0] * 4


def study():
    """Two networks with two seeds each, the plain twin, and a failed run."""
    return groups(
        row("aol", 0.9, HIGH),
        row("cayley", 0.8, LOW),
        row("plain", 0.95, [0.001] * 9 + [0.0], lipschitz=235.4),
        row("sll", 0, [0], reason="RuntimeError: a_b | c"),
        row("aol", 0.94, [*HIGH[1:], 0.0], seed=1),
        row("cayley", 0.84, LOW, seed=1),
    )


def test_the_runs_of_all_seeds_are_a_row_with_mean_and_deviation():
    aol, cayley, plain, sll = (group.values() for group in study())
    assert (aol["accuracy"], aol["accuracy std"]) == pytest.approx((0.92, statistics.stdev((0.9, 0.94))))
    assert (aol["cra 36/255"], aol["cra 36/255 std"]) == pytest.approx((0.85, statistics.stdev((0.9, 0.8))))
    assert (aol["runs"], aol["status"], plain["runs"]) == (2, "finished", 1)
    assert (plain["accuracy std"], plain["cra 36/255"]) == (None, 0.0), "one seed has no deviation"
    assert (sll["accuracy"], sll["status"]) == (None, "RuntimeError: a_b | c")
    assert cayley["lipschitz"] == 1.0


def test_the_constant_of_a_group_is_its_largest():
    (group,) = groups(row("aol", 0.9, HIGH, lipschitz=0.98), row("aol", 0.9, HIGH, seed=1, lipschitz=1.0000004))
    assert group.lipschitz == 1.0000004
    values = 1.0000004, 2.0000073, 235.4, None  # the second is a network of L = 2
    assert [constant(value) for value in values] == ["1.0000004", "2.0000073", "235", "–"]


def test_csv_is_read_back():
    lines = [group.values() for group in study()]
    found = list(csv.DictReader(io.StringIO(to_csv(lines))))
    assert [line["label"] for line in found] == ["AOL", "Cayley", "plain", "SLL"]
    assert float(found[0]["accuracy"]) == lines[0]["accuracy"]
    assert found[3]["accuracy"] == ""


def test_markdown_has_as_many_cells_in_every_line():
    lines = to_markdown(study()).splitlines()
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "| AOL | 3.0 | **92.0 ± 2.8** | **85.0 ± 7.1** |" in lines[2]
    assert "| plain | 3.0 | 95.0 | 0.0 |" in lines[4], "the best is that of the networks with a bounded constant"
    assert r"| SLL | RuntimeError: a_b \| c |" in lines[5]


def test_latex_is_escaped_and_balanced():
    text = to_latex(study())
    assert r"AOL & 3.0 & \textbf{92.0 $\pm$ 2.8} &" in text
    assert r"SLL & \multicolumn{9}{l}{RuntimeError: a\_b | c} \\" in text
    assert r"accuracy, \%" in text
    assert text.count("{") == text.count("}")
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count(" & ") for line in body} == {9}


def test_the_terminals_table_has_80_columns():
    lines = to_text(study()).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[4].split(maxsplit=1) == ["SLL", "RuntimeError: a_b | c"]


def test_the_verdict_names_the_best_its_lead_and_the_plain_network():
    text = verdict(study(), 10.0)
    assert text.startswith("With 10 s of training for each run, AOL certifies most: CRA(36/255) 85.0 ± 7.1 %")
    assert "25.0 points ahead of Cayley" in text
    assert text.endswith("the plain network has 95.0 % accuracy and CRA 0.0 %.")
    assert "chance" in verdict(groups(row("aol", 0.9, HIGH), row("sll", 0.9, [0.0, *HIGH[1:]])), 1.0)
    assert "chance" not in verdict(
        groups(row("aol", 0.9, [0.5] * 100), row("sll", 0.9, [0.5] * 80 + [0.0] * 20)), 1.0
    )


def test_equal_networks_are_not_ahead():
    equal = verdict(groups(row("aol", 0.9, [0.2, 0.05]), row("sll", 0.8, [0.2, 0.1])), 2.0)
    assert equal.endswith("at 90.0 % accuracy, as much as SLL.")


def test_a_verdict_without_figures_says_so():
    assert verdict(groups(row("sll", 0, [0], reason="not run yet")), 1.0).startswith("No network with a bounded")
    assert "ahead" not in verdict(groups(row("aol", 0.9, HIGH)), 1.0)


def test_the_standard_error_is_that_of_seeds_and_images():
    first, second = groups(row("aol", 0.9, HIGH), row("sll", 0.9, LOW))
    differences = [0.0] * 6 + [1.0] * 3 + [0.0]
    assert standard_error(first, second) == pytest.approx(math.sqrt(statistics.variance(differences) / 10))
    first, second = study()[:2]
    of_seeds = first.deviation("cra 36/255") ** 2 / 2
    one = [(a + b) / 2 for a, b in zip([1] * 9 + [0], [1] * 8 + [0, 0], strict=True)]
    other = [1] * 6 + [0] * 4
    of_images = statistics.variance([a - b for a, b in zip(one, other, strict=True)]) / 10
    assert standard_error(first, second) == pytest.approx(math.sqrt(of_seeds + of_images))


def test_labels_have_what_differs():
    found = groups(
        row("aol", 0.9, HIGH, changes=(("loss", "emma"),)), row("aol", 0.9, HIGH, changes=(("loss", "hkr"),))
    )
    assert [group.label for group in found] == ["AOL emma", "AOL hkr"]
    found = groups(row("aol", 0.9, HIGH), row("aol", 0.9, HIGH, backend="reference"))
    assert [group.label for group in found] == ["AOL auto", "AOL reference"]


def test_twins_of_several_networks_are_told_apart():
    def labels(name, values):
        rows = [row(method, 0.9, [1.0]) for method in ("aol", "plain") for _ in values]
        about = [{**one.about, name: value} for one, value in zip(rows, 2 * values, strict=True)]
        changed = [
            dataclasses.replace(
                one, about=it, contender=dataclasses.replace(one.contender, changes=((name, it[name]),))
            )
            for one, it in zip(rows, about, strict=True)
        ]
        return [group.label for group in groups(*changed)]

    assert labels("recipe", ["digits", "mine"]) == ["AOL digits", "AOL mine", "plain digits", "plain mine"]
    assert labels("width", [8, 16]) == ["AOL width=8", "AOL width=16", "plain width=8", "plain width=16"]
    assert labels("loss", ["emma", "offset-ce"])[2:] == ["plain", "plain"], "a twin has a loss of its own"
