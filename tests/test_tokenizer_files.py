"""Tokenizers in files: the families, the formats, and every fault."""

import base64
import copy
import dataclasses
import functools
import gc
import itertools
import json
import random
import unicodedata

import pytest
import tiktoken
import tokenizers
from samples import CHARACTERS, few_or_many, sources, strings
from tokenizers import models, normalizers, processors, trainers
from tokenizers import pre_tokenizers as pre

from lmcourse.tokenizers import (
    BertNormalizer,
    ByteBPE,
    Characters,
    Unigram,
    WordPiece,
    Words,
    bpe,
    files,
    load_tokenizer,
)
from lmcourse.tokenizers.base import (
    PREFIX_SPACES,
    Tokenizer,
    manual,
)
from lmcourse.tokenizers.bpe import (
    GPT2_ALPHABET,
    GPT2_PATTERN,
    GPT4_PATTERN,
    Only,
)
from lmcourse.tokenizers.fast import bpe as fast_bpe
from lmcourse.tokenizers.files import (
    ByGrapheme,
    Matching,
    Prepend,
    Replace,
    ReplaceAll,
    Steps,
    Strip,
    UnicodeForm,
    drop_marks,
    merges_of_ranks,
)
from lmcourse.tokenizers.sentencepiece_file import (
    Charsmap,
    PieceBPE,
    PieceNormalizer,
    compile_charsmap,
    read_sentencepiece,
    write_sentencepiece,
)
from lmcourse.tokenizers.unigram import BYTES, SPACE
from lmcourse.tokenizers.wordpiece import lower_letters, split_words
from lmcourse.world import documents

QWEN_PATTERN = GPT4_PATTERN.replace("{1,3}", "")
# as in DeepSeek 3's file, one after the other
DEEPSEEK_PATTERNS = (
    "\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False,
              "trim_offsets": True, "use_regex": False}


# Vocabularies, trained here ------------------------------------------------

FOREIGN = ["我爱你 안녕 привет ελληνικά עברית हिन्दी ñandú straße café 12345 "
           "ﬁle Ⅳ ½ ｆｕｌｌ"] * 3


@functools.cache
def trained(pattern=GPT2_PATTERN, size=1500):
    texts = [*manual()[0], *sources()[:2], *FOREIGN]
    return ByteBPE.train(texts, size, pattern=pattern, special_tokens=[],
                         alphabet=GPT2_ALPHABET)


def letters(token):
    shown = sorted(pre.ByteLevel.alphabet())
    table = dict(zip(GPT2_ALPHABET, shown, strict=True))
    return "".join(map(table.get, token))


def byte_model(first=(), last=(), pattern=GPT2_PATTERN, **options):
    """A BPE model over bytes: vocabulary, then merges, as files have it."""
    own = trained(pattern)
    tokens = [*first, *(letters(t) for t in own.vocab), *last]
    return {"type": "BPE", "dropout": None, "unk_token": None,
            "continuing_subword_prefix": "", "end_of_word_suffix": "",
            "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [f"{letters(a)} {letters(b)}" for a, b in own.merges],
            **options}


def entry(content, i, *, special=True, **options):
    return {"id": i, "content": content, "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False,
            "special": special, **options}


def a_file(model, added=(), **options):
    return {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": list(added), "normalizer": None,
            "pre_tokenizer": None, "post_processor": None, "decoder": None,
            **options, "model": model}


def template(single, **ids):
    """A TemplateProcessing; `single` is like `<s> $A </s>`."""
    pair = single.replace("$A", "$A $B:1")
    processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[*ids.items()])
    return json.loads(processor.__getstate__())


# The families --------------------------------------------------------------

def gpt2():
    model = byte_model(last=["<|endoftext|>"])
    return a_file(
        model, [entry("<|endoftext|>", len(model["vocab"]) - 1,
                      normalized=True)],
        pre_tokenizer={**BYTE_LEVEL, "use_regex": True},
        post_processor={**BYTE_LEVEL, "add_prefix_space": True},
        decoder={**BYTE_LEVEL, "add_prefix_space": True})


def old_gpt2():
    """As the first files were: no types, no names for what was new later."""
    data = gpt2()
    for name in ("type", "byte_fallback"):
        del data["model"][name]
    for name in ("pre_tokenizer", "post_processor", "decoder"):
        data[name] = {k: v for k, v in data[name].items()
                      if k != "use_regex"}
    return data


def llama3():
    model = byte_model(pattern=GPT4_PATTERN, ignore_merges=True)
    del model["merges"][200::7]  # so that some tokens are only whole words
    made = set(model["merges"])
    known = {*pre.ByteLevel.alphabet(),
             *(merge.replace(" ", "") for merge in made)}
    model["merges"] = [m for m in model["merges"]
                       if all(part in known for part in m.split())]
    n = len(model["vocab"])
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    return a_file(
        model, [entry(begin, n), entry(end, n + 1),
                *(entry(f"<|reserved_special_token_{k}|>", n + 2 + k)
                  for k in range(4))],
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": GPT4_PATTERN},
             "behavior": "Isolated", "invert": False}, BYTE_LEVEL]},
        post_processor={"type": "Sequence", "processors": [
            BYTE_LEVEL, template(f"{begin} $A", **{begin: n})]},
        decoder=BYTE_LEVEL)


def qwen():
    model = byte_model(pattern=QWEN_PATTERN)
    n = len(model["vocab"])
    return a_file(
        model, [entry("<|endoftext|>", n), entry("<|im_start|>", n + 1),
                entry("<tool_call>", n + 2, special=False),
                entry("</tool_call>", n + 3, special=False)],
        normalizer={"type": "NFC"},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN_PATTERN},
             "behavior": "Isolated", "invert": False}, BYTE_LEVEL]},
        post_processor=BYTE_LEVEL, decoder=BYTE_LEVEL)


def deepseek():
    model = byte_model(pattern=DEEPSEEK_PATTERNS)
    n = len(model["vocab"])
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    return a_file(
        model, [entry(begin, n), entry(end, n + 1),
                entry("<think>", n + 2, special=False)],
        normalizer={"type": "Sequence", "normalizers": []},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            *({"type": "Split", "pattern": {"Regex": pattern},
               "behavior": "Isolated", "invert": False}
              for pattern in DEEPSEEK_PATTERNS), BYTE_LEVEL]},
        post_processor=BYTE_LEVEL, decoder=BYTE_LEVEL)


def roberta(add_prefix_space=False):
    first = ["<s>", "<pad>", "</s>", "<unk>"]
    model = byte_model(first, ["<mask>"])
    n = len(model["vocab"]) - 1
    return a_file(
        model, [*(entry(t, i) for i, t in enumerate(first)),
                entry("<mask>", n, lstrip=True)],
        pre_tokenizer={**BYTE_LEVEL, "use_regex": True,
                       "add_prefix_space": add_prefix_space},
        post_processor={"type": "RobertaProcessing", "sep": ["</s>", 2],
                        "cls": ["<s>", 0], "trim_offsets": True,
                        "add_prefix_space": add_prefix_space},
        decoder={**BYTE_LEVEL, "add_prefix_space": True})


@functools.cache
def piece_vocabulary():
    """Vocabulary and merges over characters, with bytes, as Llama has it."""
    peer = tokenizers.Tokenizer(models.BPE())
    peer.normalizer = normalizers.Replace(" ", SPACE)
    peer.pre_tokenizer = pre.Split(
        tokenizers.Regex(f"{SPACE}+[^{SPACE}]*"), "isolated")
    peer.train_from_iterator(
        [*manual()[0][:60], *sources()[:1], *FOREIGN],
        trainers.BpeTrainer(
            vocab_size=2_000, show_progress=False, special_tokens=[
                "<unk>", "<s>", "</s>", *BYTES]))
    model = json.loads(peer.to_str())["model"]
    return model["vocab"], model["merges"]


LLAMA_DECODER = [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
    {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]


def piece_model(**options):
    vocab, merges = piece_vocabulary()
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>",
            "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": merges, **options}


THREE = [entry("<unk>", 0), entry("<s>", 1), entry("</s>", 2)]


def llama2():
    return a_file(
        piece_model(), THREE,
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "},
             "content": SPACE}]},
        post_processor=template("<s> $A", **{"<s>": 1}),
        decoder={"type": "Sequence", "decoders": LLAMA_DECODER})


def old_llama2():
    """With tokens that are looked for in the normalized text."""
    data = llama2()
    data["added_tokens"] = [{**e, "normalized": True} for e in THREE]
    return data


def mistral():
    return a_file(
        piece_model(), [*THREE, entry("[INST]", len(piece_vocabulary()[0]))],
        pre_tokenizer={"type": "Metaspace", "replacement": SPACE,
                       "prepend_scheme": "first", "split": False},
        post_processor=template("<s> $A", **{"<s>": 1}),
        decoder={"type": "Sequence", "decoders": LLAMA_DECODER})


def gemma():
    vocab, _ = piece_vocabulary()
    n = len(vocab)
    return a_file(
        piece_model(), [
            *THREE, entry("<start_of_turn>", n),
            entry("<table>", n + 1, special=False),
            *(entry(t, vocab[t], special=False) for t in ("\n\n", SPACE * 2)
              )],
        normalizer={"type": "Replace", "pattern": {"String": " "},
                    "content": SPACE},
        pre_tokenizer={"type": "Split", "pattern": {"String": " "},
                       "behavior": "MergedWithPrevious", "invert": False},
        post_processor=template("<s> $A", **{"<s>": 1}),
        decoder={"type": "Sequence", "decoders": LLAMA_DECODER[:3]})


@functools.cache
def words_vocabulary(cased):
    own = WordPiece.train(
        [*manual()[0], *sources()[:2], *FOREIGN], 2_500,
        normalizer=BertNormalizer(lowercase=not cased),
        special_tokens=["[CLS]", "[SEP]", "[MASK]", "[PAD]"])
    return {**own.special_tokens, **own.vocab}


def bert(cased=False):
    vocab = words_vocabulary(cased)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    ids = {name: vocab[name] for name in ("[CLS]", "[SEP]")}
    return a_file(
        {"type": "WordPiece", "unk_token": "[UNK]",
         "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
         "vocab": vocab}, [entry(t, vocab[t]) for t in names],
        normalizer={"type": "BertNormalizer", "clean_text": True,
                    "handle_chinese_chars": True, "strip_accents": None,
                    "lowercase": not cased},
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=template("[CLS] $A [SEP]", **ids),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})


def added_bert():
    """With added tokens of every kind."""
    data = bert()
    n = max(data["model"]["vocab"].values()) + 1
    data["added_tokens"] += [
        entry("FOO Bar", n, special=False, normalized=True),
        entry("THE", n + 1, special=False, normalized=True,
              single_word=True),
        entry("of", data["model"]["vocab"]["of"], special=False,
              single_word=True),
        entry("<left>", n + 2, special=False, lstrip=True),
        entry("<Right>", n + 3, special=False, rstrip=True,
              normalized=True),
        entry("<Both>", n + 4, lstrip=True, rstrip=True, normalized=True)]
    return data


@functools.cache
def unigram_scores():
    own = Unigram.train(
        [*manual()[0], *sources()[:1], *FOREIGN * 9], 2_000,
        coverage=1.0, byte_fallback=False, special_tokens=[],
        normalizer=functools.partial(unicodedata.normalize, "NFKC"))
    # in steps of 1/1024: `tokenizers` reads other decimals inexactly
    return [[piece, round(1024 * score) / 1024]
            for piece, score in own.scores.items()]


@functools.cache
def charsmap():
    """NFKC, as far as characters and pairs of them go, and some rules."""
    rules = {}
    for char in CHARACTERS:
        changed = unicodedata.normalize("NFKC", char)
        if changed != char:
            rules[char] = changed
    for char in map(chr, range(0xC0, 0x600)):
        parts = unicodedata.normalize("NFD", char)
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) == char:
            rules[parts] = char
    rules |= {"\t": " ", "\n": " ", "\r": " ", "\x7f": "", "\u200b": ""}
    return base64.b64encode(compile_charsmap(rules)).decode()


SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
ALWAYS = {"type": "Metaspace", "replacement": SPACE,
          "prepend_scheme": "always", "split": True}


def precompiled():
    return {"type": "Precompiled", "precompiled_charsmap": charsmap()}


def unigram(first, **options):
    vocab = [*([name, 0.0] for name in first), *unigram_scores()]
    return {"type": "Unigram", "unk_id": first.index("<unk>"),
            "vocab": vocab, "byte_fallback": False, **options}


def albert():
    first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return a_file(
        unigram(first), [*(entry(t, i) for i, t in enumerate(first[:4])),
                         entry("[MASK]", 4, lstrip=True)],
        normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "``"},
             "content": '"'},
            {"type": "Replace", "pattern": {"String": "''"},
             "content": '"'},
            {"type": "NFKD"}, {"type": "StripAccents"},
            {"type": "Lowercase"}, precompiled(), SPACES]},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, ALWAYS]},
        post_processor=template("[CLS] $A [SEP]", **{"[CLS]": 2,
                                                     "[SEP]": 3}),
        decoder=ALWAYS)


def t5():
    first = ["<pad>", "</s>", "<unk>"]
    extra = [f"<extra_id_{k}>" for k in range(3)]
    n = len(first) + len(unigram_scores())
    return a_file(
        unigram(first), [*(entry(t, i) for i, t in enumerate(first)),
                         *(entry(t, n + i) for i, t in enumerate(extra))],
        normalizer={"type": "Sequence", "normalizers": [
            precompiled(), {"type": "Strip", "strip_left": False,
                            "strip_right": True},
            {**SPACES, "content": SPACE}]},
        pre_tokenizer=ALWAYS,
        post_processor=template("$A </s>", **{"</s>": 1}), decoder=ALWAYS)


def old_t5():
    data = t5()
    old = {"type": "Metaspace", "replacement": SPACE,
           "add_prefix_space": True}
    return {**data, "normalizer": precompiled(), "decoder": old,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "WhitespaceSplit"}, old]}}


FAMILIES = {
    "GPT-2": gpt2, "GPT-2, old": old_gpt2, "Llama 3": llama3, "Qwen": qwen,
    "DeepSeek": deepseek,
    "RoBERTa": roberta, "RoBERTa, space": lambda: roberta(True),
    "Llama 2": llama2, "Llama 2, old": old_llama2, "Mistral": mistral,
    "Gemma": gemma, "BERT": bert, "BERT, cased": lambda: bert(True),
    "BERT, added": added_bert, "ALBERT": albert, "T5": t5, "T5, old": old_t5,
}


def written(data, folder, name="tokenizer.json"):
    """The path of a file that holds `data`."""
    path = folder / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def texts():
    """Real text: the manual, the world, program text."""
    return [*manual()[1], *documents(100), *sources()]


# Parity with the libraries that the files come from ------------------------

@functools.cache
def many(n=20_000):
    """So many strings, with the tokens of all the families."""
    spelled = {e["content"] for make in FAMILIES.values()
               for e in make()["added_tokens"]}
    odd = ["foo bar", "The", " of", "<b> <mask>", "[mask]", SPACE,
           f"{SPACE}<s>", "'Re", "don't", "``", "''", "e\u0301", "ﬁ\u0301",
           "\r\n"]
    texts = [*strings(n * 3 // 2, 0, sorted(spelled) + odd)]
    newer = newer_characters(set("".join(texts)))
    return [text for text in texts if newer.isdisjoint(text)][:n]


def newer_characters(characters):
    """Those that Python's and the library's Unicode see differently."""
    def own(text):
        yield lower_letters(text)
        for form in ("NFC", "NFKD"):
            yield unicodedata.normalize(form, text)
        yield drop_marks(text)
        words = split_words(BertNormalizer()(f"a{text}b"))
        yield "".join(words)
        yield len(words)

    def theirs(text):
        yield lower.normalize_str(text)
        for form in (normalizers.NFC(), normalizers.NFKD()):
            yield form.normalize_str(text)
        yield normalizers.StripAccents().normalize_str(text)
        words = pre.BertPreTokenizer().pre_tokenize_str(
            normalizers.BertNormalizer().normalize_str(f"a{text}b"))
        yield "".join(word for word, _ in words)
        yield len(words)

    lower = normalizers.Lowercase()
    assigned = [c for c in characters if unicodedata.category(c) != "Cn"]
    return {*characters} - {*assigned} | {
        char for char in assigned if [*own(char)] != [*theirs(char)]}


@pytest.mark.nightly
def test_few_assigned_characters_are_newer():
    assigned = [c for c in newer_characters(CHARACTERS)
                if unicodedata.category(c) != "Cn"]
    assert len(assigned) < 1_000


def plain_peer(data, folder):
    """The peer to which special tokens are text.

    Its own switch for that (`encode_special_tokens`) does not keep a Unigram
    from finding them as pieces; so there they get names that no text has.
    """
    data = copy.deepcopy(data)
    if data["model"]["type"] == "Unigram":
        for i, e in enumerate(data["added_tokens"]):
            if e["id"] < len(data["model"]["vocab"]):
                data["model"]["vocab"][e["id"]][0] = f"\U0010ffff{i}"
        data |= {"added_tokens": [], "post_processor": None}
    peer = tokenizers.Tokenizer.from_file(
        str(written(data, folder, "plain.json")))
    peer.encode_special_tokens = True
    return peer


def ids_of(peer, texts, **options):
    return [e.ids for e in peer.encode_batch_fast(texts, **options)]


def assert_equal(texts, own, theirs):
    for text, a, b in zip(texts, own, theirs, strict=True):
        assert a == b, text


# of all the strings; the families of one model share them
SHARE = {"BPE": 0.1, "WordPiece": 0.34, "Unigram": 0.34}


@few_or_many(20_000, 100_000)
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_equal_those_of_tokenizers(name, tmp_path, texts, n):
    """More than n strings for each of the three models."""
    data = FAMILIES[name]()
    path = written(data, tmp_path)
    own = load_tokenizer(path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    share = int(n * SHARE[data["model"].get("type", "BPE")])
    start = [*FAMILIES].index(name) * share % n
    some = [*(many(n) + many(n))[start:start + share], *texts]
    ids = own.encode_batch(some, allowed_special="all")
    assert_equal(some, ids, ids_of(peer, some, add_special_tokens=False))
    plain = plain_peer(data, tmp_path) if "type" in data["model"] else peer
    if plain is not peer:
        assert_equal(some, own.encode_batch(some),
                     ids_of(plain, some, add_special_tokens=False))
    few = some[:500]
    assert_equal(few, own.encode_batch(few, add_special_tokens=True,
                                       allowed_special="all"),
                 ids_of(peer, few))
    assert [own.encode_to_numpy(t).tolist() for t in few] \
        == own.encode_batch(few)
    assert own.vocab_size == max(peer.get_vocab().values()) + 1


def foreign(n, seed=0):
    """Random strings in which digits, Han, kana and Latin meet."""
    rng = random.Random(seed)
    faces = [*"東京は日本の首都です。カタカナー、我爱你！，",
             *"１２²½Ⅳ・ゝヿ一龥㐀",
             *" \n\r\t'\".,;-_/a1bZé\u0301\u3000\xa0", "  ", "\r\n",
             " the", "2024", "年"]
    return ["".join(rng.choices(faces, k=rng.randrange(14)))
            for _ in range(n)]


def test_patterns_that_cut_in_turns(tmp_path):
    """DeepSeek's three: read, compiled or not, learned with, and saved."""
    path = written({**deepseek(), "added_tokens": []}, tmp_path)
    own, peer = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    some = [*many(), *foreign(10_000), "".join(foreign(5_000, 1)), *PAGES]
    theirs = ids_of(peer, some, add_special_tokens=False)
    parts = own.vocab, own.merges, own.pattern
    for engine in (bpe._Encoder(*parts), fast_bpe.FastEncoder(*parts)):
        assert_equal(some, map(engine.encode, some), theirs)
    own.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.pattern == own.pattern == DEEPSEEK_PATTERNS
    assert again.merges == own.merges
    texts = [*PAGES[:3], *FOREIGN, *foreign(300)]
    learned = [learn(texts, 600, own.pattern, GPT2_ALPHABET)
               for learn in (bpe._learn_bytes, fast_bpe.learn_bytes)]
    assert learned[0] == learned[1]


def test_patterns_before_gpt2s(tmp_path):
    """ByteLevel's own pattern cuts what the Splits have left."""
    data = deepseek()
    data["pre_tokenizer"]["pretokenizers"][2:] = [
        {**BYTE_LEVEL, "use_regex": True}]
    path = written(data, tmp_path)
    own, peer = load_tokenizer(path), plain_peer(data, tmp_path)
    assert own.pattern == (*DEEPSEEK_PATTERNS[:2], GPT2_PATTERN)
    some = [*many()[:1_000], *foreign(1_000)]
    assert_equal(some, own.encode_batch(some),
                 ids_of(peer, some, add_special_tokens=False))


@pytest.mark.parametrize("pattern, error", [
    ((), ValueError), (("a",), ValueError), (("(a)", "b"), ValueError),
    (("b", "[a"), ValueError), (["a", "b"], TypeError), (None, TypeError),
    (("a", 3), TypeError)])
def test_faults_of_patterns(pattern, error):
    for attempt in (lambda: changed(byte_base, pattern=pattern),
                    lambda: ByteBPE.train(["a"], 300, pattern=pattern)):
        with pytest.raises(error, match="pattern=") as caught:
            attempt()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in (
    "Llama 2, old", "BERT, added")])
def test_texts_decode_as_in_tokenizers(name, tmp_path, texts):
    """Plain text does. After a token that stands alone, ours takes a prefix
    space back; theirs does so at the very beginning only. Theirs also shows
    tokens that are looked for in the normalized text as they look there."""
    path = written(FAMILIES[name](), tmp_path)
    own = load_tokenizer(path)
    peer = tokenizers.Tokenizer.from_file(str(path))
    for text in [*texts[:40], *many()[:3_000]]:
        ids = own.encode(text)
        if own.added_tokens.keys() and {*ids} & own._stands_alone:
            continue
        theirs = peer.decode(ids, skip_special_tokens=False)
        if theirs[:1] == " " or own.decode(ids)[:1] == " ":
            continue
        assert own.decode(ids) == theirs


def pairs(model):
    return [tuple(merge.split(" ")) for merge in model["merges"]]


def transformers_files():
    """Tokenizers of models as the `transformers` library puts them up."""
    import transformers

    def byte_level(cls, *args, **options):
        model = byte_model(*args, **options)
        return cls(vocab=model["vocab"], merges=pairs(model))

    def unigram(cls, *first, last=()):
        return cls(vocab=[*((t, 0.0) for t in first),
                          *map(tuple, unigram_scores()),
                          *((t, 0.0) for t in last)])

    vocab, merges = piece_vocabulary()
    merges, n = [*map(tuple, merges)], len(vocab)
    yield byte_level(transformers.GPT2Tokenizer, (), ["<|endoftext|>"])
    yield byte_level(transformers.RobertaTokenizer,
                     ["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    yield byte_level(transformers.Qwen2Tokenizer, pattern=QWEN_PATTERN)
    yield transformers.BertTokenizer(vocab=words_vocabulary(False))
    yield transformers.LlamaTokenizer(vocab=vocab, merges=merges)
    yield transformers.GemmaTokenizer(merges=merges, vocab={
        **vocab, "<pad>": n, "<eos>": n + 1, "<bos>": n + 2})
    yield unigram(transformers.T5Tokenizer, "<pad>", "</s>", "<unk>")
    yield unigram(transformers.AlbertTokenizer, "<pad>", "<unk>", "[CLS]",
                  "[SEP]", "[MASK]")
    yield unigram(transformers.XLMRobertaTokenizer, "<s>", "<pad>", "</s>",
                  "<unk>", last=["<mask>"])


def test_files_that_transformers_writes(tmp_path):
    for n, tokenizer in enumerate(transformers_files()):
        folder = tmp_path / str(n)
        tokenizer.save_pretrained(folder)
        own = load_tokenizer(folder)
        some = many()[1_000 * n:1_000 * n + 1_000]
        assert_equal(some, own.encode_batch(some, add_special_tokens=True,
                                            allowed_special="all"),
                     ids_of(tokenizer._tokenizer, some))
    assert n == 8


@few_or_many(20_000, 100_000)
def test_vocab_json_and_merges_txt(tmp_path, texts, n):
    model = byte_model(["<s>"], ["<|endoftext|>"])
    written(model["vocab"], tmp_path, "vocab.json")
    merges = "\n".join(["#version: 0.2", *model["merges"], ""])
    (tmp_path / "merges.txt").write_text(merges, encoding="utf-8")
    own = load_tokenizer(tmp_path)
    assert [*own.special_tokens] == ["<s>", "<|endoftext|>"]
    assert load_tokenizer(tmp_path / "vocab.json") == own
    assert load_tokenizer(tmp_path / "merges.txt") == own
    peer = tokenizers.Tokenizer(models.BPE.from_file(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")))
    peer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    some = [*many(n), *texts]
    assert_equal(some, own.encode_batch(some), ids_of(peer, some))
    peer.add_special_tokens(["<s>", "<|endoftext|>"])
    assert_equal(some, own.encode_batch(some, allowed_special="all"),
                 ids_of(peer, some))
    letters_only = load_tokenizer(tmp_path, pattern=r"\S")
    assert len(letters_only.encode("the")) == 3 > len(own.encode("the"))


@few_or_many(20_000, 100_000)
@pytest.mark.parametrize("cased", [False, True])
def test_vocab_txt(cased, tmp_path, texts, n):
    vocab = words_vocabulary(cased)
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(vocab) + "\n", encoding="utf-8")
    if cased:
        written({"do_lower_case": False, "model_max_length": 512}, tmp_path,
                "tokenizer_config.json")
    own = load_tokenizer(tmp_path)
    peer = tokenizers.BertWordPieceTokenizer(
        str(path), lowercase=not cased)._tokenizer
    some = [*many(n)[:n // (1 + cased)], *texts]
    assert_equal(some, own.encode_batch(some, allowed_special="all"),
                 ids_of(peer, some, add_special_tokens=False))
    peer.encode_special_tokens = True
    assert_equal(some, own.encode_batch(some, add_special_tokens=True),
                 ids_of(peer, some))


def rank_file(ranks):
    return b"".join(base64.b64encode(token) + b" %d\n" % rank
                    for token, rank in ranks.items())


@few_or_many(20_000, 100_000)
@pytest.mark.parametrize("name", ["cl100k_base.tiktoken", "tokenizer.model"])
def test_rank_file(name, tmp_path, texts, n):
    ranks = dict(trained(GPT4_PATTERN).vocab)
    path = tmp_path / name
    path.write_bytes(rank_file(ranks))
    special = {"<|endoftext|>": len(ranks), "<|fim|>": len(ranks) + 9}
    own = load_tokenizer(tmp_path, special_tokens=special)
    peer = tiktoken.Encoding("test", pat_str=GPT4_PATTERN,
                             mergeable_ranks=ranks, special_tokens=special)
    some = [*many(n)[:n if name[0] == "c" else 9_000], *texts]
    assert_equal(some, own.encode_batch(some),
                 peer.encode_ordinary_batch(some, num_threads=1))
    assert_equal(some, own.encode_batch(some, allowed_special="all"),
                 peer.encode_batch(some, allowed_special="all",
                                   num_threads=1))
    ids = own.encode(some[0])
    assert own.decode(ids) == peer.decode(ids) == some[0]
    gpt2 = load_tokenizer(path, pattern=GPT2_PATTERN)
    assert not gpt2.special_tokens
    assert gpt2.pattern == GPT2_PATTERN != own.pattern


def test_merges_come_back_from_ranks():
    own = trained()
    assert merges_of_ranks(own.vocab) == [*own.merges]
    ranks = {bytes([b]): b for b in range(256)} | {
        b"abcd": 256, b"ab": 257, b"abab": 258}
    assert merges_of_ranks(ranks) == [(b"a", b"b"), (b"ab", b"ab")]
    ranks[b"bc"] = 259  # then `abcd` is ab + cd, if there is cd
    ranks[b"cd"] = 260
    assert merges_of_ranks(ranks)[0] == (b"ab", b"cd")
    peer = tiktoken.Encoding("test", pat_str=r"\S+", special_tokens={},
                             mergeable_ranks=ranks)
    own = ByteBPE(vocab=ranks, merges=merges_of_ranks(ranks), pattern=r"\S+",
                  special_tokens={}, ignore_merges=True)
    for length in range(1, 6):
        for text in map("".join, itertools.product("abcd", repeat=length)):
            assert own.encode(text) == peer.encode(text)


# Steps of normalizers ------------------------------------------------------

STEPS = {
    "NFC": (UnicodeForm("NFC"), normalizers.NFC()),
    "NFD": (UnicodeForm("NFD"), normalizers.NFD()),
    "NFKC": (UnicodeForm("NFKC"), normalizers.NFKC()),
    "NFKD": (UnicodeForm("NFKD"), normalizers.NFKD()),
    "lower": (lower_letters, normalizers.Lowercase()),
    "marks": (drop_marks, normalizers.StripAccents()),
    "replace": (Replace("a", "b"), normalizers.Replace("a", "b")),
    "replace all": (ReplaceAll(r"\s+", "_"), normalizers.Replace(
        tokenizers.Regex(r"\s+"), "_")),
    "prepend": (Prepend("_"), normalizers.Prepend("_")),
    "strip": (Strip(), normalizers.Strip()),
    "left": (Strip(right=False), normalizers.Strip(right=False)),
    "right": (Strip(left=False), normalizers.Strip(left=False)),
    "bert": (BertNormalizer(), normalizers.BertNormalizer()),
    "steps": (Steps((lower_letters, Prepend("_"))), normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Prepend("_")])),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_do_what_they_do_in_tokenizers(name):
    own, peer = STEPS[name]
    for text in [*many()[:6_000], "", " ", " a ", "ὈΣ"]:
        assert own(text) == peer.normalize_str(text)


@pytest.mark.parametrize("pattern, text", [
    ("^a", "a\na"), ("a$", "a\na"), (r"a\Z", "a\n"), (r"\h", "f"),
    ("a{1,2}+", "aaaa"), ("a{2}?", "a"), ("[a--b]", "-"), ("[a||b]", "|"),
    ("(?i:ss)", "ß"), ("(?i:[a-c]ﬁ)", "afi"), (r"\p{Lowercase}", "a"),
    (r"\p{IsHan}", "我"), (r"\p{Script=Han}", "我"), ("(?i)a", "A")])
def test_patterns_that_are_refused(pattern, text):
    """The library sees another thing in them, or cannot read them."""
    try:
        peer = normalizers.Replace(tokenizers.Regex(pattern), "_")
        same = peer.normalize_str(text) == ReplaceAll(pattern, "_")(text)
    except Exception:  # of no type of its own
        same = False
    assert not same or pattern in (r"\p{Lowercase}", "(?i)a")
    for translate in (files._read_pattern, files._written_pattern):
        with pytest.raises(ValueError, match="means another thing"):
            translate(pattern)


@pytest.fixture(scope="module")
def assigned():
    """All characters but those that are new, and one that was regrouped.

    Line ends stand between them, so that none is a neighbor of another.
    """
    newer = newer_characters(CHARACTERS) | {"\u0295", "\n", "\r"}
    return "\n".join(char for char in CHARACTERS if char not in newer)


@pytest.mark.parametrize("part", [
    *(rf"\{letter}" for letter in "wWsSdDrtfva"), ".", r"[\w&&\p{L}]",
    r"[^\W\d]", r"[\W\d]", r"[^a-y&&[^x]]", "[a[b-d]]", "(?i:[sdmtk])",
    r"\u00e9", r"\x41", r"\-",
    *(rf"\p{{{name}}}" for name in sorted(files._PROPERTIES))])
def test_parts_of_patterns_mean_the_same(part, assigned):
    """Read or written, a pattern has the meaning of its own engine."""
    for own, theirs in ((files._read_pattern(part), part),
                        (part, files._written_pattern(part))):
        peer = normalizers.Replace(tokenizers.Regex(theirs), "")
        assert ReplaceAll(own, "")(assigned) == peer.normalize_str(assigned)


@pytest.mark.parametrize("pattern", [
    r"\w+|\W", r"\b", r"\B.", r"\bx|[^\w\s]+", r"(?i:k|'ll)\b",
    "[\\p{L}&&[^\\p{Han}]]+"])
def test_edges_of_words_mean_the_same(pattern):
    theirs = normalizers.Replace(tokenizers.Regex(pattern), "_")
    own = ReplaceAll(files._read_pattern(pattern), "_")
    ours = ReplaceAll(pattern, "_")
    written = normalizers.Replace(
        tokenizers.Regex(files._written_pattern(pattern)), "_")
    for text in [*many()[:3_000], "m²", "½x \u200dx", "x\u200c", "K k"]:
        assert own(text) == theirs.normalize_str(text)
        assert ours(text) == written.normalize_str(text)
    back = files._read_pattern(files._written_pattern(pattern))
    assert r"\b" in pattern or r"\B" in pattern or back == pattern


def test_by_grapheme():
    rules = {"ﬁ": "fi", "e\u0301": "é", "\r": "_", "🙂": "smile"}
    own = ByGrapheme(Charsmap(compile_charsmap(rules)))
    blob = base64.b64encode(compile_charsmap(rules)).decode()
    peer = tokenizers.Tokenizer(models.BPE()).to_str()
    peer = json.loads(peer) | {"normalizer": {
        "type": "Precompiled", "precompiled_charsmap": blob}}
    peer = tokenizers.Tokenizer.from_str(json.dumps(peer)).normalizer
    for text in ["ﬁe\u0301", "ﬁ\u0301", "\r\n", "🙂\u200d🙂", "e\u0301\u0301",
                 "e\u0301\u0301\u0301", *many()[:5_000]]:
        assert own(text) == peer.normalize_str(text), text
    assert own("ﬁ\u0301") == "fi" != own.charsmap("ﬁ\u0301")


# Saving, and the classic fault of reloading --------------------------------

PAGES = [*manual()[0][:8], "the cat runs. <s> </s> <m> x", *FOREIGN]


def same_ids(a, b, texts):
    for options in ({}, {"allowed_special": "all"},
                    {"add_special_tokens": True}):
        assert_equal(texts, a.encode_batch(texts, **options),
                     b.encode_batch(texts, **options))


@functools.cache
def byte_base():
    return ByteBPE.train(PAGES, 500, special_tokens=["<s>", "</s>", "<m>"])


@functools.cache
def unigram_base():
    own = Unigram.train(PAGES, 700, special_tokens=["<s>", "</s>", "<m>"])
    return dataclasses.replace(own, scores={
        piece: round(1024 * score) / 1024
        for piece, score in own.scores.items()})


@functools.cache
def wordpiece_base():
    return WordPiece.train(PAGES, 600, special_tokens=["<s>", "</s>", "<m>"])


@functools.cache
def piece_base():
    vocab, merges = piece_vocabulary()
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    return PieceBPE(
        vocab={t: i for t, i in vocab.items() if t not in special},
        special_tokens={**special, "<m>": len(vocab)}, unk_token="<unk>",
        merges=merges)


def changed(base, **fields):
    return dataclasses.replace(base(), **fields)


BASES = [byte_base, unigram_base, wordpiece_base, piece_base]
ROLES = {
    "prefix": ("<s>",), "suffix": ("</s>", "</s>"),
    "pair": (("<s>", 2), (1, 1), ("</s>", 0), (0, 0)),
    "matching": {"<m>": Matching(lstrip=True),
                 "<s>": Matching(rstrip=True, single_word=True)},
    "added_tokens": {"<tool>": 9_000, "don't": 9_001},
    "normalizer": Steps((UnicodeForm("NFC"), Replace("q", "k"),
                         ReplaceAll("z+", "s"), lower_letters)),
}
VARIANTS = {
    **{f"{base.__name__} {name}": (base, {name: value})
       for base in BASES for name, value in ROLES.items()},
    **{f"{base.__name__} space {value}": (base, {"prefix_space": value})
       for base in (byte_base, unigram_base, piece_base)
       for value in PREFIX_SPACES},
    "pattern": (byte_base, {"pattern": GPT4_PATTERN}),
    "patterns": (byte_base, {"pattern": DEEPSEEK_PATTERNS}),
    "pattern with gaps": (byte_base, {"pattern": r"\p{L}+|\d"}),
    "ignore_merges": (byte_base, {"ignore_merges": True, "merges": ()}),
    "byte unk_token": (byte_base, {"unk_token": "<m>"}),
    "byte only": (byte_base, {"pattern": Only(r"\w+|,")}),
    "byte between": (byte_base, {"pattern": (Only(r"\s+", True), "a")}),
    "WordPiece pattern": (wordpiece_base, {"pattern": Only(r"\S+")}),
    "mark": (wordpiece_base, {"mark": "@"}),
    "max_word_length": (wordpiece_base, {"max_word_length": 4}),
    "cleanup": (wordpiece_base, {"cleanup": True}),
    "no normalizer": (wordpiece_base, {"normalizer": None}),
    "cased": (wordpiece_base, {"normalizer": BertNormalizer(
        clean=False, chinese=False, accents=True, lowercase=False)}),
    "byte_fallback": (unigram_base, {"byte_fallback": False}),
    "partial": (unigram_base, {"normalizer": functools.partial(
        unicodedata.normalize, "NFKC")}),
    "piece byte_fallback": (piece_base, {"byte_fallback": False}),
    "fuse_unk": (piece_base, {"byte_fallback": False, "fuse_unk": False}),
    "many steps": (unigram_base, {"normalizer": Steps((
        Strip(right=False), drop_marks, Prepend("x"), UnicodeForm("NFKD"),
        ByGrapheme(Charsmap(compile_charsmap({"ﬁ": "fi"})))))}),
    "normalized": (wordpiece_base, {
        "added_tokens": {"Foo": 9_000},
        "matching": {"Foo": Matching(normalized=True)}}),
    "user_defined": (piece_base, {
        "prefix_space": False, "user_defined": ("th", SPACE * 2, "e")}),
    "collapse": (piece_base, {
        "normalizer": PieceNormalizer(collapse=True)}),
    "normalized piece": (piece_base, {
        "added_tokens": {"Foo": 9_000}, "normalizer": lower_letters,
        "prefix_space": "missing",
        "matching": {"Foo": Matching(normalized=True)}}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_reloaded_and_opened_elsewhere(name, tmp_path):
    base, fields = VARIANTS[name]
    if "added_tokens" in fields:  # their ids have to follow
        n = base().vocab_size
        fields = {**fields, "added_tokens": {
            t: n + k for k, t in enumerate(fields["added_tokens"])}}
    own = changed(base, **fields)
    own.save(tmp_path / "here")
    assert [p.name for p in (tmp_path / "here").iterdir()] == [
        "tokenizer.json"]
    again = load_tokenizer(tmp_path / "here")
    assert type(again) is type(own)
    some = [*many()[:1_500], "", " ", "<tool>x", " <m> y", "a <s> <s>b",
            "Foo bar foo", "don't", *PAGES[:3]]
    same_ids(own, again, some)
    peer = tokenizers.Tokenizer.from_file(
        str(tmp_path / "here" / "tokenizer.json"))
    assert_equal(some, own.encode_batch(some, allowed_special="all"),
                 ids_of(peer, some, add_special_tokens=False))
    assert_equal(some, own.encode_batch(some, allowed_special="all",
                                        add_special_tokens=True),
                 ids_of(peer, some))
    for text in some[:300]:
        ids = own.encode(text)
        assert again.decode(ids) == own.decode(ids)
    pair = own.encode_pair("Hello", "you")
    assert again.encode_pair("Hello", "you") == pair
    assert peer.encode("Hello", "you").type_ids == pair[1]
    again.save(tmp_path / "there")
    files_equal = [(tmp_path / folder / "tokenizer.json").read_bytes()
                   for folder in ("here", "there")]
    assert json.loads(files_equal[0]) == json.loads(files_equal[1])


def test_every_field_is_flipped_above():
    """What is not a variant above would be the next fault of reloading."""
    elsewhere = {"vocab", "special_tokens", "scores", "merges", "ranks",
                 "user_defined", "unused"}
    for base in BASES:
        names = {f.name for f in dataclasses.fields(base())} - elsewhere
        flipped = {name for other, fields in VARIANTS.values()
                   for name, value in fields.items()
                   if other is base and value != getattr(base(), name)}
        assert names - flipped <= {"unk_token"}, base


@pytest.mark.parametrize("cls", [Words, Characters])
@pytest.mark.parametrize("options", [
    {}, {"unk_token": "?!"}, {"pattern": r"\w+|\s"},
    {"special_tokens": ["<s>", "</s>"]}], ids=str)
def test_words_and_characters(cls, options, tmp_path):
    if cls is Characters:
        options = {k: v for k, v in options.items() if k != "pattern"}
    own = cls.train(PAGES, 300, **options)
    end = [*own.special_tokens][-1]
    own = dataclasses.replace(own, suffix=[end], prefix=[end])
    own.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again == own
    some = [*many()[:2_000], *PAGES, "", " ", "\n"]
    same_ids(own, again, some)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert_equal(some, own.encode_batch(some, allowed_special="all"),
                 ids_of(peer, some, add_special_tokens=False))
    without = dataclasses.replace(
        own, unk_token=None, vocab={**own.vocab, " <unk>": 301})
    without.save(tmp_path)
    assert load_tokenizer(tmp_path) == without


def test_trained_tokenizers_are_the_same_values(tmp_path):
    for base in BASES:
        base().save(tmp_path)
        again = load_tokenizer(tmp_path)
        unfused = {"fuse_unk"}  # a field of the file even where it is idle
        for field in dataclasses.fields(again):
            if field.name not in unfused | {"scores", "merges"}:
                assert getattr(again, field.name) \
                    == getattr(base(), field.name), field.name


@pytest.mark.parametrize("name", FAMILIES)
def test_families_can_be_saved(name, tmp_path):
    own = load_tokenizer(written(FAMILIES[name](), tmp_path))
    own.save(tmp_path)
    again = load_tokenizer(tmp_path)
    some = many()[:1_500] + PAGES
    same_ids(own, again, some)
    peer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert_equal(some, own.encode_batch(some, allowed_special="all"),
                 ids_of(peer, some, add_special_tokens=False))


def one_line(caught, *words):
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500
    for word in words:
        assert str(word) in message, message


@pytest.mark.parametrize("make, words", [
    (lambda: changed(byte_base, normalizer=str.lower), ["normalizer="]),
    (lambda: changed(unigram_base, normalizer=Charsmap(
        compile_charsmap({"a": "b"}))), ["normalizer=", "by_grapheme"]),
    (lambda: changed(byte_base, special_tokens={"er": 999}), ["er", "999"]),
    (lambda: changed(byte_base, added_tokens={"<tool>": 999}),
     ["added_tokens['<tool>']=999", "from 500 on"]),
    (lambda: changed(unigram_base, special_tokens={"<unk>": 2_000}),
     ["id"]),
    (lambda: changed(byte_base, pattern="^a|."), ["^ means another thing"]),
    (lambda: changed(unigram_base, byte_fallback=False, scores={"a": -1.0}),
     ["scores"]),
    (lambda: changed(piece_base, unused=("a",)), ["write_sentencepiece"]),
    (lambda: changed(piece_base, user_defined=("th",)), ["prefix_space"]),
    (lambda: changed(piece_base, ranks=[0] * len(piece_base().merges)),
     ["rank"]),
], ids=["function", "charsmap", "spelled", "far", "hole", "ruby", "space",
        "unused", "defined", "ranks"])
def test_what_cannot_be_saved(make, words, tmp_path):
    with pytest.raises(ValueError) as caught:
        make().save(tmp_path / "folder")
    one_line(caught, *words)
    assert not (tmp_path / "folder").exists()


def test_what_is_no_tokenizer_of_ours(tmp_path):
    class Bytes(Tokenizer):
        pass

    own = Bytes(vocab={"a": 0}, special_tokens={})
    with pytest.raises(TypeError, match="Bytes cannot be saved"):
        own.save(tmp_path)


def test_an_old_file_stays_until_the_new_one_is_complete(
        tmp_path, monkeypatch):
    byte_base().save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def broken(self, *args, **options):
        raise OSError("disk full")

    monkeypatch.setattr(type(tmp_path), "write_bytes", broken)
    with pytest.raises(OSError):
        wordpiece_base().save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


# Faults --------------------------------------------------------------------

def paths(value, path=()):
    """Every place in a JSON value, but few of long lists and mappings."""
    yield path, value
    if isinstance(value, dict):
        for key in [*value][:20]:
            yield from paths(value[key], (*path, key))
    elif isinstance(value, list):
        for i in range(min(len(value), 8)):
            yield from paths(value[i], (*path, i))


GONE = object()


def mutated(data, path, value):
    data = copy.deepcopy(data)
    where = data
    for key in path[:-1]:
        where = where[key]
    if value is GONE:
        del where[path[-1]]
    else:
        where[path[-1]] = value
    return data


def others(value):
    """What else could stand there."""
    yield from [GONE, None, "odd", 7, -1, 1.5, True, False, [], {}, [7],
                {"type": "odd"}, "Sequence"]
    if isinstance(value, dict):
        yield {**value, "unheard_of": 1}
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from [value + 1, 10 ** 30]
    elif isinstance(value, str):
        yield from [value + "x", value[:-1], ""]
    elif isinstance(value, list):
        yield from [value[::-1], value[:-1], value + value[:1]]


@functools.cache
def short(name):
    """A family's file with a small vocabulary, so that loading is quick."""
    data = FAMILIES[name]()
    model = data["model"]
    kept = {e["content"] for e in data["added_tokens"]}
    if isinstance(model["vocab"], list):
        size = 300
        model["vocab"] = model["vocab"][:size]
        first = [e for e in data["added_tokens"] if e["id"] < size]
        last = [e for e in data["added_tokens"] if e["id"] >= size]
    else:
        pieces = sorted(model["vocab"].items(), key=lambda item: item[1])
        size = 700 if "##" in str(pieces[-1]) or SPACE in str(pieces) else 420
        model["vocab"] = dict(pieces[:size])
        first = [e for e in data["added_tokens"]
                 if e["content"] in model["vocab"]]
        last = [e for e in data["added_tokens"] if e not in first]
        parts = [m.split(" ") if isinstance(m, str) else m
                 for m in model.get("merges", ())]
        if "merges" in model:
            model["merges"] = [
                m for m, (a, b) in zip(model["merges"], parts, strict=True)
                if {a, b, a + b} <= {*model["vocab"]}]
    for i, e in enumerate(last, len(model["vocab"])):
        e["id"] = i
    text = json.dumps(data["post_processor"])
    ids = {e["content"]: e["id"] for e in first + last}
    data["added_tokens"] = first + last
    assert kept == {*ids}
    processor = json.loads(text)
    inner = (processor or {}).get("processors", [processor])
    for one in inner:
        for token, spec in (one or {}).get("special_tokens", {}).items():
            spec["ids"] = [ids[token]]
    data["post_processor"] = processor
    return data


@pytest.mark.parametrize("name", [n for n in FAMILIES if "old" not in n])
def test_no_change_of_a_file_is_ignored(name, tmp_path):
    """Each field, changed: an error in one line, or the ids of the peer."""
    data = short(name)
    texts = [text for text in many()[:60] if text] + [
        "Hello  world, don't! 1234 <mask> of THE foo bar [SEP] ﬁ naïve", " a",
        "\u4e2d\u6587", "x" * 120, "e\u0301\u0302 a\u0308", "a\x00b\u200b\t",
        *(e["content"] for e in data["added_tokens"][:3])]
    rng, opened, refused = random.Random(0), 0, 0
    changes = [(path, other) for path, value in paths(data) if path
               for other in others(value)]
    for path, other in rng.sample(changes, min(200, len(changes))):
        file = written(mutated(data, path, other), tmp_path)
        try:
            own = load_tokenizer(file)
        except ValueError as error:
            assert "\n" not in str(error) and str(file) in str(error)
            refused += 1
            continue
        opened += 1
        if "pair" in path or path[0] in ("truncation", "padding"):
            continue  # it may be broken; only theirs looks at it
        if path[0] == "added_tokens" and path[-1] in ("special",
                                                      "single_word"):
            continue  # theirs finds a special token as a piece, see above
        peer = tokenizers.Tokenizer.from_file(str(file))
        theirs = ids_of(peer, texts)
        for text, a in zip(texts, theirs, strict=True):
            assert own.encode(text, allowed_special="all",
                              add_special_tokens=True) == a, (path, other)
        for text in texts[:20]:
            ids = own.encode(text)
            if not {*ids} & own._stands_alone and path[:1] == (
                    "decoder",) and peer.decoder:  # else ours is free
                assert own.decode(ids).strip() == peer.decode(
                    ids, skip_special_tokens=False).strip(), (path, other)
    assert refused > 100 and opened


def corrupt(folder, name):
    """A folder with the files of a format, and the file to break in it."""
    folder.mkdir()
    if name == "vocab.json":
        model = byte_model()
        written(model["vocab"], folder, name)
        (folder / "merges.txt").write_text("\n".join(model["merges"]))
    elif name == "vocab.txt":
        (folder / name).write_text("\n".join(words_vocabulary(False)))
    elif name == "tokenizer.model":
        write_sentencepiece(unigram_base(), folder / name)
    elif name == "cl100k_base.tiktoken":
        (folder / name).write_bytes(rank_file(trained().vocab))
    else:
        written(gpt2(), folder)
    return folder / name


FORMATS = ["tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model",
           "cl100k_base.tiktoken"]


@pytest.mark.parametrize("name", FORMATS)
def test_files_cut_short_or_garbled(name, tmp_path):
    """Nothing but a ValueError in one line that names the file."""
    file = corrupt(tmp_path / "folder", name)
    assert load_tokenizer(file).encode("the") == load_tokenizer(
        file.parent).encode("the")
    whole, rng, failed = file.read_bytes(), random.Random(0), 0
    broken = [whole[:len(whole) * k // 12] for k in range(12)]
    for _ in range(30):
        at = rng.randrange(len(whole))
        broken.append(whole[:at] + bytes([rng.randrange(256)])
                      + whole[at + 1:])
    broken += [b"\xff" + whole, rng.randbytes(300), b"[]", b"{}", b"7"]
    for data in broken:
        file.write_bytes(data)
        try:
            load_tokenizer(file)
        except ValueError as error:
            failed += 1
            assert "\n" not in str(error) and str(file) in str(error)
    assert failed >= (8 if name == "vocab.txt" else 12)


@pytest.mark.parametrize("name, data, words", [
    ("vocab.txt", "a\n[UNK]\na\n", ["line 3", "'a'", "line 1"]),
    ("vocab.txt", "a\nb\n", ["no line [UNK]"]),
    ("x.tiktoken", "YQ== 0\nYQ== 1\n", ["line 2", "there already"]),
    ("x.tiktoken", "YQ== 0\nYg== 0\n", ["line 2", "there already"]),
    ("x.tiktoken", "YQ== 0\nYg==\n", ["line 2", "base64"]),
    ("x.tiktoken", "YQ== 0\nYg== 99999999\n", ["line 2", "16777216"]),
    ("x.tiktoken", "YQ== 0\n", ["lacks the byte"]),
    ("tokenizer.json", "{" * 100_000, ["is not whole JSON"]),
    ("tokenizer.json", "[" * 100_000, ["nests too deeply"]),
    ("tokenizer.json", '{"a": 1, "a": 2}', ["'a' is there twice"]),
    ("tokenizer.json", '{"version": NaN}', ["version=nan"]),
    ("tokenizer.json", '{"a": ' * 480 + "1" + "}" * 480, ["version"]),
    ("tokenizer.json", '"text"', ["must be an object"]),
    ("strange.bin", "x", ["must be a .json, .model, .txt, .tiktoken"]),
])
def test_faults_of_files(name, data, words, tmp_path):
    (tmp_path / name).write_text(data)
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path / name)
    one_line(caught, tmp_path / name, *words)


@pytest.mark.parametrize("merges, words", [
    ("t h\nth qqq\n", ["line 2 of merges.txt", "th qqq"]),
    ("t h e\n", ["line 1 of merges.txt"]),
    ("#version: 0.2\nzz\n", ["line 2 of merges.txt"]),
])
def test_faults_of_merges(merges, words, tmp_path):
    written({**byte_model()["vocab"]}, tmp_path, "vocab.json")
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(ValueError) as caught:
        load_tokenizer(tmp_path)
    one_line(caught, tmp_path / "vocab.json", *words)


@pytest.mark.parametrize("left, right", [
    ("a", "b c"), ("q r", "s"), ("x y", "z w"), ("<w a>", "it"), ("中", "t")])
def test_merges_of_added_tokens_that_are_no_bytes(left, right, tmp_path):
    """The library reads them too, and no text has what they would merge."""
    data = gpt2()
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    data["model"]["merges"] = [m.split(" ") for m in merges]
    data["model"]["merges"].insert(3, [left, right])
    for token in sorted({left, right, left + right} - vocab.keys()):
        data["added_tokens"].append(entry(token, len(vocab), special=False))
        vocab[token] = len(vocab)
    path = written(data, tmp_path)
    own, peer = load_tokenizer(path), tokenizers.Tokenizer.from_file(str(path))
    some = [f"a {left}{right} ab cd {left} {right}x", f"{left}{right[:-1]}",
            *many()[:500]]
    assert_equal(some, own.encode_batch(some, allowed_special="all"),
                 ids_of(peer, some, add_special_tokens=False))
    assert len(own.merges) == len(merges)


def test_faults_of_fields(tmp_path):
    """Some of the changes above, with what is said about them."""
    def attempt(data, *words):
        with pytest.raises(ValueError) as caught:
            load_tokenizer(written(data, tmp_path))
        one_line(caught, tmp_path / "tokenizer.json", *words)

    data = gpt2()
    attempt(mutated(data, ("truncation",), 5), "truncation=5")
    attempt(mutated(data, ("model", "dropout"), 0.1), "model.dropout=0.1")
    attempt(mutated(data, ("model", "merges", 0), "a zz"), "merges[0]='a zz'")
    attempt(mutated(data, ("model", "vocab", "e"), 0), "has this id already")
    attempt(mutated(data, ("model", "vocab", "e"), 1 << 24), "vocab['e']")
    attempt(mutated(data, ("decoder",), {"type": "Fuse"}), "['Fuse'] is not")
    attempt(mutated(data, ("added_tokens", 0, "speed"), 1), "speed")
    attempt(mutated(llama3(), (
        "pre_tokenizer", "pretokenizers", 0, "pattern", "Regex"), "(a"),
        "'(a': does not compile")
    attempt(mutated(llama3(), (
        "pre_tokenizer", "pretokenizers", 0, "behavior"), "Contiguous"),
        "pretokenizers[0].behavior='Contiguous'")
    attempt(mutated(albert(), ("normalizer", "normalizers", 6, "pattern"),
                    {"Regex": "(a"}), "normalizers[6]", "does not compile")
    for pattern, part in [("^a", "^"), ("a$", "$"), (r"a\Z", r"\Z"),
                          ("(?m:a)", "(?m"), ("a{2}+", "{2}+"), (r"\h", r"\h"),
                          ("[a--b]", "--"), ("(?i:ss)", "(?i:ss)")]:
        attempt(mutated(albert(), ("normalizer", "normalizers", 6, "pattern"),
                        {"Regex": pattern}), f": {part} means another thing")
    attempt(mutated(t5(), ("model", "vocab", 7), ["x", "y"]), "vocab[7]")
    attempt(mutated(t5(), ("model", "vocab", 7), ["<pad>", 1.0]), "vocab[7]")
    for score in (1e31, 10 ** 400, True):
        attempt(mutated(t5(), ("model", "vocab", 7), ["x", score]), "[7]")
    for length in (-1, 1 << 40):
        attempt(mutated(bert(), ("model", "max_input_chars_per_word"),
                        length), "max_input_chars_per_word=")
    attempt(mutated(t5(), ("model", "vocab", 3, 0), "odd"), SPACE)
    attempt(mutated(bert(), ("model", "unk_token"), "x y"), "unk_token='x y'")


    attempt(mutated(bert(), ("post_processor", "pair"), [{"Sequence": {
        "id": "A", "type_id": 0}}]), "pair: must have the Sequences A and B")
    attempt(mutated(bert(), ("post_processor", "single", 0, "SpecialToken",
                             "type_id"), 1), "every type_id must be 0")


def test_faults_of_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    assert load_tokenizer(tmp_path).encode("a") == [1]
    with pytest.raises(TypeError, match="pattern: .*takes no options"):
        load_tokenizer(tmp_path, pattern="a")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match="vocab.json and vocab.txt; give"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="needs merges.txt beside"):
        load_tokenizer(tmp_path / "vocab.json")
    byte_base().save(tmp_path)  # which says everything
    assert isinstance(load_tokenizer(tmp_path), ByteBPE)


def test_a_sentencepiece_file(tmp_path):
    write_sentencepiece(unigram_base(), tmp_path / "spiece.model")
    own = load_tokenizer(tmp_path)
    assert own == read_sentencepiece(tmp_path / "spiece.model")
    own.save(tmp_path / "json")
    same_ids(own, load_tokenizer(tmp_path / "json"), many()[:2_000])


def test_merges_come_out_the_same_at_once_and_one_by_one(tmp_path):
    own = byte_base()
    own.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    merges = data["model"]["merges"]
    for changed in ([*map(" ".join, merges)],
                    [" ".join(merges[0]), *merges[1:]]):  # one by one
        data["model"]["merges"] = changed
        (tmp_path / "tokenizer.json").write_text(json.dumps(data))
        assert load_tokenizer(tmp_path).merges == own.merges
        assert type(load_tokenizer(tmp_path).merges) is tuple
        assert gc.isenabled()
    data["model"]["merges"].append(["a", "nowhere"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="'nowhere' is not"):
        load_tokenizer(tmp_path)
    assert gc.isenabled()
