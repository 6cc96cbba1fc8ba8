"""The interface that all tokenizers share; words and characters."""

import copy
import dataclasses
import pickle
import random
import sys
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcourse.tokenizers.base import (
    END_OF_TEXT,
    WHITESPACE_PATTERN,
    ENGINES,
    Characters,
    Tokenizer,
    Words,
    find_engine,
    manual,
    measure_tokenizer,
)
from lmcourse.tokenizers.bpe import ByteBPE
from lmcourse.tokenizers.files import Matching
from lmcourse.tokenizers.unigram import Unigram
from lmcourse.tokenizers.wordpiece import WordPiece

TEXTS = ["the cat runs.", "the dogs run.", 'a "cat", a dog;\nno  cats']
words = Words.train(TEXTS)
characters = Characters.train(TEXTS)
BOTH = pytest.mark.parametrize("tokenizer", [words, characters],
                               ids=["words", "characters"])


def one_line(caught):
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def test_prompt_and_continuation_encode_apart():
    rng = random.Random(0)
    known = [w for w in words.vocab if w.startswith(" ") and w[1:].isalpha()]
    for _ in range(200):
        prompt = "".join(rng.choices(known, k=5)).lstrip()
        word = rng.choice(known)
        assert words.encode(prompt) + words.encode(word) \
            == words.encode(prompt + word)


@pytest.mark.parametrize("text", TEXTS + ["", "\n the cat", "cat\n\ncat"])
def test_words_give_back_what_they_know(text):
    tokenizer = Words.train(TEXTS + ["\n the cat"])
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(max_size=30))
def test_words_cut_and_never_lose(text):
    try:
        tokenizer = Words.train([text])
    except ValueError:
        assert not text or any(0xD800 <= ord(c) < 0xE000 for c in text)
        return
    back = tokenizer.decode(tokenizer.encode(text))
    assert back == text.removeprefix(" ") if text[0] == " " else back == text


def test_words_without_a_space_get_one():
    assert words.encode("cat") == words.encode(" cat")
    assert words.tokenize("cat.") == [" cat", "."]


def test_unknown_words():
    ids = words.encode("the bird runs.")
    assert words.tokenize("the bird runs.")[1] == "[UNK]"
    assert words.decode(ids) == "the [UNK] runs."
    assert words.decode(ids, skip_special_tokens=True) == "the runs."


def test_words_keep_the_most_frequent():
    small = Words.train(["a b b c c c"], 4)
    assert small.vocab == {" c": 2, " b": 3}
    assert small.vocab_size == 4


def test_pattern_is_used():
    glued = Words.train(TEXTS, pattern=WHITESPACE_PATTERN)
    assert glued.tokenize("the cat runs.") == [" the", " cat", " runs."]
    assert glued.pattern == WHITESPACE_PATTERN != words.pattern


def test_unk_token_is_used():
    tokenizer = Words.train(TEXTS, unk_token="<unk>")
    assert tokenizer.tokenize("bird") == ["<unk>"]


@BOTH
def test_specials_are_plain_text_until_allowed(tokenizer):
    end = tokenizer.special_tokens[END_OF_TEXT]
    text = f"the cat{END_OF_TEXT}a dog"
    assert end not in tokenizer.encode(text)
    for allowed in ("all", [END_OF_TEXT], {END_OF_TEXT}):
        ids = tokenizer.encode(text, allowed_special=allowed)
        assert ids.count(end) == 1
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) \
            == ("the cat a dog" if tokenizer is words else "the cata dog")


# Added tokens, and how tokens are found -------------------------------------

def with_added(**fields):
    return dataclasses.replace(
        Characters.train(["abcdefgh <>|#."]),
        added_tokens={"ab": 90, "abc": 91, "<|x|>": 92}, **fields)


def test_added_tokens_are_always_found():
    own = with_added()
    assert own.tokenize("dabcab<|x|>") == ["d", "abc", "ab", "<|x|>"]
    assert own.decode(own.encode("dabcab<|x|>")) == "dabcab<|x|>"
    assert own.encode_to_numpy("ab").tolist() == own.encode("ab") == [90]
    assert own.vocab_size == 93 and own.token(91) == "abc"
    assert own.decode([90, 91], skip_special_tokens=True) == "ababc"
    assert pickle.loads(pickle.dumps(own)) == own


@pytest.mark.parametrize("how, text, parts", [
    (Matching(), "d ab e", ["d", " ", "ab", " ", "e"]),
    (Matching(lstrip=True), "d  ab e", ["d", "ab", " ", "e"]),
    (Matching(rstrip=True), "d ab  e", ["d", " ", "ab", "e"]),
    (Matching(lstrip=True), "\n\u3000ab", ["ab"]),
    (Matching(lstrip=True, rstrip=True), "ab ab", ["ab", "ab"]),
    (Matching(single_word=True), "ab dab ab.",
     ["ab", " ", "d", "a", "b", " ", "ab", "."]),
    (Matching(single_word=True), "abd", ["a", "b", "d"]),
])
def test_matching(how, text, parts):
    assert with_added(matching={"ab": how}).tokenize(text) == parts


def test_whitespace_goes_to_one_token_only():
    own = with_added(matching={"ab": Matching(rstrip=True),
                               "<|x|>": Matching(lstrip=True)})
    assert own.tokenize("ab  <|x|>") == ["ab", "<|x|>"]


def test_normalized_tokens_stand_in_the_normalized_text():
    own = WordPiece.train(["the cats and the dogs sat"], 60)
    own = dataclasses.replace(
        own, added_tokens={"The Cat": 90, "DOG": 91}, matching={
            "The Cat": Matching(normalized=True)})
    assert own.encode("THE CAT") == [90] == own.encode("The cat")
    assert own.encode("DOG") == [91] != own.encode("dog")


@pytest.mark.parametrize("fields, words", [
    ({"added_tokens": {"ab": 1}}, "added_tokens['ab']=1: '<|endoftext|>'"),
    ({"added_tokens": {"ab": -1}}, "added_tokens['ab']=-1"),
    ({"added_tokens": {"[UNK]": 90}}, "'[UNK]' appears twice"),
    ({"added_tokens": {"": 90}}, "not an empty one"),
    ({"added_tokens": {5: 90}}, "5 must be a string"),
    ({"matching": {"ab": Matching()}}, "matching['ab']"),
])
def test_faults_of_added_tokens(fields, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        dataclasses.replace(characters, **fields)
    assert words in one_line(caught)


@pytest.mark.parametrize("value, text, seen", [
    (False, "a<s>b", "a<s>b"), (True, "a<s> b", " a<s>  b"),
    ("missing", "a<s> b<s>c", " a<s> b<s> c"),
    ("first", "a<s>b", " a<s>b"), ("first", "<s>b", "<s>b"),
    ("first", " a", " a")])
def test_prefix_spaces(value, text, seen):
    own = ByteBPE.train(["ab"], 258, special_tokens=["<s>"])
    other = dataclasses.replace(own, prefix_space=value)
    assert own.decode(other.encode(text, allowed_special="all")) == seen
    assert other.encode("") == []


@pytest.mark.parametrize("value", [1, None, "always", "True"])
def test_faults_of_prefix_spaces(value):
    for base in (ByteBPE.train(["ab"], 258), Unigram.train(["ab"], 300)):
        with pytest.raises(ValueError, match="prefix_space=") as caught:
            dataclasses.replace(base, prefix_space=value)
        one_line(caught)


def test_the_longest_special_token_wins():
    tokenizer = Characters.train(
        ["ab<>"], special_tokens=["<a>", "<a><b>", "<b>"])
    assert tokenizer.tokenize("<a><b><b>", allowed_special="all") \
        == ["<a><b>", "<b>"]


@BOTH
def test_add_special_tokens(tokenizer):
    framed = dataclasses.replace(tokenizer, prefix=["[UNK]"],
                                 suffix=[END_OF_TEXT])
    plain = framed.encode("the cat")
    assert framed.encode("the cat", add_special_tokens=True) \
        == [framed.special_tokens["[UNK]"], *plain,
            framed.special_tokens[END_OF_TEXT]]
    assert tokenizer.encode("the cat", add_special_tokens=True) == plain


@BOTH
def test_batches_arrays_and_tokens_agree(tokenizer):
    assert tokenizer.encode_batch(TEXTS) == [*map(tokenizer.encode, TEXTS)]
    array = tokenizer.encode_to_numpy(TEXTS[0])
    assert array.dtype == np.int32
    assert array.tolist() == tokenizer.encode(TEXTS[0])
    assert tokenizer.decode(array) == TEXTS[0]
    assert tokenizer.decode(iter(array)) == TEXTS[0]
    assert [*map(tokenizer.token, array)] == tokenizer.tokenize(TEXTS[0])
    assert tokenizer.encode_to_numpy("").shape == (0,)
    assert tokenizer.decode([]) == ""


@BOTH
def test_tokenizers_are_frozen_values(tokenizer):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokenizer.vocab = {}
    with pytest.raises(TypeError):
        tokenizer.special_tokens["<s>"] = 1
    for other in (pickle.loads(pickle.dumps(tokenizer)),
                  copy.deepcopy(tokenizer)):
        assert other == tokenizer and other is not tokenizer
        assert other.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert tokenizer != dataclasses.replace(tokenizer, unk_token=None)


def test_vocab_size_is_what_a_model_needs():
    tokenizer = Characters(vocab={"a": 7}, special_tokens={"[UNK]": 2},
                           unk_token="[UNK]")
    assert tokenizer.vocab_size == 8
    assert "vocab_size=8" in repr(tokenizer)


def test_texts_are_streamed():
    taken = []

    def stream():
        for number in range(5):
            taken.append(number)
            yield f"text {number}"

    texts = stream()
    Words.train(texts)
    assert taken == [*range(5)] and next(texts, None) is None


@pytest.mark.parametrize("attempt, error, match", [
    (lambda: words.encode(None), TypeError, "text=None"),
    (lambda: words.encode(b"a"), TypeError, "bytes"),
    (lambda: words.encode("a\ud83d"), ValueError, "position 1"),
    (lambda: words.encode("a", allowed_special="<s>"), TypeError, "'all'"),
    (lambda: words.encode("a", allowed_special=["<s>"]), ValueError, "<s>"),
    (lambda: words.encode_batch("a cat"), TypeError, "texts='a cat'"),
    (lambda: words.encode_to_numpy(3), TypeError, "text=3"),
    (lambda: words.decode([999]), ValueError, r"ids\[0\]=999"),
    (lambda: words.decode([0, -1]), ValueError, r"ids\[1\]=-1"),
    (lambda: words.decode([0.5]), TypeError, "float"),
    (lambda: words.decode(["a"]), TypeError, "str"),
    (lambda: words.decode([0], errors="ignore"), ValueError, "'ignore'"),
    (lambda: words.token(999), ValueError, "999"),
    (lambda: Words.train("a cat"), TypeError, "several strings"),
    (lambda: Words.train([]), ValueError, "at least one"),
    (lambda: Words.train(["", ""]), ValueError, "at least one"),
    (lambda: Words.train(["a", 5]), TypeError, r"texts\[1\]=5"),
    (lambda: Words.train(["a\udc00"]), ValueError, r"texts\[0\]"),
    (lambda: Words.train(["a"], 2), ValueError, "vocab_size=2"),
    (lambda: Words.train(["a"], 2.5), ValueError, "vocab_size=2.5"),
    (lambda: Words.train(["a"], pattern="(a)"), ValueError, "capture"),
    (lambda: Words.train(["a"], pattern="[a"), ValueError, "compile"),
    (lambda: Words.train(["a"], special_tokens=["x", "x"]), ValueError,
     "'x' appears twice"),
    (lambda: Words.train(["a"], special_tokens=["[UNK]"]), ValueError,
     "appears twice"),
    (lambda: Words.train(["a"], special_tokens="<s>"), TypeError, "<s>"),
    (lambda: Words.train(["a"], special_tokens=[""]), TypeError, "empty"),
    (lambda: Characters.train([]), ValueError, "at least one"),
    (lambda: Characters.train(["a"], 1), ValueError, "vocab_size=1"),
    (lambda: Characters(vocab={}, special_tokens={}), ValueError, "vocab"),
    (lambda: Characters(vocab={"a": -1}, special_tokens={}), ValueError,
     "-1"),
    (lambda: Characters(vocab={"a": 0}, special_tokens={"b": 0}), ValueError,
     "'a' has this id"),
    (lambda: Characters(vocab={"a": 0}, special_tokens={}, unk_token="u"),
     ValueError, "unk_token='u'"),
    (lambda: Characters(vocab={"a": 0}, special_tokens={}, suffix=["u"]),
     ValueError, "suffix='u'"),
    (lambda: Characters(vocab={"a": 0}, special_tokens={}).encode("ab"),
     ValueError, "'b'"),
    (lambda: Tokenizer(vocab={"a": 0}, special_tokens={}).encode("a"),
     NotImplementedError, "Tokenizer"),
])
def test_bad_input_says_so_in_one_line(attempt, error, match):
    with pytest.raises(error, match=match) as caught:
        attempt()
    one_line(caught)


def test_measure():
    texts = ["the cat runs.", "the bird"]
    measured = measure_tokenizer(words, texts)
    assert measured.vocab_size == words.vocab_size
    assert measured.unknown == 1 / 5
    assert measured.tokens_per_word == 6 / 5
    assert measured.tokens == 3 and measured.pairs == (4**2 + 2**2) / 2


def test_manual_halves_share_no_page():
    learned, held_out = manual()
    assert len(learned) > 30 and not {*learned} & {*held_out}


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_characters_give_back_any_text(text):
    tokenizer = Characters.train([text])
    assert tokenizer.decode(tokenizer.encode(text)) == text


FAST = ["lmcourse.tokenizers.fast", "lmcourse.tokenizers.fast.bpe",
        "lmcourse.tokenizers.fast.pieces", "lmcourse.tokenizers.fast.words"]


@pytest.fixture
def unload(monkeypatch):
    """A function that forgets the compiled modules until the test ends."""
    def forget():
        for name in FAST:
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr("lmcourse.tokenizers.fast", raising=False)
    return forget


@pytest.mark.parametrize("name", ["bpe", "pieces"])
def test_only_the_absence_of_numba_means_no_engine(name, unload, monkeypatch):
    assert find_engine(name).__name__ == f"lmcourse.tokenizers.fast.{name}"
    unload()
    monkeypatch.setitem(sys.modules, "numba", None)
    assert find_engine(name) is None
    assert find_engine("nothing of this name") is None


@pytest.mark.parametrize("kind, broken", [
    (ByteBPE, {"lmcourse.tokenizers.fast.bpe": None}),
    (WordPiece, {"lmcourse.tokenizers.fast.pieces": None}),
    (Unigram, {"lmcourse.tokenizers.fast.bpe": None}),
    (ByteBPE, {"numba": types.ModuleType("numba")}),
    (Unigram, {"numba": types.ModuleType("numba")}),
])
def test_a_broken_engine_is_no_missing_one(kind, broken, unload, monkeypatch):
    """What is wrong with a compiled module is raised, not worked around."""
    size = 270 if kind is ByteBPE else 300
    texts = ["the cat runs", "the dogs run"]
    with monkeypatch.context() as without:
        without.setitem(ENGINES, "bpe", lambda: None)
        without.setitem(ENGINES, "pieces", lambda: None)
        plain = kind.train(texts, size)
        assert plain.decode(plain.encode("the cat")) == "the cat"
    unload()
    for module, stub in broken.items():
        monkeypatch.setitem(sys.modules, module, stub)
    with pytest.raises((ImportError, AttributeError)):
        kind.train(texts, size)
    with pytest.raises((ImportError, AttributeError)):
        pickle.loads(pickle.dumps(plain)).encode("the cat runs " * 9_000)


@pytest.mark.parametrize("train", [
    Words.train, Characters.train, ByteBPE.train, WordPiece.train,
    Unigram.train])
def test_sizes_may_be_integers_of_numpy(train):
    pages = manual()[0][:3]
    own = train(pages, np.int64(700))
    assert own.encode(pages[1]) == train(pages, 700).encode(pages[1])
    assert own.vocab_size == train(pages, 700).vocab_size


def test_allowed_special_may_be_an_iterator():
    own = Words.train(["the cat"])
    texts = [END_OF_TEXT, f"the{END_OF_TEXT}", END_OF_TEXT]
    assert own.encode_batch(texts, allowed_special=iter([END_OF_TEXT])) \
        == own.encode_batch(texts, allowed_special=[END_OF_TEXT])


def test_unknown_tokens_that_are_not_special():
    own = Words(vocab={" a": 0, "[UNK]": 1}, special_tokens={},
                unk_token="[UNK]")
    assert own.encode("a b", allowed_special="all") == [0, 1]
    assert own.decode([0, 1], skip_special_tokens=True) == "a[UNK]"
    with pytest.raises(ValueError, match="unk_token='no': must be one of"):
        dataclasses.replace(own, unk_token="no")
    assert pickle.loads(pickle.dumps(own)) == own
