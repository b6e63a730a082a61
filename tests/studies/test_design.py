"""A study's file: what it means, and what it refuses in one sentence."""

from __future__ import annotations

import itertools
import re

import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.studies.design import read_study, study_from_fields, study_from_yaml, study_names

SMALL = """
name: small
base: smoke
common: {alpha.contexts: 8}
generations: 2
seeds: 3
arms:
  replace: {}
  warm: {sampling: {temperature: 1.5, top_k: 40}, seeds: [4, 9], note: hotter}
  quarter: {corpus.stories: 50, changes_data: true}
measures:
  loss: {metric: perplexity.perplexity, log: true}
  entropy: free_text.entropy
contrasts: [{arm: warm, against: replace, measure: loss, expected: greater}]
equivalences: [{arm: replace, measure: entropy, margin: 0.1}]
"""


def changed(old: str, new: str):
    assert old in SMALL
    return study_from_yaml(SMALL.replace(old, new))


def test_chains_and_their_protocols():
    study = study_from_yaml(SMALL)
    labels = [chain.label for chain in study.chains()]
    assert labels == ["replace-1", "warm-4", "quarter-1", "replace-2", "warm-9", "quarter-2", "replace-3", "quarter-3"]
    assert study.chains()[1].name == "small-warm-4"
    base = load_preset("smoke")
    for chain in study.chains():
        protocol = chain.protocol
        assert protocol.corpus.seed == base.seed and protocol.generations == 2 and protocol.alpha.contexts == 8
        expected = {"seed", "corpus.seed", "alpha.contexts"} | {
            "warm": {"sampling.temperature", "sampling.top_k"},
            "quarter": {"corpus.stories"},
        }.get(chain.arm, set())
        assert set(base.differences(protocol)) == expected
    assert (study.protocol("warm", 4).sampling.temperature, study.protocol("warm", 4).sampling.top_k) == (1.5, 40)
    assert study.steps == ("corpus", "compose", "train", "sample", "perplexity", "free_text")
    assert (study.control_arm, study.primary_measure) == ("replace", "loss")


def test_no_two_chains_share_a_seed_and_each_keeps_its_own():
    study = study_from_yaml(SMALL)
    seeds = [chain.protocol.seed for chain in study.chains()]
    assert len(set(seeds)) == len(seeds)
    more = changed("seeds: 3", "seeds: 5").protocol("replace", 2)
    assert more == study.protocol("replace", 2)


def test_an_arm_may_have_another_corpus_if_it_says_so():
    study = changed("corpus.stories: 50", "corpus.seed: 77")
    assert study.protocol("quarter", 1).corpus.seed == 77 and study.protocol("replace", 1).corpus.seed == 1


def test_the_hash_is_of_what_the_file_says():
    study = study_from_yaml(SMALL)
    assert study_from_yaml("# a remark\n" + SMALL).hash == study.hash
    assert changed("sampling: {temperature: 1.5, top_k: 40}", "sampling.top_k: 40, sampling.temperature: 1.5").hash == study.hash
    assert changed("seeds: 3", "seeds: [1, 2, 3]").hash == study.hash
    for old, new in (("margin: 0.1", "margin: 0.2"), ("greater", "less"), ("note: hotter", "note: cooler"), ("seeds: 3", "seeds: 4")):
        assert changed(old, new).hash != study.hash
    assert study_from_fields(study.model_dump(mode="json")) == study  # as the runs carry it


REFUSED = [
    ("arm: warm, against", "arm: cold, against", "contrast 1 names arm 'cold'; there are replace, warm, quarter"),
    ("arm: replace, measure", "arm: cold, measure", "equivalence 1 names arm 'cold'"),
    ("measure: loss, ", "measure: less, ", "contrast 1 names measure 'less'; there are loss, entropy"),
    ("against: replace", "against: warm", "contrast 1 sets arm 'warm' against itself"),
    ("against: replace", "against: quarter", "contrast 1 compares 'loss' across data, for arm 'quarter' changes them"),
    ("expected: greater", "expected: greater, generation: 3", "contrast 1 asks for generation 3 of 2"),
    ("margin: 0.1", "margin: 0.1, since: 7", "equivalence 1 asks for generation 7 of 2"),
    ("margin: 0.1", "margin: 0", "field 'equivalences.0.margin' is not allowed as it is: input should be greater than 0"),
    ("margin: 0.1", "margins: 0.1", "field 'equivalences.0.margin' is missing"),
    ("seeds: [4, 9]", "seeds: [4, 9, 4]", "the seeds of arm 'warm' repeat 4"),
    ("seeds: [4, 9]", "seeds: []", "arms.warm.seeds"),
    ("seeds: 3", "seeds: 0", "field 'seeds' is not allowed as it is"),
    ("seeds: 3", "seeds: true", "field 'seeds' is true, which is neither a number nor a text"),
    ("seeds: 3", "seed: 3", "there is no field 'seed' in a study"),
    ("replace: {}", "replace: {seed: 3}", "'seed' cannot be set here: a chain's seed is one of 'seeds'"),
    ("replace: {}", "replace: {generations: 3}", "'generations' cannot be set here"),
    ("replace: {}", "a b: {}", "no arm can be called 'a b'"),
    ("name: small", "name: ../small", "no study can be called '../small'"),
    ("replace: {}", "warm: {}", "not valid YAML.*'warm' stands twice"),
    ("temperature: 1.5", "temperature: 1.5}, sampling.temperature: 2, model: {hidden_size: 8", "field 'sampling.temperature' is given twice"),
    ("perplexity.perplexity", "perplexity", "field 'measures.loss.metric' is not allowed"),
    (
        "perplexity.perplexity",
        "alpha.divergence",
        "measure 'loss' needs step 'alpha', and this study has corpus, compose, train, sample, perplexity, free_text",
    ),
    ("seeds: 3", "evaluate: [perplexity, taste]", "evaluate names 'taste'; the steps are perplexity, free_text"),
    ("seeds: 3", "control: cold", "control names arm 'cold'"),
    ("generations: 2", "", "field 'generations' is missing"),
]


@pytest.mark.parametrize(("old", "new", "said"), REFUSED)
def test_what_cannot_be_is_said_in_one_sentence(old, new, said):
    with pytest.raises(UserError, match=said) as refusal:
        changed(old, new)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "just text", "a: [", "a: 2024-13-45", "{[1, 2]: 3}", "[" * 5000])
def test_what_is_no_study_is_said_in_one_sentence(text):
    with pytest.raises(UserError, match=r"^the study") as refusal:
        study_from_yaml(text)
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)


UNFIT = [
    (
        "sampling: {temperature: 1.5, top_k: 40}",
        "sampling.temprature: 1.5",
        "Study 'small', arm 'warm': There is no field 'sampling.temprature'; did you mean",
    ),
    (
        "sampling: {temperature: 1.5, top_k: 40}",
        "sampling.temperature: cold",
        "arm 'warm': The changed protocol: field 'sampling.temperature' is 'cold'",
    ),
    ("changes_data: true", "note: less", "arm 'quarter' changes 'corpus.stories', after which .* say changes_data: true"),
    ("corpus.stories: 50, changes_data: true", "tokenizer.vocabulary: 600", "changes 'tokenizer.vocabulary'"),
    ("corpus.stories: 50, changes_data: true", "corpus.validation_stories: 6", "changes 'corpus.validation_stories'"),
    ("corpus.stories: 50, changes_data: true", "evaluation.perplexity: released", "changes 'evaluation.perplexity'"),
    ("alpha.contexts: 8", "alpha.context: 8", "Study 'small', common fields: There is no field 'alpha.context'"),
    ("base: smoke", "base: absent", "There is no preset 'absent'"),
]


@pytest.mark.parametrize(("old", "new", "said"), UNFIT)
def test_what_does_not_fit_the_protocol_is_said_in_one_sentence(old, new, said):
    study = changed(old, new)
    with pytest.raises(UserError, match=said):
        [chain.protocol for chain in study.chains()]


@pytest.mark.parametrize(("old", "new"), [("seeds: 3", "seeds: 5"), ("seeds: [4, 9]", "seeds: [9, 4, 2]")])
def test_seeds_may_be_added(old, new):
    study = study_from_yaml(SMALL)
    assert changed(old, new).differences(study) is None
    assert study.differences(changed(old, new)) in ("arms.replace.seeds", "arms.warm.seeds")


def test_arms_may_be_added_but_not_before_the_control_unless_it_is_named():
    study = study_from_yaml(SMALL)
    assert changed("measures:", "  cool: {sampling.temperature: 0.5}\nmeasures:").differences(study) is None
    assert changed("replace: {}", "cool: {sampling.temperature: 0.5}\n  replace: {}").differences(study) == "control"
    named = study_from_yaml(SMALL.replace("replace: {}", "cool: {sampling.temperature: 0.5}\n  replace: {}") + "control: replace\n")
    assert named.differences(study) is None


EDITED = [
    ("temperature: 1.5", "temperature: 1.6", "arms.warm.fields.sampling.temperature"),
    ("note: hotter", "note: cooler", "arms.warm.note"),
    ("seeds: [4, 9]", "seeds: [4]", "arms.warm.seeds"),
    ("expected: greater", "expected: less", "contrasts"),
    ("margin: 0.1", "margin: 0.2", "equivalences"),
    ("generations: 2", "generations: 4", "generations"),
    ("log: true", "log: false", "measures.loss.log"),
    ("alpha.contexts: 8", "alpha.contexts: 9", "common.alpha.contexts"),
]


@pytest.mark.parametrize(("old", "new", "field"), EDITED)
def test_the_field_that_was_edited_is_named(old, new, field):
    assert changed(old, new).differences(study_from_yaml(SMALL)) == field


def test_an_arm_that_is_gone_is_named():
    without = SMALL.replace("  quarter: {corpus.stories: 50, changes_data: true}\n", "")
    assert study_from_yaml(without).differences(study_from_yaml(SMALL)) == "arms.quarter"


def test_the_studies_that_travel_with_the_library():
    assert set(study_names()) >= {"regimes", "smoke"}
    with pytest.raises(UserError, match=r"There is no study 'absent'; there are .*regimes"):
        read_study("absent")
    with pytest.raises(UserError, match=r"There is no study file 'absent\.yaml'"):
        read_study("absent.yaml")
    smoke = read_study("smoke")
    assert [chain.protocol.sampling.temperature for chain in smoke.chains()] == [1.0, 1.5, 1.0, 1.5]


def test_the_study_of_regimes_asks_what_it_was_designed_to_ask():
    study = read_study("regimes")
    assert {arm: len(study.seeds_of(arm)) for arm in study.arms if len(study.seeds_of(arm)) != 3} == {
        "replace": 5, "fresh": 5, "first_only": 5, "accumulate": 5
    }  # fmt: skip
    assert [(contrast.arm, contrast.against, contrast.generation) for contrast in study.contrasts] == [
        ("replace", other, None) for other in ("fresh", "first_only", "accumulate")
    ]
    assert study.equivalences[0].arm == "fresh" and study.equivalences[0].margin == 0.05
    assert study.expectations and study.citations and study.generations == 10 and study.control_arm == "replace"
    names = [chain.name for chain in study.chains()]
    assert len(set(names)) == len(names) == 4 * 5 + 13 * 3
    measure = study.measures[study.primary_measure]
    assert measure.metric == "exact.log_excess_loss" and measure.across_data and not measure.log  # it is the logarithm already
    assert len({chain.protocol.seed for chain in study.chains()}) == len(names)
    assert "compose" in study.steps and study.protocol("fresh", 1).corpus.grammar == "small"


@pytest.mark.parametrize("name", ["shumailov-2024", "gerstgrasser-2024", "kazdan-2024"])
def test_studies_of_the_literature(name):
    study = read_study(name)
    assert study.citations and "?" in study.description and study.measures[study.primary_measure].metric == "exact.log_excess_loss"
    assert all(chain.protocol.corpus.grammar == "small" for chain in study.chains())


def test_the_study_that_the_book_shows_is_one(tmp_path):
    text = (project_root() / "book" / "rerun.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(name: mine\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    study = study_from_yaml(block)
    assert len(block.splitlines()) == 10 and len(study.chains()) == 10
    assert {chain.protocol.regime.name for chain in study.chains()} == {"replace", "mix"}


def test_every_pair_of_chains_has_a_name_of_its_own():
    study = study_from_yaml(SMALL.replace("quarter: {", "warm-4: {seeds: [9], "))
    names = [chain.name for chain in study.chains()]
    assert all(a != b for a, b in itertools.combinations(names, 2))
