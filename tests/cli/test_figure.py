"""One picture, without the book: of made-up runs, in every format, and what is refused."""

from __future__ import annotations

import re

import pytest
from synthetic_runs import write_run

from collapse_lib import cli, figures
from collapse_lib.experiment.run import Run
from collapse_lib.figures import named
from collapse_lib.studies import results

CHAINS = ("chain", "chain-2", "chain-3")


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Three chains that differ in their seeds, and one that differs in more."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate((*CHAINS, "warm"), 1):
        folder = write_run(tmp_path / "runs", name, 3, growth=1.0 + 0.1 * seed)
        changes = {"seed": seed} | ({"sampling.temperature": 1.2} if name == "warm" else {})
        protocol = Run.open(name).protocol.with_changes(changes)
        (folder / "protocol.yaml").write_text(protocol.to_yaml(), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(("format", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_figure_is_drawn_in_every_format(runs, capsys, format, begins):
    assert cli.main(["figure", "figure_1", "--run", "chain", "--run", "warm", "--format", format]) == 0
    assert capsys.readouterr().out == f"figure_1.{format}\n" and (runs / f"figure_1.{format}").read_bytes().startswith(begins)


def test_the_list_has_those_that_runs_can_fill_in(capsys):
    assert cli.main(["figure"]) == 0
    listed = capsys.readouterr().out.splitlines()[:-1]
    assert listed == named.names() and {"figure_1", "figure_2", "memory", "twin_distances"} <= {*listed}
    assert not {"draw", "turn", "loss_curve", "figure_1_interactive", "metric_by_generation"} & {*listed}


def test_any_measure_has_a_band_between_chains_of_one_kind():
    (panel,) = figures.metric_by_generation(results.load([*CHAINS, "warm"]), "perplexity.perplexity").axes
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["chain, 3 chains", "warm, 1 chain"]
    assert panel.get_ylabel() == "perplexity" and len(panel.collections) == 2
    band, none = panel.collections[0].get_paths()[0].vertices, panel.collections[1].get_paths()
    values = results.metric(results.load("chain-2"), "chain-2", "perplexity")["value"]
    assert band[:, 1].min() < values.min() and band[:, 1].max() > values.max() and not any(len(path.vertices) > 2 for path in none)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fig_1"], r"There is no figure 'fig_1'; there is .*figure_1.*, or any step\.metric"),
        (["perplexity.perplexed"], r"Nothing called 'perplexity\.perplexed' was measured there; there is perplexity\.perplexity"),
        (["memory", "--run", "chain", "--run", "warm"], r"Figure 'memory' shows one run, not 2: chain, warm\."),
        (["twin_distances"], r"has not been compared with twins; `collapse twins "),
        (["figure_1", "--format", "pdf", "--output", "a.png"], r"--format is pdf and --output ends in \.png"),
        (["figure_1", "--output", "nowhere/a.png"], r"There is no folder '.*nowhere' to write"),
        (["figure_1", "--output", "a.docx"], r"A figure cannot be written to 'a\.docx'"),
        (["figure_1", "--study", "smoke"], r"Figure 'figure_1' is about runs; of a study, any step\.metric"),
        (["a.b", "--study", "smoke", "--run", "chain"], r"--run and --study exclude each other"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(runs, capsys, arguments, said):
    assert cli.main(["figure", *arguments]) == 2
    complaint = capsys.readouterr().err
    assert re.match(f"collapse: .*{said}", complaint) and complaint.count("\n") == 1
    assert not [file for file in runs.iterdir() if file.is_file()]
