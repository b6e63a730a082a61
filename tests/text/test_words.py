from collapse_lib.text.words import UNKNOWN, learn_words


def test_texts_come_back_as_they_were(stories: list[str]) -> None:
    texts = [*stories, 'Tom\'s long-eared cat said, "Oh,  no!"\n\nThen\tit ran;\nso did Zoë’s.', "", "\n\n\n", "<|endoftext|> is text"]
    tokenizer = learn_words(texts)
    assert tokenizer.decode_batch(tokenizer.encode_batch(texts)) == texts
    assert not any(tokenizer.eos_id in ids for ids in tokenizer.encode_batch(texts))


def test_a_word_is_a_token_with_the_space_before_it() -> None:
    tokenizer = learn_words(["The cat's toy. The end!\n\nThe"])
    ids = tokenizer.encode("The cat's toy.\n\nThe end!")
    assert [tokenizer.decode([token]) for token in ids] == ["The", " cat", "'s", " toy", ".", "\n\n", "The", " end", "!"]
    assert tokenizer.vocabulary == 2 + len({"The", " cat", "'s", " toy", ".", " The", " end", "!", "\n\n"})


def test_other_words_are_one_token() -> None:
    tokenizer = learn_words(["a cat"])
    assert tokenizer.decode(tokenizer.encode("a dog cat")) == f"a{UNKNOWN} cat"


def test_the_order_of_the_texts_does_not_matter(stories: list[str]) -> None:
    assert learn_words(stories).hash == learn_words(stories[::-1]).hash != learn_words(stories[:50]).hash
