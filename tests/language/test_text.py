"""Tokenizers, files of text, windows of training, and the word swap."""

import sys
from collections import Counter

import pytest
import torch
from texts import HELD_OUT, descriptions, write_corpus

from imgproc_attn.language import (
    BytePairTokenizer,
    ByteTokenizer,
    CharacterTokenizer,
    TextSplit,
    TrainingWindows,
    VocabularyLimits,
    WordSwap,
    WordTokenizer,
    read_text,
    tokenizer_of,
)
from imgproc_attn.language.text import open_training_text
from imgproc_attn.language.tokenizers import TOKENIZERS

TEXT = "".join(descriptions().values())
NO_LIMITS = VocabularyLimits()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_restore_text_and_are_saved(name):
    if name == "bpe":
        pytest.importorskip("tokenizers")
    tokenizer = TOKENIZERS[name].fit(TEXT, VocabularyLimits(max_vocabulary=600) if name == "bpe" else NO_LIMITS)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == torch.int32
    assert 0 <= ids.min() <= ids.max() < len(tokenizer)
    restored = tokenizer.decode(ids.tolist())
    assert restored.split() == TEXT.split() if name == "words" else restored == TEXT
    again = tokenizer_of(tokenizer.record)
    assert torch.equal(again.encode(TEXT), ids)
    assert len(again) == len(tokenizer)


def test_words_are_read_as_those_of_wikitext():
    """One token per word and one per line, empty lines included."""
    tokenizer = WordTokenizer.fit(TEXT, NO_LIMITS)
    assert len(tokenizer.encode(TEXT)) == len(TEXT.split()) + TEXT.count("\n")
    assert len(tokenizer) == 2 + len(set(TEXT.split()))


def test_words_outside_the_vocabulary():
    counts = Counter(TEXT.split())
    tokenizer = WordTokenizer.fit(TEXT, VocabularyLimits(min_count=3))
    assert set(tokenizer.vocabulary[2:]) == {word for word, count in counts.items() if count >= 3}
    rare = sum(count for count in counts.values() if count < 3)
    assert (tokenizer.encode(TEXT) == 0).sum() == rare
    limited = WordTokenizer.fit(TEXT, VocabularyLimits(max_vocabulary=10))
    assert limited.vocabulary == ["<unk>", "<eos>", *(word for word, _ in counts.most_common(8))]
    assert tokenizer.decode(tokenizer.encode("the unheard-of\n").tolist()) == "the <unk>\n"


def test_characters_outside_the_vocabulary():
    tokenizer = CharacterTokenizer.fit("to be\nor not", NO_LIMITS)
    with pytest.raises(ValueError, match=r"among the 8 of the training text, got 'x' in line 2\. .*tokens=bytes"):
        tokenizer.encode("to be\nto box")


def test_byte_pairs_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"must be installed for language.tokens=bpe.*pip install 'imgproc-attn\[text\]'"):
        BytePairTokenizer.fit(TEXT, NO_LIMITS)


def test_byte_pairs_of_a_file(tmp_path):
    pytest.importorskip("tokenizers")
    tokenizer = BytePairTokenizer.fit(TEXT, VocabularyLimits(max_vocabulary=400))
    (tmp_path / "tokenizer.json").write_text(tokenizer.vocabulary, encoding="utf-8")
    loaded = BytePairTokenizer.fit("other text", VocabularyLimits(file=str(tmp_path / "tokenizer.json")))
    assert len(loaded) == 400
    assert loaded.decode(loaded.encode("ça va?").tolist()) == "ça va?"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be a tokenizer.json of the package tokenizers, got other content"):
        BytePairTokenizer.fit("", VocabularyLimits(file=str(tmp_path / "tokenizer.json")))


def test_a_single_file_is_cut_at_ends_of_lines(tmp_path):
    (tmp_path / "all.txt").write_text(TEXT, encoding="utf-8")
    parts = [read_text(str(tmp_path / "all.txt"), split) for split in ("train", "valid", "test")]
    assert "".join(parts) == TEXT
    assert all(part.endswith("\n") for part in parts)
    assert [round(20 * len(part) / len(TEXT)) for part in parts] == [18, 1, 1]


def test_names_of_files(corpus, tmp_path):
    assert read_text(str(corpus), "validation") == read_text(str(corpus), "valid") == descriptions()[HELD_OUT["valid"]]
    (tmp_path / "wiki.test.tokens").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert read_text(str(tmp_path), "test") == "one\ntwo\n"


def test_bad_files(corpus, tmp_path):
    (tmp_path / "train.txt").write_text(" \n")
    (tmp_path / "valid.txt").write_bytes("Très bien".encode("latin-1"))
    (tmp_path / "test.txt").write_text("a")
    with pytest.raises(ValueError, match=r"train.txt must hold text, got an empty file\. Give another"):
        read_text(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"valid.txt must be UTF-8 text, got the byte 0xe8 at position 2\. Convert it"):
        read_text(str(tmp_path), "valid")
    with pytest.raises(ValueError, match=r"The split test must have at least 2 tokens.*got 1\. Give more text"):
        TextSplit("test", read_text(str(tmp_path), "test"), ByteTokenizer())
    with pytest.raises(FileNotFoundError, match=r"must hold the split 'dev' as dev.txt or wiki.dev.tokens, got test"):
        read_text(str(corpus), "dev")
    with pytest.raises(ValueError, match=r"must be one of train, valid, test, got 'dev'"):
        read_text(str(corpus / "train.txt"), "dev")
    with pytest.raises(ValueError, match=r"The split test must have at least 20000 tokens, two windows, got \d+"):
        TrainingWindows(TextSplit("test", read_text(str(corpus), "test"), ByteTokenizer()), 10_000)


def test_a_changed_file_is_read_again(tmp_path):
    (tmp_path / "train.txt").write_text("one two")
    first = open_training_text(str(tmp_path), "train", "words", NO_LIMITS)
    assert open_training_text(str(tmp_path), "train", "words", NO_LIMITS) is first
    (tmp_path / "train.txt").write_text("one two three")
    assert len(open_training_text(str(tmp_path), "train", "words", NO_LIMITS)) == 4


def test_an_epoch_is_one_pass(corpus):
    split = TextSplit("train", read_text(str(corpus), "train"), ByteTokenizer())
    windows = TrainingWindows(split, 32)
    offsets = set()
    for epoch in range(5):
        windows.set_epoch(epoch)
        offsets.add(windows.offset)
        inputs, targets = (torch.cat(parts) for parts in zip(*(windows[i] for i in range(len(windows)))))
        start = windows.offset
        assert torch.equal(inputs, split.tokens[start : start + len(inputs)].long())
        assert torch.equal(targets, split.tokens[start + 1 : start + 1 + len(inputs)].long())
        assert len(split) - len(inputs) < 2 * 32
    assert len(offsets) > 1
    windows.set_epoch(0)
    first = windows.offset
    windows.set_epoch(0)
    assert windows.offset == first


def test_word_swap():
    swap = WordSwap(0.1)
    text, swapped, words = swap(TEXT)
    assert text == swap(TEXT).text != WordSwap(0.1, seed=1)(TEXT).text
    assert swapped == round(0.1 * words) == text.count("AAA")
    changed = [(a, b) for a, b in zip(TEXT.split(), text.split()) if a != b]
    assert len(TEXT.split()) == len(text.split())
    assert len(changed) <= swapped
    assert all("AAA" in b for _, b in changed)
    assert not {a for a, _ in changed} & {"the", "of", "and", "is", "The"}
    assert swap(TEXT).share == pytest.approx(0.1, abs=1e-3)


def test_swaps_of_a_higher_rate_contain_those_of_a_lower_one():
    few, many = (WordSwap(rate)(TEXT).text.split() for rate in (0.02, 0.1))
    assert all("AAA" in b for a, b in zip(few, many) if "AAA" in a)


def test_the_share_reached_may_be_lower():
    text, swapped, words = WordSwap(1.0)("it is not what it was, but <unk> is")
    assert (text, swapped, words) == ("it is not what it was, but <unk> is", 0, 8)
    assert WordSwap(1.0)("the cat sat").share == pytest.approx(2 / 3)
    assert WordSwap()("1 2 3").share == 0


def test_bad_rates():
    with pytest.raises(ValueError, match=r"rate must be above 0 and at most 1, got 1.5\. 0.015 is"):
        WordSwap(1.5)
