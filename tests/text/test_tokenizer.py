"""Learned and loaded tokenizers: exact round trips, determinism, the special token kept out of text, folders that transformers opens."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collapse_lib.experiment.errors import UserError
from collapse_lib.text import tokenizer as tokenization
from collapse_lib.text.tokenizer import EOS

LEARN_AND_HASH = "import sys; from collapse_lib.text import tokenizer as t; print(t.learn(iter(sys.stdin.read().split('|')), 300).hash)"


def test_learned_tokens_are_longer_than_bytes_and_decode_to_the_text(tokenizer, stories):
    assert tokenizer.vocabulary == 300
    assert tokenizer.encode_batch(stories) == [tokenizer.encode(story) for story in stories]
    for story in stories:
        ids = tokenizer.encode(story)
        assert len(ids) < len(story.encode()) / 2
        assert tokenizer.decode(ids) == story


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocabulary and token != tokenizer.eos_id for token in ids)


def test_the_special_token_never_comes_from_text(tokenizer):
    spelled = f"one{EOS}two {EOS}"
    for ids in (tokenizer.encode(spelled), *tokenizer.encode_batch([spelled])):
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == spelled
    assert tokenizer.decode(np.array([tokenizer.eos_id, tokenizer.eos_id], np.uint16)) == EOS + EOS


def test_broken_utf8_decodes_to_the_replacement_character(tokenizer):
    first, *rest = tokenizer.encode("\N{SNOWMAN}")
    assert rest, "a snowman is three bytes that were never merged"
    assert tokenizer.decode([first]) == "\N{REPLACEMENT CHARACTER}"


def test_learning_is_deterministic_across_processes_and_depends_on_the_text(tokenizer, stories):
    assert not any("|" in story for story in stories)
    runs = [
        subprocess.run([sys.executable, "-c", LEARN_AND_HASH], input="|".join(texts), capture_output=True, text=True, check=True).stdout.strip()
        for texts in (stories, stories[1:40])
    ]
    assert runs[0] == tokenizer.hash
    assert runs[1] != tokenizer.hash


def test_a_small_text_gives_a_smaller_vocabulary():
    tokenizer = tokenization.learn(iter(["ab ab"]), 400)
    assert 257 <= tokenizer.vocabulary < 262


@pytest.mark.parametrize("vocabulary", [256, 65537])
def test_impossible_vocabularies_are_refused(vocabulary):
    with pytest.raises(UserError, match=rf"tokenizer\.vocabulary is {vocabulary}; allowed is 257 .* to 65536"):
        tokenization.learn(iter(["text"]), vocabulary)


def test_save_and_load_give_the_same_tokenizer(tokenizer, stories, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    for source in (tmp_path / "tokenizer", str(tmp_path / "tokenizer" / "tokenizer.json")):
        loaded = tokenization.load(source)
        assert (loaded.hash, loaded.vocabulary, loaded.eos_id) == (tokenizer.hash, tokenizer.vocabulary, tokenizer.eos_id)
        assert loaded.encode_batch(stories) == tokenizer.encode_batch(stories)
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("beside_a_model", [False, True])
def test_transformers_opens_the_folder(tokenizer, stories, tmp_path, beside_a_model):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    if beside_a_model:  # the model's type must not make transformers build another kind of tokenizer
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neo", "vocab_size": tokenizer.vocabulary}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == tokenizer.vocabulary
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == tokenizer.eos_id
    assert theirs(stories, add_special_tokens=False)["input_ids"] == tokenizer.encode_batch(stories)
    ids = [tokenizer.eos_id, *tokenizer.encode("Tom , said  .")]
    assert theirs.decode(ids) == tokenizer.decode(ids)


def test_real_gpt2_files(real_data, tmp_path):
    gpt2 = tokenization.load(real_data / "tokenizer")
    assert (gpt2.vocabulary, gpt2.eos_id) == (50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 995, 50256]) == f"Hello world{EOS}"
    gpt2.save(tmp_path)
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tmp_path)
    text = "Lily's dog said:  \"I can't!\"\n\nThen they went 1234 miles… to the café."
    assert theirs(text)["input_ids"] == gpt2.encode(text)
    assert AutoTokenizer.from_pretrained(real_data / "tokenizer")(text)["input_ids"] == gpt2.encode(text)


def test_unusable_tokenizers_are_refused_in_one_sentence(tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "pair").mkdir()
    (tmp_path / "pair" / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "pair" / "merges.txt").write_text("#version: 0.2\nb c\n")
    tokenizer.save(tmp_path / "other")
    definition = (tmp_path / "other" / "tokenizer.json").read_text()
    (tmp_path / "other" / "tokenizer.json").write_text(definition.replace(EOS, "</s>"))
    large = json.loads(definition)
    large["model"]["vocab"]["zzz"] = 70_000
    (tmp_path / "large.json").write_text(json.dumps(large))
    for name, complaint in {
        "empty": "has neither tokenizer.json nor vocab.json and merges.txt",
        "broken.json": "cannot be read as a tokenizer.json",
        "pair": "cannot be read as a tokenizer",
        "other": r"has no token '<\|endoftext\|>'",
        "large.json": "has 70001 tokens; token ids are stored in 16 bits",
        "missing/tokenizer.json": "is no local folder or file",
    }.items():
        with pytest.raises(UserError, match=complaint) as refusal:
            tokenization.load(tmp_path / name)
        assert name in str(refusal.value) and "\n" not in str(refusal.value)
