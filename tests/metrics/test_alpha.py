"""Counting against plain loops, distances against bisection and closed forms, and the step on a run of two generations."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from collapse_lib import steps
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import load_preset
from collapse_lib.experiment.run import Record, Run
from collapse_lib.metrics import alpha
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.steps.alpha import OF_DRAWS, _record_means, counted_contexts
from collapse_lib.steps.inputs import open_artefact
from collapse_lib.text.corpus import CorpusWriter, TokenCorpus
from collapse_lib.text.display import metrics_table
from collapse_lib.theory import proof as theory

VOCABULARY, EOS = 12, 11
CONFIG = GPTNeoConfig(VOCABULARY, 2, 16, 4, window_size=5, max_position_embeddings=32, initializer_range=0.5, eos_token_id=EOS)


def write(folder: Path, rows: list[list[int]], complete: bool, start: bool = True) -> TokenCorpus:
    with CorpusWriter(folder, EOS, VOCABULARY, rows_are_complete=complete, has_start=start) as writer:
        half = len(rows) // 2
        writer.write_shard(0, [np.array(row) for row in rows[:half]])
        writer.write_shard(1, [np.array(row) for row in rows[half:]])
        return writer.finish(2)


def random_rows(kind: str, rows: int = 60) -> list[list[int]]:
    """Rows of few different tokens, so that beginnings repeat: whole stories, or sampled sequences in which stories end and begin."""
    rng = np.random.default_rng(3)
    if kind == "complete":
        return [[EOS, *rng.integers(0, 3, rng.integers(1, 7))] for _ in range(rows)]
    start = [EOS] if kind == "sampled" else []
    return [start + rng.choice([0, 1, 2, EOS], 9, p=[0.4, 0.2, 0.2, 0.2]).tolist() for _ in range(rows)]


def stories_of(row: list[int], complete: bool) -> list[tuple[list[int], bool]]:
    """Section 2.1 read aloud: the stories of a row, and whether each one's end is known."""
    found, story = [], []
    for token in row[1:] if row[0] == EOS else row:
        if token == EOS:
            found.append((story, True))
            story = []
        else:
            story.append(token)
    return [*found, (story, complete)]


def naive_counts(rows: list[list[int]], complete: bool, prefix: tuple[int, ...]) -> np.ndarray:
    counts = np.zeros(VOCABULARY, int)
    for row in rows:
        for story, ended in stories_of(row, complete):
            if tuple(story[: len(prefix)]) == prefix and (len(story) > len(prefix) or ended):
                counts[story[len(prefix)] if len(story) > len(prefix) else EOS] += 1
    return counts


@pytest.mark.parametrize("kind", ["complete", "sampled", "without start"])
@pytest.mark.parametrize("rows_at_once", [7, 1000])
def test_counts_are_those_of_a_plain_loop(tmp_path, monkeypatch, kind, rows_at_once):
    monkeypatch.setattr(alpha, "ROWS_AT_ONCE", rows_at_once)
    rows, complete = random_rows(kind), kind == "complete"
    corpus = write(tmp_path, rows, complete, start=kind != "without start")
    prefixes = [(), (0,), (0, 1), (2, 2, 0), (1, 0, 0, 0), (7,)]  # not every beginning of a prefix is a prefix here, and one never occurs
    found = alpha.next_token_counts(alpha.story_heads(corpus, 5), prefixes, VOCABULARY, EOS)
    assert found.tolist() == [naive_counts(rows, complete, prefix).tolist() for prefix in prefixes]
    assert found[:3].sum(1).min() > 0 and found[:, EOS].sum() > 0


def test_frequent_prefixes_are_the_most_frequent_and_one_of_each_length(tmp_path):
    rows = random_rows("complete", 200)
    often = Counter(tuple(row[1 : 1 + length]) for row in rows for length in range(5) if len(row) > length)
    found = alpha.frequent_prefixes(write(tmp_path, rows, True), most=12, longest=4, minimum_count=10)
    assert found[0] == () and len(found) == 12
    assert [often[prefix] for prefix in found] == sorted((often[prefix] for prefix in found), reverse=True)
    leaders = {max((count, prefix) for prefix, count in often.items() if len(prefix) == length)[0] for length in range(4)}
    assert leaders <= {often[prefix] for prefix in found} and min(often[prefix] for prefix in found) >= 10
    assert sorted((often[prefix] for prefix in found), reverse=True)[:5] == sorted(often.values(), reverse=True)[:5]


def test_a_corpus_of_rare_beginnings_leaves_the_empty_one(tmp_path):
    assert alpha.frequent_prefixes(write(tmp_path, random_rows("complete"), True), 10, 4, minimum_count=1000) == [()]


def test_positions_are_beginnings_of_stories_cut_on_the_left(tmp_path):
    rows = random_rows("complete")
    corpus = write(tmp_path, rows, True)
    contexts, stories = alpha.sampled_positions(corpus, 50, max_context=3, seed=1)
    assert len(contexts) == 50 and {len(context) for context in contexts} == {1, 2, 3}
    for context, story in zip(contexts, stories, strict=True):
        assert any(rows[story][max(0, end - 3) : end] == context.tolist() for end in range(1, len(rows[story]) + 1))
    again, _ = alpha.sampled_positions(corpus, 10_000, 3, seed=1)
    assert len(again) == sum(map(len, rows))  # every position there is


def test_models_are_asked_one_context_at_a_time_or_many():
    model, rng = GPTNeo(CONFIG, seed=1), np.random.default_rng(0)
    contexts = [rng.integers(0, VOCABULARY, length) for length in (1, 7, 3, 30, 7, 2)]
    together = alpha.log_distributions(model, alpha.last_hidden(model, contexts))
    alone = [alpha.log_distributions(model, alpha.last_hidden(model, [context]))[0] for context in contexts]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert together.dtype == np.float64 and np.abs(np.exp(together).sum(1) - 1).max() < 1e-12
    with pytest.raises(UserError, match="33 tokens, but the model has only 32 positions"):
        alpha.last_hidden(model, [np.zeros(33, int)])


weights = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=8)


@given(weights, st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.03, 0.2]))
def test_the_smoothed_divergence_is_the_smallest_factor_that_covers(values, seed, epsilon):
    p = np.array(values) / sum(values)
    q = np.random.default_rng(seed).dirichlet(np.full(len(p), 0.5)) + 1e-9
    q /= q.sum()
    raw, found = alpha.smoothed_divergence(np.log([p]), np.log([q]), [0.0, epsilon])[:, 0]

    def missing(factor: float) -> float:
        return np.maximum(p - factor * q, 0).sum()

    low, high = 0.0, float(np.max(p / q)) + 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if missing(middle) > epsilon else (low, middle)
    assert np.exp(found) == pytest.approx(high, rel=1e-6)
    assert raw == pytest.approx(float(theory.divergence(p, q)), abs=1e-9)
    assert np.log(1 - epsilon) - 1e-12 <= found <= raw + 1e-12


def test_distances_from_logarithms_equal_those_of_the_theory():
    rng = np.random.default_rng(2)
    p, q = rng.dirichlet(np.full(9, 0.3), 5), rng.dirichlet(np.ones(9), 5)
    p[:, 0] = 0
    p /= p.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        found = alpha.distances(np.log(p), np.log(q), [0.01])
    np.testing.assert_allclose(found["divergence"], theory.divergence(p, q))
    np.testing.assert_allclose(found["kl"], theory.relative_entropy(p, q))
    np.testing.assert_allclose(found["tv"], theory.total_variation(p, q))
    assert (found["divergence_0.01"] < found["divergence"]).all()


def test_distances_survive_probabilities_that_float64_cannot_hold():
    log_p, log_q = np.log([[0.5, 0.5]]), np.array([[-2000.0, 0.0]])
    assert alpha.log_divergence(log_p, log_q)[0] == pytest.approx(2000 - np.log(2))
    assert np.isfinite(alpha.log_relative_entropy(log_p, log_q)).all()


def test_jensen_shannon_is_symmetric_and_bounded():
    p, q, r = np.log([[0.9, 0.1]]), np.log([[0.2, 0.8]]), np.array([[0.0, -np.inf]])
    assert alpha.jensen_shannon(p, q)[0] == pytest.approx(alpha.jensen_shannon(q, p)[0]) and alpha.jensen_shannon(p, p)[0] == pytest.approx(0)
    assert alpha.jensen_shannon(r, r[:, ::-1])[0] == pytest.approx(np.log(2))


@pytest.mark.parametrize(("tokens", "exact_to"), [(1, 0.1), (30, 0.01), (400, 0.005)])
def test_the_drift_of_sampling_is_the_sum_over_binomial_counts(tokens, exact_to):
    p = np.concatenate([[0.0, 0.3, 0.2], np.geomspace(1e-6, 0.1, 40)])
    p /= p.sum()
    k = np.arange(tokens + 1)[:, None]
    shares = binom.pmf(k, tokens, p)
    assert alpha.expected_drift(p[None], [tokens])[0] == pytest.approx((shares * np.abs(k / tokens - p)).sum() / 2, rel=1e-9)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = np.where((k > 0) & (p > 0), k / tokens * np.log(k / tokens / p), 0.0)
    assert alpha.expected_surprise(p[None], [tokens])[0] == pytest.approx((shares * surprise).sum(), rel=exact_to)


def test_the_surprise_of_many_draws_is_the_plug_in_entropy_loss():
    p = np.full((1, 50), 1 / 50)
    assert alpha.expected_surprise(p, [1e6])[0] == pytest.approx(theory.entropy_loss(50, 1e6), rel=1e-3)


def test_without_draws_nothing_is_expected_of_them():
    p = np.array([[0.5, 0.5, 0.0]] * 3)
    for expected in (alpha.expected_drift, alpha.expected_surprise):
        for none in (np.nan, 0):
            found = expected(p, [1, none, 5])
            assert np.isfinite(found).tolist() == [True, False, True] and found[0] > found[2] > 0


def test_generations_at_counted_contexts():
    models = [GPTNeo(CONFIG, seed=seed) for seed in (1, 2)]
    counts = np.random.default_rng(0).integers(0, 20, (3, VOCABULARY))
    counts[:, 4] = 0
    learned = np.stack([counts[0], counts[1], 0 * counts[2]])
    contexts = [np.array([EOS]), np.array([EOS, 1]), np.array([EOS, 2, 3])]
    first = alpha.measure_counted(models[0], None, contexts, counts, counts, [0.1])
    second = alpha.measure_counted(models[1], models[0], contexts, counts, learned, [0.1])
    np.testing.assert_allclose(first["divergence"], first["initial_divergence"])
    for name in OF_DRAWS:
        assert name not in first and np.isnan(second[name]).tolist() == [False, False, True]
    chain = np.stack([np.exp(alpha.log_frequencies(counts)), *(np.exp(alpha.log_distributions(m, alpha.last_hidden(m, contexts))) for m in models)])
    for place in range(3):
        summed = first["divergence"][place] + second["divergence"][place]
        assert -summed == pytest.approx(theory.log_weights(chain[:, place])[2])
        assert -second["initial_divergence"][place] == pytest.approx(theory.log_memory(chain[:, place])[2])
        assert second["initial_divergence"][place] <= summed + 1e-12
        token = second["attaining"][place, 0]
        assert chain[1, place, token] / chain[2, place, token] == pytest.approx(np.exp(second["divergence"][place]))
        assert second["attaining_rank"][place] == 1 + (chain[1, place] > chain[1, place, token]).sum()
        assert counts[place, first["attaining"][place, 0]] > 0  # where nothing was counted there is nothing to lose


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Run:
    """Three generations of next to nothing, without notebooks."""
    changes = {"corpus.stories": "120", "tokenizer.vocabulary": "300", "training.epochs": "1", "sampling.sequences": "48", "sampling.length": "32"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLLAPSE_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = Run.create("small", load_preset("smoke").with_changes(changes | {"generations": "3", "alpha.truth_stories": "400"}))
        steps.corpus(run)
        for generation in (1, 2, 3):
            steps.train(run, generation, "cpu")
            steps.sample(run, generation, "cpu")
            steps.alpha(run, generation, "cpu")
        yield run


def test_the_step_accumulates_over_generations(small_run):
    found = [small_run.step(generation, "alpha").results() for generation in (1, 2, 3)]
    for suffix in ("", "_0.01"):
        summed = sum(np.array(record["series"][f"divergence{suffix}"]) for record in found)
        np.testing.assert_allclose(found[-1]["series"][f"accumulated{suffix}"], summed, rtol=1e-5)
    series, metrics = found[-1]["series"], found[-1]["metrics"]
    positions = sum(np.array(record["series"]["position_divergence"]) for record in found[1:])
    np.testing.assert_allclose(series["position_accumulated"], positions, rtol=1e-5)
    assert "position_divergence" not in found[0]["series"] and "drift_tv" not in found[0]["metrics"]
    assert np.all(np.array(series["accumulated"]) >= np.array(series["initial_divergence"]) - 1e-5)
    np.testing.assert_allclose(series["log_total"], np.log(series["counts"]) + series["accumulated"], rtol=1e-5)
    assert metrics["accumulated"]["value"] == pytest.approx(np.mean(series["accumulated"]), rel=1e-5)
    assert metrics["contexts"]["value"] == len(series["counts"]) == len(found[-1]["examples"]["contexts"])
    assert small_run.step(3, "alpha").metrics_file.stat().st_size < 200_000


def test_the_step_averages_what_drawing_does_over_contexts_that_came_up(small_run):
    measured = small_run.step(3, "alpha").results()
    series, metrics = measured["series"], measured["metrics"]
    came_up = np.array(series["learned_counts"]) > 0
    assert 0 < came_up.sum() < len(came_up) and metrics["contexts_learned"]["value"] == came_up.sum()
    for name in OF_DRAWS:
        values = np.array(series[name], float)
        assert np.isnan(values).tolist() == (~came_up).tolist()
        assert metrics[name]["value"] == pytest.approx(values[came_up].mean(), rel=1e-5)
        assert metrics[name]["counts"] == {"contexts": came_up.sum()} and "came up in corpus 2" in metrics[name]["definition"]


def test_no_context_came_up_and_nothing_is_recorded_of_draws():
    record = Record()
    _record_means(record, 2, {"entropy": np.ones(2), "drift_kl": np.full(2, np.nan)}, [])
    assert record.metrics.keys() == {"contexts", "entropy"}


def test_only_positions_have_standard_errors(small_run):
    metrics = small_run.step(3, "alpha").results()["metrics"]
    errors = {name for name, metric in metrics.items() if "standard_error" in metric}
    assert "position_tv" in errors and all(name.startswith("position_") for name in errors)
    for name in ("position_accumulated", "position_accumulated_0.01"):
        assert "over generations 2 to 3" in metrics[name]["definition"]


def test_the_step_counts_what_the_corpus_says(small_run):
    stories = open_artefact(small_run.step(0, "corpus"), "train")
    prefixes, counts = counted_contexts(small_run.protocol, stories)
    rows = [row.tolist() for row in stories.iter_rows()]
    for prefix, found in zip(prefixes, counts, strict=True):
        assert found.sum() == sum(row[1 : 1 + len(prefix)] == list(prefix) for row in rows)
    assert prefixes[0] == () and counts[0].sum() == len(rows)
    learned = small_run.step(2, "alpha").results()["series"]["learned_counts"]
    written = [row.tolist() for row in open_artefact(small_run.step(1, "sample"), "corpus").iter_rows()]
    eos = stories.eos_id
    assert learned[0] == sum(token == eos for row in written for token in row[:-1])  # stories of which at least one token is known


def test_the_grammars_law_is_the_same_for_all_generations(small_run):
    from collapse_lib.text.grammar import StoryGrammar

    found = [small_run.step(generation, "alpha").results() for generation in (1, 2)]
    assert "truth" not in found[1]["examples"]
    assert found[0]["series"]["truth_initial_tv"] == found[1]["series"]["truth_initial_tv"]
    counted = [sum(int(pair.split(":")[1]) for pair in line.split()) for line in found[0]["examples"]["truth"]]
    assert counted[0] == 400
    # The probability that a story begins with a text is known exactly; a beginning in tokens is one in text, or less (a longer word follows).
    for context, count in zip(found[0]["examples"]["contexts"], counted, strict=True):
        exact = np.exp(StoryGrammar().log_prefix_probability(context))
        assert count / 400 <= exact + 4 * np.sqrt(exact * (1 - exact) / 400) + 1e-9


def test_a_finished_step_is_only_read(small_run):
    before = small_run.step(2, "alpha").metrics_file.stat().st_mtime_ns
    assert steps.alpha(small_run, 2, "cpu")["generation"] == 2
    assert small_run.step(2, "alpha").metrics_file.stat().st_mtime_ns == before


def test_the_committed_run_agrees_with_itself(monkeypatch):
    """Its models are not committed, so that what was corrected in it could not be measured again."""
    root = Path(__file__).parents[2] / "papermill_runs"
    monkeypatch.setenv("COLLAPSE_RUNS", str(root))
    run = Run.open("tinystories-small")
    for generation in range(1, 11):
        step = run.step(generation, "alpha")
        found = step.results()  # which compares the hashes of its parents
        assert step.output_hashes() == {"alpha": hashlib.sha256(json.dumps(found["series"]).encode()).hexdigest()}
        assert not any("standard_error" in metric for name, metric in found["metrics"].items() if not name.startswith("position_"))
        came_up = np.array(found["series"]["learned_counts"]) > 0
        assert found["metrics"]["contexts_learned"]["value"] == came_up.sum()
        for name in OF_DRAWS if generation > 1 else ():
            values = np.array(found["series"][name], float)
            assert found["metrics"][name]["value"] == pytest.approx(values[came_up].mean(), rel=1e-6)
            assert np.isnan(values[~came_up]).all() and found["metrics"][name]["counts"] == {"contexts": came_up.sum()}
        shown = json.loads(step.notebook.read_text(encoding="utf-8"))["cells"][-1]["outputs"][0]["data"]["text/markdown"]
        assert unescape("".join(shown)) == unescape(metrics_table(found).data)  # it was recorded when fewer signs were escaped
    assert round(found["metrics"]["drift_kl"]["value"], 2) == 1.37
