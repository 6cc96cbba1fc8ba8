"""SentencePiece's files against the library that writes them."""

import functools
import io
import random
from itertools import product

import pytest
import sentencepiece
from samples import lines, same_score, sources, strings

from lmcourse.tokenizers.base import manual
from lmcourse.tokenizers.sentencepiece_file import (
    read_sentencepiece,
)
from lmcourse.tokenizers.unigram import SPACE, Unigram
from lmcourse.world import documents

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
DEFINED = ["<sep>", "def", "\u0301", "  ", "1"]
SETTINGS = {
    "llama": {"normalization_rule_name": "identity", "byte_fallback": True,
              "split_digits": True, "allow_whitespace_only_pieces": True},
    "default": {"normalization_rule_name": "nmt_nfkc",
                "remove_extra_whitespaces": True},
    "defined": {"normalization_rule_name": "nmt_nfkc",
                "remove_extra_whitespaces": True, "split_digits": True,
                "user_defined_symbols": DEFINED},
    "bare": {"normalization_rule_name": "nfkc", "add_dummy_prefix": False,
             "byte_fallback": True, "user_defined_symbols": DEFINED},
    "folded": {"normalization_rule_name": "nmt_nfkc_cf",
               "control_symbols": ["<mask>", "<2es>"],
               "remove_extra_whitespaces": True, "add_dummy_prefix": False,
               "split_by_whitespace": False},
}


def texts(n, seed):
    """Random strings; in some of them user-defined and spelled symbols."""
    rng = random.Random(seed)
    for text in strings(n, seed):
        for _ in range(rng.choice([0, 0, 0, 1, 2])):
            place = rng.randint(0, len(text))
            text = text[:place] + rng.choice(
                [*DEFINED, "<mask>", "<0x41>", SPACE, "don't", "ﬁ", " ½ ",
                 "e\u0301\u0302", "각", "\u1100\u1161\u11a8"]) + text[place:]
        yield text


def vanishes(own, text):
    """Whether the table deletes a text, and no space is taken away."""
    return (text and own.normalizer and not own.normalizer.collapse
            and not own.normalizer(text))


def train(path, **options):
    """Let sentencepiece write a file, and open it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(**{
        "sentence_iterator": iter(lines()), "model_writer": model,
        "vocab_size": 1_000, "minloglevel": 2, "num_threads": 1,
        "remove_extra_whitespaces": False} | options)
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """File, our reader and theirs, for each type and setting."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def get(model_type, setting):
        path = folder / f"{model_type}-{setting}.model"
        peer = train(path, model_type=model_type, **SETTINGS[setting])
        return path, read_sentencepiece(path), peer

    return get


def assert_equal(own, peer, text):
    """The same ids, but for ties in 32-bit sums; and the same text."""
    ids, expected = own.encode(text), peer.encode(text)
    if ids == expected:
        pass
    elif vanishes(own, text):  # the difference that the chapter tells of
        assert (ids, peer.encode(text, out_type=str)) == ([], [SPACE])
    else:
        assert isinstance(own, Unigram) and same_score(own, ids, expected), \
            (text, ids, expected)
    shown = peer.decode(expected).replace(" \u2047 ", own.unk_token)
    if own.normalizer and own.normalizer.collapse:
        assert own.decode(expected).lstrip(" ") == shown, text
    else:
        assert own.decode(expected) == shown, text


# Parity --------------------------------------------------------------------

@pytest.mark.parametrize("model_type, setting",
                         [*product(["bpe", "unigram"], SETTINGS)])
def test_parity_on_generated_strings(trained, model_type, setting):
    _, own, peer = trained(model_type, setting)
    for text in texts(21_000, [*SETTINGS].index(setting)):
        assert_equal(own, peer, text)


@pytest.mark.parametrize("model_type, setting",
                         [*product(["bpe", "unigram"], SETTINGS)])
def test_parity_on_texts(trained, model_type, setting):
    _, own, peer = trained(model_type, setting)
    for text in [*manual()[1], *sources(), *documents(200)]:
        assert_equal(own, peer, text)
    whole = "\n".join(sources())
    ids = own.encode(whole)
    assert own.encode_to_numpy(whole).tolist() == ids


def test_parity_of_characters(tmp_path):
    peer = train(tmp_path / "c.model", model_type="char", vocab_size=90,
                 user_defined_symbols=["def"])
    own = read_sentencepiece(tmp_path / "c.model")
    assert own.merges == ()
    for text in [*texts(2_000, 9), *manual()[1][:3]]:
        assert_equal(own, peer, text)
