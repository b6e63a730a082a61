"""What the pipeline does, on made-up runs: what is drawn, not how it looks; and the schematic of a run's lineage."""

from __future__ import annotations

import subprocess
import sys

import pytest
from synthetic_runs import write_run

from collapse_lib import figures
from collapse_lib.book import wording
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, write_json
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.figures import schematic
from collapse_lib.figures.pipeline import runs_with
from collapse_lib.figures.style import NARROW_PANEL
from collapse_lib.studies import results

BANDS = {"loss_at_0": (4.0, 0.5, 10), "loss_at_1_32": (2.0, 0.1, 320), "loss_at_33_255": (1.5, 0.1, 670)}  # first loss, rise, tokens


MEASURES = ["loss_at_0", "loss_at_512_599", "eos_share", "end_probability", "story_length"]


def measure(folder, generations: int, skip: str = "", other: str = "") -> None:
    """Add what this page shows to a made-up run."""
    for generation in range(1, generations + 1):
        losses = {
            name: {"value": first + rise * (generation - 1), "unit": "nats/token", "standard_error": 0.01, "counts": {"tokens": tokens}}
            for name, (first, rise, tokens) in BANDS.items()
            if name != skip
        }
        share = {"value": 0.01 / generation, "unit": "1", "standard_error": 0.001}
        ends = {"end_probability": share | {"value": 0.5}}
        own = read_json(folder / f"generation-{generation:02d}" / "metrics" / "perplexity.json")["metrics"]["perplexity"]
        ends |= {f"perplexity_{other}": own | {"value": own["value"] * (1 + 0.1 * generation)}} if other else {}
        text = {"eos_share": share, "story_length": {"value": 90.0 + generation, "unit": "tokens", "standard_error": 1.0}}
        text |= {"entropy_padded": {"value": 3.0, "unit": "nats"}, "padding_share": share | {"value": 0.1 * generation}} if other else {}
        text |= {"initial_eos_share": share | {"value": 0.005}, "initial_story_length": {"value": 88.0, "unit": "tokens"}}
        for step, more in (("perplexity", losses | ends), ("free_text", text)):
            file = folder / f"generation-{generation:02d}" / "metrics" / f"{step}.json"
            record = read_json(file)
            added = {name: metric | {"definition": "made up"} for name, metric in more.items()}
            write_json(file, record | {"metrics": record["metrics"] | added})


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    measure(write_run(tmp_path, "alpha", 4), 4, other="released")
    measure(write_run(tmp_path, "beta", 3), 3, skip="loss_at_0", other="paper")
    write_run(tmp_path, "older", 2)
    return tmp_path


def test_a_line_a_range_of_positions_and_its_rise():
    left, right = figures.loss_by_position(results.load("alpha")).figure.axes
    assert [line.get_label() for line in left.get_lines()] == ["0", "1 to 32", "33 to 255"]
    assert left.get_lines()[0].get_ydata().tolist() == [4.0, 4.5, 5.0, 5.5]
    assert right.get_lines()[0].get_ydata().tolist() == [0.0, 0.5, 1.0, 1.5]
    assert "nats" in left.get_ylabel() and "nats" in right.get_ylabel()


def test_a_range_looks_the_same_in_every_run():
    picture = figures.loss_by_position(results.load("alpha,beta,older"))
    first, _, second, _ = picture.figure.axes
    colours = {line.get_label(): line.get_color() for line in first.get_lines()}
    assert {line.get_label(): line.get_color() for line in second.get_lines()} == {name: colours[name] for name in ("1 to 32", "33 to 255")}
    assert [panel.get_title(loc="left") for panel in (first, second)] == ["alpha", "beta"]
    assert picture.svg == figures.loss_by_position(results.load("alpha,beta,older")).svg


def test_interactive_losses_change_to_their_rise():
    figure = figures.loss_by_position_interactive(results.load("alpha"), "alpha").figure
    assert list(figure.data[0].y) == [4.0, 4.5, 5.0, 5.5]
    loss, rise = figure.layout.updatemenus[0].buttons
    assert [values[0] for values in rise.args[0]["y"]] == [0, 0, 0] and loss.args[0]["y"][0][0] == 4.0


def test_shares_of_the_rise_add_up():
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in wording.shares_of_the_rise(results.load("alpha")).data.split("\n")[2:]]
    assert [row[1:3] for row in rows] == [["0", "1.0%"], ["1 to 32", "32.0%"], ["33 to 255", "67.0%"]]
    assert [row[5] for row in rows] == ["+1.500", "+0.300", "+0.300"]
    parts = [float(row[6].rstrip("%")) for row in rows]
    assert sum(parts) == pytest.approx(100, abs=0.2) and parts[0] == pytest.approx(100 * 15 / (15 + 96 + 201), abs=0.1)


def test_ends_of_two_runs_beside_their_initial_corpora():
    share, chance, length = figures.story_ends(results.load("alpha,beta")).figure.axes
    assert [len(panel.get_lines()) for panel in (share, chance, length)] == [4, 2, 4]
    assert share.get_lines()[0].get_ydata().tolist() == pytest.approx([10, 5, 10 / 3, 2.5]) and share.get_lines()[1].get_ydata()[0] == 5.0
    assert chance.get_lines()[0].get_ydata().tolist() == [50] * 4 and length.get_ylim()[0] == 0


def test_perplexity_and_entropy_by_two_definitions():
    """A full line is the paper's definition and a dashed one the released code's, whichever of them a run calls its own."""
    table = results.load("alpha,beta")
    left, right = figures.definitions(table).figure.axes
    assert [line.get_linestyle() for line in left.get_lines()] == ["-", "--"] * 2
    paper, released, other_paper, other_released = (line.get_ydata() for line in left.get_lines())
    assert (released / paper).tolist() == pytest.approx([1.1, 1.2, 1.3, 1.4]) and paper[0] == 3.0
    assert (other_paper / other_released).tolist() == pytest.approx([1.1, 1.2, 1.3]) and other_released[0] == 3.0
    assert right.get_lines()[1].get_ydata().tolist() == [3.0] * 4 and right.get_lines()[0].get_ydata()[0] > 5


def test_what_lies_between_the_definitions_in_words():
    said = wording.definitions_compared(results.load("alpha,older")).data
    rise = "rose from **10.00** in generation 1 to **40.00** in generation 4, up in all 3 steps"
    assert f"| how far the released code's lies above the paper's (%) | alpha | {rise} |" in said
    assert "| share of positions that would be padding | alpha | rose from **0.1000** in generation 1 to **0.4000**" in said
    assert "older" not in said and said.count("alpha") == 7
    (added,) = (line for line in said.split("\n") if "padding changes" in line)
    assert "2.409** in generation 1" in added  # three nats are left of more than five


def test_a_run_evaluated_anew_in_part_compares_the_generations_that_have_both(runs):
    file = runs / "alpha" / "generation-01" / "metrics" / "perplexity.json"
    record = read_json(file)
    del record["metrics"]["perplexity_released"]
    write_json(file, record)
    table = results.load("alpha")
    assert "the paper's (%) | alpha | rose from **20.00** in generation 2 to **40.00**" in wording.definitions_compared(table).data
    without = table[table["metric"] != "perplexity_released"]  # free text alone was measured anew: whose definition the rest is, nobody knows
    left, right = figures.definitions(without).figure.axes
    assert [len(line.get_xdata()) for line in (*left.get_lines(), *right.get_lines())] == [0, 0, 4, 4]
    assert "perplexity" not in wording.definitions_compared(without).data


def test_interactive_definitions_change_to_entropy():
    table = results.load("beta")
    figure = figures.definitions_interactive(table, "beta").figure
    assert [trace.name for trace in figure.data] == ["by the paper's text", "by the released code"]
    assert list(figure.data[1].x) == [1, 2, 3] and figure.data[1].y[0] == 3.0 and figure.data[0].y[0] == pytest.approx(3.3)
    perplexity, entropy = figure.layout.updatemenus[0].buttons
    assert (perplexity.label, entropy.label) == ("perplexity", "entropy")
    assert list(entropy.args[0]["y"][1]) == [3.0] * 3 and entropy.args[1]["yaxis.title.text"] == "entropy (nats)"


def test_runs_from_before_are_named_and_not_drawn():
    table = results.load("alpha,older")
    for names in (["loss"], ["story_length"], ["definitions"], ["loss", "story_length"]):
        assert [runs_with(table, name) for name in names] == [["alpha"]] * len(names)
        assert "**older**" in wording.unmeasured(table, *names).data
        assert "Every run" in wording.unmeasured(results.load("alpha"), *names).data
    assert "losses by position or story lengths, because" in wording.unmeasured(table, "loss", "story_length").data
    older = results.load("older")
    for draw, what in (
        (figures.loss_by_position, "losses by position"),
        (figures.story_ends, "story lengths"),
        (figures.definitions, "perplexity and entropy by a second definition"),
    ):
        with pytest.raises(UserError, match=f"^No {what} have been measured yet in older\\.$"):
            draw(older)
    assert [row.split("|")[3:5] for row in wording.beside_paper(older, MEASURES).data.splitlines()[2:]] == [[" – ", " *not measured* "]] * 5
    assert "rose from **91** in generation 1 to **94** in generation 4" in wording.beside_paper(table, MEASURES).data


def finish(run: Run, generation: int, name: str, metrics: dict[str, int]) -> None:
    """A finished step with such metrics, made from what its parents say they made."""
    step = run.step(generation, name)
    outputs = {"corpus": {"train": "aaaaaa1", "validation": "bbbbbb1"}, "sample": {"corpus": f"cccc{generation:02d}1"}}.get(name, {"x": "y"})
    with step.recording("cpu") as record:
        record.outputs |= outputs
        for key, value in metrics.items():
            record.measure(key, value, "1", "made up")


@pytest.fixture
def run() -> Run:
    """Six generations planned, with classification in 1, 3, 5 and 6; two of them trained and sampled."""
    run = Run.create("planned", load_preset("smoke").with_changes({"generations": "6", "completions.every": "null"}))
    finish(run, 0, "corpus", {"train_stories": 192, "train_tokens": 41552})
    for generation in (1, 2):
        finish(run, generation, "train", {"parameters": 68_514_048})
        finish(run, generation, "sample", {"tokens": 600_000_000})
    return run


def test_the_schematic_draws_the_lineage(run):
    picture = figures.figure_a1("planned")
    (panel,), (for_a_phone,) = picture.figure.axes, picture.narrow.axes
    words = [text.get_text() for text in panel.texts]
    assert sorted(text.get_text().replace("⋮", "…") for text in for_a_phone.texts if text.get_text()) == sorted(word for word in words if word)
    assert picture.narrow.get_figwidth() == NARROW_PANEL[0] < picture.figure.get_figwidth()
    assert [word for word in words if word.startswith("Generation")] == ["Generation 1", "Generation 2", "Generation 6"]
    assert {"Initial corpus", "192 stories", "68.5 M parameters", "41,552 tokens\ncorpus aaaaaa", "Untrained baseline"} <= set(words)
    assert "600 M tokens\ncorpus cccc01" in words and "? parameters" in words and words.count("…") == 1
    assert "Prompted\ncompletions" not in words
    later = Run.create("planned", run.protocol.with_changes({"completions.every": "5"}))
    assert [test.step.name for test in schematic.tests_of(later, 6)] == [
        "free_text",
        "exact",
        "texture",
        "continuations",
        "perplexity",
        "alpha",
        "completions",
        "classification",
    ]
    (panel,) = figures.figure_a1("planned").figure.axes
    assert "Prompted\ncompletions" in [text.get_text() for text in panel.texts]


def test_what_is_not_done_is_grey(run):
    run = Run.create("planned", run.protocol.with_changes({"generations": "2"}), exact=True)
    panel = figures.figure_a1("planned").figure.axes[0]
    inks = {text.get_text(): text.get_color() for text in panel.texts}
    assert inks["Perplexity"] == schematic.NOT_DONE and inks["Generation 2"] != schematic.NOT_DONE
    finish(run, 2, "perplexity", {"perplexity": 5})
    panel = figures.figure_a1("planned").figure.axes[0]
    assert {text.get_text(): text.get_color() for text in panel.texts}["Perplexity"] != schematic.NOT_DONE


def test_a_judge_comes_behind_the_completions(run):
    judged = run.protocol.with_changes({"gpt_eval.judge": "someone"})
    tests = {test.step.name: test.through for test in schematic.tests_of(Run(run.folder, judged.with_changes({"completions.every": "5"})), 1)}
    assert tests["gpt_eval"] == "Prompted completions" and "completions" not in tests and tests["classification"] == "Fine-tuned copies"


def test_none_of_it_needs_torch():
    program = (
        "import sys; from collapse_lib.studies import results; from collapse_lib import figures; table = results.load('alpha');"
        "figures.story_ends(table).svg;"
        "figures.definitions(table).svg; from collapse_lib.book import wording; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
