"""Compiled byte-level BPE: equal to the plain one, in time and memory."""

import itertools
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcourse.tokenizers import bpe
from lmcourse.tokenizers.fast import bpe as fast_bpe
from lmcourse.tokenizers.fast import words as fast_words
from lmcourse.tokenizers.base import END_OF_TEXT, ENGINES, manual
from lmcourse.tokenizers.bpe import (
    GPT2_ALPHABET,
    GPT2_PATTERN,
    GPT4_PATTERN,
    ByteBPE,
)

GPT4O = fast_words.GPT4O_PATTERN
TABLED = [
    GPT2_PATTERN, GPT4_PATTERN, fast_words.GPT4_RANKS_PATTERN, GPT4O,
    # tiktoken's GPT-2, Qwen's, Mistral's, the last of DeepSeek's three
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++"
    r"|\s++$|\s+(?!\S)|\s",
    GPT4_PATTERN.replace("{1,3}", ""),
    GPT4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", ""),
    fast_words.DEEPSEEK3_PATTERN[2],
    # gaps, counted repetitions, both looks, going far back
    r"[a-z]+(?=\d)|\s", r"ts{2,3}l|\d{2,}|s?+s", r"\s+(?=\S)|\S+|\s+",
    r"(?:s|st)(?:l|ltd)?|.", r"[a-z]*\d|[a-z]"]
LEFT_TO_REGEX = [r"(?:ab)+|\W", r"\d{1,3}(?=(?:\d{3})*\b)|\D", r"a+?b|\w",
                 r"^a|.", r"a*", r"\s+$|\S", r"(?>ab)|."]
PATTERNS = [*TABLED, *LEFT_TO_REGEX, r"\w+|\W"]
FACES = [*"abzAZsStTlLvVrReEmMdD''''\"\n\n\r\t   129²½٣你好éñ.,-_ſK’🙂",
         "\xa0", "\u2003", "\x85", "\x1c", "\u0301", "'ll", "'Ve", "  ",
         "\r\n", " '", "'ſ", "'s"]
TRAIN, HELD_OUT = manual()


def words(texts, pattern):
    raw, ends = fast_words.split_ends(texts, pattern)
    return [raw[i:j] for i, j in zip([0, *ends], ends, strict=False)]


def by_regex(texts, pattern):
    return [w.encode() for t in texts
            for w in bpe.cut_words(regex.compile(pattern), t)]


def test_which_patterns_become_tables():
    for pattern in TABLED:
        assert fast_words.pattern_table(pattern) is not None, pattern
    for pattern in LEFT_TO_REGEX:
        assert fast_words.pattern_table(pattern) is None, pattern
    for pattern in ("(a)", "[a"):
        with pytest.raises(ValueError, match="pattern="):
            fast_words.pattern_table(pattern)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_cuts_are_those_of_the_pattern(pattern):
    rng = random.Random(0)
    for _ in range(2_000):
        texts = ["".join(rng.choices(FACES, k=rng.randrange(12)))
                 for _ in range(rng.randrange(1, 4))]
        assert words(texts, pattern) == by_regex(texts, pattern), texts


@pytest.mark.parametrize("patterns", [
    fast_words.DEEPSEEK3_PATTERN, (r"[a-z]+(?=\d)|\s", r"\w"),
    (r"a+?b|\w", GPT2_PATTERN, r"(?:ab)+|\W")])  # some left to regex
def test_patterns_cut_in_turns(patterns):
    rng = random.Random(0)
    faces = [*FACES, *"東京はカー", "ab"]
    for _ in range(2_000):
        texts = ["".join(rng.choices(faces, k=rng.randrange(12)))
                 for _ in range(rng.randrange(4))]
        expected = texts
        for pattern in patterns:
            expected = [word.decode() for word in by_regex(expected, pattern)]
        assert words(texts, patterns) == [*map(str.encode, expected)], texts
        compiled = bpe.compile_patterns(patterns)
        assert [word for text in texts for word in bpe.cut_in_turn(
            compiled, text)] == expected


EVERY = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]


@pytest.mark.parametrize("pattern", TABLED[:8])
@pytest.mark.parametrize("between", ["", "a1"])
def test_cuts_of_some_code_points(pattern, between):
    some = [*EVERY[:0x3000], *EVERY[0x3000::50]]
    random.Random(1).shuffle(some)
    assert words([between.join(some)], pattern) == by_regex(
        [between.join(some)], pattern)


@pytest.mark.nightly
@pytest.mark.parametrize("pattern", TABLED[:8])
@pytest.mark.parametrize("between", ["", " ", "'", "a1", "a\n "])
def test_cuts_of_all_code_points(pattern, between):
    every = random.Random(1).sample(EVERY, len(EVERY))
    texts = [between.join(every[i:i + 50_000])
             for i in range(0, len(every), 50_000)]
    assert words(texts, pattern) == by_regex(texts, pattern)


def test_counts_are_those_of_a_counter():
    texts = [*TRAIN, "a" * 300 + " " + "a" * 300, "", "aaaaaaaabbbbbbbb" * 2]
    letters, ends, counts = fast_words.tally_words(
        texts, GPT2_PATTERN).words()
    found = {letters[i:j].tobytes(): n for i, j, n
             in zip([0, *ends], ends, counts.tolist(), strict=False)}
    assert found == Counter(by_regex(texts, GPT2_PATTERN))


@pytest.mark.parametrize("alphabet", [bytes(range(256)), GPT2_ALPHABET])
def test_merges_are_those_of_the_plain_learner(alphabet):
    rng = random.Random(2)
    for letters in ("ab", "aab ", "abc \n", "é你a "):
        for _ in range(60):
            texts = ["".join(rng.choices(letters, k=rng.randrange(1, 60)))
                     for _ in range(rng.randrange(1, 9))]
            task = texts, 310, GPT2_PATTERN, alphabet
            assert fast_bpe.learn_bytes(*task) == bpe._learn_bytes(*task)
    task = TRAIN, 1500, GPT4_PATTERN, alphabet
    assert fast_bpe.learn_bytes(*task) == bpe._learn_bytes(*task)


def test_training_reads_a_stream_and_needs_a_word():
    texts = iter(["low lower", "lowest"])
    fast_bpe.learn_bytes(texts, 260, GPT2_PATTERN, bytes(range(256)))
    assert next(texts, None) is None
    for nothing in ([], [""]):
        with pytest.raises(ValueError, match="at least one character"):
            fast_bpe.learn_bytes(nothing, 260, GPT2_PATTERN,
                                 bytes(range(256)))


@pytest.fixture(scope="module", params=[GPT2_PATTERN, GPT4_PATTERN])
def trained(request):
    tokenizer = ByteBPE.train(TRAIN, 2000, pattern=request.param)
    tokenizer._encoder.read(1 << 20)  # past the start, with its plain engines
    tokenizer._decoder.read(1 << 20)
    return tokenizer


@pytest.fixture(scope="module")
def plain(trained):
    return bpe._Encoder(trained.vocab, trained.merges, trained.pattern)


def test_the_compiled_path_is_in_use_after_the_first_texts():
    tokenizer = ByteBPE.train(TRAIN, 400)
    page = TRAIN[0]
    first = tokenizer.encode(page)
    assert isinstance(tokenizer._encoder.engine, bpe._Encoder)
    while tokenizer._encoder.left >= 0:
        assert tokenizer.encode(page) == first
        assert tokenizer.decode(first) == page
    assert tokenizer.encode(page) == first
    assert tokenizer.decode(tokenizer.encode(page * 30)) == page * 30
    assert isinstance(tokenizer._encoder.engine, fast_bpe.FastEncoder)
    assert isinstance(tokenizer._decoder.engine, fast_bpe.FastDecoder)


@pytest.mark.parametrize("whole", [False, True])
def test_ranks_need_no_merges(whole):
    """Vocabularies drawn at random, with ranks no learner would give."""
    rng = random.Random(7)
    for _ in range(100):
        tokens = {bytes(rng.choices(b"abc", k=rng.randint(2, 7)))
                  for _ in range(30)} | {b"a" * 70, b"ab" * 50}
        ranks = {bytes([b]): b for b in range(256)}
        ranks |= {t: 256 + i for i, t in enumerate(
            rng.sample(sorted(tokens), len(tokens)))}
        parts = ranks, None, r"\S+", whole
        plain, fast = bpe._Encoder(*parts), fast_bpe.FastEncoder(*parts)
        for length in (1, 5, 9, 30, 63, 200):
            word = "".join(rng.choices("abc", k=length))
            ids = plain.encode(word)
            assert fast.encode(word) == ids
            if not whole or word.encode() not in ranks:
                assert [ranks[t] for t in by_ranks(word.encode(), ranks)
                        ] == ids


def by_ranks(word, ranks):
    parts = [bytes([b]) for b in word]
    while found := [(ranks[a + b], i) for i, (a, b) in enumerate(
            zip(parts, parts[1:], strict=False)) if a + b in ranks]:
        _, i = min(found)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_without_numba_all_is_the_same(trained, monkeypatch):
    assert trained.decode(trained.encode("low")) == "low"  # made before
    monkeypatch.setitem(ENGINES, "bpe", lambda: None)
    slow = ByteBPE.train(TRAIN, 2000, pattern=trained.pattern)
    assert isinstance(slow._encoder.read(1 << 20), bpe._Encoder)
    assert (slow.vocab, slow.merges) == (trained.vocab, trained.merges)
    for page in HELD_OUT:
        ids = slow.encode(page)
        assert ids == trained.encode(page)
        assert slow.decode(ids) == trained.decode(ids) == page


@settings(max_examples=400, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_encoded_as_in_chapter_11(trained, plain, text):
    ids = trained.encode(text)
    assert ids == plain.encode(text)
    assert trained.encode_to_numpy(text).tolist() == ids
    assert trained.decode(ids) == text
    assert trained.decode(np.array(ids, np.int32)) == text


def test_ids_are_those_of_tiktoken(trained):
    peer = tiktoken.Encoding("x", pat_str=trained.pattern, special_tokens={},
                             mergeable_ranks=dict(trained.vocab))
    rng = random.Random(3)
    texts = ["".join(rng.choices(FACES, k=30)) for _ in range(10_000)]
    for text in [*texts, *HELD_OUT]:
        assert trained.encode(text) == peer.encode_ordinary(text)


@pytest.mark.parametrize("rows", [16, 1 << 14])
def test_forgetting_changes_nothing_and_memory_is_bounded(trained, plain,
                                                          rows):
    encoder = fast_bpe.FastEncoder(trained.vocab, trained.merges,
                                   trained.pattern, rows=rows)
    rng = random.Random(4)
    for _ in range(60):
        text = " ".join("".join(rng.choices("abcdefgh", k=rng.randrange(40)))
                        for _ in range(1000))
        assert encoder.encode(text) == plain.encode(text)
    (memory,) = encoder.idle
    assert memory.used[0] <= len(memory.rows)
    assert memory.rows.nbytes + memory.kept.nbytes + memory.store.nbytes < 2e7


def test_one_encoder_for_many_threads(trained, plain):
    expected = [plain.encode(page) for page in HELD_OUT]
    wrong = []

    def work(seed):
        order = [*range(len(HELD_OUT))]
        random.Random(seed).shuffle(order)
        for i in order:
            if trained.encode(HELD_OUT[i]) != expected[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert 1 <= len(trained._encoder.engine.idle) <= 4


@pytest.mark.parametrize("merges", ["learned", "shuffled"])
def test_long_words_merge_like_short_ones(trained, merges):
    pairs = list(trained.merges)
    if merges == "shuffled":
        random.Random(5).shuffle(pairs)
    encoder = fast_bpe.FastEncoder(trained.vocab, pairs, trained.pattern)
    ids = np.array([trained.vocab[bytes([b])] for b in range(256)], np.int32)
    rng = random.Random(6)
    for _ in range(2000):
        word = "".join(rng.choices("theinars", k=rng.randrange(1, 90)))
        short, long = (ids[list(word.encode())] for _ in range(2))
        ranks = np.array([fast_bpe._rank(encoder.pairs, *pair) for pair
                          in itertools.pairwise(short)], np.uint64)
        n = fast_bpe._merge_few(short, ranks, encoder.pairs)
        assert n == fast_bpe._merge_many(long, encoder.pairs)
        assert short[:n].tolist() == long[:n].tolist()


def seconds(job, *args):
    found = []
    for _ in range(3):
        start = time.process_time()
        job(*args)
        found.append(time.process_time() - start)
    return min(found)


@pytest.mark.parametrize("text", ["a", "ab", " ", "lower and lowest "])
def test_time_grows_with_the_length(trained, text):
    """Ten times the text in less than forty times the time."""
    short, long = (text * (n // len(text)) for n in (300_000, 3_000_000))
    trained.encode_to_numpy(text)
    took = seconds(trained.encode_to_numpy, short)
    assert seconds(trained.encode_to_numpy, long) < 40 * took + 0.2


def test_learning_from_one_long_word_grows_with_its_length():
    def learn(n):
        fast_bpe.learn_bytes(["ab" * n + "a" * n], 300, GPT2_PATTERN,
                             bytes(range(256)))

    learn(10)
    took = seconds(learn, 100_000)
    assert seconds(learn, 1_000_000) < 40 * took + 0.2


def test_decoding(trained):
    special = trained.special_tokens[END_OF_TEXT]
    ids = [*trained.encode("low 😀"), special, *trained.encode("er")]
    for same in (ids, tuple(ids), np.array(ids), np.array(ids, np.int32),
                 np.array(ids, np.uint16), [np.int64(i) for i in ids]):
        assert trained.decode(same) == f"low 😀{END_OF_TEXT}er"
        assert trained.decode(same, skip_special_tokens=True) == "low 😀er"
    assert trained.decode([]) == ""
    broken = trained.encode("😀")[:-1] + [special]
    assert trained.decode(broken) == "\ufffd" + END_OF_TEXT


@pytest.mark.parametrize("ids, options, match", [
    ([1, 99_999], {}, r"ids\[1\]=99999"),
    ([-1], {}, r"ids\[0\]=-1"),
    ([1 << 70], {}, "not in the vocabulary"),
    (np.array([5, -3]), {}, r"ids\[1\]=-3"),
    ([0xC3], {"errors": "strict"}, "not UTF-8"),
    ([1], {"errors": "ignore"}, "errors='ignore'"),
])
def test_faults_of_decoding_are_those_of_chapter_11(trained, ids, options,
                                                    match):
    with pytest.raises(ValueError, match=match) as caught:
        trained.decode(ids, **options)
    assert "\n" not in str(caught.value)


def test_each_kernel_is_compiled_once(trained):
    """A second compilation would be seconds that a user waits."""
    for text in ("a", "é", "low er" * 99, "", "a" * 99):
        trained.decode(trained.encode_to_numpy(text))
    for kernel in (fast_words._cut, fast_bpe._encode, fast_bpe.decode_bytes,
                   fast_words._count, fast_bpe._learn_pairs):
        assert len(kernel.signatures) == 1, kernel


def test_the_compiled_code_is_kept_on_disk():
    assert fast_bpe.compile_kernels() > 0
    assert sum(fast_bpe._encode.stats.cache_hits.values()) + sum(
        fast_bpe._encode.stats.cache_misses.values()) > 0
