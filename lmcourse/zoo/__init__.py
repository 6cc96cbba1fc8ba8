"""Models of the small world, each trained once; and one that read the web."""

from dataclasses import replace
from importlib import import_module

from lmcourse.zoo.base import (
    PRESETS,
    RECIPES,
    Preset,
    Recipe,
    get_preset,
    pretrain,
    pretrained,
    pretraining_record,
    probe_scores,
    skill_scores,
    word_excess,
    world_model,
    world_record,
)

__all__ = ["PRESETS", "RECIPES", "Preset", "Recipe", "get_preset", "pretrain",
           "has_smollm", "pretrained", "pretraining_record", "probe_scores",
           "skill_scores", "smollm", "word_excess", "world_model",
           "world_record"]


def __getattr__(name):
    """The real model belongs to a later chapter, loaded when asked for."""
    if name in ("smollm", "has_smollm"):
        return getattr(import_module("lmcourse.checkpoints.gguf"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _published(module, name):
    """A later chapter's recipe; its models are kept as the Hub has them."""
    def find():
        files = import_module("lmcourse.checkpoints")
        return replace(getattr(import_module(module), name),
                       save=files.save_model, load=files.load_model)
    return find


# What the zoo looks up by name; a chapter's module is loaded when asked for.
RECIPES.update(
    bert=_published("lmcourse.models.bert", "BERT"),
    roberta=_published("lmcourse.models.roberta", "ROBERTA"),
    electra=_published("lmcourse.models.electra", "ELECTRA"),
)
