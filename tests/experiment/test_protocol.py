"""Presets are valid, and what is wrong with a protocol is said in one sentence."""

from importlib import resources

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.protocol import FREE_FIELDS, Protocol, load_preset, preset_names


def test_the_presets_that_the_documentation_names_are_there():
    ours = ["smoke", "demo", "laboratory", "tinystories-small", "reference-small", "reference-large"]
    assert preset_names() == [*ours, "paper-1m", "paper-33m", "released-1m", "released-33m"]


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid_and_survive_yaml(name):
    protocol = load_preset(name)
    assert Protocol.from_yaml(protocol.to_yaml()) == protocol
    assert protocol.description


@pytest.mark.parametrize("name", preset_names())
def test_presets_spell_out_model_training_and_sampling(name):
    """So that a reader sees all of them, and that a bench can read them where there is no pydantic to fill them up."""
    text = yaml.safe_load((resources.files("collapse_lib.experiment") / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))
    spelled_out = load_preset(name).model_dump(mode="json")
    for section in ("model", "training", "sampling"):
        assert text[section] == spelled_out[section]
        assert {field: type(value) for field, value in text[section].items()} == {field: type(value) for field, value in spelled_out[section].items()}


def test_a_falling_rate_needs_to_know_its_last_step():
    demo = load_preset("demo")
    assert demo.training.schedule == "linear" and load_preset("paper-1m").training.schedule == "constant"
    with pytest.raises(UserError, match=r"give training\.epochs a number"):
        demo.with_changes({"training.epochs": "early_stopping"})


@pytest.mark.parametrize("size", ["1m", "33m"])
def test_paper_presets_say_what_the_paper_says(size):
    protocol = load_preset(f"paper-{size}")
    assert (protocol.generations, protocol.training.batch_size, protocol.training.learning_rate) == (40, 320, 5e-4)
    assert (protocol.sampling.sequences, protocol.sampling.length, protocol.sampling.temperature) == (1_000_000, 600, 1.0)
    assert (protocol.sampling.top_k, protocol.sampling.top_p, protocol.sampling.max_context) == (None, None, 512)
    assert (protocol.training.betas, protocol.training.weight_decay, protocol.training.holdout) == ((0.9, 0.95), 0.1, 0.05)


def test_released_presets_differ_from_the_paper_where_the_code_does():
    changed = set(load_preset("paper-1m").differences(load_preset("released-1m")))
    assert {
        "training.layout",
        "training.epochs",
        "training.eos_is_target",
        "training.data_order",
        "sampling.start",
        "sampling.after_eos",
        "sampling.overflow",
        "evaluation.perplexity",
    } <= changed


def test_the_hash_of_sections_ignores_free_fields_and_other_sections():
    protocol = load_preset("smoke")
    names = ("seed", "sampling", "training.holdout")
    assert set(protocol.deciding(names)) >= {"seed", "sampling.length", "training.holdout"}
    for field in ("generations", "sampling.batch_size", "training.learning_rate", "evaluation.max_context"):
        assert protocol.with_changes({field: "0.0004" if field == "training.learning_rate" else "7"}).hash(names) == protocol.hash(names)
    changes = {"seed": "2", "sampling.temperature": "0.9", "sampling.length": "47", "training.holdout": "0.2"}
    hashes = {protocol.with_changes({field: value}).hash(names) for field, value in changes.items()}
    assert len(hashes | {protocol.hash(names)}) == len(changes) + 1
    assert set(FREE_FIELDS) <= set(protocol.flat())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("training.batch_size", "0", "training.batch_size"),
        ("training.batch_sise", "8", "did you mean training.batch_size"),
        ("learning_rate", "1", "training.learning_rate"),
        ("training.epochs", "many", "'early_stopping'"),
        ("training.holdout", "1.0", "less than 1"),
        ("training.micro_batch_size", "5", "not a multiple"),
        ("model.num_heads", "5", "choose a multiple"),
        ("model.attention_pattern", "[global, sideways]", "'local'"),
        ("model.attention_pattern", "[]", "model.attention_pattern"),
        ("sampling.top_p", "1.5", "less than or equal to 1"),
        ("sampling.temperature", "-1", "greater than or equal to 0.001"),
        ("sampling.overflow", "wrap", "'slide'"),
        ("sampling.max_context", "4096", "model.max_position_embeddings"),
        ("training.block_size", "4096", "model.max_position_embeddings"),
        ("corpus.stories", "null", "no end"),
        ("corpus.stories", "1", "greater than or equal to 2"),
        ("corpus.stories", "[1", "not a plain value"),
        ("tokenizer.vocabulary", "3", "allowed is 257"),
        ("tokenizer.vocabulary", "65537", "to 65536"),
        ("seed", "-1", "seed"),
        ("training", "1", "no field"),
    ],
)
def test_wrong_values_are_named_in_one_sentence(field, value, said):
    with pytest.raises(UserError) as raised:
        load_preset("smoke").with_changes({field: value})
    message = str(raised.value)
    assert said in message and "\n" not in message and message.endswith(".")


def test_changes_may_be_values_and_whole_sections():
    typed = {"seed": 2, "sampling": {"temperature": 0.9, "top_k": None}, "model.attention_pattern": ["global"], "training": {"learning_rate": "1e-3"}}
    text = {
        "seed": "2",
        "sampling.temperature": "0.9",
        "sampling.top_k": "null",
        "model.attention_pattern": "[global]",
        "training.learning_rate": "1e-3",
    }
    assert load_preset("smoke").with_changes(typed) == load_preset("smoke").with_changes(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"seed": {"a": 1}}, "field 'seed'"), ({"sampling": {"heat": 1}}, "sampling.heat"), ({3: 1}, "no field '3'"), ([1], "values by field")],
)
def test_changes_of_another_form_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        load_preset("smoke").with_changes(changes)


@pytest.mark.parametrize("text", ["[1, 2]", "generations: [", "nonsense: 1", "generations: none"])
def test_a_wrong_protocol_file_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load_preset(str(path))


def test_unknown_presets_and_files_are_named():
    with pytest.raises(UserError, match="there are smoke, demo"):
        load_preset("big")
    with pytest.raises(UserError, match=r"no protocol file 'absent\.yaml'"):
        load_preset("absent.yaml")


@given(st.floats(min_value=1e-8, max_value=10, allow_nan=False))
def test_numbers_given_as_text_mean_what_they_say(rate):
    assert load_preset("smoke").with_changes({"training.learning_rate": repr(rate)}).training.learning_rate == rate


@given(st.text(max_size=12))
def test_any_text_is_either_valid_or_refused_in_one_sentence(text):
    try:
        load_preset("smoke").with_changes({"training.epochs": text})
    except UserError as error:
        assert str(error).count("\n") == 0
