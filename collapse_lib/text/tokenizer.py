"""Text to tokens and back: byte-level BPE, learned from the initial corpus or loaded, the same for every generation of a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.errors import UserError, first_line
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.limits import LARGEST_VOCABULARY, check_learned_vocabulary

if TYPE_CHECKING:
    import tokenizers

EOS = "<|endoftext|>"


class Tokenizer:
    """A byte-level BPE tokenizer whose one special token is ``<|endoftext|>``.

    Attributes: ``vocabulary`` (number of token ids), ``eos_id``.
    Text never turns into the special token: a story that spells ``<|endoftext|>`` is encoded like any other characters.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str) -> None:
        eos_id = tokenizer.token_to_id(EOS)
        if eos_id is None:
            raise UserError(f"Tokenizer '{name}' has no token '{EOS}', which separates the stories.")
        tokenizer.add_special_tokens([EOS])  # some files list it as an ordinary token; its id stays
        tokenizer.encode_special_tokens = True  # the special token's spelling in a text is text
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.eos_id: int = eos_id
        self.vocabulary: int = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if self.vocabulary > LARGEST_VOCABULARY:
            raise UserError(f"Tokenizer '{name}' has {self.vocabulary} tokens; token ids are stored in 16 bits, so {LARGEST_VOCABULARY} is the most.")
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never contains ``eos_id``."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts, encoded in parallel."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids (a list or an integer array); ``eos_id`` becomes ``<|endoftext|>``.

        Token sequences that are not valid UTF-8, as a model may sample, give U+FFFD where they break.
        """
        return self.decode_batch([ids])[0]

    def decode_batch(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many token sequences, on all cores; see ``decode``."""
        return self._tokenizer.decode_batch(
            [ids if isinstance(ids, list) else np.asarray(ids).tolist() for ids in sequences], skip_special_tokens=False
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the tokenizer's definition, 64 hex digits; survives ``save`` and ``load``."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and the ``tokenizer_config.json`` with which ``transformers.AutoTokenizer`` opens the folder."""
        folder = Path(folder)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is, whatever the model's type
            "bos_token": EOS,
            "eos_token": EOS,
            "pad_token": EOS,
            "clean_up_tokenization_spaces": False,  # decoding gives back the very text
        }
        write_text(folder / "tokenizer.json", self._tokenizer.to_str(pretty=True))
        write_text(folder / "tokenizer_config.json", json.dumps(config, indent=1) + "\n")


def learn(texts: Iterator[str], vocabulary: int) -> Tokenizer:
    """Learn a byte-level BPE of at most ``vocabulary`` tokens (every byte and ``<|endoftext|>`` included); deterministic.

    A small text may have too few pairs of tokens to merge: the vocabulary is then smaller. Raises ``UserError`` if
    ``vocabulary`` is not within 257..65536.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    check_learned_vocabulary(vocabulary)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    _make_byte_level(tokenizer, pre_tokenizers, decoders)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return Tokenizer(tokenizer, "learned")


def load(source: str | Path) -> Tokenizer:
    """Load a tokenizer: a folder with ``tokenizer.json`` or with ``vocab.json`` and ``merges.txt``, a JSON file, or a hub name.

    Raises ``UserError`` when it is missing, unreadable or unreachable, has no ``<|endoftext|>``, or ids beyond 16 bits.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _from_file(path)
    if path.is_dir():
        return _from_folder(path, str(source))
    return _from_folder(_fetch(str(source)), str(source))


def _from_folder(folder: Path, name: str) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return _from_file(folder / "tokenizer.json")
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.is_file() and merges.is_file()):
        raise UserError(f"'{name}' has neither tokenizer.json nor vocab.json and merges.txt.")
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    try:
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"vocab.json and merges.txt in '{name}' cannot be read as a tokenizer: {first_line(error)}.") from None
    _make_byte_level(tokenizer, pre_tokenizers, decoders)
    return Tokenizer(tokenizer, name)


def _from_file(path: Path) -> Tokenizer:
    import tokenizers

    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(path)), str(path))
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise UserError(f"'{path}' cannot be read as a tokenizer.json: {first_line(error)}.") from None


def _make_byte_level(tokenizer: tokenizers.Tokenizer, pre_tokenizers, decoders) -> None:
    # As GPT-2 does it: a text's first word gets no space put before it, and any bytes at all can be encoded.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["tokenizer.json", "vocab.json", "merges.txt"]))
    except Exception as error:  # network, name and permission failures share no base class
        raise UserError(
            f"Tokenizer '{name}' is no local folder or file and could not be fetched from the model hub ({first_line(error)}); "
            "give a folder or tokenizer.json with --set tokenizer.source=PATH, or learn one with --set tokenizer.source=learn."
        ) from None
