"""Tokenizer files as learners and publishers really leave them.

Each is trained and saved by the `tokenizers` library, opened here, and has
to give the same ids for odd strings, before and after it is saved again.
Before chapter 84 read them, 2 of these 31 files could be opened; now all can,
and of 2,226 odd strings none has other ids. What is refused is in a test, too.
"""

import dataclasses
import functools
import io
import json

import pytest
import sentencepiece
import tiktoken
import tokenizers
from samples import lines, sources, strings
from test_tokenizer_files import (
    BYTE_LEVEL,
    FAMILIES,
    FOREIGN,
    assert_equal,
    byte_model,
    entry,
    ids_of,
    newer_characters,
    rank_file,
    trained,
    written,
)
from tokenizers import Regex, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from lmcourse.tokenizers import Matching, Words, load_tokenizer
from lmcourse.tokenizers.base import manual
from lmcourse.tokenizers.bpe import GPT4_PATTERN
from lmcourse.tokenizers.fast.words import GPT4O_PATTERN
from lmcourse.tokenizers.files import by_grapheme

FIVE = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
KIMI_PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+",
    r"\s+(?!\S)", r"\s+"])


@functools.cache
def odd_strings(n=2_226):
    some = [*strings(n + 600, 7, ("[UNK]", "[MASK]", "[CLS]x", "<0x41>", "m²",
                                  "x₂y", "don't", "'S", "’s", "中文abc", "1½2",
                                  "a\u200db", "\r\n", "12345"))]
    newer = newer_characters({*"".join(some)})
    return [text for text in some if newer.isdisjoint(text)][:n]


def trained_by(trainer, model, **parts):
    """A tokenizer of the library, trained on pages and foreign words."""
    peer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(peer, name, part)
    peer.train_from_iterator([*manual()[0][:50], *sources()[:1], *FOREIGN],
                             trainer)
    return peer


def bpe(special=FIVE, size=1_500, unk="[UNK]", options=(), **parts):
    options = dict(options)
    alphabet = options.pop("initial_alphabet", [])
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), show_progress=False,
        limit_alphabet=max(120, len(alphabet)), initial_alphabet=alphabet)
    model = models.BPE(unk_token=unk, **options) if unk else models.BPE(
        **options)
    return trained_by(trainer, model, **parts)


def word_piece(pre_tokenizer, **parts):
    trainer = trainers.WordPieceTrainer(
        vocab_size=1_500, special_tokens=FIVE, show_progress=False,
        limit_alphabet=120)
    return trained_by(trainer, models.WordPiece(unk_token="[UNK]"),
                      pre_tokenizer=pre_tokenizer, **parts)


def quick_tour():
    peer = bpe(pre_tokenizer=pre.Whitespace())
    peer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return peer


def byte_level(*before, **parts):
    return bpe(special=["<|endoftext|>"], unk=None, options={
        "initial_alphabet": pre.ByteLevel.alphabet()},
        pre_tokenizer=pre.Sequence([*before, pre.ByteLevel(
            add_prefix_space=False, use_regex=parts.pop("regex", True))]),
        **{"decoder": decoders.ByteLevel(), **parts})


def changed(peer, **sections):
    """The same tokenizer with sections of its file replaced."""
    return json.loads(peer.to_str()) | sections


def lacking(*lost, unk=None):
    """A GPT-2 file from which some bytes are gone."""
    model = byte_model(last=["<|endoftext|>", "[UNK]"], unk_token=unk)
    letters = sorted(pre.ByteLevel.alphabet())
    table = dict(zip([*pre.ByteLevel.alphabet()], letters, strict=True))
    assert len(table) == 256
    kept = {t: i for t, i in model["vocab"].items()
            if not any(letter in t for letter in lost)}
    merges = [m for m in model["merges"]
              if not any(letter in m for letter in lost)]
    names = ["<|endoftext|>"] + ["[UNK]"] * (unk != "[UNK]")
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [entry(t, model["vocab"][t]) for t in names],
            "normalizer": None, "post_processor": None,
            "pre_tokenizer": {**BYTE_LEVEL, "use_regex": True},
            "decoder": BYTE_LEVEL,
            "model": {**model, "vocab": kept, "merges": merges}}


def unadded(data, *names):
    """The file without some of its added tokens."""
    return {**data, "added_tokens": [e for e in data["added_tokens"]
                                     if e["content"] not in names]}


def without_unk_among_added(peer):
    return unadded(json.loads(peer.to_str()), "[UNK]")


SOME_BYTES = [f"<0x{b:02X}>" for b in (
    *range(0x80), 0xC3, *range(0xA0, 0xC0), 0xE4)]


def some_bytes(pre_tokenizer):
    """Byte fallback, and bytes for a part of the characters only."""
    return bpe(special=[*FIVE, *SOME_BYTES], options={"byte_fallback": True},
               pre_tokenizer=pre_tokenizer)


def an_empty_token():
    data = lacking()
    data["model"]["vocab"][""] = len(data["model"]["vocab"])
    return data


def whisper():
    data = an_empty_token()
    n = data["model"]["vocab"][""]
    data["added_tokens"].append(entry("", n))
    return data


BATCHES = {
    "truncation": {"direction": "Right", "max_length": 512,
                   "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": "BatchLongest", "direction": "Right",
                "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                "pad_token": "[PAD]"}}


def split(pattern, behavior="isolated", invert=False):
    return pre.Split(Regex(pattern), behavior, invert)


WILD = {
    "quick tour": quick_tour,
    "quick tour, no unk added": lambda: without_unk_among_added(
        quick_tour()),
    "BPE, no unk": lambda: bpe(unk=None, pre_tokenizer=pre.Whitespace()),
    "BPE, fused": lambda: bpe(options={"fuse_unk": True},
                              pre_tokenizer=pre.WhitespaceSplit()),
    "BPE, nothing before": lambda: bpe(size=300),
    "BPE, BERT's words": lambda: bpe(
        pre_tokenizer=pre.BertPreTokenizer(),
        normalizer=normalizers.BertNormalizer()),
    "BPE, digits": lambda: bpe(pre_tokenizer=pre.Sequence([
        pre.Whitespace(), pre.Digits(individual_digits=True)])),
    "BPE, punctuation": lambda: bpe(pre_tokenizer=pre.Sequence([
        pre.WhitespaceSplit(), pre.Punctuation("removed")])),
    "BPE, some bytes": lambda: some_bytes(pre.Whitespace()),
    "WordPiece, Whitespace": lambda: word_piece(
        pre.Whitespace(), normalizer=normalizers.Sequence([
            normalizers.NFD(), normalizers.Lowercase(),
            normalizers.StripAccents()]), decoder=decoders.WordPiece()),
    "WordPiece, no unk added": lambda: without_unk_among_added(
        word_piece(pre.WhitespaceSplit())),
    "WordPiece, no decoder": lambda: word_piece(pre.BertPreTokenizer()),
    "Unigram, no unk added": lambda: unadded(FAMILIES["T5"](), "<unk>"),
    "Metaspace, no unk added": lambda: unadded(json.loads(bpe(
        pre_tokenizer=pre.Metaspace(), decoder=decoders.Metaspace()
    ).to_str()), "[UNK]"),
    "Metaspace, some bytes": lambda: unadded(json.loads(some_bytes(
        pre.Metaspace(split=False)).to_str()), *SOME_BYTES),
    "Digits": lambda: byte_level(pre.Digits(individual_digits=True)),
    "Digits together": lambda: byte_level(pre.Digits()),
    "Splits": lambda: byte_level(
        split(r"\p{N}{1,3}"), split("[一-龥\u3040-ゟ゠-ヿ]+"),
        split(GPT4_PATTERN), regex=False),
    "Split, removed": lambda: byte_level(split(GPT4O_PATTERN, "removed", True),
                                         regex=False),
    "Split, gaps": lambda: byte_level(split(r"[\s\d]+", "removed"),
                                      regex=False),
    "Split, words": lambda: byte_level(split(r"\w+|[^\w\s]+", "removed",
                                             True), regex=False),
    "Split, edges": lambda: byte_level(split(r"\b"), split(r"\Bx|\W\w"),
                                       regex=False),
    "Kimi": lambda: byte_level(split(KIMI_PATTERN), regex=False),
    "Whitespace, bytes": lambda: byte_level(pre.Whitespace()),
    "no decoder": lambda: changed(byte_level(), decoder=None),
    "batches": lambda: {**FAMILIES["BERT"](), **BATCHES},
    "bytes never used": lambda: lacking("À", "Á", *map(chr, range(
        0xF5, 0x100))),
    "bytes not there": lambda: lacking("Ā", "ā", "ĉ", "b", "Ã", "ĺ"),
    "bytes unknown": lambda: lacking("ā", "b", "Ã", "æ", unk="[UNK]"),
    "empty": an_empty_token,
    "Whisper": whisper,
}


def file_of(name, folder):
    made = WILD[name]()
    data = made if isinstance(made, dict) else json.loads(made.to_str())
    return written(data, folder), data


@pytest.mark.filterwarnings("ignore:.*about batches")
@pytest.mark.parametrize("name", WILD)
def test_opened_and_saved(name, tmp_path):
    path, data = file_of(name, tmp_path)
    own = load_tokenizer(path)
    peer = tokenizers.Tokenizer.from_str(
        json.dumps({**data, "truncation": None, "padding": None}))
    some = [*odd_strings(), *manual()[1][:5], *FOREIGN]
    options = {"add_special_tokens": True, "allowed_special": "all"}
    theirs = ids_of(peer, some)
    assert_equal(some, own.encode_batch(some, **options), theirs)
    assert [own.encode_to_numpy(text, **options).tolist()
            for text in some[:50]] == theirs[:50]
    if data["decoder"] and data["decoder"]["type"] != "Metaspace":
        for ids in theirs[:500]:
            assert own.decode(ids) == peer.decode(
                ids, skip_special_tokens=False)
    own.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert_equal(some, again.encode_batch(some, **options), theirs)
    peer = tokenizers.Tokenizer.from_file(
        str(tmp_path / "saved" / "tokenizer.json"))
    assert_equal(some, ids_of(peer, some), theirs)


def test_what_a_file_says_about_batches_is_said_once(tmp_path):
    path, _ = file_of("batches", tmp_path)
    with pytest.warns(UserWarning, match="truncation and padding") as caught:
        load_tokenizer(path)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_what_is_still_refused(tmp_path):
    """By name, in one line: what no library here could mean."""
    tour, level = quick_tour, byte_level
    for data, words in [
            (changed(bpe(pre_tokenizer=pre.UnicodeScripts())),
             "type='UnicodeScripts'"),
            (changed(bpe(pre_tokenizer=pre.CharDelimiterSplit("-"))),
             "type='CharDelimiterSplit'"),
            (changed(level(split("a", "merged_with_next"))),
             "behavior='MergedWithNext'"),
            (changed(level(split("(?i:ss)"))), "means another thing"),
            (changed(tour(), decoder={"type": "BPEDecoder",
                                      "suffix": "</w>"}), "BPEDecoder"),
            (changed(tour(), model={**json.loads(tour().to_str())["model"],
                                    "end_of_word_suffix": "</w>"}),
             "end_of_word_suffix='</w>'"),
            (lacking("b", unk="[none]"), "lacks some bytes")]:
        with pytest.raises(ValueError, match=words) as caught:
            load_tokenizer(written(data, tmp_path))
        assert "\n" not in str(caught.value)


def test_a_pattern_of_set_operations_with_ranks(tmp_path):
    """Kimi K2's comes with a rank file, and tiktoken reads it."""
    ranks = trained().vocab
    (tmp_path / "k.tiktoken").write_bytes(rank_file(ranks))
    own = load_tokenizer(tmp_path, pattern=KIMI_PATTERN)
    peer = tiktoken.Encoding("test", pat_str=KIMI_PATTERN, special_tokens={},
                             mergeable_ranks=dict(ranks))
    some = [*odd_strings(), *FOREIGN, "中abc我Ab"]
    assert_equal(some, own.encode_batch(some),
                 peer.encode_ordinary_batch(some, num_threads=1))


@pytest.mark.parametrize("name", ["vocab.txt", "merges.txt"])
def test_a_byte_order_mark_is_no_letter(name, tmp_path):
    if name == "vocab.txt":
        (tmp_path / name).write_text("[PAD]\n[UNK]\nthe\n", "utf-8-sig")
        assert "[PAD]" in load_tokenizer(tmp_path).special_tokens
        return
    model = byte_model()
    written(model["vocab"], tmp_path, "vocab.json")
    (tmp_path / name).write_text("\n".join(model["merges"]), "utf-8-sig")
    assert load_tokenizer(tmp_path).encode("the") == [
        model["vocab"]["the"]]


def test_scores_that_are_all_zero(tmp_path):
    vocab = [["<unk>", 0.0], ["▁", 0.0], ["▁a", 0.0], ["b", 0.0]]
    data = {**FAMILIES["T5"](), "added_tokens": [entry("<unk>", 0)],
            "post_processor": None, "normalizer": None,
            "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab,
                      "byte_fallback": False}}
    path = written(data, tmp_path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    some = ["ab", "a b", "bbb", "x ab", ""]
    assert_equal(some, load_tokenizer(path).encode_batch(some),
                 ids_of(peer, some))


@pytest.mark.parametrize("name", ["T5", "T5, old", "ALBERT", "Mistral"])
def test_spaces_typed_after_special_tokens(name, tmp_path):
    path = written(FAMILIES[name](), tmp_path)
    own, peer = load_tokenizer(path), tokenizers.Tokenizer.from_file(
        str(path))
    special = [*own.special_tokens][-1]
    for text in (f"the {special} cat", f"{special} the", f"a{special} b"):
        ids = own.encode(text, allowed_special="all")
        assert own.decode(ids) == peer.decode(ids, skip_special_tokens=False)
        assert own.decode(ids, skip_special_tokens=True) == peer.decode(ids)


MODELS = {
    "Llama 2": {"model_type": "bpe", "byte_fallback": True,
                "normalization_rule_name": "identity",
                "remove_extra_whitespaces": False},
    "Gemma": {"model_type": "bpe", "byte_fallback": True,
              "normalization_rule_name": "identity", "pad_id": 3,
              "remove_extra_whitespaces": False, "add_dummy_prefix": False,
              "user_defined_symbols": ["\n\n", "<table>"]},
    "plain": {"normalization_rule_name": "identity"},
    "T5": {}, "T5, BPE": {"model_type": "bpe"},
    "XLNet": {"user_defined_symbols": ["<sep>", "<cls>"]},
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_can_be_saved_as_json(name, tmp_path):
    """As it is, or, where the formats differ, as the error says."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()[:3_000] + ["a" * 40] * 9),
        model_writer=file, vocab_size=1_200, minloglevel=2, **MODELS[name])
    (tmp_path / "x.model").write_bytes(file.getvalue())
    own = load_tokenizer(tmp_path)
    if "T5" in name or name == "XLNet":
        with pytest.raises(ValueError, match="by_grapheme.tokenizer. can"):
            own.save(tmp_path / "json")
        own = by_grapheme(own)
    own.save(tmp_path / "json")
    peer = tokenizers.Tokenizer.from_file(
        str(tmp_path / "json" / "tokenizer.json"))
    again = load_tokenizer(tmp_path / "json")
    some = ["a" * n + "b" for n in range(40)] + odd_strings()
    theirs = ids_of(peer, some, add_special_tokens=False)
    for ours in (own, again):
        assert_equal(some, ours.encode_batch(some, allowed_special="all"),
                     theirs)


def test_by_grapheme_needs_the_other_normalizer():
    with pytest.raises(ValueError, match="normalizer=None"):
        by_grapheme(trained())


def processed(kind, **fields):
    """RoBERTa's file with one of the two post-processors of pairs."""
    data = FAMILIES["RoBERTa"]()
    return {**data, "post_processor": {
        "type": kind, "sep": ["</s>", 2], "cls": ["<s>", 0], **fields}}


PAIRS = {
    **{name: make for name, make in FAMILIES.items() if "type" in
       make()["model"]},
    "BertProcessing": lambda: processed("BertProcessing"),
    "quick tour": lambda: json.loads(quick_tour().to_str()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_of_texts(name, tmp_path):
    path = written(PAIRS[name](), tmp_path)
    own, peer = load_tokenizer(path), tokenizers.Tokenizer.from_file(
        str(path))
    some = odd_strings()[:300]
    for first, second in zip(some, some[1:], strict=False):
        both = peer.encode(first, second)
        assert own.encode_pair(first, second, allowed_special="all") == (
            both.ids, both.type_ids)


@pytest.mark.parametrize("name", [*FAMILIES, "quick tour"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_stream_of_text(name, skip, tmp_path):
    """The parts give the whole, and none ends within a character."""
    data = {**FAMILIES, **PAIRS}[name]()
    own = load_tokenizer(written(data, tmp_path))
    for text in [*odd_strings()[:400], *FOREIGN, "\ufffd", "a \ufffd b"]:
        ids = own.encode(text, allowed_special="all", add_special_tokens=True)
        parts = [*own.decode_stream(iter(ids), skip_special_tokens=skip)]
        assert "".join(parts) == own.decode(ids, skip_special_tokens=skip)
        if "\ufffd" not in text:
            assert not any("\ufffd" in part for part in parts)
    assert len([*own.decode_stream(own.encode("the other day"))]) > 1


def test_half_a_character_at_the_end_comes_at_the_end():
    own = trained()
    ids = own.encode("a中")
    assert [*own.decode_stream(ids[:2])] == ["a", "\ufffd"]
    assert [*own.decode_stream([])] == []


def offsets_of(name, folder):
    """Own and peer; a post-processor would trim spaces, and is left out."""
    made = {**FAMILIES, **WILD}[name]()
    data = made if isinstance(made, dict) else json.loads(made.to_str())
    path = written({**data, "post_processor": None}, folder)
    return load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))


@pytest.mark.parametrize("name", [
    "GPT-2", "Llama 3", "DeepSeek", "RoBERTa", "RoBERTa, space", "Llama 2",
    "Mistral", "Gemma", "BERT", "BERT, cased", "quick tour", "BPE, fused",
    "WordPiece, no decoder"])
def test_offsets_equal_those_of_tokenizers(name, tmp_path):
    own, peer = offsets_of(name, tmp_path)
    for text in [*manual()[1][:2], *FOREIGN, *odd_strings()[:1_000]]:
        theirs = peer.encode(text, add_special_tokens=False)
        assert own.encode_with_offsets(text, allowed_special="all") == (
            theirs.ids, theirs.offsets), text


@pytest.mark.parametrize("name", [
    "Qwen", "T5", "T5, old", "ALBERT", "WordPiece, Whitespace"])
def test_offsets_where_a_normalizer_moves_characters(name, tmp_path):
    """Where one character comes from several, ours names all of them, and
    theirs one. Most texts have no such place."""
    own, peer = offsets_of(name, tmp_path)
    some, equal = odd_strings()[:1_000], 0
    for text in some:
        theirs = peer.encode(text, add_special_tokens=False)
        ids, offsets = own.encode_with_offsets(text, allowed_special="all")
        assert ids == theirs.ids
        equal += offsets == theirs.offsets
        assert all(0 <= a <= b <= len(text) for a, b in offsets)
        assert [*map(max, offsets)] == sorted(map(max, offsets))
    assert equal > 0.6 * len(some)
    text = "The  naïve\tcat's ﬁsh"
    ids, offsets = own.encode_with_offsets(text)
    assert {*range(len(text))} <= {
        k for a, b in offsets for k in range(a, b)} | {
        k for k, char in enumerate(text) if char.isspace()}


@pytest.mark.parametrize("name, words", [
    ("bytes not there", "leaves characters out"),
    ("BPE, no unk", "leaves characters out"),
    ("BPE, some bytes", "leaves characters out")])
def test_texts_without_offsets(name, words, tmp_path):
    own, _ = offsets_of(name, tmp_path)
    with pytest.raises(ValueError, match=words):
        own.encode_with_offsets("b中文\x01")


def test_offsets_need_a_normalizer_that_tells():
    own = dataclasses.replace(trained(), normalizer=lambda t: t[::-1])
    with pytest.raises(ValueError, match="does not tell where"):
        own.encode_with_offsets("ab")
    with pytest.raises(ValueError, match="Words: leaves"):
        Words.train(["a b"]).encode_with_offsets("a")
    late = load_late()
    assert late.encode_with_offsets("a b")[1] == [(0, 1), (1, 3)]
    with pytest.raises(ValueError, match="normalized text have no offsets"):
        late.encode_with_offsets("a", allowed_special="all")


def load_late():
    """A tokenizer whose special token is looked for after normalizing."""
    return dataclasses.replace(
        trained(), special_tokens={"<S>": 9_999}, normalizer=str.lower,
        matching={"<S>": Matching(normalized=True)})


def test_an_empty_token_among_vocab_and_merges(tmp_path):
    data = an_empty_token()["model"]
    written(data["vocab"], tmp_path, "vocab.json")
    (tmp_path / "merges.txt").write_text("\n".join(data["merges"]))
    own = load_tokenizer(tmp_path)
    peer = tokenizers.Tokenizer(models.BPE.from_file(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")))
    peer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    some = odd_strings()[:300]
    assert_equal(some, own.encode_batch(some), ids_of(peer, some))
    assert own.decode([data["vocab"][""]]) == ""
