"""Diversity against plain references: loops over all references, a matrix root, and counting by hand."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.diversity import block_bleus, compression_ratio, distinct_shares, features, frechet_distance, self_bleu, text_distance
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig


def naive_bleu(text: list[int], references: list[list[int]]) -> float:
    """Papineni et al.'s BLEU-4 of one sentence as NLTK computes it with its smoothing method 1."""
    total = 0.0
    for n in range(1, 5):
        counted, references_counted = (
            [Counter(tuple(each[i : i + n]) for i in range(len(each) - n + 1)) for each in some] for some in ([text], references)
        )
        matches = sum(min(count, max(reference[gram] for reference in references_counted)) for gram, count in counted[0].items())
        if n == 1 and not matches:
            return 0.0
        total += math.log((matches or 0.1) / max(1, len(text) - n + 1)) / 4
    closest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    return math.exp(total) * (1.0 if len(text) > closest else math.exp(1 - closest / len(text)))


def test_self_bleu_equals_the_loop_over_references():
    random = np.random.default_rng(1)
    for words in (2, 6, 40, 1000):
        texts = [random.integers(0, words, length).tolist() for length in random.integers(1, 25, 20)]
        expected = [naive_bleu(text, texts[:number] + texts[number + 1 :]) for number, text in enumerate(texts)]
        assert block_bleus(texts) == pytest.approx(expected)


def test_self_bleu_of_copies_and_of_strangers():
    text = list(range(20))
    assert block_bleus([text] * 3) == pytest.approx([1.0] * 3)
    assert block_bleus([text, [word + 100 for word in text], []]) == pytest.approx([0.0] * 3)
    assert block_bleus([text, text, [word + 100 for word in text]]) == pytest.approx([1.0, 1.0, 0.0])


def test_blocks_are_equal_and_are_the_units():
    texts = [[1, 2, 3, 4, 5]] * 4 + [[number] * 5 for number in range(4)] + [[9] * 5]
    found = self_bleu(texts, 4)
    assert found["value"] == pytest.approx(0.5) and found["counts"] == {"blocks": 2} and found["standard_error"] == pytest.approx(0.5)
    assert "standard_error" not in self_bleu(texts, 9)
    for size in (1, 10):
        with pytest.raises(UserError, match=f"Blocks of {size} of 9 texts"):
            self_bleu(texts, size)


def naive_distinct(rows: list[list[int]], n: int) -> float:
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def test_distinct_shares_of_equal_blocks():
    random = np.random.default_rng(2)
    rows = [random.integers(0, 4, length).astype(np.uint16) for length in (7, 5, 9, 3, 10, 1, 8)]
    lists = [row.tolist() for row in rows]
    blocks = [[lists[0], lists[1], lists[2][:1]], [lists[3], lists[4]], [lists[5], lists[6][:12]]][:2]  # 13 tokens each; 9 are left over
    found = distinct_shares(rows, 13)
    for n in (1, 2, 3, 4):
        shares = [naive_distinct(block, n) for block in blocks]
        assert found[f"distinct_{n}"]["value"] == pytest.approx(np.mean(shares))
        assert found[f"distinct_{n}"]["standard_error"] == pytest.approx(abs(shares[0] - shares[1]) / 2)
    with pytest.raises(UserError, match="block of 44 tokens cannot be made of 43"):
        distinct_shares(rows, 44)


def test_more_blocks_of_one_size_do_not_change_the_expected_share():
    random = np.random.default_rng(3)
    found = [distinct_shares(list(random.integers(0, 300, (rows, 20)).astype(np.uint16)), 400)["distinct_1"] for rows in (40, 4000)]
    assert abs(found[0]["value"] - found[1]["value"]) < 4 * found[0]["standard_error"]
    assert found[1]["standard_error"] < found[0]["standard_error"]


def test_repetitive_text_compresses_better():
    random = np.random.default_rng(4)
    different = ["".join(random.choice(list("abcdefgh "), 200)) for _ in range(40)]
    same = [different[number % 2] for number in range(40)]
    assert compression_ratio(same, 20)["value"] > 3 * compression_ratio(different, 20)["value"] > 3
    assert compression_ratio(different, 20)["standard_error"] < 0.05


CONFIG = GPTNeoConfig(30, 2, 16, 4, window_size=5, max_position_embeddings=24, initializer_range=0.5, eos_token_id=0)


@torch.no_grad()
def test_features_are_averages_over_a_texts_own_tokens():
    model, random = GPTNeo(CONFIG, seed=1), np.random.default_rng(5)
    texts = [np.append(0, random.integers(1, 30, length)).astype(np.uint16) for length in (1, 12, 5, 23, 40)]
    found = features(model, texts, batch_tokens=50)
    for text, feature in zip(texts, found, strict=True):
        hidden = model(torch.from_numpy(text[:24].astype(np.int64))[None])[0, 1:]
        assert feature == pytest.approx(hidden.mean(0).numpy(), abs=1e-5)
    with pytest.raises(UserError, match="an empty text"):
        features(model, [np.array([0], np.uint16)])


def test_frechet_distance_equals_its_formula():
    from scipy.linalg import sqrtm

    random = np.random.default_rng(6)
    one, other = random.normal(size=(60, 5)) @ random.normal(size=(5, 5)), random.normal(1, 2, (80, 5))
    s1, s2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2).real)
    assert frechet_distance(one, other) == pytest.approx(expected)
    assert frechet_distance(other, one) == pytest.approx(expected)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    few = random.normal(size=(4, 9))  # fewer texts than features
    assert frechet_distance(few, few + 2) == pytest.approx(36)


def test_the_distance_of_two_gaussians_is_known():
    random = np.random.default_rng(7)
    found = text_distance(random.normal(size=(8000, 3)), random.normal([1, 0, 0], [1, 2, 1], (8000, 3)), 2000)
    assert abs(found["value"] - 2) < 4 * found["standard_error"] + 0.02 and found["counts"] == {"blocks": 4}
