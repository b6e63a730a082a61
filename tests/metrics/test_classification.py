"""Fine-tuning against transformers' own classifier, and the metrics against scikit-learn and the textbook."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import read_json
from collapse_lib.experiment.lineage import steps_of
from collapse_lib.experiment.protocol import ClassificationSettings, Protocol, load_preset
from collapse_lib.experiment.run import Run
from collapse_lib.metrics import classification as module
from collapse_lib.metrics import crossed
from collapse_lib.metrics.classification import Classifier, Encoded, encode, finetune
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.text.tasks import Rows, read_tasks

VOCABULARY, EOS = 40, 39
CONFIG = GPTNeoConfig(VOCABULARY, 2, 16, 4, window_size=5, max_position_embeddings=32, initializer_range=0.3, eos_token_id=EOS)


def rows(count: int, seed: int = 0, longest: int = 20) -> Encoded:
    """Rows whose label is whether token 7 is in them: something to learn."""
    random = np.random.default_rng(seed)
    tokens = [random.integers(8, EOS, random.integers(1, longest)) for _ in range(count)]
    labels = np.arange(count) % 2
    for ids, label in zip(tokens, labels, strict=True):
        if label:
            ids[random.integers(len(ids))] = 7
    return Encoded(tokens, labels)


@pytest.fixture(scope="module")
def model() -> GPTNeo:
    return GPTNeo(CONFIG, seed=3)


def test_it_is_the_classifier_of_transformers(tmp_path, model):
    """Equal logits and equal gradients of every parameter, on right-padded rows of many lengths, one token among them."""
    from transformers import GPTNeoForSequenceClassification

    model.save_pretrained(tmp_path)
    theirs = GPTNeoForSequenceClassification.from_pretrained(tmp_path, num_labels=2, pad_token_id=EOS).eval()
    ours = Classifier(GPTNeo.from_pretrained(tmp_path), 2, torch.Generator().manual_seed(0))
    theirs.score.load_state_dict(ours.score.state_dict())
    data = rows(9)
    data.tokens[0] = data.tokens[0][:1]
    tokens, lengths, labels = data.batch(np.arange(9), torch.device("cpu"))
    as_theirs = torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], tokens, EOS)
    mine = ours(tokens, lengths)
    found = theirs(as_theirs, attention_mask=(as_theirs != EOS).long(), labels=labels)
    torch.testing.assert_close(mine, found.logits, atol=1e-5, rtol=1e-5)
    assert lengths.min() == 1 and lengths.max() > CONFIG.window_size
    loss = F.cross_entropy(mine, labels)
    torch.testing.assert_close(loss, found.loss, atol=1e-6, rtol=1e-5)
    loss.backward()
    found.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert len(gradients) == len(list(ours.parameters()))
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name.removeprefix("model.")], atol=1e-5, rtol=1e-4)


def test_the_optimisation_is_that_of_transformers_trainer(tmp_path, model):
    """Eight steps of either, over which the rate falls to nearly zero, give the same answers on sixty rows."""
    from transformers import GPTNeoForSequenceClassification, get_linear_schedule_with_warmup

    model.save_pretrained(tmp_path)
    theirs = GPTNeoForSequenceClassification.from_pretrained(tmp_path, num_labels=2, pad_token_id=EOS).train()
    settings, data = ClassificationSettings(learning_rate=1e-2, batch_size=4), rows(30)
    generator = torch.Generator().manual_seed(5)
    theirs.score.load_state_dict(Classifier(model, 2, generator).score.state_dict())
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 8)
    for chosen in torch.randperm(30, generator=generator).split(4):
        tokens, lengths, labels = data.batch(chosen.numpy(), torch.device("cpu"))
        padded = torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], tokens, EOS)
        theirs(padded, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    test = rows(60, seed=1)
    tokens, lengths, labels = test.batch(np.arange(60), torch.device("cpu"))
    predicted = theirs.eval()(torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], tokens, EOS)).logits.argmax(-1)
    assert np.array_equal(finetune(model, data, test, settings, classes=2, epochs=1, seed=5)[0], predicted.numpy())


def test_it_learns_repeats_itself_and_leaves_the_model_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = ClassificationSettings(learning_rate=1e-2, batch_size=8)
    seen = []
    first, loss = finetune(model, rows(400), rows(200, 1), settings, classes=2, epochs=3, seed=1, advance=seen.append)
    assert (first == rows(200, 1).labels).sum() > 150 and first.shape == (200,) and loss < 0.5 and sum(seen) == 3 * 400 + 200
    again = finetune(model, rows(400), rows(200, 1), settings, classes=2, epochs=3, seed=1)
    assert np.array_equal(first, again[0]) and loss == again[1]
    assert loss != finetune(model, rows(400), rows(10, 1), settings, classes=2, epochs=1, seed=2)[1]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_fraction_of_an_epoch_stops_early(model):
    seen = []
    finetune(model, rows(100), rows(10), ClassificationSettings(batch_size=8), classes=2, epochs=0.1, seed=1, advance=seen.append)
    assert seen == [8, 8, 10]  # two of thirteen batches, then the test rows


def test_a_diverged_training_is_said(model):
    with pytest.raises(UserError, match=r"smaller classification\.learning_rate"):
        finetune(model, rows(200), rows(10), ClassificationSettings(learning_rate=1e30), classes=2, epochs=1, seed=1)


@pytest.mark.parametrize("batch_tokens", [1, 64, 10**6])
def test_scoring_does_not_depend_on_the_batches(model, monkeypatch, batch_tokens):
    classifier = Classifier(model, 2, torch.Generator().manual_seed(0)).eval()
    data = rows(50)
    with torch.no_grad():
        expected = [int(classifier(torch.from_numpy(ids)[None], torch.tensor([len(ids)])).argmax()) for ids in data.tokens]
    monkeypatch.setitem(module.BATCH_TOKENS, "cpu", batch_tokens)
    assert module.answers(classifier, data).tolist() == expected and len(set(expected)) == 2


@pytest.mark.parametrize("max_length", [2, 3, 7, 10, 15, 16, 60])
def test_pairs_are_cut_as_tokenizers_cut_them(tokenizer, stories, max_length):
    pairs = [(stories[0], "Tom."), ("Tom.", stories[1]), (stories[2], stories[3]), ("", "A kite."), ("A kite.", "")]
    found = encode(Rows(pairs, np.zeros(5, dtype=np.int64)), tokenizer, max_length)
    reference = type(tokenizer._tokenizer).from_str(tokenizer._tokenizer.to_str())
    reference.enable_truncation(max_length, strategy="longest_first")
    assert [ids.tolist() for ids in found.tokens] == [reference.encode(*pair, add_special_tokens=False).ids for pair in pairs]
    single = encode(Rows([(text,) for text in stories[:3]], np.zeros(3, dtype=np.int64)), tokenizer, max_length)
    assert [ids.tolist() for ids in single.tokens] == [tokenizer.encode(text)[:max_length] for text in stories[:3]]


def test_the_separator_stands_between_the_texts(tokenizer):
    pair = Rows([("Tom.", "Mia.")], np.zeros(1, dtype=np.int64))
    (ids,) = encode(pair, tokenizer, 60, " | ").tokens
    assert tokenizer.decode(ids) == "Tom. | Mia."
    with pytest.raises(UserError, match=r"classification\.separator takes"):
        encode(pair, tokenizer, 3, " | ")


def test_grammar_pairs_have_the_tokens_of_the_corpus_story(tokenizer):
    (data,) = read_tasks(ClassificationSettings(tasks=("grammar_happy",), train_rows=5, test_rows=5))
    for pair, ids in zip(data.train.texts, encode(data.train, tokenizer, 10**6).tokens, strict=True):
        assert ids.tolist() == tokenizer.encode("".join(pair))


# --- the step -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run with a corpus and an untrained model's step to do, on the smallest tasks."""
    from collapse_lib import steps

    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    changes = {"tasks": "[grammar_fits, grammar_happy]", "seeds": "2", "train_rows": "24", "test_rows": "20", "max_length": "24"}
    protocol = load_preset("smoke").with_changes({f"classification.{name}": value for name, value in changes.items()})
    run = Run.create("one", protocol)
    steps.corpus(run)
    return run


def test_the_step_measures_every_task_and_leaves_nothing_behind(run):
    from collapse_lib import steps

    found = steps.classification(run, 0, "cpu")
    for task in ("grammar_fits", "grammar_happy"):
        metric = found["metrics"][f"{task}_accuracy"]
        assert metric["counts"] == {"train_rows": 24, "test_rows": 20, "fine_tunings": 2} and metric["standard_error"] > 0
        assert found["metrics"][f"{task}_accuracy_low"]["value"] <= metric["value"] <= found["metrics"][f"{task}_accuracy_high"]["value"]
        assert found["metrics"][f"{task}_accuracy_majority"]["value"] == 0.5 and found["metrics"][f"{task}_f1_majority"]["value"] == pytest.approx(
            1 / 3
        )
        assert np.mean(found["series"][f"{task}_accuracy_by_seed"]) == pytest.approx(metric["value"])
        example = found["examples"][task]
        assert example["train_balance"] == [12, 12] and np.sum(example["confusions"][0]) == 20
        true, answered = crossed.unpacked(example["true"], 20, 2), crossed.unpacked(example["answers"], 20, 2)
        assert true.sum() == 10 and (answered == true).mean(1).tolist() == found["series"][f"{task}_accuracy_by_seed"]
        assert "other fine-tunings" in found["metrics"][f"{task}_accuracy_low"]["definition"]
    assert found["metrics"]["tasks"]["value"] == 2
    assert not (run.generation_folder(0) / "classification").exists()
    assert run.step(0, "classification").metrics_file.stat().st_size < 20_000


def test_fine_tunings_of_a_task_learn_from_different_rows(run, monkeypatch):
    """One task's accuracy was 0.52 on one draw of training rows and 0.92 on another; the same number draws alike for every model."""
    from collapse_lib import steps

    drawn, real = [], module.finetune

    def watched(model, train, test, *rest, **named):
        drawn.append((named["seed"], [ids.tolist() for ids in train.tokens], [ids.tolist() for ids in test.tokens]))
        return real(model, train, test, *rest, **named)

    monkeypatch.setattr(module, "finetune", watched)
    steps.classification(run, 0, "cpu")
    assert len(drawn) == 4
    for one, other in (drawn[0::2], drawn[1::2]):
        assert one[0] != other[0] and one[1] != other[1] and one[2] == other[2]
    run.step(0, "classification").manifest_file.unlink()
    steps.classification(run, 0, "cpu")
    assert drawn[4:] == drawn[:4]


def test_an_interrupted_step_goes_on_and_ends_alike(run, monkeypatch, capsys):
    from collapse_lib import steps

    whole = steps.classification(run, 0, "cpu")
    step = run.step(0, "classification")
    step.manifest_file.unlink()
    calls, real = [], module.finetune

    def interrupted(*arguments, **named):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(named["seed"])
        return real(*arguments, **named)

    monkeypatch.setattr(module, "finetune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps.classification(run, 0, "cpu")
    assert len(list((step.folder / "classification").glob("*.json"))) == 3 and step.results() is None
    monkeypatch.setattr(module, "finetune", lambda *arguments, **named: calls.append(named["seed"]) or real(*arguments, **named))
    again = steps.classification(run, 0, "cpu")
    assert len(calls) == 4 == len(set(calls))  # only the missing one was done
    assert re.findall(r"fine-tuning: +(\d+)%", capsys.readouterr().out)[-1] == "100"
    assert {name: again[name] for name in ("metrics", "series", "examples")} == {name: whole[name] for name in ("metrics", "series", "examples")}


def test_what_another_model_left_is_not_taken(run, tmp_path, model, tokenizer):
    settings = ClassificationSettings(tasks=("grammar_happy",), train_rows=16, test_rows=8, max_length=16)
    tasks = read_tasks(settings)
    big = GPTNeo(GPTNeoConfig(tokenizer.vocabulary, 1, 8, 2, window_size=8, max_position_embeddings=16), seed=1)
    kept = {"seed": lambda purpose: 1, "folder": tmp_path / "kept"}
    module.classify(big, tasks, tokenizer, settings, identity={"model": "a"}, **kept)
    place = tmp_path / "kept" / "grammar_happy-0.json"
    written = place.stat().st_mtime_ns
    module.classify(big, tasks, tokenizer, settings, identity={"model": "a"}, **kept)
    assert place.stat().st_mtime_ns == written
    module.classify(big, tasks, tokenizer, settings, identity={"model": "b"}, **kept)
    assert read_json(place)["made_from"]["model"] == "b"


def test_bad_data_stops_the_run_before_anything_is_trained(run):
    from collapse_lib import steps

    other = Run.create("one", run.protocol.with_changes({"classification.tasks": "[grammar_fits, sst2]", "classification.data": "nowhere"}))
    with pytest.raises(UserError, match=r"no folder 'nowhere/glue/sst2' for task 'sst2'"):
        steps.classification(other, 0, "cpu")
    assert not (run.generation_folder(0) / "classification").exists()


def test_which_generations_are_classified():
    protocol = Protocol.from_fields({"corpus": {"stories": 10}, "generations": 9, "classification": {"tasks": ["cola"], "every": 3}})
    assert [generation for generation in range(10) if "classification" in steps_of(protocol, generation)] == [0, 1, 4, 7, 9]
    assert steps_of(protocol, 0)[-1] == steps_of(protocol, 1)[-1] == "classification"
    without = Protocol.from_fields({"corpus": {"stories": 10}})
    assert not any("classification" in steps_of(without, generation) for generation in range(9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["sst3"]}, r"'classification.tasks' is 'sst3', which is not allowed: input should be 'imdb', 'sst2'"),
        ({"tasks": ["cola", "cola"]}, r"classification\.tasks names 'cola' more than once"),
        ({"tasks": ["cola"], "max_length": 4096}, r"classification\.max_length is 4096, more than model\.max_position_embeddings"),
        ({"epochs": {"cola": 0}}, r"classification\.epochs"),
        ({"test_rows": 0}, r"classification\.test_rows"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        Protocol.from_fields({"corpus": {"stories": 10}, "classification": change})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_repeats_itself_and_agrees_with_the_cpu(model):
    settings = ClassificationSettings(learning_rate=1e-2, batch_size=8)
    work = {"classes": 2, "epochs": 1, "seed": 1}
    import copy

    there = copy.deepcopy(model).to("cuda")
    first, again = (finetune(there, rows(300), rows(200, 1), settings, **work) for _ in range(2))
    assert np.array_equal(first[0], again[0]) and first[1] == pytest.approx(finetune(model, rows(300), rows(200, 1), settings, **work)[1], rel=0.05)
