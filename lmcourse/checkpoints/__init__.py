"""Published models as modules of this book: folders of the Hub, GGUF."""

from importlib import import_module

from lmcourse.checkpoints.base import (
    FAMILIES,
    OPENERS,
    Checkpoint,
    StoredTensor,
    find_checkpoint,
    load_model,
    open_checkpoint,
    read_header,
    register,
    save_model,
    write_tensors,
)

__all__ = ["FAMILIES", "OPENERS", "Checkpoint", "StoredTensor",
           "find_checkpoint", "load_model", "open_checkpoint", "read_header",
           "register", "save_model", "write_tensors"]

# What `load_model` looks up by a file's ending.
OPENERS[".gguf"] = lambda path: import_module(
    "lmcourse.checkpoints.gguf").open_gguf(path)
