"""SentencePiece's files against the library that writes them."""

import dataclasses
import functools
import io
import os
import pickle
import random
from itertools import product

import pytest
import sentencepiece
import tokenizers
from samples import (
    assert_linear,
    few_or_many,
    lines,
    same_score,
    sources,
    strings,
)

from lmcourse.tokenizers.base import manual
from lmcourse.tokenizers.sentencepiece_file import (
    Charsmap,
    PieceBPE,
    PieceNormalizer,
    compile_charsmap,
    merge_pieces,
    merge_pieces_loop,
    read_sentencepiece,
    scored_merges,
    write_fields,
    write_sentencepiece,
)
from lmcourse.tokenizers.unigram import SPACE, Unigram
from lmcourse.world import documents

os.environ["TOKENIZERS_PARALLELISM"] = "false"
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
        assert own.decode(expected).lstrip(" ") == shown.lstrip(" "), text
    else:
        assert own.decode(expected) == shown, text


# Parity --------------------------------------------------------------------

@few_or_many(4_000, 21_000)
@pytest.mark.parametrize("model_type, setting",
                         [*product(["bpe", "unigram"], SETTINGS)])
def test_parity_on_generated_strings(trained, model_type, setting, n):
    _, own, peer = trained(model_type, setting)
    for text in texts(n, [*SETTINGS].index(setting)):
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


def build(pieces, *, trainer=(), rules=(), more=()):
    """A file's bytes: pieces with score and type, and other fields."""
    return write_fields([
        *((1, write_fields(zip((1, 2, 3), piece, strict=True)))
          for piece in pieces),
        (2, write_fields([(3, 2), *trainer])),
        (3, write_fields([(3, False), (4, False), *rules])), *more])


PIECES = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL),
          ("</s>", 0.0, CONTROL),
          *((letter, -50.0 - i, NORMAL) for i, letter in enumerate("abcd▁"))]


def read(tmp_path, data):
    path = tmp_path / "some.model"
    path.write_bytes(data)
    return read_sentencepiece(path)


@pytest.mark.parametrize("model_type", [1, 2, 4])
def test_parity_of_piece_types(tmp_path, model_type):
    """Random files of all types, with equal scores among them."""
    rng = random.Random(model_type)
    for _ in range(150):
        names = {"".join(rng.choices("abcd▁", k=rng.randint(1, 4)))
                 for _ in range(rng.randint(1, 14))} - set("abcd▁")
        some = [(piece, float(-rng.randint(1, 6)), rng.choice(
            [NORMAL] * 5 + [USER_DEFINED, UNUSED, CONTROL]))
                for piece in sorted(names)]
        if model_type == 4:  # no pieces of several letters
            some = [p for p in some if p[2] in (USER_DEFINED, CONTROL)]
        letters = [(piece, score, rng.choice([kind] * 9 + [UNUSED])
                    if piece in "abcd" else kind)
                   for piece, score, kind in PIECES]
        data = build(letters + some, trainer=[(3, model_type)], rules=[
            (3, rng.random() < 0.5), (4, rng.random() < 0.5)])
        own = read(tmp_path, data)
        peer = sentencepiece.SentencePieceProcessor(model_proto=data)
        for _ in range(40):
            text = "".join(rng.choices("aabbccd ex▁", k=rng.randint(0, 12)))
            assert_equal(own, peer, text)


def test_special_tokens_are_plain_text_and_have_roles(trained, tmp_path):
    _, own, peer = trained("bpe", "llama")
    plain = own.encode("<s> low </s>")
    assert plain == peer.encode("<s> low </s>")
    assert not {*plain} & {*own.special_tokens.values()}
    assert own.encode("low", add_special_tokens=True) \
        == peer.encode("low", add_bos=True) == [1, *own.encode("low")]
    marked = own.encode("<s>", allowed_special="all")
    assert marked == [peer.bos_id()]
    t5 = read(tmp_path, build(
        [PIECES[0], PIECES[2], *PIECES[3:]], trainer=[(41, -1), (42, 1)]))
    assert (t5.prefix, t5.suffix) == ((), ("</s>",))
    named = read(tmp_path, build(
        [*PIECES, ("[CLS]", 0.0, CONTROL)], trainer=[(46, "[CLS]")]))
    assert named.prefix == ("[CLS]",)
    _, folded, peer = trained("unigram", "folded")
    assert folded.special_tokens["<mask>"] == peer.piece_to_id("<mask>")


def test_decoding_skips_and_replaces(trained):
    _, own, peer = trained("bpe", "llama")
    ids = own.encode("low 🙃", add_special_tokens=True)
    assert own.decode(ids, skip_special_tokens=True) == peer.decode(ids)
    assert "\ufffd" in own.decode(ids[:-1])
    with pytest.raises(ValueError, match="not UTF-8"):
        own.decode(ids[:-1], errors="strict")


def test_the_table_of_the_usual_files(trained):
    """What the chapter says about its size."""
    path, own, _ = trained("bpe", "default")
    charsmap = own.normalizer.charsmap
    assert len(charsmap.rules) > 220_000
    assert len(charsmap.blob) > 0.9 * path.stat().st_size
    for text in texts(5_000, 21):  # one by one, as the class explains it
        assert PieceNormalizer(charsmap)(text) == charsmap(text)


def test_the_tokenizers_library_reads_the_table_by_graphemes():
    """What the chapter says about the difference."""
    for rules, text, ours, theirs in [
            ({"e": "E"}, "e\u0301", "E\u0301", "E"),
            ({"e": "E", "e\u0301": "\xc9"}, "e\u0301", "\xc9", "E"),
            ({"ab": "X"}, "ab", "X", "ab"),
            ({"\u0301": ""}, "e\u0301", "e", "e")]:
        blob = compile_charsmap(rules)
        other = tokenizers.normalizers.Precompiled(blob)
        assert Charsmap(blob)(text) == ours
        assert other.normalize_str(text) == theirs


def test_a_table_of_ours_in_their_library(tmp_path):
    """Random tables: longest match, deletion, double spaces."""
    rng = random.Random(4)
    for _ in range(30):
        rules = {"".join(rng.choices("abé▁ \u0301", k=rng.randint(1, 4))):
                 "".join(rng.choices("ab  é", k=rng.randint(0, 3)))
                 for _ in range(rng.randint(0, 12))}
        blob = compile_charsmap(rules)
        assert Charsmap(blob).rules == rules
        defined = [("ab a", 0.0, USER_DEFINED), ("\u0301", 0.0, USER_DEFINED)]
        data = build([*PIECES, *defined[:rng.randint(0, 2)]], rules=[
            (2, blob), (3, rng.random() < 0.5), (4, rng.random() < 0.5)])
        own = read(tmp_path, data)
        peer = sentencepiece.SentencePieceProcessor(model_proto=data)
        for _ in range(100):
            text = "".join(rng.choices("aabb é\u0301▁c", k=rng.randint(0, 9)))
            assert_equal(own, peer, text)


# Merging -------------------------------------------------------------------

def test_fast_merging_equals_the_loop():
    rng = random.Random(5)
    for _ in range(400):
        scores = {"".join(rng.choices("abc", k=rng.randint(1, 4))):
                  rng.randint(-5, 0) for _ in range(rng.randint(1, 15))}
        merges, ranks = scored_merges(scores)
        shared = dict(zip(merges, ranks, strict=True))
        listed = {pair: rank for rank, pair in enumerate(merges)}
        text = "".join(rng.choices("abc", k=rng.randint(0, 40)))
        for order in shared, listed:
            assert merge_pieces(text, order) == merge_pieces_loop(text, order)


def test_all_cuts_of_a_piece_are_merges():
    scores = {"a": -9.0, "b": -9.5, "ab": -1.0, "ba": -1.0, "aba": -3.0,
              "abab": -2.0}
    merges, ranks = scored_merges(scores)
    assert merges == [("a", "b"), ("b", "a"), ("a", "ba"), ("ab", "a"),
                      ("ab", "ab"), ("aba", "b")][:2] + [
        ("ab", "ab"), ("aba", "b"), ("a", "ba"), ("ab", "a")]
    assert ranks == [0, 0, 1, 1, 2, 2]


def test_a_list_of_merges_encodes_as_the_scores(trained):
    """As a `tokenizer.json` lists them: each merge with its own rank."""
    _, own, _ = trained("bpe", "llama")
    listed = dataclasses.replace(own, ranks=None)
    assert listed != own
    for text in [*texts(3_000, 6), *manual()[1]]:
        assert listed.encode(text) == own.encode(text)


@pytest.mark.parametrize("fallback, fuse", [(True, True), (False, True),
                                            (False, False)])
def test_parity_with_tokenizers(trained, fallback, fuse):
    """The file of Llama 2 as a `tokenizer.json` has it."""
    _, own, _ = trained("bpe", "llama")
    own = dataclasses.replace(own, ranks=None, byte_fallback=fallback,
                              fuse_unk=fuse)
    other = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={**own.vocab, **own.special_tokens}, merges=[*own.merges],
        unk_token="<unk>", fuse_unk=fuse, byte_fallback=fallback))
    other.normalizer = tokenizers.normalizers.Sequence([
        tokenizers.normalizers.Prepend(SPACE),
        tokenizers.normalizers.Replace(" ", SPACE)])
    some = [*texts(6_000, 11), *manual()[1], *sources()]
    found = other.encode_batch_fast(some, add_special_tokens=False)
    for text, expected in zip(some, found, strict=True):
        assert own.encode(text) == expected.ids, text


def test_words_are_cut_off_only_where_no_merge_crosses(trained):
    _, own, _ = trained("bpe", "llama")
    assert own._pattern.findall("▁▁a▁b") == ["▁▁a", "▁b"]
    _, crossing, _ = trained("bpe", "folded")
    assert crossing._pattern.findall("a▁b") == ["a▁b"]
    whole = dataclasses.replace(own, merges=[("e", "▁"), *own.merges],
                                ranks=None,
                                vocab={**own.vocab, "e▁": 5_000})
    assert whole._pattern.findall("a▁b") == ["a▁b"]
    assert whole.encode("the new") != own.encode("the new")


@pytest.mark.parametrize("letters", ["a", "ab", "the quick"])
def test_long_texts_take_linear_time(trained, letters):
    rng = random.Random(0)
    _, own, _ = trained("bpe", "folded")  # no word is cut off

    text = "".join(rng.choices(letters, k=200_000))
    assert_linear(lambda n: own.encode(text[:n]), 20_000, times=2)


# Values --------------------------------------------------------------------

@pytest.mark.parametrize("model_type, setting",
                         [*product(["bpe", "unigram"], SETTINGS)])
def test_written_files_open_in_sentencepiece(trained, tmp_path, model_type,
                                             setting):
    _, own, peer = trained(model_type, setting)
    path = tmp_path / "again.model"
    write_sentencepiece(own, path)
    assert [*tmp_path.iterdir()] == [path]
    assert read_sentencepiece(path) == own
    other = sentencepiece.SentencePieceProcessor(model_file=str(path))
    some = [*texts(2_000, 7), *manual()[1][:3]]
    for text, a, b in zip(some, other.encode(some), peer.encode(some),
                          strict=True):
        assert a == b, text
    assert other.bos_id() == peer.bos_id()


def test_values_are_frozen_equal_and_pickle(trained):
    for model_type in ("bpe", "unigram"):
        _, own, _ = trained(model_type, "defined")
        copy = pickle.loads(pickle.dumps(own))
        assert copy == own and copy.normalizer == own.normalizer
        assert hash(copy.normalizer) == hash(own.normalizer)
        assert copy.encode("def ½ ﬁ") == own.encode("def ½ ﬁ")
        with pytest.raises(dataclasses.FrozenInstanceError):
            own.normalizer.charsmap.blob = b""
    blob = own.normalizer.charsmap.blob
    assert len(pickle.dumps(Charsmap(blob))) < len(blob) + 200


def test_parameters_do_something(trained):
    _, own, _ = trained("bpe", "llama")
    text = f" the ﬁle 1 🙃🙃 the {manual()[1][0]}"
    assert "▁the" in own.vocab
    for options in ({"prefix_space": False}, {"byte_fallback": False},
                    {"normalizer": str.upper}, {"merges": (), "ranks": ()},
                    {"user_defined": ["e"]}, {"unused": ["▁the"]},
                    {"merges": own.merges[::-1]},
                    {"ranks": [-rank for rank in own.ranks]}):
        other = dataclasses.replace(own, **options)
        assert other.encode(text) != own.encode(text), options
    lossy = dataclasses.replace(own, byte_fallback=False)
    apart = dataclasses.replace(lossy, fuse_unk=False)
    assert lossy.decode(lossy.encode("🙃🙃")) == "<unk>"
    assert apart.decode(apart.encode("🙃🙃")) == "<unk><unk>"


# Faults --------------------------------------------------------------------

@pytest.mark.parametrize("data, message", [
    (b"", "trainer_spec: is missing"),
    (b"\x80" * 11, "byte 0: a number begins here and does not end"),
    (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "a field of 9223372"),
    (b"\x0b", "11 begins no field"),
    (build(PIECES, more=[(9, 1)]), "model: field 9 is unknown"),
    (build(PIECES, trainer=[(99, 1)]), "trainer_spec: field 99 is unknown"),
    (build(PIECES, trainer=[(3, 3)]), "trainer_spec.model_type=3"),
    (build(PIECES, trainer=[(3, 2.0)]), "model_type: has wire type 5"),
    (build(PIECES, trainer=[(24, True)]), "treat_whitespace_as_suffix=True"),
    (build(PIECES, trainer=[(35, True)]), "of type byte, look at '<0x00>'"),
    (build(PIECES, rules=[(5, False)]), "escape_whitespaces=False"),
    (build(PIECES, rules=[(1, b"\xff")]), "must be UTF-8"),
    (build(PIECES, rules=[(2, b"abc")]), "charsmap: 3 bytes"),
    (build(PIECES, more=[(5, write_fields([(2, b"abc")]))]),
     "denormalizer_spec.precompiled_charsmap"),
    (build(PIECES[1:]), "pieces: 0 of them are of type unknown"),
    (build([*PIECES, ("?", 0.0, UNKNOWN)]), "pieces: 2 of them are of type"),
    (build([*PIECES, ("a", 0.0, NORMAL)]), "pieces[8]='a': is there twice"),
    (build([*PIECES, ("", 0.0, NORMAL)]), "pieces[8].piece=''"),
    (build([*PIECES, ("e\0", 0.0, NORMAL)]), "pieces[8].piece='e\\x00'"),
    (build([*PIECES, ("e" * 8_000, 0.0, NORMAL)]), "8000 bytes or more"),
    (build([*PIECES, ("e", float("nan"), NORMAL)]), "pieces[8].score=nan"),
    (build([*PIECES, ("e", 0.0, 7)]), "pieces[8].type=7"),
    (build([*PIECES, ("<0x41>", 0.0, BYTE)]), "byte_fallback=False: must fit"),
    (build([*PIECES, ("<0x4>", 0.0, BYTE)], trainer=[(35, True)]),
     "byte_fallback=True: must fit"),
    (build(PIECES[:3], trainer=[(3, 1)]), "scores={}"),
])
def test_faults_of_files(tmp_path, data, message):
    with pytest.raises(ValueError) as error:
        read(tmp_path, data)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "some.model"))
    assert "\n" not in str(error.value)


def opens(path, data):
    """Whether broken bytes are still a file; else a line says why not."""
    path.write_bytes(data)
    try:
        read_sentencepiece(path).encode("the ﬁle")
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
        assert "\n" not in str(error)
        return False
    return True


def test_no_part_of_a_file_is_a_file(trained, tmp_path):
    for model_type, setting in [("bpe", "llama"), ("unigram", "default")]:
        data = trained(model_type, setting)[0].read_bytes()
        rng = random.Random(8)
        sizes = {*range(200), *range(len(data) - 100, len(data)),
                 *rng.sample(range(len(data)), 200)}
        assert not any(opens(tmp_path / "cut.model", data[:size])
                       for size in sizes)


def test_flipped_bytes(trained, tmp_path):
    rng = random.Random(9)
    for model_type, setting, flips in [("bpe", "llama", 300),
                                       ("unigram", "llama", 200),
                                       ("unigram", "default", 6)]:
        data = trained(model_type, setting)[0].read_bytes()
        opened = 0
        for place in rng.sample(range(len(data)), flips):
            wrong = bytearray(data)
            wrong[place] ^= rng.randint(1, 255)
            opened += opens(tmp_path / "flipped.model", wrong)
        assert opened < flips


def test_broken_tables_end():
    """Loops in the trie, and values that lead astray."""
    blob = compile_charsmap({"ab": "c", "\u00e9": "e", "b": ""})
    rng = random.Random(10)
    for _ in range(600):
        wrong = bytearray(blob)
        for _ in range(rng.randint(1, 4)):
            wrong[rng.randrange(len(wrong))] = rng.randrange(256)
        try:
            Charsmap(bytes(wrong))
        except ValueError as error:
            assert str(error).startswith("charsmap: ")
    units = [0] * 256  # each byte leads back to the root's children
    units[0] = 1 << 10
    for byte in range(1, 256):
        units[byte ^ 1] = byte | (byte ^ 1 ^ 1) << 10
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    with pytest.raises(ValueError, match="does not end"):
        Charsmap(len(trie).to_bytes(4, "little") + trie + b"\0")
    many = {f"{a}{b}": "" for a in map(chr, range(300, 900)) for b in "abc"}
    assert Charsmap(compile_charsmap(many)).rules == many


@pytest.mark.parametrize("options, message", [
    ({"merges": [("a", "c")]}, "merges[0]=('a', 'c'): 'ac' has no id"),
    ({"ranks": [1, 2]}, "ranks: are 2, for 1 merges"),
    ({"user_defined": ["x"]}, "vocab: 'x' has no id"),
    ({"unused": ["x"]}, "vocab: 'x' has no id"),
    ({"byte_fallback": True, "unk_token": None}, "<0x00> has no id"),
    ({"unk_token": None}, "unk_token=None"),
])
def test_faults_of_fields(options, message):
    fields = {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [("a", "b")],
              "special_tokens": {"?": 3}, "unk_token": "?",
              "byte_fallback": False} | options
    with pytest.raises(ValueError) as error:
        PieceBPE(**fields)
    assert message in str(error.value)


def small(**options):
    return PieceBPE(**{
        "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [("a", "b")],
        "special_tokens": {"?": 3, "!": 4}, "unk_token": "?",
        "byte_fallback": False} | options)


@pytest.mark.parametrize("options, message", [
    ({"normalizer": str.lower}, "normalizer=<method 'lower'"),
    ({"normalizer": PieceNormalizer(keep=("x",))}, "normalizer.keep=('x',)"),
    ({"vocab": {"a": 0, "b": 1, "ab": 9}}, "the ids 0, 1, 2"),
    ({"merges": ()}, "merges: are not all"),
    ({"fuse_unk": False}, "fuse_unk=False: must be True"),
    ({"prefix": ["?", "!"]}, "prefix=('?', '!'): must be one token"),
    ({"suffix": ["?", "!"]}, "suffix=('?', '!'): must be one token"),
])
def test_faults_of_writing(tmp_path, options, message):
    with pytest.raises(ValueError) as error:
        write_sentencepiece(small(**options), tmp_path / "x.model")
    assert message in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_other_faults(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_sentencepiece(tmp_path / "none.model")
    with pytest.raises(TypeError, match="blob='text': must be bytes"):
        Charsmap("text")
    with pytest.raises(TypeError, match="keep='ab': must be several"):
        PieceNormalizer(keep="ab")
    assert PieceNormalizer(keep=["a", "ab"])("ab") == "ab"
    for rules in ({"": "a"}, {"a": "\0"}, {"a\0": "b"}):
        with pytest.raises(ValueError, match="must not be empty"):
            compile_charsmap(rules)
