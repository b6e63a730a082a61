"""What the book says about a run: pages made from a small made-up run, prose against the protocol and the presets. Nothing is rendered here."""

from __future__ import annotations

import copy
import csv
import html
import io
import re
import shutil
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic_runs import write_run

from collapse_lib import figures
from collapse_lib.book import build as book
from collapse_lib.book import notebooks, pictures, quiet, quiet_page, sphinx_pages
from collapse_lib.book import pages as book_pages
from collapse_lib.book.notebooks import NotebookPage
from collapse_lib.book.runs import BookRun, book_runs, runs_of_two_sizes
from collapse_lib.book.staging import Staging
from collapse_lib.book.studies import study_pages
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_json
from collapse_lib.experiment.lineage import STEPS, steps_of
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import FORMAT, Run
from collapse_lib.studies import results
from collapse_lib.text.display import metrics_table, plain, quotation

SOURCE = project_root() / "book"
SAMPLE = 'She said "<b>hi</b>" {{ run }} and paid $5 & `left`.\n\nThe *end*'


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BookRun:
    """Three finished generations of a run of four; generation 4 is only trained."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    run = Run.create("made-up", load_preset("smoke").with_changes({"generations": "4"}))
    for generation in range(4):
        for step in steps_of(run.protocol, generation):
            _finish(run, generation, step)
    _finish(run, 4, "train")
    return BookRun.read(run)


def _finish(run: Run, generation: int, name: str) -> None:
    values = {
        "corpus": {f"{part}_{what}": 100 for part in ("train", "holdout", "validation") for what in ("stories", "tokens")} | {"vocabulary": 512},
        "train": {"loss": 2.0 + generation, "epochs": 2, "parameters": 12345},
        "sample": {"sequences": 256, "tokens": 12288, "stories": 100 - generation},
        "perplexity": {"perplexity": 5.0 + 0.25 * generation},
        "free_text": {"entropy": 5.0 - 0.1 * generation, "oov_lexicon_rate": 3.5, "oov_initial_rate": 4.5, "distinct_2": 0.25, "longest_repeat": 7},
    }.get(name, {f"size_of_{name}": 3})
    units = {"perplexity": "1", "distinct_2": "1", "loss": "nats/token"}
    step = run.step(generation, name)
    head = {"step": name, "generation": generation}
    metrics = {key: {"value": value, "unit": units.get(key, "things"), "definition": f"what {key} < is"} for key, value in values.items()}
    series = {"loss_curve": [[1, 7.0], [10, 3.0]]} if name == "train" else {}
    examples = {"samples": [SAMPLE, "b", "c", "d"]} if name == "sample" else {"frequent_oov": [["z*z", 3]]}
    write_json(step.metrics_file, head | {"metrics": metrics, "series": series, "examples": examples, "seconds": 1.5})
    parents = {parent: before.output_hashes() for parent, before in step.parents().items()}
    manifest = {
        "format": FORMAT,
        "protocol_hash": step.protocol_hash,
        "parents": parents,
        "outputs": {"x": f"{name}{generation}"},
        "seed": 1,
        "seconds": 1.5,
        "device": "cpu",
    }
    write_json(
        step.manifest_file, head | manifest | {"started": "2024-01-01T00:00:00+00:00", "finished": "2024-01-01T00:00:01+00:00", "versions": {}}
    )
    cells = [
        new_markdown_cell(f"# Notebook {name}\n\n## A part"),
        new_code_cell("generation = 1", execution_count=1, metadata={"tags": ["parameters"], "papermill": {"status": "completed"}}),
        new_code_cell("1 + 1", execution_count=2, outputs=[new_output("execute_result", {"text/plain": "2"})]),
    ]
    papermill = {"end_time": "2024-01-01T00:00:01+00:00", "exception": None}  # as in a notebook that was executed to its end
    nbformat.write(new_notebook(cells=cells, metadata={"papermill": papermill}), step.notebook)


def test_a_page_shows_the_parameters_that_were_used() -> None:
    cells = [
        new_code_cell(f"runs = {value!r}", metadata={"tags": [tag]}) for value, tag in (("newest", "parameters"), ("demo", "injected-parameters"))
    ]
    shown = notebooks.section(new_notebook(cells=cells), "A title")
    assert [cell.source for cell in shown] == ["## A title", "runs = 'demo'"]
    assert [cell.source for cell in notebooks.section(new_notebook(cells=cells[:1]), "A title")] == ["## A title", "runs = 'newest'"]


def test_headings_go_down_a_level_outside_of_code() -> None:
    text = "# One\n\n```python\n# a comment\n~~~\n```\n## Two\n#hash\n~~~~\n# in\n~~~\n~~~~\n# Three"
    assert notebooks.demote(text) == "## One\n\n```python\n# a comment\n~~~\n```\n### Two\n#hash\n~~~~\n# in\n~~~\n~~~~\n## Three"


def test_only_finished_generations_are_shown(shown: BookRun) -> None:
    assert list(shown.results) == [0, 1, 2, 3]
    assert shown.last == 3
    assert shown.series("perplexity", "perplexity") == [(1, 5.25), (2, 5.5), (3, 5.75)]
    assert shown.seconds(list(shown.results)) == pytest.approx(1.5 * sum(map(len, shown.results.values())))


@pytest.mark.parametrize("changes", [{"gpt_eval.judge": "some-model"}, {"classification.every": "1", "classification.tasks": "[grammar_fits]"}])
def test_an_evaluation_that_is_still_to_come_hides_no_generation(shown: BookRun, changes: dict[str, str]) -> None:
    run = shown.run
    if "gpt_eval.judge" not in changes:  # a run's tasks may change as long as none was done
        for step in (run.step(generation, "classification") for generation in (0, 1, 3)):
            step.manifest_file.unlink()
    later = BookRun.read(Run.create(run.name, run.protocol.with_changes(changes)))
    assert list(later.results) == [0, 1, 2, 3]
    page = book_pages.generation_page(later, 1)
    assert "Perplexity" in "".join(cell.source for cell in page.cells)


def test_a_run_that_cannot_be_read_is_left_out_unless_it_is_named(shown: BookRun) -> None:
    file = shown.run.folder.parent / "broken" / "protocol.yaml"
    file.parent.mkdir()
    file.write_text("colour: red")
    runs, left_out = book_runs([])
    assert [found.name for found in runs] == ["made-up"]
    assert list(left_out) == ["broken"] and "there is no field 'colour'" in left_out["broken"]
    with pytest.raises(UserError, match="there is no field 'colour'"):
        book_runs(["broken"])
    shown.run.step(0, "corpus").manifest_file.unlink()
    with pytest.raises(UserError, match="there is no field 'colour'"):  # nothing to show, and this is why
        book_runs([])


def test_a_generation_is_one_page(shown: BookRun) -> None:
    page = book_pages.generation_page(shown, 2)
    nbformat.validate(page)
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    assert re.findall(r"^# .*", text, re.M) == ["# Generation 2 of made-up"]
    assert [line for line in re.findall(r"^## (.*)", text, re.M) if line.startswith("Notebook")] == [f"Notebook {step}" for step in shown.results[2]]
    assert len({cell.id for cell in page.cells}) == len(page.cells)
    parameters = [cell for cell in page.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameters) == len(shown.results[2]) and all(
        "hide-input" in cell.metadata.tags and "papermill" not in cell.metadata for cell in parameters
    )
    assert "| {term}`Perplexity <perplexity>` on {term}`validation stories` | 5.250 | 5.500 | +0.250 |" in text
    assert "the text of [generation 1](generation-01)" in text
    assert "| Training loss at the end (nats/token) | 3 | 4 | +1 |" in text


def test_the_first_pages_say_where_they_come_from(shown: BookRun) -> None:
    first = book_pages.generation_page(shown, 1).cells[0].source
    assert "the [initial corpus, generation 0](generation-00)" in first and "| – | 5.250 | – |" in first
    corpus = book_pages.generation_page(shown, 0).cells[0].source
    assert corpus.startswith("# Generation 0 of made-up") and "| for validation | 100 | 100 |" in corpus


def test_generated_text_stays_text(shown: BookRun) -> None:
    quoted = quotation(SAMPLE)
    assert "\n" not in quoted, "a blank line would end the HTML block and let markdown in"
    opening = book_pages.generation_opening(shown, 2)
    assert quoted in opening and "z&#42;z" in opening and "<b>" not in opening


def test_values_are_put_into_prose_as_they_are() -> None:
    assert book_pages.filled("Of {{ run }}, {{minutes}}.", {"run": "`{{ 7 * 7 }}`", "minutes": "3"}, "index.md") == "Of `{{ 7 * 7 }}`, 3."
    with pytest.raises(UserError, match=r"index.md names the number 'seconds', which there is not; there are run"):
        book_pages.filled("{{ seconds }}", {"run": "demo"}, "index.md")


def test_a_protocol_cannot_leave_its_block() -> None:
    text = "description: a\n  ````\n  ```\x85{raw} html\r:file: x"
    first, *lines, last = book_pages.fenced(text, "yaml").splitlines()
    assert first == "`````yaml" and last == "`````" and lines == ["description: a", "  ````", "  ```⟨U+0085⟩{raw} html⟨U+000D⟩:file: x"]


def test_what_cells_print_has_no_unseen_characters() -> None:
    outputs = [new_output("stream", name="stdout", text="a\x00\u202eb\tc\nd"), new_output("execute_result", {"text/plain": "\x0c'e'"})]
    [_, cell] = notebooks.section(new_notebook(cells=[new_code_cell("a", outputs=outputs)]), "A title")
    assert cell.outputs[0].text == "a⟨U+0000⟩⟨U+202E⟩b\tc\nd" and cell.outputs[1].data["text/plain"] == "⟨U+000C⟩'e'"


def test_overview_leads_to_every_generation(shown: BookRun) -> None:
    page = book_pages.overview_page(shown, "results.csv")
    assert all(f"](generation-{generation:02d})" in page for generation in range(4))
    assert "3 of 4 generations" in page and f"what perplexity {plain('<')} is" in page
    rows = [line for line in page.split("\n") if line.startswith("| [")]
    assert len(rows) == 3 and {row.count("|") for row in rows} == {8}


@pytest.fixture
def long(shown: BookRun) -> BookRun:
    """The same records as those of 20 generations, of which 1, 6, 11, 16 and 20 complete beginnings: numbers rise, perplexity most into the 14th."""
    protocol = shown.protocol.with_changes({"generations": "20", "classification.tasks": "[]", "completions.every": "5"})
    run = Run(shown.run.folder, protocol)
    alike = {generation: 1 if generation == 20 or generation % 5 == 1 else 2 for generation in range(1, 21)}
    results = {0: shown.results[0]} | {generation: copy.deepcopy(shown.results[other]) for generation, other in alike.items()}
    for generation, other in alike.items():
        results[generation].pop("classification", None)
        for step in results[generation]:
            if generation > 2:
                target = run.generation_folder(generation) / f"{step}.ipynb"
                target.parent.mkdir(exist_ok=True)
                shutil.copy(run.generation_folder(other) / target.name, target)
        for measure in quiet.OVERVIEW:
            jump = 5.0 * (measure.metric == "perplexity" and generation > 13)
            results[generation][measure.step]["metrics"][measure.metric]["value"] = generation + jump
    results[9]["free_text"]["metrics"]["entropy"]["value"] = 99.0
    return BookRun(run, results)


def test_quiet_generations_are_those_at_which_nothing_stands_out(long: BookRun) -> None:
    own = {0, 1, 20} | {6, 11, 16} | {9, 14}  # the ends; completions; the highest entropy, and the largest step of perplexity
    assert quiet.own_pages(long) == sorted(own)
    assert quiet.quiet_generations(long) == sorted(set(range(21)) - own)
    assert quiet.ranges(quiet.quiet_generations(long)) == "2 to 5, 7, 8, 10, 12, 13, 15 and 17 to 19"
    assert [quiet.ranges(some) for some in ([4], [4, 5], [1, 2, 3], [1, 3])] == ["4", "4 and 5", "1 to 3", "1 and 3"]


def test_what_every_generation_is_asked_makes_none_stand_out(long: BookRun) -> None:
    each = BookRun(Run(long.run.folder, long.protocol.with_changes({"completions.every": "1"})), long.results)
    assert quiet.own_pages(each) == [0, 1, 9, 14, 20]


@pytest.mark.parametrize("generations", [12, 13])
def test_a_short_run_has_a_page_for_each_generation(long: BookRun, generations: int) -> None:
    run = Run(long.run.folder, long.protocol.with_changes({"generations": str(generations)}))
    cut = BookRun(run, {generation: steps for generation, steps in long.results.items() if generation <= generations})
    assert bool(quiet.quiet_generations(cut)) == (generations > 12)
    begun = BookRun(long.run, {generation: long.results[generation] for generation in range(4)})
    assert quiet.own_pages(begun) == [0, 1, 2, 3], "one quiet generation needs no page to share"


def test_quiet_generations_share_one_page_that_has_all_they_showed(long: BookRun) -> None:
    generations = quiet.quiet_generations(long)
    page = quiet_page.quiet_page(long, generations)
    nbformat.validate(page)
    assert len({cell.id for cell in page.cells}) == len(page.cells)
    text = "\n".join(cell.source for cell in page.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## Generation (\d+)$", text, re.M) == list(map(str, generations))
    assert "| 15 | 20 (+1) |" in text and "After [generation 6](generation-06)." in text
    assert f"After [generation 2]({quiet.PAGE}.ipynb#generation-2)." in text
    for generation in generations:
        assert all(f"<source/generation-{generation:02d}/{step}.ipynb>" in text for step in long.results[generation])
    numbers = [line for line in text.split("\n") if "<table" in line]
    assert len(numbers) == len(long.results[2]) and all(line.count('scope="col"') == 1 + len(generations) for line in numbers)
    shown = [cell for cell in page.cells if cell.cell_type == "code"]
    assert len(shown) == len(generations) and all("hide-output" in cell.metadata.tags and cell.source for cell in shown)
    assert [output.data["text/plain"] for output in shown[0].outputs if "text/plain" in output.data] == ["2"] * len(long.results[2])


def test_numbers_that_are_in_the_tables_and_full_bars_are_not_shown_again() -> None:
    table = new_output("execute_result", {"text/markdown": metrics_table({"metrics": {}}).data})
    bar, warning = (new_output("stream", name="stderr", text=text) for text in ("sampling: 100%|####| 9/9 [00:01<00:00]\n", "UserWarning: odd\n"))
    cell = new_code_cell("x", outputs=[table, bar])
    assert quiet_page._shown("sample", new_notebook(cells=[cell])) == []
    cell.outputs = [table, bar, warning]
    title, said = quiet_page._shown("sample", new_notebook(cells=[cell]))
    assert title.data["text/markdown"] == "**Sampling**" and "UserWarning: odd" in said.text


def test_a_quiet_generation_is_found_at_its_own_address_and_from_every_page(long: BookRun, tmp_path: Path) -> None:
    staging = Staging(tmp_path / "_generated")
    book._stage_quiet(staging, long, quiet.quiet_generations(long))
    folder = staging.folder / "runs" / "made-up"
    assert (folder / "quiet-generations.ipynb").is_file() and (folder / "source" / "generation-02" / "train.ipynb").is_file()
    forwarding = (staging.folder / "extra" / "runs" / "made-up" / "generation-02.html").read_text()
    assert "url=quiet-generations.html#generation-2" in forwarding
    overview = book_pages.overview_page(long, "results.csv")
    assert "| [2](quiet-generations.ipynb#generation-2) |" in overview and "| [6](generation-06) |" in overview
    assert "The generations 2 to 5, 7, 8, 10, 12, 13, 15 and 17 to 19, at which nothing stands out, share [a page](quiet-generations)." in overview
    assert "the text of [generation 5](quiet-generations.ipynb#generation-5)" in book_pages.generation_opening(long, 6)
    contents = yaml.safe_load(book._contents(SOURCE, [long], dict.fromkeys(book.FOLDERS, ())))
    [run] = [chapter for part in contents["parts"] for chapter in part["chapters"] if "sections" in chapter]
    names = [section["file"].removeprefix("runs/made-up/") for section in run["sections"]]
    assert names == [*(f"generation-{generation:02d}" for generation in (0, 1, 6, 9, 11, 14, 16, 20)), "quiet-generations"]


def test_what_only_leads_on_is_no_page(tmp_path: Path) -> None:
    site, extra = tmp_path / "site", tmp_path / "stage" / "extra"
    for file in (site / "index.html", site / "search.html", *(folder / "runs" / "a" / "generation-02.html" for folder in (site, extra))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert book._count_pages(site, tmp_path / "stage") == 1


def test_what_ended_the_training_stands_on_the_pages_that_it_decides(shown: BookRun) -> None:
    shown.results[1]["train"]["series"]["holdout_losses"] = [4.0, 3.5]
    cap = "**Cap reached, hold-out still falling by 0.500 nats an epoch**"
    assert cap in book_pages.overview_page(shown, "results.csv") and cap in book_pages.numbers(shown)["stopping"]
    assert cap in book_pages.generation_opening(shown, 1) and "Cap reached" not in book_pages.generation_opening(shown, 2)
    shown.results[1]["train"]["series"]["holdout_losses"] = [4.0, 3.5, 3.75]
    assert "Early stopping: the loss on held-out stories was lowest after epoch 2" in book_pages.overview_page(shown, "results.csv")


def test_a_run_says_where_the_rows_of_its_tasks_come_from(shown: BookRun) -> None:
    changes = {"classification.tasks": "[yelp, grammar_fits]", "classification.data": "here", "classification.notes": "Yelp is [another]."}
    noted = BookRun(Run(shown.run.folder, shown.run.protocol.with_changes(changes)), shown.results)
    said = "Yelp: local files, which were not checked against the public data sets of these names; Ending fits: the story grammar. Yelp is [another]."
    page = book_pages.overview_page(noted, "results.csv")
    assert said in html.unescape(page) and "[another]" not in page.partition("```")[0]  # the protocol behind it stands in a block of code


def test_curves_are_the_same_bytes_for_the_same_numbers() -> None:
    points = [(1, 5.25), (2, 5.5), (3, 5.75)]
    made = [figures.training_and_perplexity("made-up", {1: [[1, 7.0], [10, 3.0]], 2: None}, points, generation) for generation in (2, 2)]
    assert made[0].svg == made[1].svg and "generation 1" in made[0].svg
    left, right = made[0].axes
    assert [line.get_ydata().tolist() for line in left.get_lines()] == [[7.0, 3.0]]
    assert [list(line.get_ydata()) for line in right.get_lines()] == [[5.25, 5.5, 5.75], [5.25, 5.5]]
    (panel,) = figures.perplexity_so_far("made-up", points, 3).axes
    assert panel.get_ylabel() == "perplexity on validation stories"


def test_a_column_without_a_name_has_no_empty_heading() -> None:
    from pandas import DataFrame

    output = new_output("execute_result", {"text/html": DataFrame({"a": [1]}).to_html()})
    table = notebooks.section(new_notebook(cells=[new_code_cell("x", outputs=[output])]), "A title")[1].outputs[0].data["text/html"]
    assert "<th></th>" not in table and "<td></td>" in table and "<th>a</th>" in table


def test_control_characters_of_a_recorded_output_are_shown() -> None:
    outputs = [new_output("stream", name="stdout", text="a\x1b[31m\x85b\n\tc"), new_output("display_data", {"text/markdown": "x\u2028y\n"})]
    stream, shown = notebooks.section(new_notebook(cells=[new_code_cell("x", outputs=outputs)]), "A title")[1].outputs
    assert stream.text == "a⟨U+001B⟩[31m⟨U+0085⟩b\n\tc" and shown.data["text/markdown"] == "x⟨U+2028⟩y\n"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("pieces", ["one output", "one a state", "anywhere"])
def test_a_bar_is_shown_once_as_it_ended(name: str, pieces: str) -> None:
    states = ["\repoch 1:   0%|     | 0/9", "\repoch 1:  50%|##   | 4/9", "\repoch 1: 100%|#####| 9/9\n"]
    states += ["note: half\r\n", "\repoch 2:   0%|     | 0/9", "\repoch 2: 100%|#####| 9/9\r"]
    whole = "".join(states)
    texts = {"one output": [whole], "one a state": states, "anywhere": [whole[at : at + 7] for at in range(0, len(whole), 7)]}[pieces]
    cell = new_code_cell("train()", outputs=[new_output("stream", name=name, text=text) for text in texts])
    (output,) = notebooks.section(new_notebook(cells=[cell]), "A title")[1].outputs
    assert output.text == "epoch 1: 100%|#####| 9/9\nnote: half\nepoch 2: 100%|#####| 9/9"


def test_no_bar_of_a_committed_run_is_unfinished_or_shown_twice() -> None:
    streams = [
        output.text
        for file in (project_root() / "papermill_runs").glob("*/generation-*/*.ipynb")
        for cell in nbformat.read(file, as_version=4).cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    ]
    lines = [line for text in streams for line in text.split("\n")]
    assert len(lines) > 10 and all(len(line) <= 400 and "\r" not in line for line in lines)
    assert not [line for line in lines if re.search(r" \d{1,2}%\|", line)]


def test_figure_page_offers_its_parts() -> None:
    both = {"application/vnd.plotly.v1+json": {}, "text/html": '<div class="chart"></div>'}
    cells = [
        new_markdown_cell("# Figure 9: a title"),
        new_code_cell("a", metadata={"mystnb": {"image": {"alt": "words"}}}, outputs=[new_output("display_data", {"image/svg+xml": "<svg>1</svg>"})]),
        new_code_cell("b", outputs=[new_output("display_data", {"image/svg+xml": "<svg>2</svg>"}), new_output("display_data", both)]),
        new_markdown_cell("Change ```this```.", metadata={"tags": ["changes"]}),
    ]
    executed = new_notebook(cells=cells, metadata={"papermill": {}})
    page, images = notebooks.executed_page(executed, NotebookPage("figure_9", Path("figure_9.ipynb")), ["demo", "other"])
    assert images == {"figure_9.svg": "<svg>1</svg>", "figure_9-2.svg": "<svg>2</svg>"}
    assert page.cells[0].source == "# Figure 9: a title" and page.cells[2].metadata.mystnb.image.alt == "words"
    head = page.cells[1].source
    assert all(part in head for part in ("<source/figure_9.ipynb>", "<figure_9.csv>", "<../runs/other/results.csv>", "<figure_9-2.svg>"))
    assert "application/vnd.plotly.v1+json" not in page.cells[3].outputs[1].data and "papermill" not in page.metadata
    assert page.cells[4].source == "````{dropdown} Change it\nChange ```this```.\n````"


def test_a_still_figure_is_a_picture_in_two_widths() -> None:
    wide, narrow = (f'<svg width="{width}pt" height="72pt"></svg>' for width in (540, 300))
    figure = new_output("display_data", {"image/svg+xml": wide, "text/plain": "a title"}, metadata={"image/svg+xml": {"narrow": narrow}})
    plain_one = new_output("display_data", {"image/svg+xml": wide, "text/plain": "<a> title"})
    cells = [new_code_cell("a", metadata={"mystnb": {"image": {"alt": 'its "words"'}}}, outputs=[figure]), new_code_cell("b", outputs=[plain_one])]
    files = pictures.show_pictures(cells, "runs/demo/generation-01")
    base = "pictures/runs/demo/generation-01"
    assert files == {f"{base}.svg": wide, f"{base}-narrow.svg": narrow, f"{base}-2.svg": wide}
    first, second = (cell.outputs[0].data["text/html"] for cell in cells)
    assert f'srcset="../../{base}-narrow.svg"' in first and 'alt="its &quot;words&quot;" width="720" height="96"' in first
    assert "srcset" not in second and "only-wide" in second and 'alt="&lt;a&gt; title"' in second
    assert pictures.again("index", files, "x").count(f'"{base}') == 2, "another page shows it again"


@pytest.mark.parametrize(
    ("data", "steps"), [(["perplexity"], {"perplexity"}), (None, {"corpus", "train", "sample", "perplexity", "free_text"}), ("executed", None)]
)
def test_a_figure_has_its_numbers_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Any, steps: set[str] | None) -> None:
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    for name in ("demo", "other"):
        write_run(tmp_path / "runs", name, 2)
    executed = new_notebook(metadata={"collapse": {"data": data}} if data else {})
    rows = list(csv.DictReader(io.StringIO(notebooks.figure_data(executed, results.load("demo,other")))))
    assert {row["run"] for row in rows} == {"demo", "other"}
    if steps is None:
        assert {"seconds", "device", "torch"} <= rows[0].keys()
    else:
        assert {row["step"] for row in rows} == steps and {"generation", "metric", "value", "unit"} <= rows[0].keys()


def test_a_chapter_offers_its_notebook_alone() -> None:
    cells = [new_markdown_cell("# One"), new_code_cell("a", outputs=[new_output("display_data", {"image/svg+xml": "<svg>1</svg>"})])]
    page, images = notebooks.executed_page(new_notebook(cells=cells), NotebookPage("1_one", Path("1_one.ipynb")))
    assert page.cells[1].source == "Download {download}`this notebook <source/1_one.ipynb>`." and images == {}


def test_pages_of_one_notebook_have_their_own_titles_parameters_and_names() -> None:
    pages = {page.name: page for page in notebooks.notebook_pages("figures")}
    assert list(pages)[:10] == [
        *("claims", "figure_1_perplexity", "figure_2_entropy_oov", "figure_3_judged_quality", "figure_4_classification", "figure_a1_schematic"),
        *("figure_a2_entropy_oov_1m", "figure_a3_classification_1m", "figure_a4_f1", "figure_a5_f1_1m"),
    ]
    several = {page.name: page.parameters["figure"] for page in pages.values() if page.title}
    assert list(several.values()) == ["2", "4", "A2", "A3", "A4", "A5"]
    for name, figure in several.items():
        page = pages[name]
        assert re.match(rf"(Extended Data )?Figure {figure}: ", page.title) and name.startswith(f"figure_{figure.lower()}_")
        made, _ = notebooks.executed_page(nbformat.read(page.notebook, as_version=4), page, ["demo"])
        assert made.cells[0].source.startswith(f"# {page.title}\n\n") and f'(here with `figure = "{figure}"`)' in made.cells[1].source
        assert f"<source/{page.notebook.name}>" in made.cells[1].source
    assert len({page.title for page in pages.values() if page.title}) == len(several)


def test_the_papers_figures_show_the_runs_that_have_its_design(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))

    def made(name: str, parameters: int, **changes: str) -> BookRun:
        run = Run.create(name, load_preset("smoke").with_changes({field.replace("__", "."): value for field, value in changes.items()}))
        return BookRun(run, {1: {"train": {"metrics": {"parameters": {"value": parameters}}}}})

    demo = made("demo", 300, corpus__stories="77")
    small = [made(f"small-{seed}", 100, seed=str(seed)) for seed in (1, 2)]
    large = made("large", 800, model__num_layers="3")
    pages = {page.name: page for page in notebooks.notebook_pages("figures")}
    assert [name for name, page in pages.items() if page.by_size] == [*("figure_a2_entropy_oov_1m", "figure_a3_classification_1m", "figure_a5_f1_1m")]
    for runs, of_design in (([demo, *small, large], ["small-1", "small-2", "large"]), ([demo, *small], []), ([demo, large], [])):
        assert runs_of_two_sizes(runs) == of_design
        names = [run.name for run in runs]
        assert book._runs_of(pages["figure_1_perplexity"], runs) == book._runs_of(pages["table_a1_samples"], runs) == (of_design or names)
        assert book._runs_of(pages["tails"], runs) == book._runs_of(pages["claims"], runs) == names


def test_a_notebook_is_executed_again_when_something_that_it_shows_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))

    def made(name: str, parameters: int, **changes: str) -> BookRun:
        run = Run.create(name, load_preset("smoke").with_changes({field.replace("__", "."): value for field, value in changes.items()}))
        shown = BookRun(run, {1: {"train": {"metrics": {"parameters": {"value": parameters}}}}})
        for file in shown.records():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return shown

    runs = [made("demo", 300, corpus__stories="77"), made("small", 100), made("large", 800, model__num_layers="3")]
    (study := tmp_path / "study.csv").touch()
    monkeypatch.setattr(book, "study_records", lambda: [study])

    def inputs() -> dict[str, tuple[NotebookPage, str]]:
        return {page.name: (page, execution.inputs) for pages in book._executions(tmp_path, runs).values() for page, execution in pages}

    def changed(file: Path) -> list[NotebookPage]:
        before = inputs()
        file.write_text("changed")
        return [page for name, (page, made_from) in inputs().items() if made_from != before[name][1]]

    figures = notebooks.notebook_pages("figures")
    assert changed(runs[0].step(1, "train").metrics_file) == [page for page in figures if not page.is_of_paper]
    assert changed(runs[1].step(1, "train").metrics_file) == figures
    assert changed(runs[1].step(1, "train").notebook) == []  # which figures do not show
    assert changed(study) == [page for page in figures if page.name == "claims"] + study_pages()


@pytest.mark.parametrize("page", [page for folder in book.FOLDERS for page in notebooks.notebook_pages(folder)], ids=lambda page: page.name)
def test_a_page_gives_its_notebook_parameters_that_it_has(page: NotebookPage) -> None:
    assert page.parameters.keys() <= papermill.inspect_notebook(str(page.notebook)).keys()


def test_every_folder_of_executed_notebooks_has_its_place_in_the_contents() -> None:
    contents = yaml.safe_load((SOURCE / "_toc.yml").read_text(encoding="utf-8"))
    inserts = [chapter["insert"] for part in contents["parts"] for chapter in part["chapters"] if "insert" in chapter]
    assert inserts == ["figures", "theory", "studies", "runs"]
    assert [page.name[:2] for page in notebooks.notebook_pages("theory")] == ["1_", "2_", "3_", "4_", "5_", "6_"]


def test_prose_uses_only_numbers_that_exist(shown: BookRun) -> None:
    used = {name for file in SOURCE.glob("*.md") for name in re.findall(r"\{\{ (\w+) \}\}", file.read_text(encoding="utf-8"))}
    assert used, "the landing page has numbers"
    assert used == set(book_pages.numbers(shown)) | {"studies", "verdicts", *book.LANDING}


def test_the_experiment_has_every_step_in_its_order() -> None:
    text = (SOURCE / "experiment.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == list(STEPS)
    assert re.findall(r"There are (\w+), done", text) == [("nine", "ten", "eleven", "twelve", "thirteen", "fourteen")[len(STEPS) - 9]]
    parts = {number for numbers in re.findall(r"^\| `\w+` \|.*\| ([^|]*) \|$", text, re.M) for number in re.findall(r"5\.\d", numbers)}
    assert parts == {"5.1", "5.2", "5.3", "5.4", "5.5"}, "the sections of the paper's methods"


def test_the_landing_page_leads_to_each_of_the_papers_findings() -> None:
    text = (SOURCE / "index.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(figures/(figure_[1-4])_\w+\)", text))
    assert linked == {"figure_1", "figure_2", "figure_3", "figure_4"}


def test_what_a_run_on_the_grammar_measures_is_not_called_real(shown: BookRun) -> None:
    prose = [(SOURCE / name).read_text(encoding="utf-8") for name in ("index.md", "experiment.md")]
    generated = [book_pages.generation_opening(shown, 2), book_pages.overview_page(shown, "results.csv")]
    generated.append(figures.perplexity_so_far("made-up", [(1, 5.0)], 1).svg)
    assert not any(re.search(r"(?i)(perplexity|surprised)[^.|]* real stories", text) for text in prose + generated)


def test_every_difference_of_the_presets_is_in_the_table() -> None:
    text = (SOURCE / "fidelity.md").read_text(encoding="utf-8")
    for size in ("1m", "33m"):
        for field in load_preset(f"paper-{size}").differences(load_preset(f"released-{size}")):
            assert f"`{field}`" in text or field == "training.block_size", f"the page does not name {field}"


def test_prose_names_only_fields_presets_and_pages_that_exist() -> None:
    fields = load_preset("paper-33m").flat()
    made = {f"{folder}/{page.name}" for folder in book.FOLDERS for page in notebooks.notebook_pages(folder)}
    sections = "|".join({name.partition(".")[0] for name in fields if "." in name})
    for file in SOURCE.glob("*.md"):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(rf"(?:`|--set )((?:{sections})\.(?!py\b|json\b)\w+)", text):
            assert name in fields, f"{file.name} names {name}"
        for page in re.findall(r"\]\(([a-z][\w/-]*)\)", text):
            assert page in made or (SOURCE / f"{page}.md").is_file() or page == "overflow", f"{file.name} links {page}"
        for preset in re.findall(r"collapse run ([\w-]+)", text):
            load_preset(preset)
        for figure in re.findall(r"figures/(\w+)", text):
            assert f"figures/{figure}" in made, f"{file.name} shows {figure}"


def test_every_page_of_prose_is_in_the_contents() -> None:
    contents = yaml.safe_load((SOURCE / "_toc.yml").read_text(encoding="utf-8"))
    listed = {contents["root"]} | {chapter["file"] for part in contents["parts"] for chapter in part["chapters"] if "file" in chapter}
    assert listed == {file.stem for file in SOURCE.glob("*.md")}


def test_contents_get_figures_and_runs(shown: BookRun) -> None:
    contents = yaml.safe_load(book._contents(SOURCE, [shown], {"figures": ["figure_9"], "theory": ["1_one", "2_two"], "studies": ["study-regimes"]}))
    chapters = [chapter for part in contents["parts"] for chapter in part["chapters"]]
    assert {"file": "figures/figure_9"} in chapters and not any("insert" in chapter for chapter in chapters)
    proof = next(part["chapters"] for part in contents["parts"] if part["caption"] == "The proof")
    assert proof == [{"file": name} for name in ("theory/1_one", "theory/2_two", "related", "limitations")]
    [run] = [chapter for chapter in chapters if "sections" in chapter]
    assert [section["file"] for section in run["sections"]] == [f"runs/made-up/generation-{generation:02d}" for generation in range(4)]


def test_citations_and_terms_are_defined() -> None:
    prose = "\n".join(file.read_text(encoding="utf-8") for file in SOURCE.glob("*.md"))
    cited = {key for keys in re.findall(r"\{cite:[tp]\}`([^`]+)`", prose) for key in keys.split(",")}
    entries = set(re.findall(r"^@\w+\{(\w+),", (SOURCE / "references.bib").read_text(encoding="utf-8"), re.M))
    assert cited <= entries
    terms = {
        line.strip().lower()
        for line in (SOURCE / "glossary.md").read_text(encoding="utf-8").split("\n")
        if line and not line.startswith((" ", ":", "#"))
    }
    used = {(target or word).lower() for word, target in re.findall(r"\{term\}`([^`<]+?)(?: <([^>]+)>)?`", prose)}
    assert used and used <= terms


def test_no_run_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    with pytest.raises(UserError, match=r"`collapse run demo` makes one"):
        book.build(output=tmp_path / "out")
    _finish(Run.create("begun", load_preset("smoke")), 0, "corpus")
    with pytest.raises(UserError, match=r"'begun' has no finished generation .* `collapse run begun`"):
        book.build(["begun"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_staging_touches_only_what_changes(tmp_path: Path) -> None:
    stage = tmp_path / "_generated"
    first = Staging(stage)
    for name in ("a/same.md", "a/changing.md", "gone.md", "executed/kept.ipynb"):
        first.text(name, "x")
    (tmp_path / "_build").mkdir()
    times = {name: (stage / name).stat().st_mtime_ns for name in ("a/same.md", "a/changing.md")}
    second = Staging(stage)
    second.text("a/same.md", "x")
    second.text("a/changing.md", "y")
    second.sweep()
    assert (stage / "a/same.md").stat().st_mtime_ns == times["a/same.md"]
    assert (stage / "a/changing.md").read_text() == "y"
    assert not (stage / "gone.md").exists() and (stage / "executed/kept.ipynb").exists()
    assert not (tmp_path / "_build").exists(), "pages of sources that are gone must not stay in the site"
    for contents, stays in (("a", False), ("a", True), ("b", False)):
        (tmp_path / "_build").mkdir(exist_ok=True)
        third = Staging(stage)
        for name in ("a/same.md", "a/changing.md"):
            third.text(name, (stage / name).read_text())
        third.text("_toc.yml", contents)
        third.sweep()
        assert (tmp_path / "_build").exists() == stays, "a page that has new neighbours has to be written again"


def test_what_takes_time_is_made_again_only_from_other_inputs(tmp_path: Path) -> None:
    made = []
    for inputs, content in (("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")):
        staging = Staging(tmp_path / "_generated")

        def make(content: str = content, staging: Staging = staging) -> None:
            made.append(content)
            for name in ("page.ipynb", "extra/page.svg"):
                staging.text(name, content)

        staging.text("other.md", "x")
        staging.made("page", inputs, make)
        staging.sweep()
        assert all((staging.folder / name).is_file() for name in ("other.md", "page.ipynb", "extra/page.svg"))
        if content == "3":
            (staging.folder / "extra" / "page.svg").unlink()
    assert made == ["1", "3", "4"] and (tmp_path / "_generated" / "page.ipynb").read_text() == "4"


def test_a_generations_page_is_made_from_its_own_records_and_those_it_is_compared_with(shown: BookRun) -> None:
    records = {file.relative_to(shown.run.folder).parts[0] for file in shown.records({1, 2, 3})}
    assert records == {"protocol.yaml", "generation-01", "generation-02", "generation-03"}
    assert set(shown.records()) > set(shown.records({1, 2, 3}))


def test_the_formula_engine_comes_from_an_installed_package() -> None:
    assert book._packaged(*book.MATHJAX).stat().st_size > 1_000_000


def test_the_book_is_made_from_recorded_benches_too(shown):
    before = book._records([shown])
    report = shown.run.folder.parent / "bench" / "sampling-demo-cpu.json"
    write_json(report, {"bench": "sampling"})
    assert set(book._records([shown])) - set(before) == {report}


def test_a_step_that_a_run_may_lack_is_left_out_of_its_pages(shown: BookRun) -> None:
    """The run is shown as it is without; of one that has it, the measure stands among what changed."""
    legal = {"legal_share": {"value": 0.125, "unit": "1", "definition": "how legal"}}
    exact = {"metrics": legal, "series": {}, "examples": {}, "seconds": 1.0}
    with_it, without = ({number: steps.copy() for number, steps in shown.results.items()} for _ in range(2))
    for number in (1, 2, 3):
        with_it[number]["exact"] = exact
        without[number].pop("exact", None)
    line = "| {term}`Legal <legal>` share of its stories | 0.1250 | 0.1250 | 0 |"
    assert line in book_pages.generation_opening(BookRun(shown.run, with_it), 2)
    page = book_pages.generation_opening(BookRun(shown.run, without), 2)
    assert "Legal" not in page and BookRun(shown.run, without).metric(2, "exact", "legal_share") is None


def test_a_page_is_described_by_its_first_paragraph() -> None:
    from docutils import nodes
    from docutils.utils import new_document

    page = new_document("page")
    page += [nodes.comment("", "not shown"), nodes.paragraph("", "Take a\nmodel."), nodes.paragraph("", "Let it write.")]
    assert sphinx_pages.description(page) == "Take a model."
    long = new_document("long")
    long += nodes.paragraph("", "words and " * 50)
    described = sphinx_pages.description(long)
    assert described.endswith("and …") and len(described) <= sphinx_pages.LONGEST + 2


def test_a_preview_has_a_whole_address_where_the_book_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'property="og:image" content="../preview.png"' in sphinx_pages.preview("figures/a", 'The "title"', "Words.")
    monkeypatch.setenv(sphinx_pages.ADDRESS, "https://example.org/book/")
    said = sphinx_pages.preview("figures/a", 'The "title"', "Words.")
    assert 'content="https://example.org/book/preview.png"' in said and 'content="https://example.org/book/figures/a.html"' in said
    assert 'property="og:title" content="The &quot;title&quot;"' in said


def test_the_landing_page_says_where_the_stories_come_from(shown: BookRun, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "come from a small grammar whose law is known exactly" in book_pages.numbers(shown)["source"]
    changes = {"corpus.source": "data/my_stories.txt", "corpus.stories": None}
    of_others = BookRun(Run(shown.run.folder, shown.run.protocol.with_changes(changes)), shown.results)
    said = html.unescape(book_pages.numbers(of_others)["source"])
    assert "are those of my_stories.txt; run `demo` draws its own from a grammar whose law is known exactly" in said
    assert book_pages.numbers(shown)["source_link"] == ""
    monkeypatch.setenv(book_pages.SOURCE, "https://example.org/source")
    assert book_pages.numbers(shown)["source_link"] == "[Source code](https://example.org/source)."
