"""WordPiece against the `tokenizers` library, its loops and bad input."""

import pickle
import random
import unicodedata

import pytest
from samples import few_or_many, sources, strings
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from lmcourse.tokenizers.fast import pieces as fast_pieces
from lmcourse.tokenizers import wordpiece as chapter
from lmcourse.tokenizers.base import ENGINES, manual
from lmcourse.tokenizers.wordpiece import (
    BertNormalizer,
    WordPiece,
    association_score,
    frequency_score,
    learn_wordpiece_loop,
    likelihood_score,
    segment_wordpiece,
)

SCORES = [frequency_score, association_score, likelihood_score]
CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
ODD = ["[UNK]", "[CLS]", "##", "don't", "İ", "ΣΑΣ", "\0",
       *map(chr, range(0x4E00, 0x4E10)), *map(chr, range(0xAC00, 0xAC10))]


def peer(vocab, *, lowercase=True, accents=None, clean=True, chinese=True):
    """The same vocabulary in the `tokenizers` library."""
    other = Tokenizer(models.WordPiece(
        vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    other.normalizer = normalizers.BertNormalizer(
        clean_text=clean, handle_chinese_chars=chinese,
        strip_accents=accents, lowercase=lowercase)
    other.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    other.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return other


@pytest.fixture(scope="module")
def tokenizer():
    pages, _ = manual()
    extra = ["我爱你 안녕 привет ελληνικά עברית हिन्दी ñandú straße café 12345"]
    return WordPiece.train([*pages, *sources()[:2], *extra * 3], 3_000)


def differing(characters):
    """Those that Python's and the library's Unicode see differently."""
    normalizer = BertNormalizer()
    table = chapter.CharacterMap(normalizer)
    other = peer({"[UNK]": 0})

    def differ(char):
        text = f"a{char}b"
        own = ([text] if unicodedata.category(char) == "Cn" else
               chapter._normalized_words(text, normalizer, table))
        seen = other.normalizer.normalize_str(text)
        return [word for word in own if word] != [
            word for word, _ in other.pre_tokenizer.pre_tokenize_str(seen)]

    return set(filter(differ, characters))


def odd_strings(n, seed):
    """Random strings, with much of Asia in them."""
    return strings(n, seed, ODD)


def alike_strings(n, seed):
    """The same without the letters on which versions of Unicode differ."""
    texts = [*odd_strings(n, seed)]
    without = differing(set("".join(texts)))
    return ["".join(char for char in text if char not in without)
            for text in texts]


@pytest.mark.nightly
def test_few_characters_differ():
    """Unicode versions differ on hundreds of characters of 1,112,064."""
    found = differing(CHARACTERS)
    assert len(found) < 1_000
    assert not any(char < "\u0600" for char in found)


@few_or_many(20_000, 100_000)
def test_parity_on_generated_strings(tokenizer, n):
    texts = alike_strings(n, 0)
    other = peer({**tokenizer.vocab, "[UNK]": tokenizer.unk_id})
    theirs = other.encode_batch_fast(texts, add_special_tokens=False)
    own = tokenizer.encode_batch(texts)
    wrong = [text for text, a, b in zip(texts, own, theirs, strict=True)
             if a != b.ids]
    assert wrong == []


@pytest.mark.parametrize("options", [
    {"lowercase": False}, {"accents": False}, {"chinese": False},
    {"clean": False}, {"lowercase": False, "accents": True}])
def test_parity_of_the_options(tokenizer, options):
    own = WordPiece(
        vocab=tokenizer.vocab, special_tokens=tokenizer.special_tokens,
        unk_token="[UNK]", normalizer=BertNormalizer(**options))
    other = peer({**tokenizer.vocab, "[UNK]": own.unk_id}, **options)
    changed = 0
    for text in alike_strings(3_000, 1):
        ids = own.encode(text)
        assert ids == other.encode(text, add_special_tokens=False).ids, text
        changed += ids != tokenizer.encode(text)
    assert changed > 0


def test_parity_on_texts(tokenizer):
    other = peer({**tokenizer.vocab, "[UNK]": tokenizer.unk_id})
    _, unseen = manual()
    for text in unseen + sources():
        ids = tokenizer.encode(text)
        assert ids == other.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode_to_numpy(text).tolist() == ids
        assert tokenizer.decode(ids) == other.decode(ids)


def test_parity_on_the_world(tokenizer):
    world = pytest.importorskip("lmcourse.world")
    other = peer({**tokenizer.vocab, "[UNK]": tokenizer.unk_id})
    for text in world.documents(300):
        assert tokenizer.encode(text) == other.encode(text).ids


def trained(words, vocab_size):
    """The vocabulary that the library's trainer learns."""
    other = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    other.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    other.train_from_iterator(
        [" ".join([word] * n) for word, n in words.items()],
        trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=[],
                                  show_progress=False))
    return sorted(other.get_vocab(), key=other.get_vocab().get)


def test_the_librarys_trainer_counts():
    """Without ties it learns what `frequency_score` learns, in order."""
    rng = random.Random(0)
    letters = "abcdef"
    corpus = {"".join(rng.choices(letters, k=rng.randint(2, 9))):
              rng.randrange(100, 100_000) for _ in range(60)}
    own = learn_wordpiece_loop(corpus, 32, score=frequency_score)[12:]
    theirs = [p for p in trained(corpus, 40) if len(p.strip("#")) > 1]
    assert own == theirs[:20]
    for score in (association_score, likelihood_score):
        assert learn_wordpiece_loop(corpus, 32, score=score)[12:] != own


@pytest.mark.parametrize("score", SCORES)
def test_fast_learner_equals_the_loop(score):
    rng = random.Random(1)
    for _ in range(60):
        letters = "abcd"[:rng.randint(1, 4)]
        corpus = {"".join(rng.choices(letters, k=rng.randint(1, 9))):
                  rng.randint(1, 9) for _ in range(rng.randint(1, 30))}
        size = rng.randint(8, 60)
        assert (fast_pieces.learn_wordpiece(corpus, size, score=score)
                == learn_wordpiece_loop(corpus, size, score=score))


def test_without_numba(tokenizer, monkeypatch):
    """Everything works, and gives the same, without the compiled part."""
    pages, unseen = manual()
    texts = [page[:3_000] for page in pages[:3]]
    fast = WordPiece.train(texts, 200)
    monkeypatch.setitem(ENGINES, "pieces", lambda: None)
    slow = WordPiece.train(texts, 200)
    assert slow == fast
    plain = pickle.loads(pickle.dumps(tokenizer))
    assert plain._encoder is None
    for text in [*odd_strings(5_000, 2), unseen[0]]:
        ids = tokenizer.encode(text)
        assert plain.encode(text) == ids
        assert plain.encode_to_numpy(text).tolist() == ids


def test_marks_that_are_sorted():
    """NFD sorts marks by class; the table of characters cannot."""
    text = "a\u1dfa\U0001d165\u0301\u302e\U00011235"
    own = WordPiece(vocab={"a": 1}, special_tokens={"[UNK]": 0},
                    unk_token="[UNK]")
    direct = chapter.split_words(own.normalizer(text))
    assert chapter._normalized_words(
        text, own.normalizer, own.character_map) == direct
    assert unicodedata.combining("\u302e")


def test_any_function_normalizes():
    own = WordPiece.train(["HELLO hello"], 20, normalizer=str.swapcase)
    assert own.tokenize("hello") == ["HELLO"] or "H" in own.vocab
    assert WordPiece.train(["A b"], 20, normalizer=None).vocab.keys() >= {"A"}


def test_parameters_do_something(tokenizer):
    pages = manual()[0][:5]
    assert WordPiece.train(pages, 400, max_word_length=4).vocab.keys() \
        != WordPiece.train(pages, 400).vocab.keys()
    marked = WordPiece(vocab={"a": 1, "@b": 2}, special_tokens={"?": 0},
                       unk_token="?", mark="@", max_word_length=2)
    assert marked.tokenize("ab") == ["a", "@b"]
    assert marked.tokenize("abb") == ["?"]
    assert marked.decode([1, 2, 1]) == "ab a"
    assert segment_wordpiece("ab", {"a"}, unk_token="?") == ["?"]
    bert = WordPiece.train(pages, 400, special_tokens=["[CLS]", "[SEP]"],
                           prefix=["[CLS]"], suffix=["[SEP]"])
    assert bert.tokenize("the", add_special_tokens=True) == [
        "[CLS]", "the", "[SEP]"]
    assert bert.tokenize("[CLS]")[0] == "["
    assert bert.tokenize("[CLS]", allowed_special="all") == ["[CLS]"]


@pytest.mark.parametrize("arguments, message", [
    ({"vocab_size": 3}, "vocab_size=3: must be at least 10"),
    ({"vocab_size": "x"}, "vocab_size='x': must be at least 10"),
    ({"special_tokens": ["[UNK]"]}, "'[UNK]' appears twice"),
    ({"texts": []}, "texts: must hold at least one word"),
])
def test_faults_of_training(arguments, message):
    options = {"texts": ["abba cd"], "vocab_size": 20} | arguments
    with pytest.raises(ValueError) as error:
        WordPiece.train(options.pop("texts"), options.pop("vocab_size"),
                        **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_faults():
    with pytest.raises(ValueError, match="unk_token=None"):
        WordPiece(vocab={"a": 0}, special_tokens={})
    with pytest.raises(ValueError, match="must be one of frequency_score"):
        fast_pieces.learn_wordpiece({"ab": 1}, 9, score=max)
    for learn in (learn_wordpiece_loop, fast_pieces.learn_wordpiece):
        with pytest.raises(ValueError, match="corpus: must hold"):
            learn({}, 9)
        with pytest.raises(ValueError, match="vocab_size=3: must be at"):
            learn({"ab": 1}, 3)


def test_ten_million_letters(tokenizer):
    """One long word is one unknown token, found without cutting it."""
    assert tokenizer.encode("a" * 10_000_000) == [tokenizer.unk_id]
    with pytest.raises(ValueError, match="at least one word"):
        WordPiece.train(["a" * 1_000_000], 20)
