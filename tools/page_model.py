"""Write the world's model for the pages: `book/static/world-model.js`.

    python tools/page_model.py

The file is made of the zoo's "small" decoder, its weights rounded to float16
and in base64 (a page that was opened as a file may load a script, and nothing
else). It is written anew only if what decides the model has changed, since
training gives other last digits on every machine. `make run` does it after
chapter 32.
"""

import base64
import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np

from lmcourse.files import write_atomically
from lmcourse.tokenizers.base import END_OF_TEXT
from lmcourse.zoo import base, get_preset, world_model

PATH = Path(__file__).parents[1] / "book" / "static" / "world-model.js"
FIELDS = ("vocab_size", "max_length", "d_model", "n_layers", "n_heads",
          "d_ff")


def recipe():
    """The name of the folder in which the zoo keeps this model."""
    return base._home("gpt", get_preset("small"), None).name


def content(model, tokenizer):
    """What the page needs of a model, as JSON."""
    weights = {name: p.detach().cpu().half().numpy()
               for name, p in model.named_parameters()}
    raw = b"".join(np.ascontiguousarray(w).tobytes()
                   for w in weights.values())
    ids = tokenizer.vocab
    config = asdict(model.config)
    return {
        "recipe": recipe(), "sha256": hashlib.sha256(raw).hexdigest(),
        "config": {name: config[name] for name in FIELDS},
        "end": tokenizer.special_tokens[END_OF_TEXT],
        "merges": [[ids[a], ids[b]] for a, b in tokenizer.merges],
        "shapes": {name: list(w.shape) for name, w in weights.items()},
        "weights": base64.b64encode(raw).decode()}


def read(path=PATH):
    """What the file holds."""
    found = re.search(r"^worldModelFile\((.*)\);$", path.read_text("utf-8"),
                      re.MULTILINE)
    return json.loads(found[1])


def write():
    """Write the file if it is missing, or of another recipe."""
    if PATH.exists() and read()["recipe"] == recipe():
        return
    made = json.dumps(content(*world_model("small")), separators=(",", ":"))
    text = ("/* The world's model (chapter 32), in float16; written by "
            f"tools/page_model.py. */\nworldModelFile({made});\n")
    write_atomically(PATH, lambda path: path.write_text(text, "utf-8"))
    print(f"{PATH.name}: {PATH.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    write()
