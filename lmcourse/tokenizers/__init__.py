"""Text to numbers and back: words, characters and subwords (no torch)."""

from importlib import import_module

from lmcourse.tokenizers import files
from lmcourse.tokenizers.base import ENGINES, Characters, Tokenizer, Words
from lmcourse.tokenizers.bpe import ByteBPE, learn_bpe, segment_bpe
from lmcourse.tokenizers.files import (
    Matching,
    WordBPE,
    by_grapheme,
    load_tokenizer,
    save_tokenizer,
)
from lmcourse.tokenizers.sentencepiece_file import (
    PieceBPE,
    write_sentencepiece,
)
from lmcourse.tokenizers.unigram import Unigram, segment_unigram
from lmcourse.tokenizers.wordpiece import (
    BertNormalizer,
    WordPiece,
    segment_wordpiece,
)

__all__ = ["BertNormalizer", "ByteBPE", "Characters", "Matching", "PieceBPE",
           "Tokenizer", "Unigram", "WordBPE", "WordPiece", "Words",
           "by_grapheme", "learn_bpe", "load_tokenizer", "save_tokenizer",
           "segment_bpe", "segment_unigram", "segment_wordpiece",
           "write_sentencepiece"]

# What the classes look up by name; numba is loaded when it is needed.
ENGINES.update(
    bpe=lambda: import_module("lmcourse.tokenizers.fast.bpe"),
    pieces=lambda: import_module("lmcourse.tokenizers.fast.pieces"),
    files=lambda: files,
)
