"""Text to numbers and back: words, characters and subwords (no torch)."""

from lmcourse.tokenizers.base import Characters, Tokenizer, Words
from lmcourse.tokenizers.bpe import ByteBPE, learn_bpe, segment_bpe
from lmcourse.tokenizers.files import load_tokenizer
from lmcourse.tokenizers.sentencepiece_file import PieceBPE
from lmcourse.tokenizers.unigram import Unigram, segment_unigram
from lmcourse.tokenizers.wordpiece import (
    BertNormalizer,
    WordPiece,
    segment_wordpiece,
)

__all__ = ["BertNormalizer", "ByteBPE", "Characters", "PieceBPE", "Tokenizer",
           "Unigram", "WordPiece", "Words", "learn_bpe", "load_tokenizer",
           "segment_bpe", "segment_unigram", "segment_wordpiece"]
