"""Byte-pair encoding: the lecture's example, the oracles, the faults."""

import dataclasses
import os
import pickle
import random
from collections import Counter

import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import assert_linear, few_or_many

from lmcourse.tokenizers import bpe
from lmcourse.tokenizers.base import END_OF_TEXT, manual
from lmcourse.tokenizers.bpe import (
    GPT2_ALPHABET,
    GPT2_PATTERN,
    GPT4_PATTERN,
    TIES,
    ByteBPE,
    bpe_vocabulary,
    count_pairs,
    learn_bpe,
    learn_bpe_loop,
    replace_pair,
    most_frequent,
    segment_bpe,
    spell,
)
from lmcourse.tokenizers.fast import bpe as fast_bpe
from lmcourse.world import documents

os.environ["TOKENIZERS_PARALLELISM"] = "false"
CORPUS = {"low": 5, "lowest": 2, "newer": 6, "wider": 3, "new": 2}
SLIDE = [("e", "r"), ("er", "_"), ("n", "e"), ("ne", "w"), ("l", "o"),
         ("lo", "w"), ("new", "er_"), ("low", "_")]
STRANGE = ["", " ", "a", "naïve ß 😀 👩‍👩‍👧", "\x00\x1f\x7f\x85\xa0",
           "\r\n\t\v ",
           "नमस्ते", "e\u0301\u0302", "\U0010ffff\uffff\ufeff", "日本語123",
           "I'LL don't 'S ſ 'ſ", " " * 50, f"<|x|>{END_OF_TEXT}[UNK]"]


# The lecture ---------------------------------------------------------------

@pytest.mark.parametrize("corpus", [
    CORPUS,
    {**CORPUS, "low": 4},  # as some of the slides print it
    {**CORPUS, "low": 4, "newer": 5},
    [*Counter(CORPUS).elements()],
    {f"{word}_": n for word, n in CORPUS.items()},
], ids=["table", "four low", "and five newer", "list", "marked"])
@pytest.mark.parametrize("learn", [learn_bpe, learn_bpe_loop])
def test_the_lecture_s_merges(learn, corpus):
    assert learn(corpus, 8) == SLIDE


def test_the_lecture_s_counts_and_vocabularies():
    counts = count_pairs(spell(CORPUS))
    assert counts["e", "r"] == counts["r", "_"] == 9
    start = ["_", "d", "e", "i", "l", "n", "o", "r", "s", "t", "w"]
    assert bpe_vocabulary(CORPUS, []) == start
    assert bpe_vocabulary(CORPUS, SLIDE) == start + [
        "er", "er_", "ne", "new", "lo", "low", "newer_", "low_"]


def test_the_lecture_s_segmentations():
    for end in ("", "_"):
        assert segment_bpe("newer" + end, SLIDE) == ["newer_"]
        assert segment_bpe("lower" + end, SLIDE) == ["low", "er_"]


def test_only_the_first_met_pair_gives_the_lecture_s_merges():
    assert [tie for tie in TIES if learn_bpe(CORPUS, 8, tie=tie) == SLIDE] \
        == ["first"]
    assert learn_bpe(CORPUS, 3, tie="max")[0] == ("r", "_")
    assert learn_bpe(CORPUS, 3, tie="min")[2] == ("e", "w")


# Learners ------------------------------------------------------------------

corpora = st.dictionaries(st.text("abc", min_size=1, max_size=9),
                          st.integers(1, 4), min_size=1, max_size=8)


@settings(max_examples=300, deadline=None)
@given(corpora, st.sampled_from([*TIES]), st.sampled_from(["_", "", "</w>"]))
def test_counts_kept_from_step_to_step_equal_the_loop(corpus, tie, end):
    assert learn_bpe(corpus, 30, tie=tie, end=end) \
        == learn_bpe_loop(corpus, 30, tie=tie, end=end)


@settings(max_examples=100, deadline=None)
@given(corpora)
def test_the_segmenter_cuts_the_corpus_as_learning_left_it(corpus):
    merges = learn_bpe_loop(corpus, 10)
    spelled = spell(corpus)
    for pair in merges:
        spelled = {replace_pair(symbols, pair): n
                   for symbols, n in spelled.items()}
    assert [*map(tuple, (segment_bpe(w, merges) for w in corpus))] \
        == [*spelled]


def test_end_mark_is_used():
    assert learn_bpe(["ab"], 9, end="</w>") == [("a", "b"), ("ab", "</w>")]
    assert segment_bpe("ab", [("a", "b")], end="") == ["ab"]


def test_merges_overlap_from_the_left():
    assert replace_pair(tuple("aaa"), ("a", "a")) == ("aa", "a")


@pytest.mark.parametrize("attempt, error, match", [
    (lambda: learn_bpe({}, 3), ValueError, "at least one word"),
    (lambda: learn_bpe("low low", 3), TypeError, "split"),
    (lambda: learn_bpe({"low": 0}, 3), ValueError, r"corpus\['low'\]=0"),
    (lambda: learn_bpe({"low": 1.5}, 3), ValueError, "1.5"),
    (lambda: learn_bpe([3], 3), TypeError, "3"),
    (lambda: learn_bpe(["\ud800"], 3), ValueError, "surrogate"),
    (lambda: learn_bpe(CORPUS, -1), ValueError, "num_merges=-1"),
    (lambda: learn_bpe(CORPUS, 1.0), ValueError, "num_merges=1.0"),
    (lambda: learn_bpe(CORPUS, 3, tie="last"), ValueError, "first, min, max"),
    (lambda: learn_bpe_loop(CORPUS, 3, tie="last"), ValueError, "'last'"),
    (lambda: most_frequent(Counter("ab"), tie=None), ValueError, "None"),
    (lambda: ByteBPE.train([], 300), ValueError, "at least one"),
    (lambda: ByteBPE.train([""], 300), ValueError, "at least one"),
    (lambda: ByteBPE.train("low", 300), TypeError, "several strings"),
    (lambda: ByteBPE.train([b"low"], 300), TypeError, r"texts\[0\]"),
    (lambda: ByteBPE.train(["low"], 256), ValueError, "257 or more"),
    (lambda: ByteBPE.train(["low"], None), ValueError, "vocab_size=None"),
    (lambda: ByteBPE.train(["low"], 300, pattern="("), ValueError, "compile"),
    (lambda: ByteBPE.train(["low"], 300, pattern="(l)"), ValueError,
     "capture"),
    (lambda: ByteBPE.train(["low"], 300, alphabet=b"abc"), ValueError,
     "256 bytes"),
    (lambda: ByteBPE.train(["low"], 300, special_tokens=["a", "a"]),
     ValueError, "'a' appears twice"),
    (lambda: ByteBPE(vocab={b"a": 0}, special_tokens={}, merges=None),
     ValueError, "lacks the byte"),
    (lambda: dataclasses.replace(small(), merges=[(b"x", b"yz")]),
     ValueError, r"merges\[0\]"),
    (lambda: small().encode("\udfff"), ValueError, "surrogate"),
    (lambda: small().encode_to_numpy("\udfff"), ValueError, "surrogate"),
    (lambda: small().decode([10**6]), ValueError, "1000000"),
    (lambda: small().decode([0xC3], errors="strict"), ValueError, "0xc3"),
])
def test_bad_input_says_so_in_one_line(attempt, error, match):
    with pytest.raises(error, match=match) as caught:
        attempt()
    assert "\n" not in str(caught.value)


# Bytes ---------------------------------------------------------------------

def small():
    return ByteBPE.train(["low lower lowest newer"], 266)


@pytest.fixture(scope="module")
def pages():
    """Text to learn from: the manual, and some of many scripts."""
    rng = random.Random(0)
    scripts = ["αβγδε ", "абвгд ", "日本語文 ", "नमस्ते ", "한국어 ", "😀👍🎉 "]
    foreign = ["".join(rng.choices(rng.choice(scripts), k=400))
               for _ in range(60)]
    return manual()[0] + foreign


@pytest.mark.parametrize("text", STRANGE)
def test_nothing_is_lost(text):
    tokenizer = small()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, errors="strict") == text
    assert tokenizer.encode_to_numpy(text).tolist() == ids


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_string_comes_back(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises(ValueError):
            small_once.encode(text)
        return
    assert small_once.decode(small_once.encode(text)) == text


small_once = small()


def test_bytes_come_first_and_special_tokens_last():
    tokenizer = small()
    assert all(tokenizer.vocab[bytes([b])] == b for b in range(256))
    assert tokenizer.special_tokens == {END_OF_TEXT: tokenizer.vocab_size - 1}
    assert tokenizer.vocab_size == 266


def test_settings_survive_copies():
    tokenizer = ByteBPE.train(["ab12345 ab"], 260, pattern=GPT4_PATTERN,
                              alphabet=GPT2_ALPHABET, special_tokens=["<s>"])
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again == tokenizer and again.pattern == GPT4_PATTERN
    assert again.encode("ab12345<s>", allowed_special="all") \
        == tokenizer.encode("ab12345<s>", allowed_special="all")
    assert tokenizer.vocab[b"!"] == 0 and tokenizer.vocab[b" "] == 220


def test_fewer_tokens_when_no_pair_is_left():
    assert ByteBPE.train(["ab ab"], 1000).vocab_size == 256 + 2 + 1


def test_corpus_that_spells_a_special_token_is_plain_text():
    tokenizer = ByteBPE.train([END_OF_TEXT * 9], 300)
    assert tokenizer.special_tokens[END_OF_TEXT] not in tokenizer.encode(
        END_OF_TEXT)


def test_a_stream_is_read_once():
    texts = iter(["low lower", "lowest"])
    ByteBPE.train(texts, 260)
    assert next(texts, None) is None


@pytest.mark.parametrize("shuffled", [False, True])
def test_words_of_any_length_merge_alike(shuffled):
    """Also when pairs come in an order that no learner would give them."""
    rng = random.Random(0)
    texts = [" ".join("".join(rng.choices("aab", k=rng.randint(1, 30)))
                      for _ in range(30))]
    tokens, pairs = bpe._learn_bytes(texts, 380, GPT2_PATTERN,
                                     bytes(range(256)))
    if shuffled:
        rng.shuffle(pairs)
    ranks = {(tokens[a], tokens[b]): rank
             for rank, (a, b) in enumerate(pairs)}

    def one_by_one(word):
        while True:
            found = [(ranks[pair], j) for j, pair
                     in enumerate(zip(word, word[1:], strict=False))
                     if pair in ranks]
            if not found:
                return word
            rank, j = min(found)
            word = word[:j] + [word[j] + word[j + 1]] + word[j + 2:]

    for _ in range(1000):
        word = [letter.encode() for letter
                in rng.choices("aabc", k=rng.randint(0, 60))]
        expected = one_by_one(word)
        assert bpe._merge_short(word[:], ranks) == expected
        assert bpe._merge_long(word[:], ranks) == expected


def test_memory_of_words_is_bounded():
    computed = []
    memory = bpe.WordMemory(
        lambda word: computed.append(word) or [1], limit=10)
    for number in range(100):
        assert memory[str(number)] == [1]
        assert len(memory) <= 10
    memory["x" * 65]
    assert "x" * 65 not in memory
    computed.clear()
    memory["99"]
    assert computed == []


@pytest.mark.parametrize("letters", ["a", "ab", "the quick"])
def test_long_texts_take_linear_time(letters):
    """Ten times the text takes about ten times as long, not a hundred."""
    rng = random.Random(0)
    tokenizer = ByteBPE.train(["aaaaaaaa abababab the quick brown"], 270)

    text = "".join(rng.choices(letters, k=500_000))
    assert_linear(lambda n: tokenizer.encode(text[:n]), 50_000)


def test_learning_from_one_long_word_takes_linear_time():
    assert_linear(lambda n: ByteBPE.train(["a" * n], 270), 100_000)


# Parity --------------------------------------------------------------------

def hugging(tokenizer):
    """The same tokenizer in the `tokenizers` library."""
    shown = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    letters = dict(zip(GPT2_ALPHABET, sorted(shown), strict=True))

    def spelled(token):
        return "".join(map(letters.get, token))

    pre = tokenizers.pre_tokenizers
    other = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={spelled(t): i for t, i in tokenizer.vocab.items()},
        merges=[(spelled(a), spelled(b)) for a, b in tokenizer.merges]))
    other.pre_tokenizer = pre.Sequence([
        pre.Split(tokenizers.Regex(tokenizer.pattern), "isolated"),
        pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    other.decoder = tokenizers.decoders.ByteLevel()
    other.add_special_tokens([*tokenizer.special_tokens])
    return other


def titok(tokenizer):
    """The same tokenizer in tiktoken."""
    return tiktoken.Encoding(
        "test", pat_str=tokenizer.pattern,
        mergeable_ranks=dict(tokenizer.vocab),
        special_tokens=dict(tokenizer.special_tokens))


# Code points that every Unicode table since version 14 classifies alike.
assigned = st.characters(exclude_categories=["Cs", "Cn"])
pieces = st.one_of(
    st.text(assigned, max_size=6),
    st.text(st.characters(codec="ascii"), max_size=8),
    st.text(st.characters(categories=["Mn", "Mc", "Zs", "Nd", "No"]),
            max_size=4),
    st.text(" \t\n\r\v\u00a0\u3000", max_size=6),
    st.text("0123456789٣೪", max_size=7),
    st.sampled_from(["'s", "'LL", "'Re", "’t", "'ſ", "don't", " the", "\x00",
                     "return ", "    ", "\r\n\r\n", "😀", "日本語", "αβγ",
                     END_OF_TEXT, "<|endof", "text|>", "e\u0301"]),
)


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, GPT4_PATTERN],
                         ids=["GPT-2", "GPT-4"])
@few_or_many(52, 260)
def test_ids_equal_those_of_tokenizers_and_tiktoken(pages, pattern, n):
    """On n times 400 generated strings, and on real text."""
    ours = ByteBPE.train(pages, 2000, pattern=pattern)
    theirs, rank_based = hugging(ours), titok(ours)
    compared = 0

    def compare(texts):
        nonlocal compared
        compared += len(texts)
        plain = ours.encode_batch(texts)
        assert plain == rank_based.encode_ordinary_batch(texts, num_threads=1)
        ids = ours.encode_batch(texts, allowed_special="all")
        assert ids == [e.ids for e in theirs.encode_batch(texts)]
        assert ids == rank_based.encode_batch(
            texts, allowed_special="all", num_threads=1)
        assert [*map(ours.decode, ids)] == texts

    @settings(max_examples=n, deadline=None, derandomize=True,
              suppress_health_check=[*HealthCheck])
    @given(st.lists(pieces, min_size=4, max_size=24), st.integers(0, 999))
    def many(parts, seed):
        rng = random.Random(seed)
        compare(["".join(rng.choices(parts, k=rng.randint(1, 8)))
                 for _ in range(400)])

    many()
    assert compared >= 400 * n
    compare(pages + manual()[1] + STRANGE + [*documents(300)])
    with open(bpe.__file__, encoding="utf-8") as source:
        compare([source.read()])


@pytest.mark.parametrize("alphabet", [GPT2_ALPHABET, bytes(range(256))],
                         ids=["GPT-2", "raw"])
def test_merges_equal_those_of_tokenizers_where_ties_are_broken_alike(
        pages, alphabet):
    """`tokenizers` breaks ties by ids too, over GPT-2's alphabet.

    Over another alphabet other pairs win, so the merges differ in order;
    the vocabulary is nearly the same.
    """
    size = 1500
    ours = ByteBPE.train(pages, size, alphabet=alphabet, special_tokens=[])
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False)
    theirs.train_from_iterator(pages, tokenizers.trainers.BpeTrainer(
        vocab_size=size, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    vocab = hugging(ours).get_vocab()
    if alphabet == GPT2_ALPHABET:
        assert vocab == theirs.get_vocab()
    else:
        shared = vocab.keys() & theirs.get_vocab().keys()
        assert 0.97 * size < len(shared)
        assert vocab != theirs.get_vocab()


def test_patterns_lose_nothing():
    for pattern in (GPT2_PATTERN, GPT4_PATTERN):
        for text in STRANGE:
            assert "".join(regex.findall(pattern, text)) == text


@pytest.mark.parametrize("engine", ["plain", "compiled"])
@pytest.mark.parametrize("unk_id", [None, 9])
def test_bytes_that_have_no_id(engine, unk_id):
    """Left out before anything is merged, or unknown."""
    vocab = {b"a": 0, b"b": 1, b"ab": 2, b"axb": 3, b"": 4}
    make = bpe._Encoder if engine == "plain" else fast_bpe.FastEncoder
    own = make(vocab, [(b"a", b"b")], r"\S+", False, unk_id)
    unknown = [] if unk_id is None else [9]
    long = "ab" + "x" * 100 + "ab"
    assert own.encode("ab") == [2]
    assert own.encode("axb") == ([0, 9, 1] if unknown else [2])
    assert own.encode("x") == unknown
    assert own.encode(long) == [2, *unknown * 100, 2]


def test_patterns_that_drop_something():
    text = "a1 b22\u0301c "
    assert bpe.Only(r"\w+")(text) == ["a1", "b22\u0301c"]
    assert bpe.Only(r"\d", between=True)(text) == ["a", " b", "\u0301c "]
    own = ByteBPE.train(["aa bb aa"], 259, pattern=bpe.Only(r"\w+"))
    assert own.decode(own.encode("aa bb")) == "aabb"
    assert b" " not in {t for pair in own.merges for t in pair}
    with pytest.raises(ValueError, match="does not compile"):
        bpe.Only("(a")
