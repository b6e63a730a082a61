"""What ``collapse plan`` predicts, held to exact arithmetic; and, slowly, to what a small run really takes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from collapse_lib.cli import main
from collapse_lib.cost import calibration, check, plan
from collapse_lib.cost.calibration import RATES, Calibration
from collapse_lib.cost.corpus_size import CorpusSize, initial_corpus
from collapse_lib.cost.workload import Workload, decoded_contexts
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS, steps_of
from collapse_lib.experiment.protocol import Protocol, load_preset, preset_names
from collapse_lib.experiment.run import Run
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.model.weightless import without_weights
from collapse_lib.sample.cpu import Cache
from collapse_lib.sample.generate import sample_rows
from collapse_lib.steps.room import SHARD_BYTES, VOCABULARY_BYTES
from collapse_lib.text.corpus import TokenCorpus
from collapse_lib.train.blocks import Blocks, epoch_batches

INITIAL = CorpusSize(1000, 100, 2048, (99.0, 199.0))


@pytest.fixture(scope="module")
def demo() -> Protocol:
    """The demo at the sizes for which the numbers below were worked out by hand: one stream of text, contexts of 128, early stopping."""
    sizes = {
        "corpus.grammar": "standard",
        "corpus.stories": "1500",
        "corpus.validation_stories": "200",
        "tokenizer.vocabulary": "2048",
        "model.max_position_embeddings": "128",
        "training.layout": "contiguous",
        "training.block_size": "128",
        "training.batch_size": "8",
        "training.epochs": "early_stopping",
        "training.schedule": "constant",
        "training.holdout": "0.05",
        "sampling.sequences": "1536",
        "sampling.length": "128",
        "sampling.after_eos": "continue",
        "sampling.max_context": "128",
        "sampling.shard_sequences": "512",
        "evaluation.max_context": "128",
    }
    return load_preset("demo").with_changes(sizes)


def config_of(protocol: Protocol, vocabulary: int = INITIAL.vocabulary) -> GPTNeoConfig:
    return GPTNeoConfig.from_settings(protocol.model, vocabulary, vocabulary - 1)


def machine(protocol: Protocol, vocabulary: int = INITIAL.vocabulary, rates: dict[str, float] | None = None, **fields) -> Calibration:
    """A machine measured with the protocol's own model, on which every unit of work takes a second, or those alone that ``rates`` name."""
    told = {"device": "a processor", "kind": "cpu", "date": "2024-01-01", "versions": {}, "model": config_of(protocol, vocabulary).to_hf()}
    counts = {"batch_tokens": 1024, "decode_rows": 512, "device_memory": 0, "workers": 2, "load": 0.0, "measured_in": 1.0}
    seconds = dict.fromkeys(RATES, 1.0) if rates is None else dict.fromkeys(RATES, 0.0) | rates
    return Calibration(**told | counts | {"rates": seconds} | fields)


def seconds(protocol: Protocol, step: str, generation: int = 2, initial: CorpusSize = INITIAL, **rates: float) -> float:
    planned = plan.plan(protocol, machine(protocol, initial.vocabulary, rates), initial)
    return planned.generations[generation].seconds[step]


def changed(protocol: Protocol, **fields: str) -> Protocol:
    return protocol.with_changes({name.replace("__", "."): value for name, value in fields.items()})


# Amounts of work.


@pytest.mark.parametrize("overflow", ["extend", "hop", "slide"])
@pytest.mark.parametrize("length", [5, 8, 9, 30])
def test_contexts_are_those_that_sampling_has(overflow, length, monkeypatch):
    config = GPTNeoConfig(vocab_size=300, num_layers=1, hidden_size=8, num_heads=2, window_size=4, max_position_embeddings=64)
    model = GPTNeo(config, seed=1)
    settings = load_preset("demo").sampling.model_copy(update={"length": length, "max_context": 8, "overflow": overflow, "sequences": 1})
    seen, encoded = [], []
    step, forward = Cache._step, GPTNeo.forward
    monkeypatch.setattr(Cache, "_step", lambda self, tokens: (seen.append(self.filled + 1), step(self, tokens))[1])
    monkeypatch.setattr(GPTNeo, "forward", lambda self, tokens, *more, **named: (encoded.append(tokens), forward(self, tokens, *more, **named))[1])
    sample_rows(model, settings, range(1), seed=1)
    expected, anew = decoded_contexts(length, 8, overflow)
    # The first forward pass is of the released code's masked start, whether it is used or not.
    assert (seen, sum(tokens.shape[1] for tokens in encoded[1:])) == (list(expected), anew)


@pytest.mark.parametrize("layout", ["contiguous", "story_per_row"])
def test_epochs_have_the_steps_that_training_takes(layout, demo):
    protocol = changed(demo, training__layout=layout, training__batch_size="16", training__block_size="50")
    initial = CorpusSize(101, 10, 300, (80.0,))
    protocol = changed(protocol, training__holdout="0.01")
    corpus = TokenCorpus.in_memory([np.zeros(81, np.uint16)] * 101, 0, 300, rows_are_complete=True)
    training_part = TokenCorpus.in_memory([np.zeros(81, np.uint16)] * 100, 0, 300, rows_are_complete=True)
    assert (initial.tokens, INITIAL.mean_tokens) == (corpus.tokens, 150)  # with the '<|endoftext|>' that ends a story
    blocks = Blocks(training_part, protocol.training)
    tokens, steps = Workload(protocol, initial, without_weights(config_of(protocol, 300))).epoch(1)
    assert tokens == len(blocks) * 50
    assert steps == len(epoch_batches(len(blocks), protocol.training, 1, 0))


def test_stories_in_rows_are_padded_to_the_longest_of_their_batch(demo):
    lengths = tuple(np.random.default_rng(1).integers(1, 70, 200).astype(float))
    initial, padded = CorpusSize(1000, 10, 300, lengths), []
    rows = changed(demo, training__layout="story_per_row", training__block_size="60", training__batch_size="16")
    for seed in range(400):
        of_batch = np.random.default_rng((2, seed)).choice(np.array(lengths, int), 16)
        corpus = TokenCorpus.in_memory([np.zeros(1 + length, np.uint16) for length in of_batch], 0, 300, rows_are_complete=True)
        padded.append(Blocks(corpus, rows.training).read(np.arange(16))[0].shape[1])
    assert Workload(rows, initial, without_weights(config_of(rows, 300))).width == pytest.approx(np.mean(padded), rel=0.01)
    assert initial.longest_of(1, 1000) == pytest.approx(initial.mean_tokens) and initial.longest_of(10**6, 1000) == max(lengths) + 1


# Seconds.


def test_every_step_of_every_generation_has_its_time(demo):
    names = [name for name in preset_names() if not name.startswith(("tinystories-", "reference-"))]  # these want files
    for protocol in (demo, *(changed(load_preset(name), generations="7") for name in names)):
        for generation in plan.plan(protocol, machine(protocol), INITIAL).generations:
            assert list(generation.seconds) == steps_of(protocol, generation.number)
            assert all(value > 0 for value in generation.seconds.values())
    judged = changed(load_preset("smoke"), gpt_eval__judge="a-judge", regime__name="mix", regime__share="0.5", regime__real="fresh")
    planned = plan.plan(judged, machine(judged), INITIAL)
    assert set(planned.by_step) == set(STEPS)
    requests = judged.completions.beginnings * judged.completions.samples + 4 * judged.gpt_eval.controls
    assert planned.generations[0].seconds["gpt_eval"] == requests * plan.ASSUMED["judge"] / judged.gpt_eval.concurrency


@pytest.mark.parametrize("unit", RATES)
def test_every_rate_that_is_measured_is_used(unit, demo):
    """By the demo or, if it does without, by a protocol that decodes beyond its context."""
    long = changed(demo, sampling__max_context="64")
    assert plan.plan(long, machine(demo, rates={unit: 1.0}), INITIAL).by_step != plan.plan(long, machine(demo, rates={}), INITIAL).by_step


def test_twice_the_sequences_take_twice_the_time_and_the_disk(demo):
    double = changed(demo, sampling__sequences=str(2 * demo.sampling.sequences))
    assert seconds(double, "sample", decode_token=1.0) == 2 * seconds(demo, "sample", decode_token=1.0) == 2 * 1536 * 128
    ours, theirs = (plan.plan(protocol, machine(demo), INITIAL).generations[2] for protocol in (demo, double))
    shards = 3
    assert theirs.bytes - ours.bytes == 1536 * (129 * 2 + 4) + shards * SHARD_BYTES
    assert theirs.files - ours.files == shards


def test_what_is_let_go_is_not_there_at_once(demo):
    """Until alpha of the last generation is done, three texts and three models are there: the first ones, the last ones, and those before."""
    kept, lean = (plan.plan(changed(demo, retention__drop=drop), machine(demo), INITIAL) for drop in ("[]", "[corpus, model]"))
    assert kept.most_bytes == kept.bytes == lean.bytes
    text, model = 1536 * (129 * 2 + 4) + 3 * SHARD_BYTES, 4 * kept.parameters + VOCABULARY_BYTES * INITIAL.vocabulary
    last = Workload(demo, INITIAL, without_weights(config_of(demo))).disk(demo.generations)
    after = list(last)[list(last).index("alpha") + 1 :]
    behind_alpha = sum(size.bytes for step in after for size in last[step].values())
    assert kept.bytes - lean.most_bytes == 5 * (text + model) + behind_alpha
    assert "at once at most" in plan.table(lean) and "at once" not in plan.table(kept)


@pytest.mark.parametrize(
    ("regime", "written", "learned"),  # in generation 3, in the tokens of a text and of the initial corpus
    [
        ("{name: select, share: 0.5}", lambda text, initial: 2 * text, lambda text, initial: initial),
        ("{name: mix, share: 0.5}", lambda text, initial: text, lambda text, initial: initial),
        ("{name: fresh}", lambda text, initial: text, lambda text, initial: initial),
        ("{name: first_only}", lambda text, initial: text, lambda text, initial: text),
        ("{name: accumulate}", lambda text, initial: text, lambda text, initial: initial),
        ("{name: accumulate, training: epochs}", lambda text, initial: text, lambda text, initial: initial + 2 * text),
    ],
)
def test_a_regime_decides_what_is_written_and_learned(regime, written, learned, demo):
    work = Workload(demo.with_changes({"regime": yaml.safe_load(regime)}), INITIAL, without_weights(config_of(demo)))
    text, initial = 1536 * 129, 1000 * 150 * 0.95
    assert work.corpus(3)[1] == written(text, initial)
    assert work.learned(3)[1] == pytest.approx(learned(text, initial))


def test_decoding_reads_the_keys_and_values_in_view(demo):
    """Two layers of 64 numbers: one sees all, one the newest 64 tokens; a key and a value of 4 bytes a number."""
    keys = sum(range(1, 129)) + sum(range(1, 65)) + 64 * 64
    assert seconds(demo, "sample", decode_byte=1.0) == 1536 * keys * 2 * 64 * 4


def test_a_hop_encodes_half_a_window(demo):
    short = changed(demo, sampling__max_context="64", sampling__length="65")
    assert seconds(short, "sample", encode_token=1.0) == 1536 * 32


def test_training_is_tokens_and_checkpoints(demo):
    fixed = changed(demo, training__epochs="2", training__checkpoint_every="10")
    tokens = 1536 * 129
    blocks = (tokens - 1) // 128
    steps = -(-blocks // 8)
    assert seconds(fixed, "train", train_token=1.0) == 2 * blocks * 128
    assert seconds(fixed, "train", checkpoint=1.0) == 2 * -(-steps // 10)


def test_early_stopping_tries_one_epoch_more_in_generation_1_only(demo):
    longer, saved = changed(demo, training__max_epochs="10"), {"checkpoint": 1.0}  # one an epoch
    assert seconds(longer, "train", 1, **saved) == 4 and seconds(longer, "train", 2, **saved) == 3
    assert seconds(changed(demo, training__epochs="1"), "train", 1, **saved) == 1
    held_out = 1000 * 150 * demo.training.holdout / 3
    looking, fixed = (seconds(changed(demo, training__epochs=epochs), "train", 1, train_token=1.0) for epochs in ("early_stopping", "3"))
    assert looking - fixed == pytest.approx(3 * held_out)
    notes = plan.plan(demo, machine(demo), INITIAL).notes
    assert any("assumed to find 3 epochs" in note and "tries" not in note for note in notes)
    assert any("generation 1 tries 4" in note for note in plan.plan(longer, machine(longer), INITIAL).notes)


def test_perplexity_shows_a_whole_window_for_each_token_beyond_the_context(demo):
    initial = replace(INITIAL, lengths=(130.0,))
    # The first 128 tokens after the start token in one window, the last two in one of 129 tokens each; and what lies before the end.
    paper, ends = 3 * 129, 128
    released = 128 + 2  # by the other definition the last two have a window of their own
    assert seconds(demo, "perplexity", initial=initial, encode_token=1.0) == 100 * (paper + ends + released)
    assert seconds(demo, "perplexity", initial=initial, score_token=1.0) == 100 * (130 + 1 + 130)
    # The other way round it is the same work.
    turned = changed(demo, evaluation__perplexity="released")
    assert seconds(turned, "perplexity", initial=initial, encode_token=1.0) == 100 * (paper + ends + released)


def test_another_model_is_scaled_by_its_counts_and_said_to_be(demo):
    wide = changed(demo, model__hidden_size="128")
    measured = machine(demo)
    ours, theirs = (without_weights(config_of(protocol)) for protocol in (demo, wide))
    rates = measured.rates_for(theirs.config, 64)
    assert rates["train_token"] == pytest.approx(theirs.flops_per_token(64) / ours.flops_per_token(64))
    assert rates["finetune_step"] == pytest.approx(theirs.num_parameters() / ours.num_parameters())
    assert rates["encode_token"] > rates["train_token"]  # the trunk grows with the square of the width, the head with the width
    assert rates["write_story"] == rates["decode_byte"] == 1 and measured.rates_for(ours.config, 64) == measured.rates
    same, scaled = (plan.plan(protocol, measured, INITIAL) for protocol in (demo, wide))
    assert scaled.by_step["train"] > same.by_step["train"]
    assert any("another shape" in note for note in scaled.notes) and not any("another shape" in note for note in same.notes)


def test_a_gpu_is_held_from_start_to_end(demo):
    on_gpu, on_cpu = (plan.plan(demo, machine(demo, kind=kind, device_memory=memory), INITIAL) for kind, memory in (("cuda", 8 * 10**10), ("cpu", 0)))
    assert set(on_gpu.memory) == {"host", "GPU"} and set(on_cpu.memory) == {"host"}
    assert f"GPU hours    {on_gpu.seconds / 3600:,.1f}" in plan.table(on_gpu) and "GPU" not in plan.table(on_cpu)


def test_a_paper_run_keeps_two_bytes_a_token_and_four_a_parameter():
    protocol = load_preset("paper-33m")
    initial = initial_corpus(protocol)
    planned = plan.plan(protocol, machine(protocol, initial.vocabulary), initial)
    assert planned.parameters == 68_514_048
    sampled = planned.generations[2].bytes - 4 * planned.parameters
    assert 2.0 < sampled / 6.01e8 < 2.02
    assert planned.scratch == 2 * 16 * planned.parameters  # a new one is whole before it takes the place of the old one


@pytest.mark.parametrize("decode", [calibration._steps, calibration._sequences])
def test_both_ways_to_time_decoding_tell_two_contexts_apart(decode, demo, monkeypatch):
    """The way of a GPU works on a CPU too, where a calibration would not take it."""
    protocol, model = changed(demo, sampling__batch_size="32"), GPTNeo(config_of(demo), seed=1)
    rows, (few, first), (many, last) = decode(model, protocol, 128)
    assert rows == 32 and few < many <= 128 and first > 0 and last > 0
    monkeypatch.setattr(calibration, "_steps", decode)
    rates = calibration._decoding(model, protocol, INITIAL)
    assert min(rates["decode_token"], rates["decode_byte"]) >= 0 and rates["decode_token"] + rates["decode_byte"] > 0


# The initial corpus.


def test_a_hub_corpus_is_not_fetched(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    initial = initial_corpus(load_preset("paper-1m"))
    assert initial.vocabulary == 50257
    assert initial.tokens == pytest.approx(4.7e8)
    assert "not downloaded" in initial.note and "TinyStories" in initial.note
    fewer = initial_corpus(changed(load_preset("paper-1m"), corpus__stories="1000"))
    assert (fewer.stories, fewer.mean_tokens) == (1000, initial.mean_tokens)


def test_a_file_is_counted(tmp_path, stories, demo):
    file = tmp_path / "stories.txt"
    file.write_text("<|endoftext|>\n".join(stories), encoding="utf-8")
    initial = initial_corpus(
        changed(demo, corpus__source=str(file), corpus__stories="null", corpus__validation_stories="null", tokenizer__vocabulary="300")
    )
    assert initial.stories + initial.validation_stories == len(stories)
    assert 5 < initial.mean_tokens < 60


def test_the_grammar_is_looked_at(demo):
    initial = initial_corpus(demo)
    assert (initial.stories, initial.validation_stories, initial.vocabulary) == (1500, 200, 2048)
    assert len(initial.lengths) == 400


# Recorded machines, the command, the check.


def test_a_recorded_machine_reads_back(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    measured = machine(demo)
    (tmp_path / "bench").mkdir()
    measured.save(tmp_path / "bench" / "mine.json")
    (tmp_path / "bench" / "report.json").write_text('{"bench": "sampling"}')
    assert calibration.load("mine") == calibration.load(str(tmp_path / "bench" / "mine.json")) == measured
    file = tmp_path / "bench" / "other.json"
    file.write_text((tmp_path / "bench" / "mine.json").read_text().replace('"batch_tokens": ', '"batch_tokens": 1'))
    with pytest.raises(UserError, match=r"other\.json was damaged or changed by hand since it was written; record the machine again"):
        calibration.load("other")
    file.unlink()
    with pytest.raises(UserError, match=r"no recorded machine 'yours'.*there is mine\)"):
        calibration.load("yours")
    with pytest.raises(UserError, match="is not a machine"):
        calibration.load("report")


@pytest.fixture
def recorded(demo, tmp_path, monkeypatch) -> str:
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    machine(demo).save(tmp_path / "machine.json")
    return str(tmp_path / "machine.json")


def test_the_command_prints_a_table_and_writes_a_line(recorded, tmp_path, capsys):
    file = tmp_path / "plan.json"
    early = ["--set", "training.schedule=constant", "--set", "training.epochs=early_stopping"]
    assert main(["plan", "demo", "--machine", recorded, "--generations", "3", *early, "--output", str(file)]) == 0
    shown = capsys.readouterr().out
    for word in ("whole run", "time", "disk", "memory", "most is", "assumed to find 3 epochs"):
        assert word in shown
    found = json.loads(file.read_text())
    assert len(found["generations"]) == 4
    assert found["seconds"] == pytest.approx(sum(found["by_step"].values()) + found["overhead"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "no preset 'nonsense'"),
        (["demo", "--machine", "nowhere"], "no recorded machine 'nowhere'"),
        (["demo", "--machine", "MACHINE", "--record", "x.json"], "one of the two"),
        (["demo", "--machine", "MACHINE", "--output", "nowhere/plan.json"], "no folder"),
        (["demo", "--machine", "MACHINE", "--check", "norun"], "no run 'norun'"),
        (["demo", "--machine", "MACHINE", "--set", "sampling.length=-1"], "sampling.length"),
        (["demo", "--machine", "MACHINE", "--set", "corpus.source=missing.txt"], "missing.txt"),
        (["demo", "--machine", "MACHINE", "--generations", "0"], "generations"),
        (["demo", "--device", "cuda"], "no GPU"),
    ],
)
def test_bad_input_is_one_sentence(arguments, said, recorded, capsys):
    if "cuda" in arguments:
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    assert main(["plan", *(recorded if word == "MACHINE" else word for word in arguments)]) == 2
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.strip().count("\n") == 0 and not shown.out


def test_a_plan_is_not_checked_against_another_protocol(demo, recorded):
    planned = plan.plan(demo, machine(demo), INITIAL)
    with pytest.raises(UserError, match=r"another training\.batch_size"):
        check.check(planned, demo, Run.create("other", changed(demo, training__batch_size="4")))
    with pytest.raises(UserError, match="has 2 generations, the plan 8"):
        check.check(planned, demo, Run.create("short", changed(demo, generations="2")))
    with pytest.raises(UserError, match="not finished: corpus of generation 0"):
        check.check(planned, demo, Run.create("begun", demo))


@pytest.mark.slow
def test_a_real_run_leaves_the_files_that_were_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    file = tmp_path / "plan.json"
    assert main(["run", "smoke"]) == 0
    assert main(["plan", "smoke", "--check", "smoke", "--record", str(tmp_path / "machine.json"), "--output", str(file)]) == 0
    assert "wall clock" in capsys.readouterr().out
    assert calibration.load(str(tmp_path / "machine.json")).kind in ("cpu", "cuda")
    found, left = json.loads(file.read_text()), [path for path in (tmp_path / "smoke").rglob("*") if path.is_file()]
    assert len(left) == found["files"]
    assert sum(path.stat().st_size for path in left) == pytest.approx(found["bytes"], rel=0.4)  # a tiny run is mostly notebooks
