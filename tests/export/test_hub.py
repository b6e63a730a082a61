"""A hub folder opens in the libraries that will read it, and no text of the protocol shapes its card."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from collapse_lib.cli import main
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.execute import advance
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.export.hub import front_matter, trained_generation, write_hub_folder


@pytest.fixture
def folder(run, tmp_path) -> Path:
    write_hub_folder(run, 2, tmp_path / "hub")
    return tmp_path / "hub"


def test_transformers_opens_the_folder_alone(run, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    opened, trained = (AutoModelForCausalLM.from_pretrained(place) for place in (folder, run.generation_folder(2) / "model"))
    ids = AutoTokenizer.from_pretrained(folder)("Tom took a kite.", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert torch.equal(opened(ids).logits, trained(ids).logits)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (run.generation_folder(2) / "model").iterdir()} | {
        "README.md",
        "protocol.yaml",
    }


def test_nothing_is_published_that_was_not_compared(run, tmp_path, monkeypatch):
    """Beside weights and configuration a model's folder holds files whose hash nobody recorded."""
    shutil.copytree(run.folder.parent, tmp_path / "runs")
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    copied = Run.open(run.name)
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (copied.generation_folder(2) / "model" / file).write_text("{}")
    write_hub_folder(copied, 2, tmp_path / "hub")
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "hub" / file).read_bytes() == (run.generation_folder(2) / "model" / file).read_bytes()


def test_the_hub_reads_the_card(run, folder):
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert result.metric_value == run.step(2, "perplexity").results()["metrics"]["perplexity"]["value"]
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == ("transformers", "text-generation", "unknown")
    assert card.data.datasets is None and card.data.model_name == "small-generation-02"


def test_the_card_says_what_was_measured_and_where_the_model_comes_from(run, folder):
    card = (folder / "README.md").read_text()
    for generation in (1, 2):
        assert f"`{run.step(generation, 'train').manifest()['outputs']['model']}`" in card
    assert run.step(1, "sample").manifest()["outputs"]["corpus"] in card and "text that generation 1 wrote, and nothing else" in card
    assert "| perplexity |" in card and "2412.14872" in card and "name a licence" in card


def test_no_text_of_the_protocol_shapes_the_card(folder):
    from bs4 import BeautifulSoup
    from huggingface_hub import ModelCard
    from markdown_it import MarkdownIt

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "unknown"
    page = BeautifulSoup(MarkdownIt("commonmark").enable("table").render(card.text), "html.parser")
    assert not page.find_all(["script", "img", "a"])
    said = page.get_text()
    assert "<script>alert(1)</script> ![x](http://a.b/c)" in said and "<img src=x>`|.txt" in said


def test_stories_of_the_grammar_and_of_the_hub_are_named_as_what_they_are(run):
    grammar = front_matter(Run(run.folder, load_preset("smoke")), 1, {})
    assert (grammar.license, grammar.language, grammar.datasets, grammar.eval_results) == ("mit", "en", None, None)
    hub = front_matter(Run(run.folder, load_preset("paper-1m")), 1, {})
    assert (hub.license, hub.language, hub.datasets) == ("unknown", None, [load_preset("paper-1m").corpus.source])


@pytest.fixture
def copy(run, tmp_path, monkeypatch) -> Run:
    """The run again, to be damaged."""
    shutil.copytree(run.folder, tmp_path / "runs" / "small")
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    return Run.open("small")


def test_a_model_that_is_not_here_can_be_had_again_as_the_advice_says(copy, tmp_path):
    train = copy.step(2, "train")
    shutil.rmtree(train.folder / "model")
    with pytest.raises(UserError, match=r"not here \(here: generation 1\).*delete (.*train\.json), then .*repair small") as refusal:
        write_hub_folder(copy, trained_generation(copy), tmp_path / "hub")
    assert not (tmp_path / "hub").exists() and f"delete {train.manifest_file}" in str(refusal.value)
    trained = train.output_hashes()
    train.manifest_file.unlink()
    assert main(["repair", "small"]) == 0
    advance(copy, "cpu", only=("corpus", "train", "sample"))
    write_hub_folder(copy, 2, tmp_path / "hub")
    assert train.output_hashes() == trained


def test_what_cannot_be_exported_is_said_in_one_sentence(copy, tmp_path, capsys):
    config = copy.generation_folder(1) / "model" / "config.json"
    config.write_text(config.read_text() + " ")
    for generation, sentence in (("3", "no generation 3 in run 'small'"), ("1", "is not the model that step train of generation 1")):
        assert main(["export", "small", "--hub-folder", "--generation", generation, "--output", str(tmp_path / "hub")]) == 2
        assert sentence in capsys.readouterr().err
    Run.create("begun", copy.protocol)
    with pytest.raises(UserError, match=r"trained no model.*collapse run begun"):
        trained_generation(Run.open("begun"))
    assert not (tmp_path / "hub").exists()


def test_the_command_says_how_the_folder_is_published(run, tmp_path, capsys):
    assert main(["export", "small", "--hub-folder", "--generation", "1", "--output", str(tmp_path / "hub")]) == 0
    assert f"hf upload NAME {tmp_path / 'hub'}" in capsys.readouterr().out and (tmp_path / "hub" / "model.safetensors").is_file()
