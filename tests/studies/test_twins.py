"""Three tiny chains, made without notebooks and compared; and what a twin may differ in."""

from __future__ import annotations

import json
import shutil
from itertools import islice

import numpy as np
import pytest

from collapse_lib import cli, steps
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json, sealed
from collapse_lib.experiment.protocol import LATER_FIELDS, Protocol, load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.steps.inputs import fresh_model, open_artefact
from collapse_lib.studies import twins
from collapse_lib.studies.twins import SPARED, compare, comparisons, protocols
from collapse_lib.text.sources import read_stories

TINY = {
    "corpus.stories": "60",
    "tokenizer.vocabulary": "300",
    "training.epochs": "1",
    "sampling.sequences": "32",
    "sampling.length": "32",
    "alpha.positions": "40",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A runs folder with a chain, its twin and its reseeded copy, two generations each."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSE_RUNS", str(root))
        wanted = protocols("tiny", load_preset("smoke").with_changes(TINY))
        for role, name in twins.names("tiny").items():
            run = Run.create(name, wanted[role])
            steps.corpus(run)
            for generation in (1, 2):
                steps.train(run, generation, "cpu")
                steps.sample(run, generation, "cpu")
    return root


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    """A copy of that folder to work on."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    return tmp_path


def test_the_three_share_what_they_must_and_nothing_else(runs):
    opened = {role: Run.open(name) for role, name in twins.names("tiny").items()}
    corpora = {role: run.step(0, "corpus").output_hashes() for role, run in opened.items()}
    assert corpora["chain"] == corpora["reseeded"]
    assert corpora["chain"]["tokenizer"] == corpora["twin"]["tokenizer"]
    assert all(corpora["chain"][part] != corpora["twin"][part] for part in ("train", "holdout", "validation"))
    weights = {role: fresh_model(run.protocol, 1, open_artefact(run.step(0, "corpus"), "tokenizer")).head for role, run in opened.items()}
    assert weights["chain"].equal(weights["twin"]) and not weights["chain"].equal(weights["reseeded"])
    assert opened["chain"].seed(1, "sample") == opened["twin"].seed(1, "sample") != opened["reseeded"].seed(1, "sample")


def test_the_comparison(runs):
    record = read_json(compare("tiny", "cpu"))
    assert [found["generation"] for found in record["generations"]] == [0, 1, 2]
    begin, *trained = record["generations"]
    assert begin["unigram_tv"]["reseeded"] == 0 < begin["unigram_tv"]["twin"] == begin["unigram_tv"]["both"] and "positions" not in begin
    for found in trained:
        assert set(found["positions"]) == {"chain", "twin"}
        for part in found["positions"].values():
            assert part["contexts"] == 40
            for pair in twins.PAIRS:
                assert 0 < part[pair]["js"]["value"] < np.log(2) and 0 < part[pair]["tv"]["value"] < 1 and part[pair]["tv"]["standard_error"] > 0
            for excess, pair in (("excess", "twin"), ("excess_both", "both")):
                assert part[excess]["tv"]["value"] == pytest.approx(part[pair]["tv"]["value"] - part["reseeded"]["tv"]["value"])
    assert record["fields"]["twin"] == {"corpus.grammar": "twin", "tokenizer.source": "run:tiny"}
    assert record["fields"]["reseeded"] == {"seed": 2, "corpus.seed": 1, "tokenizer.source": "run:tiny"}


def test_a_distance_is_what_two_models_give_when_asked(runs):
    from collapse_lib.metrics.alpha import last_hidden, log_distributions, sampled_positions

    record = read_json(compare("tiny", "cpu"))
    chain, twin = Run.open("tiny"), Run.open("tiny-twin")
    contexts, _ = sampled_positions(open_artefact(chain.step(0, "corpus"), "validation"), 40, 32, chain.seed(0, "twins"))
    p, q = (
        np.exp(log_distributions(model, last_hidden(model, contexts)))
        for model in (open_artefact(run.step(2, "train"), "model") for run in (chain, twin))
    )
    assert record["generations"][2]["positions"]["chain"]["twin"]["tv"]["value"] == pytest.approx(np.abs(p - q).sum(1).mean() / 2)


def test_what_was_compared_is_not_compared_again(runs, monkeypatch):
    file = compare("tiny", "cpu")
    whole = file.read_text()
    record = json.loads(whole)
    del record["generations"][1]
    file.write_text(json.dumps(sealed(record)))
    asked = []
    monkeypatch.setattr(twins, "_distances", lambda *arguments, real=twins._distances: asked.append(arguments[1]) or real(*arguments))
    assert compare("tiny", "cpu").read_text() == whole and asked == [1]
    record["generations"][1]["made_from"] = "other models"
    file.write_text(json.dumps(sealed(record)))
    assert compare("tiny", "cpu").read_text() == whole and asked == [1, 1, 2]
    file.write_text(whole.replace('"generation": 1', '"generation": 7', 1))
    with pytest.raises(UserError, match=r"twins\.json was damaged or changed by hand"):
        compare("tiny", "cpu")


def test_the_table_has_every_distance_once(runs):
    record = read_json(compare("tiny", "cpu"))
    rows = twins.table([record])
    assert not rows.duplicated(["chain", "generation", "stories", "pair", "measure"]).any()
    last = record["generations"][-1]
    one = rows[(rows["generation"] == last["generation"]) & (rows["pair"] == "twin")].set_index(["stories", "measure"])["value"]
    assert one["chain", "js"] == last["positions"]["chain"]["twin"]["js"]["value"]
    assert len(rows[rows["measure"] == "unigram_tv"]) == 3 * len(record["generations"])


def test_a_comparison_is_found_under_any_of_the_names(runs):
    assert comparisons("tiny") == []
    compare("tiny", "cpu")
    (record,) = comparisons(["tiny", "tiny-twin", "tiny-reseeded"])
    assert record["runs"]["chain"] == "tiny" and comparisons("tiny-reseeded") == [record]


def test_a_comparison_of_other_runs_is_not_shown_as_one_of_these(runs):
    file = compare("tiny", "cpu")
    whole = file.read_text()
    record = json.loads(whole)
    record["generations"][2]["made_from"] = record["generations"][1]["made_from"]
    file.write_text(json.dumps(sealed(record)))
    with pytest.raises(UserError, match=r"twins\.json compares other models or texts than these runs have; delete it"):
        comparisons("tiny")
    assert compare("tiny", "cpu").read_text() == whole and len(comparisons("tiny")) == 1
    for name in ("tiny-twin", "tiny-reseeded"):
        shutil.rmtree(runs / name)
    assert len(comparisons("tiny")) == 1  # nothing to hold it against: its seal has to do


def test_chains_that_do_not_belong_together_are_refused(runs):
    for manifest in (runs / "tiny-reseeded").glob("generation-*/manifests/*.json"):
        content = json.loads(manifest.read_text())
        for outputs in (content["outputs"], *content["parents"].values()):
            outputs.update({"validation": "another"} if "validation" in outputs else {})
        manifest.write_text(json.dumps(sealed(content)))
    with pytest.raises(UserError, match="'tiny-reseeded' has another initial corpus than 'tiny'"):
        compare("tiny", "cpu")
    (runs / "tiny-twin" / "generation-02" / "manifests" / "train.json").unlink()
    with pytest.raises(UserError, match=r"train of generation 2 in run 'tiny-twin' is not finished"):
        compare("tiny", "cpu")
    with pytest.raises(UserError, match="no run 'absent'"):
        compare("absent", "cpu")
    assert not (runs / "tiny" / "twins.json").exists()


def test_without_a_change_the_grammar_gets_its_twin_and_other_sources_their_next_stories():
    chain = load_preset("smoke")
    assert protocols("a", chain)["twin"].corpus.grammar == "twin"
    for name, twin in {"twin": "standard", "small": "small-twin", "small-twin": "small"}.items():
        assert protocols("a", chain.with_changes({"corpus.grammar": name}))["twin"].corpus.grammar == twin
    files = protocols("a", chain.with_changes({"corpus.source": "stories.txt", "corpus.stories": "50", "corpus.skip": "7"}))
    assert files["twin"].corpus.skip == 57 and files["twin"].seed == chain.seed and files["twin"].tokenizer.source == "run:a"
    assert files["reseeded"].corpus.skip == 7 and files["reseeded"].corpus.seed == chain.seed != files["reseeded"].seed
    chosen = protocols("a", chain, {"corpus.source": "other.txt"})["twin"]
    assert chosen.corpus.source == "other.txt"
    assert set(chosen.differences(chain)) - SPARED.keys() == {"corpus.source", "tokenizer.source"}


@pytest.mark.parametrize(
    ("chain", "changes", "said"),
    [
        ({}, {"seed": "3"}, "initial corpus alone, in fields such as corpus.source, and not in 'seed'"),
        ({}, {"corpus.grammar": "standard"}, "would be the chain's own"),
        ({}, {"corpus.grammer": "twin"}, "did you mean corpus.grammar"),
        ({"corpus.source": "stories.txt", "corpus.stories": "null"}, {}, "takes all stories and leaves none to its twin"),
    ],
)
def test_twins_that_cannot_be_are_refused_in_one_sentence(chain, changes, said):
    with pytest.raises(UserError, match=said):
        protocols("a", load_preset("smoke").with_changes(chain), changes)


def test_the_command_line_refuses_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    for arguments in (["--change", "seed=3"], ["--change", "corpus.source"], ["--name", "a/b"]):
        assert cli.main(["twins", "smoke", *arguments]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def source(tmp_path) -> str:
    file = tmp_path / "stories.jsonl"
    file.write_text("".join(json.dumps({"text": f"Story number {index}."}) + "\n" for index in range(200)))
    return str(file)


def settings(source: str, **fields):
    return Protocol.from_fields({"corpus": {"source": source} | fields}).corpus


def test_skipped_stories_leave_a_disjoint_corpus_and_the_same_validation(source):
    first, rest = (list(read_stories(settings(source, stories=60, skip=skip), "train", 5)) for skip in (0, 60))
    both = list(read_stories(settings(source, stories=120), "train", 5))
    assert first + rest == both and len(set(both)) == 120
    assert list(read_stories(settings(source, skip=60), "validation", 5)) == list(read_stories(settings(source), "validation", 5))
    grammar = [list(read_stories(settings("grammar", stories=5, skip=skip), "train", 5)) for skip in (0, 5)]
    assert grammar[0] + grammar[1] == list(read_stories(settings("grammar", stories=10), "train", 5))


def test_more_skipped_than_there_are_is_said(source):
    with pytest.raises(UserError, match=r"corpus.skip is 500, but .* has no two training stories"):
        list(islice(read_stories(settings(source, skip=500), "train", 5), 1))


def test_fields_that_came_later_leave_old_hashes_as_they_were():
    protocol = load_preset("smoke").with_changes({"training.epochs": "2"})
    assert set(LATER_FIELDS) <= set(protocol.flat()) and all(protocol.flat()[name] == value for name, value in LATER_FIELDS.items())
    assert "corpus.skip" in protocol.deciding(["corpus"])
    others = dict.fromkeys(LATER_FIELDS, "3") | {
        "training.schedule": "linear",
        "training.init": "previous",
        "classification.grammar": "small",
        "gpt_eval.wording": "strict",
        "regime.name": "fresh",
        "regime.share": None,
        "regime.real": "old",
        "regime.verifier": "likelihood",
        "regime.training": "steps",
    }
    hashes = {protocol.with_changes({name: value}).hash(["corpus"]) for name, value in others.items()}
    assert len(hashes | {protocol.hash(["corpus"])}) == 3


def test_the_hash_of_a_corpus_made_before_these_fields_were_there():
    """Of the runs that are there: tinystories-small's first step, with its fields of that time."""
    assert load_preset("tinystories-small").hash(("seed", "corpus", "tokenizer", "training.holdout")) == "685b9b4057c5f3d7"
