"""From logits to text: how the next token is chosen."""

from lmcourse.decoding.sampling import (
    CachedReader,
    NoRepeat,
    PlainReader,
    Temperature,
    TopK,
    TopP,
    apply_steps,
    as_reader,
    greedy,
    next_distribution,
    sample,
    sampler,
)

__all__ = ["CachedReader", "NoRepeat", "PlainReader", "Temperature", "TopK",
           "TopP", "apply_steps", "as_reader", "greedy", "next_distribution",
           "sample", "sampler"]
