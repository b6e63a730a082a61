"""What ``collapse plan`` reckons, held to exact arithmetic; and, slowly, to what a small run really takes."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from collapse_lib.cli import main
from collapse_lib.cost import calibration, plan
from collapse_lib.cost.calibration import Calibration
from collapse_lib.cost.plan import Text
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS, steps_of
from collapse_lib.experiment.protocol import Protocol, load_preset, preset_names
from collapse_lib.experiment.run import Run
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.sample import cpu as sampling
from collapse_lib.train.loop import Blocks, epoch_batches

TEXT = Text(1000, 100, 2048, ((0.5, 99.0), (0.5, 199.0)))


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


def machine(protocol: Protocol, vocabulary: int = TEXT.vocabulary, **changes) -> Calibration:
    """A machine of round numbers, measured with the protocol's own model."""
    config = GPTNeoConfig.from_settings(protocol.model, vocabulary, vocabulary - 1)
    units = dict.fromkeys(Calibration.__annotations__, 1.0)
    told = {"device": "a processor", "kind": "cpu", "date": "2024-01-01", "versions": {}, "model": asdict(config), "batch_tokens": 1024}
    counts = {"decode_rows": 512, "base_memory": 10**8, "device_memory": 0, "workers": 2, "decode": ((1, 1.0), (128, 1.0)), "text_tokens": 1000}
    return Calibration(**units | told | counts | changes)


def seconds(protocol: Protocol, step: str, generation: int = 2, text: Text = TEXT, gpus: int = 1, **changes) -> float:
    found = plan.plan(protocol, machine(protocol, text.vocabulary, **changes), text, gpus)
    return found.generations[generation].seconds[step]


def changed(protocol: Protocol, **fields: str) -> Protocol:
    return protocol.with_changes({name.replace("__", "."): value for name, value in fields.items()})


def nothing_but(**costs: float) -> dict[str, float]:
    """Costs of which all but some are zero."""
    names = [name for name, kind in Calibration.__annotations__.items() if kind == "float"]
    return dict.fromkeys(names, 0.0) | {"decode": ((1, 0.0),)} | costs


# Amounts of work.


@pytest.mark.parametrize("overflow", ["extend", "hop", "slide"])
@pytest.mark.parametrize("length", [5, 8, 9, 30])
def test_contexts_are_those_that_sampling_has(overflow, length, monkeypatch):
    config = GPTNeoConfig(vocab_size=300, num_layers=1, hidden_size=8, num_heads=2, window_size=4, max_position_embeddings=64)
    model = GPTNeo(config, seed=1)
    settings = load_preset("demo").sampling.model_copy(update={"length": length, "max_context": 8, "overflow": overflow, "sequences": 1})
    seen, encoded = [], []
    step, forward = sampling._Cache._step, GPTNeo.forward
    monkeypatch.setattr(sampling._Cache, "_step", lambda self, tokens: (seen.append(self.filled + 1), step(self, tokens))[1])
    monkeypatch.setattr(GPTNeo, "forward", lambda self, tokens, *more, **named: (encoded.append(tokens), forward(self, tokens, *more, **named))[1])
    sampling.sample_rows(model, settings, range(1), seed=1)
    expected, anew = plan.contexts(length, 8, overflow)
    # The first forward pass is of the released code's masked start, whether it is used or not.
    assert (seen, sum(tokens.shape[1] for tokens in encoded[1:])) == (expected.tolist(), anew)


@pytest.mark.parametrize("layout", ["contiguous", "story_per_row"])
def test_epochs_have_the_steps_that_training_takes(layout, demo, tmp_path):
    protocol = changed(demo, training__layout=layout, training__batch_size="16", training__block_size="50")
    corpus = calibration._corpus(tmp_path, [np.zeros(80, int)] * 101, 300)
    blocks = Blocks(corpus, protocol.training)
    tokens, steps = plan._Work(protocol, machine(protocol), TEXT, 1).training(corpus.rows, corpus.tokens)
    assert tokens == len(blocks) * 50
    assert steps == len(epoch_batches(len(blocks), protocol.training, 1, 0))


def test_sizes_of_stories_are_drawn_as_often_as_they_occur():
    assert TEXT.mean == 150  # with the '<|endoftext|>' that ends a story
    assert sorted(TEXT.sample(10)) == [99] * 5 + [199] * 5


# Seconds.


def test_every_step_of_every_generation_has_its_time(demo):
    for protocol in (demo, *(changed(load_preset(name), generations="7") for name in preset_names() if name != "tinystories-small")):
        found = plan.plan(protocol, machine(protocol), TEXT)
        for generation in found.generations:
            assert list(generation.seconds) == steps_of(protocol, generation.number)
            assert all(value > 0 for value in generation.seconds.values())
    judged = changed(load_preset("smoke"), gpt_eval__judge="a-judge")
    assert set(plan.plan(judged, machine(judged), TEXT).by_step) == set(STEPS)


def test_twice_the_sequences_take_twice_the_time_and_the_disk(demo):
    double = changed(demo, sampling__sequences=str(2 * demo.sampling.sequences))
    assert seconds(double, "sample") == 2 * seconds(demo, "sample") == 2 * 1536 * 128
    ours, theirs = (plan.plan(protocol, machine(demo), TEXT).generations[2] for protocol in (demo, double))
    shards = 3
    assert theirs.bytes - ours.bytes == 1536 * (129 * 2 + 4) + shards * plan.SHARD_BYTES
    assert theirs.files - ours.files == shards


def test_decoding_costs_what_was_measured_at_its_contexts(demo):
    costs = nothing_but(decode=((1, 1.0), (128, 128.0)))
    assert seconds(demo, "sample", **costs) == pytest.approx(1536 * sum(range(1, 129)))


def test_a_hop_encodes_half_a_window(demo):
    short = changed(demo, sampling__max_context="64", sampling__length="65")
    assert seconds(short, "sample", **nothing_but(encode_token=1.0)) == 1536 * 32


def test_training_is_tokens_and_steps_and_checkpoints(demo):
    fixed = changed(demo, training__epochs="2", training__checkpoint_every="10")
    tokens = 1536 * 129
    blocks = (tokens - 1) // 128
    steps = -(-blocks // 8)
    assert seconds(fixed, "train", **nothing_but(train_token=1.0)) == 2 * blocks * 128
    assert seconds(fixed, "train", **nothing_but(train_step=1.0)) == 2 * steps
    assert seconds(fixed, "train", **nothing_but(checkpoint=1.0)) == 2 * -(-steps // 10)
    assert seconds(fixed, "train", **nothing_but(train_call=7.0)) == 7


def test_early_stopping_tries_one_epoch_more_in_generation_1_only(demo):
    longer = changed(demo, training__max_epochs="10")
    costs = nothing_but(train_step=1.0)
    assert seconds(longer, "train", 1, **costs) / seconds(changed(demo, training__epochs="1"), "train", 1, **costs) == 4
    assert seconds(longer, "train", 2, **costs) == seconds(changed(demo, training__epochs="3"), "train", 2, **costs)
    capped = plan.plan(demo, machine(demo), TEXT)
    assert any("assumed to find 3 epochs" in note and "tries" not in note for note in capped.notes)
    assert any("generation 1 tries 4" in note for note in plan.plan(longer, machine(longer), TEXT).notes)


def test_perplexity_shows_a_whole_window_for_each_token_beyond_the_context(demo):
    text = replace(TEXT, lengths=((1.0, 130),))
    # The first 128 tokens behind the start token in one window, the last two in one of 129 tokens each; and what lies before the end.
    paper, ends = 3 * 129, 128
    released = 128 + 2  # by the other definition the last two have a window of their own
    assert seconds(demo, "perplexity", text=text, **nothing_but(encode_token=1.0)) == 100 * (paper + ends + released)
    assert seconds(demo, "perplexity", text=text, **nothing_but(head_token=1.0)) == 100 * (130 + 1 + 130)
    # The other way round it is the same work.
    turned = changed(demo, evaluation__perplexity="released")
    assert seconds(turned, "perplexity", text=text, **nothing_but(encode_token=1.0)) == 100 * (paper + ends + released)


def test_another_model_is_scaled_by_its_flop_and_said_to_be(demo):
    wide = changed(demo, model__hidden_size="128")
    costs = machine(demo, **nothing_but(train_token=1.0))
    ours, theirs = (plan.plan(protocol, costs, TEXT) for protocol in (demo, wide))
    models = [plan._Work(protocol, costs, TEXT, 1).model for protocol in (demo, wide)]
    ratio = models[1].flops_per_token(64) / models[0].flops_per_token(64)
    assert theirs.by_step["train"] == pytest.approx(ratio * ours.by_step["train"])
    assert any("another shape" in note for note in theirs.notes) and not any("another shape" in note for note in ours.notes)


def test_gpus_share_training_and_sampling_alone(demo):
    one, four = (plan.plan(demo, machine(demo, kind="cuda", device_memory=8 * 10**10), TEXT, gpus) for gpus in (1, 4))
    for step, value in one.by_step.items():
        share = 4 * plan.EFFICIENCY if step in ("train", "sample") else 1
        assert four.by_step[step] == pytest.approx(value / share)
    assert four.gpu_hours == pytest.approx(4 * four.seconds / 3600)
    assert any("assumed, not measured" in note for note in four.notes)
    assert set(one.memory) == {"host", "GPU"}
    assert plan.plan(demo, machine(demo), TEXT).gpu_hours == 0


def test_a_paper_run_keeps_two_bytes_a_token_and_four_a_parameter():
    protocol = load_preset("paper-33m")
    text = plan.text_of(protocol)
    found = plan.plan(protocol, machine(protocol, text.vocabulary), text)
    assert found.parameters == 68_514_048
    sampled = found.generations[2].bytes - 4 * found.parameters
    assert 2.0 < sampled / 6.01e8 < 2.02
    assert found.scratch == 16 * found.parameters


# The text.


def test_a_hub_corpus_is_not_fetched(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("asked the network"))
    text = plan.text_of(load_preset("paper-1m"))
    assert text.vocabulary == 50257
    assert text.stories * text.mean == pytest.approx(4.7e8)
    assert "not fetched" in text.note and "TinyStories" in text.note
    fewer = plan.text_of(changed(load_preset("paper-1m"), corpus__stories="1000"))
    assert (fewer.stories, fewer.mean) == (1000, text.mean)


def test_a_file_is_counted(tmp_path, stories, demo):
    file = tmp_path / "stories.txt"
    file.write_text("<|endoftext|>\n".join(stories), encoding="utf-8")
    text = plan.text_of(
        changed(demo, corpus__source=str(file), corpus__stories="null", corpus__validation_stories="null", tokenizer__vocabulary="300")
    )
    assert text.stories + text.validation_stories == len(stories)
    assert 5 < text.mean < 60


def test_the_grammar_is_looked_at(demo):
    text = plan.text_of(demo)
    assert (text.stories, text.validation_stories, text.vocabulary) == (1500, 200, 2048)
    assert sum(share for share, _ in text.lengths) == pytest.approx(1)


# Recorded machines, the command, the check.


def test_a_recorded_machine_reads_back(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    measured = machine(demo)
    (tmp_path / "bench").mkdir()
    measured.save(tmp_path / "bench" / "mine.json")
    (tmp_path / "bench" / "report.json").write_text('{"bench": "sampling"}')
    assert calibration.load("mine") == calibration.load(str(tmp_path / "bench" / "mine.json")) == measured
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
    assert main(["plan", "demo", "--machine", recorded, "--generations", "3", *early, "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    for word in ("whole run", "GPU hours", "disk", "memory", "most is", "assumed to find 3 epochs"):
        assert word in shown
    found = json.loads(file.read_text())
    assert len(found["generations"]) == 4
    assert found["seconds"] == pytest.approx(sum(found["by_step"].values()) + found["overhead"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "no preset 'nonsense'"),
        (["demo", "--machine", "nowhere"], "no recorded machine 'nowhere'"),
        (["demo", "--machine", "MACHINE", "--gpus", "0"], "--gpus is 0"),
        (["demo", "--machine", "MACHINE", "--gpus", "2"], "is a CPU"),
        (["demo", "--machine", "MACHINE", "--record", "x.json"], "one of the two"),
        (["demo", "--machine", "MACHINE", "--json", "nowhere/plan.json"], "no folder"),
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
    found = plan.plan(demo, machine(demo), TEXT)
    with pytest.raises(UserError, match=r"another training\.batch_size"):
        plan.check(found, demo, Run.create("other", changed(demo, training__batch_size="4")))
    with pytest.raises(UserError, match="has 2 generations, the plan 8"):
        plan.check(found, demo, Run.create("short", changed(demo, generations="2")))
    with pytest.raises(UserError, match="not finished: corpus of generation 0"):
        plan.check(found, demo, Run.create("begun", demo))


@pytest.mark.slow
def test_a_real_run_leaves_the_files_that_were_planned(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    file = tmp_path / "plan.json"
    assert main(["run", "smoke"]) == 0
    assert main(["plan", "smoke", "--check", "smoke", "--record", str(tmp_path / "machine.json"), "--json", str(file)]) == 0
    assert "wall clock" in capsys.readouterr().out
    assert calibration.load(str(tmp_path / "machine.json")).kind in ("cpu", "cuda")
    found, left = json.loads(file.read_text()), [path for path in (tmp_path / "smoke").rglob("*") if path.is_file()]
    assert len(left) == found["files"]
    assert sum(path.stat().st_size for path in left) == pytest.approx(found["bytes"], rel=0.4)  # a tiny run is mostly notebooks
