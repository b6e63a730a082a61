"""The paper's claims against made-up runs and studies whose truth is known: every verdict is seen, and changes when the numbers do."""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from pandas import DataFrame
from synthetic_runs import write_run, write_study

from collapse_lib.book.wording.claims import CLAIMS as WORDS
from collapse_lib.book.wording.claims import HEADER, claims_table, limits_of_ours, verdict_lines, verdicts_in_words
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.studies import claims, results
from collapse_lib.studies.claims import Claim, Source
from collapse_lib.studies.design import study_from_yaml

STUDY = """
name: made-up
base: smoke
generations: 4
seeds: 3
arms:
  replace: {seeds: 5}
  fresh: {regime.name: fresh, seeds: 5}
  first_only: {regime.name: first_only, seeds: 5}
  mix: {regime: {name: mix, share: 0.5}}
measures: {loss: {metric: perplexity.perplexity, log: true}}
contrasts:
  - {arm: replace, against: fresh, measure: loss, expected: greater}
  - {arm: replace, against: first_only, measure: loss, expected: greater}
"""
REPLACE = [1.30, 1.31, 1.33, 1.29, 1.32]
FLAT = [1.0, 1.001, 0.999, 1.002, 0.998]


def source(series, generations=4, planned=None, **more):
    """A source of one arm: (step, metric) -> a list of values a chain, from generation 1 on (or as a dict by generation)."""
    rows = [
        [f"chain-{chain}", "replace", generation, step, metric, value, "1", math.nan]
        for (step, metric), chains in series.items()
        for chain, values in enumerate(chains)
        for generation, value in (values.items() if isinstance(values, dict) else enumerate(values, 1))
    ]
    table = DataFrame(rows, columns=["run", "arm", *results.COLUMNS[1:]])
    chains = max(map(len, series.values()))
    return Source("made-up", table, {"recursion": ("replace",)}, {"replace": planned or chains}, **more)


def verdict(key, *found):
    (answer,) = claims.answers(found, [claim for claim in claims.CLAIMS if claim.key == key])
    return answer.verdict


def growing(growths, generations=4):
    return {("perplexity", "perplexity"): [[3 * growth**n for n in range(generations)] for growth in growths]}


def test_the_landing_page_has_seven_verdicts_with_the_numbers_that_decide_them():
    def lines(made):
        return html.unescape(verdict_lines(claims.answers([made]))).splitlines()

    bumpy = growing([1.2, 1.25, 1.3])
    bumpy["perplexity", "perplexity"][0][2] = 3.0
    of_study, of_experiment = lines(source(growing([1.2, 1.25, 1.3]))), lines(replace(source(bumpy), planned={}))
    assert len(of_study) == len(of_experiment) == 7 and sum(line.endswith("*Not tested.*") for line in of_study) == 5
    rises, partly = (next(line for line in found if "predicts stories of the source worse" in line) for found in (of_study, of_experiment))
    assert "*Reproduced.* Log perplexity, slope a generation: **0.2226** [" in rises and rises.endswith("), [`made-up`](studies/study-made-up).")
    assert "*Partly.* Log perplexity, slope" in partly and "share of steps: **0.8889**" in partly and partly.endswith("`made-up`."), "both parts"
    assert any("*Partly, by theory*" in line for line in of_study)


def test_perplexity_that_rises_in_every_chain_and_step_is_reproduced():
    assert verdict("finding_1", source(growing([1.2, 1.25, 1.3]))) == "reproduced"
    bumpy = growing([1.2, 1.25, 1.3])
    bumpy["perplexity", "perplexity"][0][2] = 3.0
    assert verdict("finding_1", source(bumpy)) == "partly", "it rises, and not in every step"
    assert verdict("finding_1", source(growing([0.8, 0.79, 0.81]))) == "contradicted"


def test_what_the_test_does_not_see_is_underpowered_or_not_at_this_scale():
    noise = [[0.1, 0.2, 0.1, 0.15], [0.2, 0.1, 0.18, 0.12], [0.1, 0.15, 0.2, 0.1]]
    assert verdict("repetition", source({("free_text", "repeated"): noise})) == "not at this scale"
    rng = np.random.default_rng(3)
    long = [rng.normal(size=30).tolist() for _ in range(3)]
    assert verdict("repetition", source({("free_text", "repeated"): long})) == "underpowered"
    falling = [[1 - (0.01 + 0.001 * chain) * n for n in range(30)] for chain in range(3)]
    assert verdict("repetition", source({("free_text", "repeated"): falling})) == "contradicted"
    assert verdict("repetition", source({("free_text", "repeated"): [values[:4] for values in falling]})) == "opposite so far"


@pytest.mark.parametrize("growths", [[1.3], [0.8], [1.3, 1.2], [1.3, 0.8]])
def test_fewer_than_three_chains_are_underpowered_whatever_they_did(growths):
    few = source(growing(growths))
    assert verdict("finding_1", few) == "underpowered"
    (answer,) = claims.answers([few], [claim for claim in claims.CLAIMS if claim.key == "finding_1"])
    row = claims_table([answer]).data.split("\n")[-1]
    way = "the way of the paper" if min(growths) > 1 else "another way"
    assert f"{'one chain' if len(growths) == 1 else 'two chains'}, which went {way}: no verdict" in row.lower()


def test_sources_that_see_opposite_things_make_a_claim_hold_in_part():
    """Whichever has more chains: two laboratories that disagree have settled nothing."""
    rising, falling = ([[sign * (0.01 + 0.001 * chain) * n for n in range(30)] for chain in range(5)] for sign in (1, -1))
    more, fewer, few = ({("free_text", "repeated"): made} for made in (falling, rising[:3], rising[:2]))
    assert verdict("repetition", source(more)) == "contradicted" and verdict("repetition", source(fewer)) == "reproduced"
    assert verdict("repetition", source(more), replace(source(fewer), name="other")) == "partly"
    assert verdict("repetition", source(more), replace(source(few), name="other")) == "contradicted", "two chains dispute nothing"
    (answer,) = claims.answers([source(more), replace(source(fewer), name="other")], [claim for claim in claims.CLAIMS if claim.key == "repetition"])
    assert "has enough chains as well and says: reproduced." in claims_table([answer]).data


def test_a_study_that_is_not_finished_has_no_verdict():
    early = source(growing([1.2, 1.25, 1.3]))
    assert verdict("finding_1", replace(early, generations=10)) == "underpowered", "every chain stands at generation 4 of 10"
    assert verdict("finding_1", source(growing([1.2, 1.25, 1.3]), planned=5)) == "underpowered"
    assert verdict("finding_1", source(growing([1.2, 1.25, 1.3]), planned=3)) == "reproduced"


def test_nothing_measured_is_not_tested():
    assert verdict("finding_4", source(growing([1.3]))) == "not tested"
    assert verdict("finding_1") == "not tested"


def test_what_theory_decides_no_chain_does():
    record = {"generations": [{"generation": n, "positions": {"chain": {"excess_both": {"tv": {"value": 0.1 / n}}}}} for n in (1, 2, 3)]}
    for found in ((), (source(growing([1.2, 1.25, 1.3]), twins=[record]),)):
        assert verdict("inevitable", *found) == verdict("corpus", *found) == "partly"
    (answer,) = claims.answers(found, [claim for claim in claims.CLAIMS if claim.key == "corpus"])
    assert answer.evidence[0].verdict == "underpowered", "twins are one pair"
    assert "**partly** by theory" in claims_table([answer]).data and "last less first" in claims_table([answer]).data


def test_chains_of_different_length_answer_to_where_three_have_come():
    """Three chains to generation 12, of which one goes on to 40, where what the paper sees late turns up in this one."""
    entropy = [[5 + 0.05 * min(n, 24) + 0.003 * chain * n - 0.02 * max(0, n - 24) for n in range(40 if chain == 0 else 12)] for chain in range(3)]
    made = replace(source({("free_text", "entropy"): entropy}), planned={})
    assert made.chains("replace", ("free_text", "entropy", False)).shape == (3, 12)
    (answer,) = claims.answers([made], [claim for claim in claims.CLAIMS if claim.key == "entropy"])
    assert answer.verdict == "partly" and answer.evidence[0].outcomes == ("reproduced", "not tested")
    alone = source({("free_text", "entropy"): entropy[:1]})
    assert alone.chains("replace", ("free_text", "entropy", False)).shape == (1, 40) and verdict("entropy", alone) == "underpowered"
    assert verdict("entropy", alone, made) == "partly"


def test_a_trend_is_over_all_generations_of_however_long_a_chain():
    made = source(growing([1.2, 1.25, 1.3], generations=60))
    assert claims.trend(made, claims.PERPLEXITY, 1, "log perplexity").last == 60


def test_the_evidence_of_most_chains_decides():
    many, one = source(growing([1.2, 1.25, 1.3])), source(growing([0.8]))
    assert verdict("finding_1", one, many) == verdict("finding_1", many, one) == "reproduced"


def test_of_chains_enough_those_decide_that_reach_the_papers_generation():
    def repeated(chains, last):
        return source({("free_text", "repeated"): [[0.1 - 0.001 * n * (1 + 0.1 * chain) for n in range(last)] for chain in range(chains)]})

    short, long, single = repeated(5, 10), repeated(3, 40), repeated(1, 40)
    assert verdict("repetition", short) == verdict("repetition", short, single) == "opposite so far"
    assert verdict("repetition", short, long) == "contradicted"


def test_entropy_has_to_rise_and_to_fall():
    def chains(last, turn, slope=0.02):
        up = [[5 + (0.05 + 0.003 * chain) * min(n, turn) - slope * max(0, n - turn) * (1 + 0.1 * chain) for n in range(last)] for chain in range(4)]
        return source({("free_text", "entropy"): up})

    assert verdict("entropy", chains(40, 24)) == "reproduced"
    assert verdict("entropy", chains(10, 24)) == "partly", "it rises; the fall is later than these chains"
    assert verdict("entropy", chains(10, 0)) == "contradicted", "it falls where the paper has it rise, which is no part of the claim"


def fine_tuned(task, accuracy, lead=0.1):
    """A task in which a generation's accuracy is ``accuracy`` (a dict a chain), and what the commonest answer scores, ``lead`` below."""
    first = accuracy[0][1]
    return {
        ("classification", f"{task}_accuracy"): accuracy,
        ("classification", f"{task}_accuracy_low"): [{n: value - 0.01 for n, value in chain.items()} for chain in accuracy],
        ("classification", f"{task}_accuracy_majority"): [dict.fromkeys(chain, first - lead) for chain in accuracy],
    }


def test_no_better_than_untrained_is_a_benefit_that_is_ruled_out():
    def found(last, generations=40):
        course = [{n: 0.6 - (0.6 - last - 0.001 * chain) * (n - 1) / (generations - 1) for n in range(1, generations + 1)} for chain in range(4)]
        return verdict("finding_4", source(fine_tuned("sst2", [{0: 0.5} | values for values in course])))

    assert found(0.5) == "reproduced"
    assert found(0.57) == "partly", "it falls, and is still better than the untrained model"
    assert found(0.57, generations=10) == "partly"


def test_tasks_that_generation_1_does_not_learn_have_no_say():
    falls = [{0: 0.5} | {n: 0.7 - 0.005 * n - 0.001 * chain for n in range(1, 41)} for chain in range(3)]
    stays = [{0: 0.5} | dict.fromkeys(range(1, 41), 0.7 + 0.0001 * chain) for chain in range(3)]
    alone = claims._finding_4(source(fine_tuned("sst2", falls)))
    assert alone[0].what == "mean accuracy on 1 task, slope a generation"
    beside = claims._finding_4(source(fine_tuned("sst2", falls) | fine_tuned("cola", stays, lead=0.005)))
    assert [part.estimate for part in beside] == [part.estimate for part in alone], "of cola, generation 1's interval reaches the commonest answer"
    both = claims._finding_4(source(fine_tuned("sst2", falls) | fine_tuned("cola", stays)))
    assert both[0].what.startswith("mean accuracy on 2 tasks") and both[0].estimate == pytest.approx(alone[0].estimate / 2, rel=0.01)
    assert verdict("finding_4", source(fine_tuned("cola", stays, lead=-0.1))) == "not tested"


def test_grades_of_a_judge_that_fails_its_controls_do_not_count():
    grades = {("gpt_eval", name): [[8 - n - 0.1 * chain for n in range(40)] for chain in range(3)] for name in ("grammar", "consistency")}
    grades |= {("gpt_eval", f"control_random_{name}"): [[1.0] * 40] * 3 for name in ("grammar", "consistency")}
    trusted = [[1.0] * 40 for _ in range(3)]
    assert verdict("finding_3", source(grades | {("gpt_eval", "judge_ranks_controls"): trusted})) == "reproduced"
    trusted[1] = [0.0] * 40
    assert verdict("finding_3", source(grades | {("gpt_eval", "judge_ranks_controls"): trusted})) == "not tested"
    by_grade = {("gpt_eval", f"judge_ranks_{name}"): [[float(name == "grammar")] * 40] * 3 for name in ("grammar", "consistency")}
    assert verdict("finding_3", source(grades | by_grade)) == "partly", "its grades of grammar count, and those of consistency do not"
    trusted[1], ruins = [1.0] * 40, {("gpt_eval", "control_random_consistency"): [[1.0] * 40, [1.0] * 40, [7.8] * 40]}
    assert verdict("finding_3", source(grades | {("gpt_eval", "judge_ranks_controls"): trusted} | ruins)) == "partly", "one has nothing to lose"
    legality = {("exact", "legal_share"): [[0.5 - 0.1 * n - 0.01 * chain for n in range(4)] for chain in range(3)]}
    assert verdict("finding_3", source(legality)) == "partly", "legality stands for grammar, and nothing for consistency"


def test_the_tests_of_a_source_are_adjusted_for_one_another():
    noisy = {("free_text", "repeated"): [[0.1 * n * growth for n in range(30)] for growth in (1.0, 0.65, 1.35)]}
    alone = claims.trend(source(noisy), ("free_text", "repeated", False), 1, "repetition")
    assert 0.05 / 3 < alone.p <= 0.05

    def verdicts(*names):
        asked = [Claim(name, lambda made, name=name: [claims.trend(made, ("free_text", "repeated", False), 1, name)]) for name in names]
        return [answer.verdict for answer in claims.answers([source(noisy)], asked)]

    assert verdicts("a") == ["reproduced"]
    assert verdicts("a", "b", "c") == ["underpowered"] * 3
    assert verdicts("a", "a", "a") == ["reproduced"] * 3, "one test that two claims share is one test"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    return tmp_path


def test_a_study_answers_by_its_arms_and_by_its_own_contrasts(root):
    study = study_from_yaml(STUDY)
    write_study(root, study, {"replace": REPLACE, "fresh": FLAT, "first_only": FLAT, "mix": [1.05, 1.06, 1.04]})
    write_run(root, "alone", 4)
    sources = claims.sources(["alone", "made-up-replace-1"])
    assert [found.name for found in sources] == ["made-up", "alone"], "a chain of a study is no source of its own"
    found = {answer.claim.key: answer for answer in claims.answers(sources)}
    assert found["cause"].verdict == found["finding_1"].verdict == found["proportion"].verdict == "reproduced"
    assert found["cause"].evidence[0].parts[0].p == pytest.approx(2 * 2 / 252), "the study's own Holm over its contrasts"
    assert found["larger"].verdict == "not tested"
    assert [len(evidence.tested) for evidence in found["finding_1"].evidence] == [2, 2]


def test_a_study_of_which_the_opposite_is_true(root):
    write_study(root, study_from_yaml(STUDY), {"replace": FLAT, "fresh": REPLACE, "first_only": FLAT, "mix": [1.3, 1.31, 1.32]})
    found = {answer.claim.key: answer for answer in claims.answers(claims.sources([]))}
    assert found["cause"].verdict == "contradicted" and found["cause"].evidence[0].outcomes == ("underpowered", "contradicted")
    assert found["proportion"].verdict == "contradicted"


def test_runs_of_one_experiment_are_its_chains_and_sizes_of_one_text_are_compared(root):
    def write(name, seed, growth, parameters, generations=4):
        folder = write_run(root, name, generations, growth)
        protocol = Protocol.from_yaml((folder / "protocol.yaml").read_text(), name)
        changes = {"seed": str(seed), "model.num_layers": str(parameters // 100)}
        (folder / "protocol.yaml").write_text(protocol.with_changes(changes).to_yaml())
        for file in folder.glob("generation-*/metrics/train.json"):
            record = json.loads(file.read_text())
            record["metrics"]["parameters"] = {"value": parameters, "unit": "parameters", "definition": "made up"}
            file.write_text(json.dumps(record))

    runs = []
    for size, growth, parameters in (("small", 1.3, 200), ("large", 1.1, 400)):
        for seed in range(1, 6):
            runs.append(f"{size}-{seed}")
            write(runs[-1], seed, growth + 0.01 * seed, parameters, generations=9 if seed == 2 else 4)
    write("small-again", 1, 1.5, 200)  # the seed of small-1: no chain of its own
    write("elsewhere", 1, 1.5, 200)
    elsewhere = root / "elsewhere" / "protocol.yaml"
    elsewhere.write_text(Protocol.from_yaml(elsewhere.read_text(), "").with_changes({"corpus.stories": "11"}).to_yaml())
    found = {made.name: made for made in claims.sources([*runs, "small-again", "elsewhere"])}
    assert list(found) == ["small-2", "small-2, its longest chain", "large-2", "large-2, its longest chain", "small-again", "elsewhere"]
    assert found["small-2"].roles == {"recursion": ("small-2",), "larger": ("large-2",)} and not found["large-2"].arms("larger")
    assert found["small-2"].chains("small-2", claims.PERPLEXITY).shape == (5, 4)
    answered = {answer.claim.key: answer for answer in claims.answers(list(found.values()))}
    assert answered["finding_1"].verdict == "reproduced" and answered["finding_1"].evidence[0].source.name == "small-2"
    larger = answered["larger"].evidence[0]
    assert larger.verdict == "reproduced" and larger.chains == 5
    assert larger.parts[0].estimate == pytest.approx(math.log(1.13 / 1.33), rel=0.01)
    assert "5 chains to generations 9, 4, 4, 4, 4" in limits_of_ours(list(found.values())).data


def test_every_claim_is_a_row_in_words(root):
    write_run(root, "alone", 4)
    answers = claims.answers(claims.sources(["alone"]))
    assert {answer.claim.key for answer in answers} == set(WORDS)
    rows = claims_table(answers).data.split("\n")
    assert len(rows) == 2 + len(WORDS) and all(row.count(" | ") == 5 for row in rows)
    assert "**underpowered**" in next(row for row in rows if "**Finding 1.**" in row)
    assert f"Of {len(WORDS)} claims" in verdicts_in_words(answers).data


def test_the_cards_of_the_claims_label_their_parts_as_the_table_heads_its_columns() -> None:
    """A card shows no heads: what each part is, the style sheet says."""
    css = (project_root() / "book" / "_static" / "book.css").read_text()
    labels = re.findall(r'\.tag_claims .*td:nth-child\((\d)\)::before \{ content: "(.*)"', css)
    assert [(int(column), label) for column, label in labels] == list(enumerate(HEADER, 1))[2:]
