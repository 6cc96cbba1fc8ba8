"""Unigram against sentencepiece, the `tokenizers` library and its loops."""

import functools
import io
import math
import pickle
import random
import unicodedata

import numpy as np
import pytest
import sentencepiece
from samples import few_or_many, lines, same_score, sources, strings
from tokenizers import Tokenizer, models, pre_tokenizers

from lmcourse.tokenizers.fast import pieces as fast_pieces
from lmcourse.tokenizers import unigram as chapter
from lmcourse.tokenizers.base import ENGINES, manual
from lmcourse.tokenizers.unigram import (
    BYTES,
    SPACE,
    Unigram,
    best_segmentations,
    expected_counts,
    learn_unigram_loop,
    prune,
    reestimate,
    sample_segmentation,
    seed_pieces,
    segment_unigram,
)

def train_peer(texts, vocab_size, **options):
    """A sentencepiece model that changes no character."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(**{
        "sentence_iterator": iter(texts), "model_writer": model,
        "vocab_size": vocab_size, "model_type": "unigram",
        "normalization_rule_name": "identity", "minloglevel": 2,
        "remove_extra_whitespaces": False, "num_threads": 1} | options)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pieces_of(peer):
    """The pieces of a sentencepiece model and their scores."""
    return {peer.id_to_piece(i): peer.get_score(i)
            for i in range(peer.get_piece_size())
            if not (peer.is_control(i) or peer.is_unknown(i)
                    or peer.is_byte(i))}


def as_unigram(peer):
    """A sentencepiece model as one of ours."""
    names = [peer.id_to_piece(i) for i in range(peer.get_piece_size())]
    special = {name: i for i, name in enumerate(names)
               if peer.is_control(i) or peer.is_unknown(i)}
    return Unigram(
        vocab={n: i for i, n in enumerate(names) if n not in special},
        special_tokens=special, unk_token="<unk>", scores=pieces_of(peer),
        byte_fallback="<0x00>" in names)


@pytest.fixture(scope="module")
def tokenizer():
    return Unigram.train(manual()[0], 2_000)


@few_or_many(15_000, 60_000)
@pytest.mark.parametrize("fallback, seed", [(True, 0), (False, 1)])
def test_parity_with_sentencepiece(fallback, seed, n):
    peer = train_peer(lines(), 1_500, byte_fallback=fallback)
    own = as_unigram(peer)
    texts = list(strings(n, seed))
    different = [(text, a, b) for text, a, b in zip(
        texts, own.encode_batch(texts), peer.encode(texts), strict=True)
        if a != b]
    assert len(different) < len(texts) / 500
    for text, a, b in different:  # ties: its sums have 32 bits, ours 64
        assert same_score(own, a, b), text
    for text in texts[:2_000]:
        if fallback:
            assert own.decode(own.encode(text)) == text


def test_parity_with_sentencepiece_on_texts():
    peer = train_peer(lines(), 1_500, byte_fallback=True)
    own = as_unigram(peer)
    for text in manual()[1] + sources():
        for line in text.split("\n"):
            a, b = own.encode(line), peer.encode(line)
            assert a == b or same_score(own, a, b), line
        assert own.decode(own.encode(text)) == text


@few_or_many(15_000, 50_000)
def test_parity_with_tokenizers(tokenizer, n):
    """The `tokenizers` library adds up in 64 bits: equal, ties included."""
    scores = [("<unk>", 0.0), *((f"{name}!", -99.0) for name in BYTES),
              *tokenizer.scores.items()]
    other = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=False))
    other.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    own = Unigram(
        vocab={piece: i for i, (piece, _) in enumerate(scores) if i},
        special_tokens={"<unk>": 0}, unk_token="<unk>", byte_fallback=False,
        scores=dict(scores[1:]))
    texts = [text for text in strings(n, 2)
             if text and not text.startswith(" ") and "<unk>" not in text]
    texts += manual()[1] + sources()
    theirs = other.encode_batch_fast(texts, add_special_tokens=False)
    for text, found in zip(texts, theirs, strict=True):
        assert own.encode(text) == found.ids, text


@pytest.mark.parametrize("vocab_size", [600, 1_500])
def test_likelihood_against_sentencepiece(vocab_size, tmp_path):
    """From the same seeds, and from its own."""
    texts = lines()
    corpus = chapter._count_spaced(texts, None, True)
    seeds = seed_pieces(chapter.chunk_words(corpus), 1_000_000)
    file = tmp_path / "seeds.tsv"
    file.write_text("".join(f"{piece}\t{math.exp(score) * 1e9:.0f}\n"
                            for piece, score in seeds.items()
                            if "\t" not in piece))
    own = fast_pieces.learn_unigram(corpus, vocab_size)

    def likelihood(scores):
        norm = math.log(sum(map(math.exp, scores.values())))
        scores = {p: s - norm for p, s in scores.items()}
        return sum(n * expected_counts(word, scores)[0]
                   for word, n in corpus.items())

    for options in ({"seed_sentencepieces_file": str(file)}, {}):
        peer = train_peer(texts, vocab_size + 3, character_coverage=1.0,
                          split_by_unicode_script=False,
                          split_by_number=False, **options)
        theirs = pieces_of(peer)
        assert len(theirs) == len(own) == vocab_size
        assert likelihood(own) >= 1.005 * likelihood(theirs)


def test_expectation_maximization_climbs():
    corpus = chapter.chunk_words(chapter._count_spaced(manual()[0][:2], None,
                                                   True))
    scores, last = seed_pieces(corpus, 500), -math.inf
    for _ in range(4):
        likelihood, scores = reestimate(corpus, scores)
        assert likelihood > last
        last = likelihood
    assert len(prune(corpus, scores, 150)) == 150


def test_fast_learner_equals_the_loop():
    rng = random.Random(1)
    for _ in range(60):
        letters = "abcd"[:rng.randint(1, 4)]
        corpus = {"".join(rng.choices(letters, k=rng.randint(1, 40))):
                  rng.randint(1, 9) for _ in range(rng.randint(1, 25))}
        options = {"seed_size": rng.choice([5, 30, 1_000]),
                   "max_length": rng.choice([3, 16]),
                   "shrink": rng.choice([0.5, 0.75]),
                   "rounds": rng.choice([1, 2])}
        size = rng.randint(4, 40)
        fast = fast_pieces.learn_unigram(corpus, size, **options)
        loop = learn_unigram_loop(corpus, size, **options)
        assert list(fast) == list(loop)
        np.testing.assert_allclose(list(fast.values()), list(loop.values()))


def test_without_numba(tokenizer, monkeypatch):
    texts = [page[:1_500] for page in manual()[0][:2]]
    fast = Unigram.train(texts, 420)
    monkeypatch.setitem(ENGINES, "pieces", lambda: None)
    slow = Unigram.train(texts, 420)
    assert slow.vocab == fast.vocab
    plain = pickle.loads(pickle.dumps(tokenizer))
    assert plain._encoder is None
    for text in [*strings(5_000, 3), manual()[1][0]]:
        ids = tokenizer.encode(text)
        assert plain.encode(text) == ids
        assert plain.encode_to_numpy(text).tolist() == ids
        assert tokenizer.encode_to_numpy(text).tolist() == ids


def test_pieces_with_inner_spaces():
    """Then the text is cut as a whole, as sentencepiece does."""
    scores = {SPACE: -3.0, "a": -3.0, "b": -3.0, f"a{SPACE}b": -4.0}
    own = Unigram(vocab={p: i for i, p in enumerate(scores)},
                  special_tokens={"<unk>": 9}, unk_token="<unk>",
                  scores=scores, byte_fallback=False)
    assert own.tokenize("a b") == [SPACE, f"a{SPACE}b"]
    assert own.decode(own.encode("a b a")) == "a b a"


def test_the_cache_is_emptied(tokenizer):
    """More different words than it holds, twice over."""
    text = " ".join(f"w{i}" for i in range(150_000))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(text) == ids


def test_sampling_follows_the_exponent(tokenizer):
    rng = random.Random(0)
    text = "compound statements"
    best = tokenizer.encode(text)
    shy = [tokenizer.sample(text, generator=rng, exponent=30)
           for _ in range(20)]
    bold = [tokenizer.sample(text, generator=rng) for _ in range(20)]
    assert shy.count(best) > 15 > bold.count(best)
    assert {tokenizer.decode(ids) for ids in shy + bold} == {text}
    ranked = tokenizer.best(text, 5)
    assert ranked[0] == best and len(set(map(tuple, ranked))) == 5


def test_parameters_do_something():
    texts = manual()[0][:6]
    plain = Unigram.train(texts, 500)
    for options in ({"byte_fallback": False}, {"prefix_space": False},
                    {"coverage": 0.9}, {"seed_size": 300}, {"shrink": 0.5},
                    {"max_length": 3}, {"rounds": 1},
                    {"normalizer": str.lower}, {"unk_token": "?"},
                    {"special_tokens": ["<s>"]}):
        assert Unigram.train(texts, 500, **options) != plain, options
    nfkc = Unigram.train(texts, 500, normalizer=functools.partial(
        unicodedata.normalize, "NFKC"))
    assert nfkc.decode(nfkc.encode("ﬁle")) == "file"
    bare = Unigram.train(texts, 500, prefix_space=False)
    assert bare.decode(bare.encode(" the")) == " the"
    lossy = Unigram.train(texts, 500, byte_fallback=False)
    assert lossy.decode(lossy.encode("the 🙃🙃 the")) == "the <unk> the"


@pytest.mark.parametrize("arguments, message", [
    ({"vocab_size": 3}, "vocab_size=3: must be at least"),
    ({"texts": []}, "texts: must hold at least one character"),
    ({"coverage": 0}, "coverage=0: must be above 0"),
    ({"shrink": 1}, "shrink=1: must be between 0 and 1"),
    ({"rounds": 0}, "rounds=0: must be at least 1"),
    ({"special_tokens": ["<unk>"]}, "'<unk>' appears twice"),
])
def test_faults_of_training(arguments, message):
    options = {"texts": ["abba cd"], "vocab_size": 300} | arguments
    with pytest.raises(ValueError) as error:
        Unigram.train(options.pop("texts"), options.pop("vocab_size"),
                      **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("fields, message", [
    ({"scores": {"b": -1.0}}, "has no id"),
    ({"scores": {}}, "must hold at least one piece"),
    ({"byte_fallback": True}, "<0x00> has no id"),
    ({}, "unk_token=None"),
])
def test_faults_of_fields(fields, message):
    fields = {"scores": {"a": -1.0}, "byte_fallback": False} | fields
    with pytest.raises(ValueError, match=message):
        Unigram(vocab={"a": 0}, special_tokens={}, **fields)


def test_faults_of_drawing(tokenizer):
    with pytest.raises(ValueError, match="n=0: must be at least 1"):
        best_segmentations("a", {"a": -1.0}, 0)
    with pytest.raises(ValueError, match="exponent=-1: must be 0 or larger"):
        sample_segmentation("a", {"a": -1.0}, generator=random, exponent=-1)
    ids = tokenizer.encode("🙃")
    with pytest.raises(ValueError, match="are not UTF-8"):
        tokenizer.decode(ids[:-1], errors="strict")
    assert "\ufffd" in tokenizer.decode(ids[:-1])


def test_ten_million_letters(tokenizer):
    """One repeated letter: no more ids for a letter of a longer text."""
    short, long = (len(tokenizer.encode_to_numpy("a" * n))
                   for n in (100_000, 10_000_000))
    assert 90 * short < long < 110 * short
    corpus = {"a" * 1_000_000: 1}
    assert len(chapter.chunk_words(corpus)) == 2
    assert list(fast_pieces.learn_unigram(corpus, 5))
    assert segment_unigram("aa", {"a": -1.0}) == ["a", "a"]
