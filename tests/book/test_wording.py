"""What pages say of runs: words that are true of the numbers, and text that stays text."""

from __future__ import annotations

import math

import pandas
import pytest
from synthetic_runs import EVALUATED, write_run

from collapse_lib.book import wording
from collapse_lib.book.wording.numbers import course, course_and_peak, number, pipe_table
from collapse_lib.book.wording.texture import spans
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.studies import results
from collapse_lib.studies.fates import departures


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    write_run(tmp_path, "alpha", 9)
    write_run(tmp_path, "steep", 6, growth=1.9)
    write_run(tmp_path, "barely", 1, steps=("train",))
    return tmp_path


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (3, False, "3"),
        (12345.6, False, "12,346"),
        (0.00123456, False, "0.001235"),
        (5.2, False, "5.200"),
        (-0.5, True, "−0.500"),
        (7, True, "+7"),
        (0.0, True, "0"),
    ],
)
def test_numbers_are_written_for_readers(value, signed, text):
    assert number(value, signed) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([2.0, 2.5, 3.5], "rose from **2** in generation 1 to **3.500** in generation 3, up in all 2 steps"),
        ([2.0, 1.5, 3.5, 3.25], "rose from **2** in generation 1 to **3.250** in generation 4, up in 1 of 3 steps"),
        ([9.5, 9.75, 8.5], "fell from **9.500** in generation 1 to **8.500** in generation 3, down in 1 of 2 steps"),
        ([9.5, 9.5, 8.5], "fell from **9.500** in generation 1 to **8.500** in generation 3, down in 1 of 2 steps"),
        ([1.5, 2.5, 1.5], "came back from **1.500** in generation 1 to **1.500** in generation 3"),
        ([1.5], "is **1.500** in generation 1"),
        ([5.0, 5.0, 5.0], "stayed at **5** from generation 1 to 3"),
    ],
)
def test_a_course_says_what_the_numbers_did(values, text):
    assert course(list(enumerate(values, 1))) == text


def test_a_peak_is_told_where_the_ends_do_not_tell_it():
    assert course_and_peak([(1, 2.0), (2, 4.0), (3, 3.0)]).endswith("; highest: 4 in generation 2")
    assert "highest" not in course_and_peak([(1, 2.0), (2, 3.0)]) + course_and_peak([(1, 2.0)]) + course_and_peak([(1, 3.0), (2, 1.0), (3, 2.0)])


def test_a_cell_cannot_split_its_row():
    assert pipe_table(("a", "b"), [("x|y", "1")], "lr") == "| a | b |\n| :-- | --: |\n| x\\|y | 1 |"


def test_table_a1_takes_evenly_spaced_generations_and_shows_text_as_text():
    rows = wording.table_a1("alpha", each=2).data.splitlines()[2:]
    assert len(rows) == 8 * 2
    chosen = list(dict.fromkeys(int(row.split("|")[1]) for row in rows))
    assert chosen[0] == 1 and chosen[-1] == 9 and len(chosen) == 8
    assert all(row.count("|") == 3 and "<b>" not in row for row in rows)
    assert [int(row.split("|")[1]) for row in wording.table_a1("alpha", [2, 5], each=1).data.splitlines()[2:]] == [2, 5]
    with pytest.raises(UserError, match="no finished step 'sample'"):
        wording.table_a1("barely")


def test_beside_the_paper():
    text = wording.beside_paper(results.load("alpha,steep"), ["perplexity", "entropy"]).data
    assert text.count("\n") == 1 + 2 * 2
    assert "rises in every generation from 1 to 40" in text and "up in all 8 steps" in text


def test_what_no_run_measured_stands_beside_the_paper_as_not_measured():
    rows = wording.beside_paper(results.load("alpha"), ["grammar", "control rows"]).data.splitlines()[2:]
    assert len(rows) == 2 and all(row.endswith("| – | *not measured* |") for row in rows)


def test_the_entropy_beside_the_paper_is_that_of_the_text(runs):
    """Another step measures an entropy too, that of the models at some contexts."""
    table = results.load("alpha")
    other = table[table["metric"] == "entropy"].assign(step="alpha", value=99.0)
    both = pandas.concat([other, table], ignore_index=True)
    assert wording.beside_paper(both, ["entropy"]).data == wording.beside_paper(table, ["entropy"]).data


@pytest.fixture
def evaluated(runs):
    write_run(runs, "law", 5, steps=EVALUATED)
    write_run(runs, "short", 2, steps=EVALUATED)
    return results.load("law,short")


def test_a_fate_is_the_label_of_one_chain_with_its_band(evaluated):
    rows = wording.fates(evaluated).data.splitlines()
    assert "one chain" in rows[0] and len(rows) == 4
    assert "| law | **dissolving** | 2 to 5 | – | within this run, which knows nothing of other chains |" in rows
    assert "*not known: 2 of the 3 generations that a label needs*" in rows[3]
    assert wording.fates(results.load("alpha")).data == "*No fate: step `texture` has not been done.*"


def test_early_warnings_say_what_they_needed_and_had(evaluated):
    text = wording.early_warnings(evaluated, "law").data
    assert text.startswith("Run **law**, one chain; band: within this run")
    found = departures(evaluated, "law")
    rows = [row.split("|")[1:-1] for row in text.splitlines()[4:]]
    assert len(rows) == len(found) and {row[4].strip() for row in rows} == {"30,000"}
    assert [row[1].strip() for row in rows] == [f"generation {departure.generation}" if departure.generation else "never" for departure in found]
    assert rows[0][3].strip() == f"{math.ceil(found[0].tokens):,}"


def test_where_all_samples_agree_the_text_needed_is_not_known(evaluated):
    measures = evaluated["metric"] == "conditional_entropy"
    sure = evaluated.assign(standard_error=evaluated["standard_error"].where(~measures, 0.0))
    (row,) = [row for row in wording.early_warnings(sure, "law").data.splitlines() if "conditional entropy" in row]
    assert "| generation 2 | above | not known |" in row


@pytest.mark.parametrize(("generations", "text"), [((), "–"), ((4,), "4"), ((2, 3, 4), "2 to 4"), ((2, 3, 6, 7, 9), "2 to 3, 6 to 7, 9")])
def test_generations_in_spans(generations, text):
    assert spans(generations) == text


def test_a_step_that_was_not_done_is_said_with_the_reason(runs, evaluated):
    assert wording.undone(evaluated, "exact").data == "Every run shown here has these measures."
    folder = write_run(runs, "stories", 2)
    write_text(folder / "protocol.yaml", Protocol.from_fields({"corpus": {"stories": 10, "source": "somewhere"}, "generations": 2}).to_yaml())
    table = results.load("alpha,stories,law")
    lawless, undone = wording.undone(table, "exact").data.split(". ", 1)
    assert lawless == "Without an exact law, because their stories do not come from the grammar: **stories**"
    assert undone == "Step `exact` has not been done yet: **alpha**. `collapse run alpha` does it, if the run's models and texts are there."
    assert "not been done yet: **alpha**, **stories**." in wording.undone(table, "texture").data


def test_exact_measures_stand_beside_the_paper_as_one_chain_each(evaluated):
    header, _, *rows = wording.beside_paper(evaluated, ["excess_loss"]).data.splitlines()
    assert header.endswith("| here, one chain per run |") and len(rows) == 2
    assert "the law of its stories is not known" in rows[0] and "up in all 4 steps" in rows[0]
