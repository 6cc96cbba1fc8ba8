"""Decoding: readers, steps, frequencies, parity, faults."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lmcourse.decoding import (
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
from lmcourse.decoding import sampling
from lmcourse.decoding.sampling import top_p_loop
from lmcourse.layers.transformer import TransformerConfig, build_transformer

INF = float("inf")
ROWS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12)


def random_logits(*shape, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator)


def kept(logits):
    return logits > -INF


def table(probabilities, row=-1):
    """A next_logits that looks at the last token only."""
    logits = torch.tensor(probabilities).log()
    return lambda input_ids: logits[input_ids[:, row]]


CHAIN = table([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.2, 0.2, 0.6]])
START = torch.tensor([[0]])


# What the slides say


@settings(max_examples=30)
@given(ROWS)
def test_one_token_left_is_greedy(row):
    logits = torch.tensor(row)
    best = logits.argmax()
    for step in (TopK(1), TopP(1e-9), Temperature(0)):
        probabilities = next_distribution(logits, [step])
        assert probabilities[best] == 1, step
        assert kept(step(logits)).sum() == 1


def test_cold_approaches_greedy_and_hot_approaches_uniform():
    logits = random_logits(50, 20)
    best = logits.argmax(dim=-1, keepdim=True)
    on_best = [next_distribution(logits, [Temperature(tau)]).gather(-1, best)
               for tau in (4, 2, 1, 0.5, 0.1, 1e-3, 1e-30, 1e-300)]
    for warmer, colder in itertools.pairwise(on_best):
        assert (colder >= warmer).all()
    assert (on_best[-1] == 1).all()
    hot = next_distribution(logits, [Temperature(1e9)])
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 20))


def test_temperature_is_the_equation_of_the_slide():
    logits = random_logits(7, 11).double()
    for tau in (0.3, 1.0, 2.5):
        powers = (logits / tau).exp()
        expected = powers / powers.sum(dim=-1, keepdim=True)
        found = next_distribution(logits, [Temperature(tau)])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 5, 20, 10**9])
def test_top_k_is_the_equation_of_the_slide(k):
    """A softmax over k rows of the unembedding, and nothing elsewhere."""
    hidden, unembedding = random_logits(6, seed=1), random_logits(20, 6)
    top = (unembedding @ hidden).topk(min(k, 20)).indices
    expected = torch.zeros(20)
    expected[top] = (unembedding[top] @ hidden).softmax(dim=-1)
    found = next_distribution(unembedding @ hidden, [TopK(k)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_top_k_keeps_exactly_k_also_among_equals(k):
    for row in (torch.zeros(8), torch.tensor([1.0, 2, 2, 2, 2, 0, 2, 2])):
        assert kept(TopK(k)(row)).sum() == k
    assert kept(TopK(2)(torch.zeros(8))).nonzero().flatten().tolist() == [0, 1]


def test_top_p_keeps_the_smallest_set():
    """No set with fewer tokens holds as much: all subsets are tried."""
    for seed, p in itertools.product(range(8), (0.1, 0.5, 0.9, 0.99)):
        logits = random_logits(8, seed=seed).double()
        probabilities = logits.softmax(dim=-1)
        chosen = kept(TopP(p)(logits))
        assert probabilities[chosen].sum() >= p
        size = int(chosen.sum())
        smaller = itertools.combinations(probabilities.tolist(), size - 1)
        assert max(map(sum, smaller)) < p


def test_crossing_token_is_kept():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    counts = [int(kept(TopP(p)(logits)).sum())
              for p in (1e-12, 0.5, 0.51, 0.75, 0.76, 0.875, 0.9, 1)]
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4]


def test_p_of_one_keeps_all_whatever_rounding_says():
    logits = torch.cat([torch.tensor([20.0]), torch.full((50_000,), -30.0)])
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert kept(TopP(1)(logits.to(dtype))).all()


@settings(max_examples=50)
@given(ROWS, st.floats(0.001, 1))
def test_top_p_equals_its_loop(row, p):
    logits = torch.tensor(row, dtype=torch.float64)
    probabilities = logits.softmax(dim=-1)
    before = torch.tensor(
        [probabilities[probabilities > q].sum() for q in probabilities])
    if ((before - p).abs() < 1e-9).any():
        return  # where rounding decides
    loop = top_p_loop(probabilities.tolist(), p)
    fast = kept(TopP(p)(logits)).nonzero().flatten().tolist()
    if len(probabilities.unique()) == len(row):
        assert sorted(loop) == fast
    assert len(loop) == len(fast)


def test_steps_act_on_each_row_and_keep_ratios():
    logits = random_logits(4, 3, 30)
    for step in (Temperature(0.7), TopK(4), TopP(0.8)):
        together = step(logits)
        for i, j in itertools.product(range(4), range(3)):
            assert torch.equal(together[i, j], step(logits[i, j]))
    for step in (TopK(4), TopP(0.8)):
        mask = kept(step(logits))
        assert torch.equal(step(logits)[mask], logits[mask])


def test_steps_leave_their_input_alone():
    logits = random_logits(3, 9)
    before = logits.clone()
    next_distribution(logits, sampler(temperature=0.5, top_k=3, top_p=0.5))
    assert torch.equal(logits, before)


# Steps that read


def repeated(text, n):
    runs = [tuple(text[i:i + n]) for i in range(len(text) - n + 1)]
    return len(set(runs)) < len(runs)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_repeat_forbids_what_would_repeat_and_nothing_else(n):
    """Each token is tried on texts that have no repeated run so far."""
    draws = torch.Generator().manual_seed(n)
    for length in (1, 2, 3, 5, 6):
        texts = torch.randint(7, (200, length), generator=draws)
        texts = texts[[not repeated(ids, n) for ids in texts.tolist()]]
        padded = torch.nn.functional.pad(texts, (2, 0), value=-1)
        found = kept(NoRepeat(n)(torch.zeros(len(texts), 7),
                                 input_ids=padded))
        expected = [[not repeated([*ids, token], n) for token in range(7)]
                    for ids in texts.tolist()]
        assert found.tolist() == expected


def test_no_repeat_writes_no_run_twice():
    ids = sample(CHAIN, torch.zeros(50, 1, dtype=torch.long),
                 max_new_tokens=9, steps=[NoRepeat(3)],
                 generator=torch.Generator().manual_seed(0))
    assert not any(repeated(text, 3) for text in ids.tolist())
    free = sample(CHAIN, torch.zeros(50, 1, dtype=torch.long),
                  max_new_tokens=9, generator=torch.Generator().manual_seed(0))
    assert any(repeated(text, 3) for text in free.tolist())


def test_steps_see_what_the_rows_that_write_have_written():
    seen = []

    def spy(logits, *, input_ids):
        seen.append(input_ids.tolist())
        return logits

    prompts = torch.tensor([[9, 2], [0, 2], [2, 0]])
    mask = torch.tensor([[0, 1], [1, 1], [1, 1]])
    ids = greedy(CHAIN, prompts, attention_mask=mask, max_new_tokens=2,
                 eos_id=1, steps=[spy])
    assert seen == [[[-1, 2], [0, 2], [2, 0]], [[-1, 2, 2], [0, 2, 2]]]
    assert ids.tolist() == [[9, 2, 2, 2], [0, 2, 2, 2], [2, 0, 1, 1]]
    next_distribution(random_logits(1, 3), [spy],
                      input_ids=torch.tensor([[7]]))
    assert seen[-1] == [[7]]


def test_greedy_obeys_its_steps():
    def never_one(logits, *, input_ids):
        return logits.index_fill(-1, torch.tensor(1), -INF)

    ids = greedy(CHAIN, START, max_new_tokens=3, steps=[never_one])
    assert ids.tolist() == [[0, 2, 2, 2]]


# The order of the steps


def test_temperature_does_not_change_who_is_in_the_top_k():
    logits = random_logits(100, 30)
    for tau, k in itertools.product((0.2, 0.9, 3.0), (1, 5, 29)):
        one = next_distribution(logits, [Temperature(tau), TopK(k)])
        other = next_distribution(logits, [TopK(k), Temperature(tau)])
        torch.testing.assert_close(one, other)


def test_a_hot_nucleus_is_larger_and_a_cold_one_smaller():
    logits = random_logits(100, 30)
    plain = kept(TopP(0.9)(logits))
    for tau in (0.2, 0.9, 1.5, 3.0):
        before = kept(TopP(0.9)(Temperature(tau)(logits)))
        after = kept(Temperature(tau)(TopP(0.9)(logits)))
        assert torch.equal(after, plain)
        larger, smaller = (before, plain) if tau > 1 else (plain, before)
        assert (larger | ~smaller).all()
        assert not torch.equal(larger, smaller)


def test_top_p_counts_only_what_top_k_left():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert kept(TopP(0.9)(logits)).sum() == 3
    assert kept(TopP(0.55)(TopK(2)(logits))).sum() == 1
    assert kept(TopP(0.55)(logits)).sum() == 2


# Parity


@pytest.mark.parametrize("shape", [(64, 100), (2, 5000)])
def test_equals_transformers(shape):
    logits = random_logits(*shape)
    ids = torch.zeros(shape[0], 1, dtype=torch.long)
    pairs = [(Temperature(t), TemperatureLogitsWarper(t))
             for t in (0.3, 0.7, 1.0, 2.0)]
    pairs += [(TopK(k), TopKLogitsWarper(k)) for k in (1, 5, 50, 10_000)]
    pairs += [(TopP(p), TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 1.0)]
    for own, theirs in pairs:
        torch.testing.assert_close(own(logits).softmax(dim=-1),
                                   theirs(ids, logits).softmax(dim=-1))
    for first, then in itertools.permutations(
            [pairs[1], pairs[5], pairs[10]], 2):
        torch.testing.assert_close(
            then[0](first[0](logits)).softmax(dim=-1),
            then[1](ids, first[1](ids, logits)).softmax(dim=-1))


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """The logits may be half; nothing overflows and no mass is lost."""
    logits = random_logits(5, 30_000, scale=10).to(dtype)
    wide = logits.float()
    for steps in ((), sampler(temperature=1e-7), sampler(temperature=1e7),
                  sampler(temperature=0.7, top_k=50, top_p=0.9),
                  sampler(top_p=0.999)):
        probabilities = next_distribution(logits, steps)
        assert probabilities.dtype == torch.float32
        assert torch.equal(probabilities, next_distribution(wide, steps))
        torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(5))


def test_largest_half_precision_numbers():
    row = torch.tensor([65504.0, -65504.0, 65504.0 - 32], dtype=torch.float16)
    for tau in (1e-30, 0.1, 1.0, 1e30):
        probabilities = next_distribution(row, [Temperature(tau)])
        assert probabilities.isfinite().all()
        assert probabilities.sum() == pytest.approx(1)


def test_double_stays_double():
    logits = random_logits(9).double()
    for step in (Temperature(0.5), TopK(2), TopP(0.5)):
        assert step(logits).dtype == torch.float64


# Writing


def test_greedy_follows_the_best_token():
    ids = greedy(CHAIN, START, max_new_tokens=4)
    assert ids.tolist() == [[0, 1, 0, 1, 0]]
    assert greedy(CHAIN, START, max_new_tokens=0).tolist() == [[0]]


def test_writing_ends_with_eos_and_fills_up():
    prompts = torch.tensor([[0], [2]])
    ids = greedy(CHAIN, prompts, max_new_tokens=3, eos_id=1)
    assert ids.tolist() == [[0, 1, 1, 1], [2, 2, 2, 2]]
    ids = greedy(CHAIN, prompts[:1], max_new_tokens=3, eos_id=1)
    assert ids.tolist() == [[0, 1]]


def test_eos_in_the_prompt_ends_nothing():
    ids = greedy(CHAIN, torch.tensor([[1]]), max_new_tokens=3, eos_id=1)
    assert ids.tolist() == [[1, 0, 1]]


def test_sample_with_one_token_left_is_greedy():
    generator = torch.Generator().manual_seed(0)
    prompts = torch.tensor([[0], [1], [2]])
    expected = greedy(CHAIN, prompts, max_new_tokens=9)
    for settings_ in ({"top_k": 1}, {"temperature": 0}, {"top_p": 1e-9}):
        found = sample(CHAIN, prompts, max_new_tokens=9, generator=generator,
                       steps=sampler(**settings_))
        assert torch.equal(found, expected)


def test_same_generator_same_text():
    def write(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample(CHAIN, START.repeat(20, 1), max_new_tokens=10,
                      generator=generator)

    assert torch.equal(write(1), write(1))
    assert not torch.equal(write(1), write(2))


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    sample(CHAIN, START, max_new_tokens=3, generator=torch.Generator())
    assert torch.equal(torch.get_rng_state(), before)


def chi_square_p_value(counts, probabilities):
    """How often chance alone deviates at least as much as these counts."""
    live = probabilities > 0
    assert counts[~live].sum() == 0, "a token that was cut came out"
    expected = counts.sum() * probabilities[live]
    statistic = ((counts[live] - expected) ** 2 / expected).sum()
    freedom = live.sum().double() - 1
    return torch.special.gammaincc(freedom / 2, statistic / 2).item()


@pytest.mark.parametrize("settings_", [
    {}, {"top_p": 0.7}, {"temperature": 1.5, "top_k": 6, "top_p": 0.9}])
def test_frequencies_match_the_probabilities(settings_):
    """Chi-square at p < 1e-6: 3 tests, one false alarm in 300,000 runs.

    The seed is fixed, so the outcome is fixed too, until torch draws
    differently.
    """
    logits = random_logits(10, seed=3, scale=1.0)
    steps = sampler(**settings_)
    n = 100_000
    ids = sample(lambda ids: logits.expand(len(ids), -1),
                 torch.zeros(n, 1, dtype=torch.long), max_new_tokens=1,
                 steps=steps, generator=torch.Generator().manual_seed(0))
    counts = ids[:, 1].bincount(minlength=10).double()
    probabilities = next_distribution(logits.double(), steps)
    assert chi_square_p_value(counts, probabilities) > 1e-6


def test_the_chi_square_test_has_teeth():
    """Probabilities that are off by a hundredth are found out."""
    right = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    wrong = torch.tensor([0.51, 0.29, 0.2], dtype=torch.float64)
    assert chi_square_p_value(200_000 * right, wrong) < 1e-6


def test_sampled_sequences_follow_the_chain_rule():
    """Frequencies of whole texts, with eos, against enumeration."""
    n = 100_000
    ids = sample(CHAIN, START.expand(n, 1), max_new_tokens=3, eos_id=2,
                 generator=torch.Generator().manual_seed(0))
    row = CHAIN(torch.arange(3)[:, None]).double().exp()
    chances, counts = [], []
    for text in itertools.product(range(3), repeat=3):
        if 2 in text and text[text.index(2):] != (2,) * (3 - text.index(2)):
            continue
        chance, last = 1.0, 0
        for token in text:
            chance *= row[last, token].item()
            last = token
            if token == 2:
                break
        chances.append(chance)
        counts.append((ids[:, 1:] == torch.tensor(text)).all(dim=1).sum())
    assert sum(chances) == pytest.approx(1)
    assert sum(counts) == n
    counts = torch.tensor(counts, dtype=torch.float64)
    assert chi_square_p_value(counts, torch.tensor(chances).double()) > 1e-6


def test_nothing_learns_while_writing():
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(0),
                          requires_grad=True)
    ids = greedy(lambda ids: weights[ids[:, -1]], START, max_new_tokens=2)
    assert ids.shape == (1, 3)
    assert torch.is_grad_enabled()


# Readers


class Sums:
    """The smallest model with a cache: it sums a row for each token.

    A token counts as often as its place says, so that order and padding
    matter.
    """

    def __init__(self, V=11):
        self.rows = random_logits(V, V, seed=5)

    def new_cache(self):
        return SumsCache()

    def __call__(self, input_ids, *, attention_mask=None, cache):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        cache.grow("real", attention_mask.long())
        T = input_ids.shape[1]
        place = cache.real.cumsum(dim=1)[:, -T:] * attention_mask
        cache.grow("terms", self.rows[input_ids] * place[..., None])
        return cache.terms.cumsum(dim=1)[:, -T:].sin() * 3


class SumsCache:
    real = terms = None

    @property
    def length(self):
        return self.real.shape[1]

    def grow(self, name, new):
        old = getattr(self, name)
        setattr(self, name, new if old is None else torch.cat([old, new], 1))

    def select(self, rows):
        self.real, self.terms = self.real[rows], self.terms[rows]

    def crop(self, length):
        self.real = self.real[:, :length]
        self.terms = self.terms[:, :length]


def from_the_start(model):
    """A plain function that reads all of a text with a model."""
    def next_logits(input_ids):
        return model(input_ids, cache=model.new_cache())[:, -1]

    return next_logits


def some_prompts(side, *, lengths=(3, 7, 1, 5), V=11, filler=0, seed=0):
    """Prompts that are padded on a side, with their attention_mask."""
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (len(lengths), max(lengths)), generator=draws)
    place = torch.arange(max(lengths))
    if side == "left":
        place = place.flip(0)
    mask = place < torch.tensor(lengths)[:, None]
    return {"input_ids": ids.where(mask, filler), "attention_mask": mask}


@pytest.mark.parametrize("side", ["left", "right"])
def test_readers_agree_whatever_is_done_to_them(side):
    """Eight programs of random calls."""
    model = Sums()
    for seed in range(8):
        draws = torch.Generator().manual_seed(seed)
        readers = [as_reader(from_the_start(model)), as_reader(model)]
        assert [type(r) for r in readers] == [PlainReader, CachedReader]
        prompts = some_prompts(side, seed=seed)
        one, other = (r.read(**prompts) for r in readers)
        torch.testing.assert_close(one, other)
        for _ in range(6):
            B, length = readers[0].input_ids.shape
            rows = torch.randint(B, (3,), generator=draws)
            n = int(torch.randint(1, 5, (1,), generator=draws))
            new = torch.randint(11, (3, n), generator=draws)
            for reader in readers:
                reader.select(rows)
                reader.crop(length - n + 1)
            one, other = (r.advance(new) for r in readers)
            torch.testing.assert_close(one, other)
            assert one.shape == (3, n, 11)
        assert torch.equal(readers[0].input_ids, readers[1].input_ids)
        again = some_prompts(side, seed=seed + 1)
        one, other = (r.read(**again) for r in readers)
        torch.testing.assert_close(one, other)


KINDS = {
    "learned": {},
    "sinusoidal": {"positions": "sinusoidal"},
    "none": {"positions": "none", "tie_weights": False},
    "rotary": {"positions": "rotary", "norm": "rms", "n_kv_heads": 1,
               "feed_forward": "swiglu", "biases": ()},
    "sliding": {"positions": "rotary", "attention": "sliding", "window": 4},
    "mixed": {"layers": ({"attention": "sliding"}, {}), "window": 3,
              "norm_placement": "sandwich", "logit_softcap": 5.0},
}


def transformer(kind):
    config = TransformerConfig(vocab_size=11, max_length=32, d_model=16,
                               n_layers=2, n_heads=2, d_ff=32,
                               initializer_range=0.3, **KINDS[kind])
    return build_transformer(config).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_are_read_as_from_the_start(kind, side):
    model, prompts = transformer(kind), some_prompts(side)
    draws = torch.Generator().manual_seed(2)
    new, then = torch.randint(11, (2, 4, 5), generator=draws)
    logits = []
    for reader in (as_reader(from_the_start(model)), as_reader(model)):
        visit = [reader.read(**prompts), reader.advance(new)]
        reader.select(torch.tensor([2, 0, 0]))
        reader.crop(reader.length - 3)
        visit += [reader.advance(then[:3]), reader.advance(then[:3, :1])]
        logits.append(visit)
    for one, other in zip(*logits, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_transformer_writes_the_same_with_and_without_a_cache():
    model, prompts = transformer("rotary"), some_prompts("left")
    for source in (model, from_the_start(model)):
        ids = greedy(source, **prompts, max_new_tokens=20)
        drawn = sample(source, **prompts, max_new_tokens=20, eos_id=3,
                       generator=torch.Generator().manual_seed(0))
        if source is model:
            expected = ids, drawn
    assert torch.equal(ids, expected[0])
    assert torch.equal(drawn, expected[1])


def test_the_head_is_asked_for_the_last_token_of_a_prompt_only():
    model, shapes = transformer("learned"), []
    model.head.register_forward_hook(
        lambda head, given, logits: shapes.append(tuple(logits.shape)))
    greedy(model, torch.zeros(2, 9, dtype=torch.long), max_new_tokens=2)
    assert shapes == [(2, 1, 11), (2, 1, 11)]


def test_a_cache_that_begins_with_a_prefix_is_cropped_behind_it():
    """As prefix tuning will have it."""
    model = transformer("rotary")
    cache = model.new_cache()
    model(torch.tensor([[5, 6]]), cache=cache)
    model.new_cache = lambda: cache
    reader = CachedReader(model)
    with torch.no_grad():
        reader.read(torch.tensor([[1, 2]]))
        first = reader.advance(torch.tensor([[3, 4]]))
        reader.crop(2)
        assert (reader.length, cache.length) == (2, 4)
        torch.testing.assert_close(reader.advance(torch.tensor([[3, 4]])),
                                   first)


def test_several_tokens_at_once_are_one_after_the_other():
    for reader in (CachedReader(Sums()), PlainReader(from_the_start(Sums()))):
        prompts = some_prompts("left")
        new = torch.arange(12).view(4, 3) % 11
        reader.read(**prompts)
        together = reader.advance(new)
        reader.crop(reader.length - 3)
        single = [reader.advance(new[:, i:i + 1]) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(single, dim=1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_end_together_with_nothing_before_shorter_ones(side):
    prompts = some_prompts(side, filler=-100)
    reader = PlainReader(from_the_start(Sums()))
    reader.read(**prompts)
    for ids, mask, found in zip(*prompts.values(), reader.input_ids,
                                strict=True):
        expected = ids[mask].tolist()
        assert found.tolist() == [-1] * (7 - len(expected)) + expected
    reader.read(prompts["input_ids"][:1].clamp(min=0))
    assert reader.length == 7
    half = torch.tensor([[0, 1, 0, 1, 0]])  # a hole; nobody is as long as 5
    reader.read(torch.arange(5)[None], attention_mask=half)
    assert reader.input_ids.tolist() == [[1, 3]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("eos_id", [None, 4])
def test_prompts_of_a_batch_are_continued_as_if_alone(side, eos_id):
    prompts = some_prompts(side, lengths=(3, 7, 1, 5, 2, 4))
    T = prompts["input_ids"].shape[1]
    model, ended = Sums(), 0
    for source in (model, from_the_start(model), CachedReader(model)):
        ids = greedy(source, **prompts, max_new_tokens=12, eos_id=eos_id)
        assert torch.equal(ids[:, :T], prompts["input_ids"])
        for row, mask in zip(ids, prompts["attention_mask"], strict=True):
            alone = greedy(source, row[:T][mask][None], max_new_tokens=12,
                           eos_id=eos_id)[0, mask.sum():]
            new = row[T:]
            assert torch.equal(new[:len(alone)], alone)
            assert set(new[len(alone):].tolist()) <= {eos_id}
            ended += len(alone) < 12
    assert (ended > 0) == (eos_id is not None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("eos_id", [None, 4, [4, 1, 9]])
def test_with_generators_of_their_own_rows_draw_as_if_alone(side, eos_id):
    prompts = some_prompts(side, lengths=(3, 7, 1, 5, 2, 4))
    T = prompts["input_ids"].shape[1]

    def generators():
        return [torch.Generator().manual_seed(i) for i in range(6)]

    model, ended = transformer("rotary"), 0
    for source in (model, from_the_start(model)):
        ids = sample(source, **prompts, max_new_tokens=12, eos_id=eos_id,
                     generator=generators())
        for row, mask, generator in zip(ids, prompts["attention_mask"],
                                        generators(), strict=True):
            prompt = {"input_ids": row[:T][mask][None], "eos_id": eos_id,
                      "max_new_tokens": 12}
            one = sample(source, **prompt, generator=[generator])
            new = one[0, mask.sum():]
            assert torch.equal(row[T:][:len(new)], new)
            ended += len(new) < 12
    assert (ended > 0) == (eos_id is not None)
    tuples = sample(source, **prompts, max_new_tokens=12, eos_id=eos_id,
                    generator=tuple(generators()))
    assert torch.equal(tuples, ids)


def test_one_generator_in_a_list_is_that_generator():
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(
        sample(CHAIN, START, max_new_tokens=9, generator=draws[0]),
        sample(CHAIN, START, max_new_tokens=9, generator=draws[1:]))
    with pytest.raises(ValueError) as error:
        sample(CHAIN, START.expand(3, 1), max_new_tokens=1, generator=draws)
    assert one_line(error) == ("generator: has 2: must be one, or one for "
                               "each of 3 rows")


def test_several_ids_end_a_text_and_the_first_fills_up():
    chain = torch.eye(5).roll(1, dims=1).mul(9.0)  # 0, 1, 2, 3, 4, 0, ...

    def next_logits(input_ids):
        return chain[input_ids[:, -1]]

    starts = torch.tensor([[0], [1], [2], [3]])
    for ends in ([4, 2], (4, 2)):
        ids = greedy(next_logits, starts, max_new_tokens=4, eos_id=ends)
        assert ids.tolist() == [[0, 1, 2], [1, 2, 4], [2, 3, 4], [3, 4, 4]]
    drawn = sample(next_logits, starts, max_new_tokens=4, eos_id=[2, 4],
                   steps=sampler(top_k=1), generator=torch.Generator())
    assert drawn.tolist() == [[0, 1, 2], [1, 2, 2], [2, 3, 4], [3, 4, 2]]
    assert torch.equal(
        greedy(next_logits, starts, max_new_tokens=4, eos_id=[3]),
        greedy(next_logits, starts, max_new_tokens=4, eos_id=3))


def test_rows_that_ended_are_not_read_any_more():
    sizes = []

    def next_logits(input_ids):
        sizes.append(len(input_ids))
        return CHAIN(input_ids)

    ids = greedy(next_logits, torch.tensor([[1], [0], [2]]),
                 max_new_tokens=3, eos_id=0)
    assert ids.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [2, 2, 2, 2]]
    assert sizes == [3, 2, 1]


def test_a_reader_leaves_no_graph():
    weights = torch.randn(3, 3, requires_grad=True)
    reader = PlainReader(lambda ids: weights[ids[:, -1]])
    assert not reader.read(START).requires_grad
    assert not reader.advance(START).requires_grad


# Thermodynamics


@settings(max_examples=20)
@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8),
       st.floats(0.2, 5))
def test_entropy_grows_with_temperature(row, tau):
    """dH/dtau = Var(E) / tau^3, which is never negative."""
    logits = torch.tensor(row, dtype=torch.float64)

    def entropy(tau):
        probabilities = next_distribution(logits, [Temperature(tau)])
        return -torch.special.xlogy(probabilities, probabilities).sum().item()

    p = next_distribution(logits, [Temperature(tau)])
    variance = (p * (logits - (p * logits).sum()) ** 2).sum().item()
    slope = (entropy(tau + 1e-4) - entropy(tau - 1e-4)) / 2e-4
    assert slope == pytest.approx(variance / tau**3, abs=1e-5, rel=1e-3)


# Faults: one line that names the argument, its value and what is allowed


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 120
    return text


@pytest.mark.parametrize("step, value, words", [
    (TopK, 0, "top_k=0: must be an integer, at least 1"),
    (TopK, -3, "top_k=-3: must be an integer, at least 1"),
    (TopK, 2.5, "top_k=2.5: must be an integer, at least 1"),
    (TopK, True, "top_k=True: must be an integer, at least 1"),
    (NoRepeat, 0, "no_repeat=0: must be an integer, at least 1"),
    (NoRepeat, 1.0, "no_repeat=1.0: must be an integer, at least 1"),
    (TopP, 0, "top_p=0: must be in (0, 1]"),
    (TopP, -0.1, "top_p=-0.1: must be in (0, 1]"),
    (TopP, 1.01, "top_p=1.01: must be in (0, 1]"),
    (TopP, math.nan, "top_p=nan: must be in (0, 1]"),
    (TopP, "0.9", "top_p='0.9': must be in (0, 1]"),
    (Temperature, -1, "temperature=-1: must be a finite number, at least 0"),
    (Temperature, math.inf,
     "temperature=inf: must be a finite number, at least 0"),
    (Temperature, math.nan,
     "temperature=nan: must be a finite number, at least 0"),
])
def test_step_outside_its_range(step, value, words):
    with pytest.raises(ValueError) as error:
        step(value)
    assert one_line(error) == words


def test_unknown_sampler():
    with pytest.raises(ValueError) as error:
        sampler(temperature=1, top_q=0.9)
    assert one_line(error) == ("sampler 'top_q': must be one of temperature,"
                               " top_k, top_p, no_repeat")
    assert sampler(top_p=0.9, temperature=2) == (TopP(0.9), Temperature(2))
    assert sampler(no_repeat=3) == (NoRepeat(3),)
    assert sampler() == ()


@pytest.mark.parametrize("bad, words", [
    ([0.0, math.nan], "row 1 has the maximum nan"),
    ([0.0, math.inf], "row 1 has the maximum inf"),
    ([-math.inf, -math.inf], "row 1 has the maximum -inf"),
])
def test_logits_without_a_best_token(bad, words):
    logits = torch.tensor([[0.0, 1.0], bad])
    prompts = torch.zeros(2, 1, dtype=torch.long)
    for use in (TopK(1), TopP(0.5), Temperature(1), next_distribution,
                lambda z: greedy(lambda _: z, prompts, max_new_tokens=1),
                lambda z: sample(lambda _: z, prompts, max_new_tokens=1,
                                 generator=torch.Generator())):
        with pytest.raises(ValueError) as error:
            use(logits)
        assert words in one_line(error)
        with pytest.raises(ValueError):
            use(logits.half())


def test_logits_that_are_no_floats():
    with pytest.raises(ValueError, match="logits: dtype torch.int64: must"):
        TopK(1)(torch.tensor([1, 2]))


@pytest.mark.parametrize("ids, words", [
    (torch.tensor([0]), "input_ids: shape (1,): must be (B, T)"),
    (torch.zeros(1, 0, dtype=torch.long), "input_ids: shape (1, 0): must"),
    (torch.tensor([[0.5]]), "input_ids: dtype torch.float32: must be"),
    (torch.tensor([[True]]), "input_ids: dtype torch.bool: must be"),
    (torch.tensor([[0, -1]]), "input_ids: -1: must be at least 0"),
    (torch.tensor([[3], [0]]), "input_ids: 3: must be in [0, 3)"),
])
def test_ids_outside_the_vocabulary(ids, words):
    def next_logits(ids):
        return torch.zeros(len(ids), 3)

    with pytest.raises(ValueError) as error:
        greedy(next_logits, ids, max_new_tokens=1)
    assert one_line(error).startswith(words)


@pytest.mark.parametrize("change, words", [
    ({"max_new_tokens": -1}, "max_new_tokens=-1: must be an integer, at lea"),
    ({"max_new_tokens": 1.5}, "max_new_tokens=1.5: must be an integer"),
    ({"eos_id": 3}, "eos_id=3: must be in [0, 3)"),
    ({"eos_id": -1}, "eos_id=-1: must be in [0, 3)"),
    ({"eos_id": [1, 3]}, "eos_id=3: must be in [0, 3)"),
    ({"eos_id": [1.5]}, "eos_id=1.5: must be in [0, 3)"),
    ({"eos_id": []}, "eos_id=[]: must have an id, or be None"),
])
def test_other_arguments_of_greedy(change, words):
    with pytest.raises(ValueError) as error:
        greedy(CHAIN, START, **{"max_new_tokens": 1} | change)
    assert one_line(error).startswith(words)


def test_next_logits_of_another_shape():
    with pytest.raises(ValueError) as error:
        greedy(lambda ids: torch.zeros(1, 4, 3), START, max_new_tokens=1)
    assert one_line(error) == ("next_logits: returned (1, 4, 3): must be"
                               " (B, V) with B = 1")


@pytest.mark.parametrize("use, words", [
    (lambda r: r.advance(START), "advance: must come after read"),
    (lambda r: (r.read(START), r.advance(START[0])),
     "input_ids: shape (1,): must be (B, N) with B = 1 and N at least 1"),
    (lambda r: (r.read(START), r.advance(START[:, :0])),
     "input_ids: shape (1, 0): must be (B, N) with B = 1"),
    (lambda r: (r.read(START), r.advance(START.repeat(2, 1))),
     "input_ids: shape (2, 1): must be (B, N) with B = 1"),
    (lambda r: (r.read(START), r.crop(2)), "length=2: must be in 0..1"),
    (lambda r: (r.read(START), r.crop(-1)), "length=-1: must be in 0..1"),
    (lambda r: r.read(START, attention_mask=torch.ones(1, 2)),
     "attention_mask: shape (1, 2): must be (1, 1)"),
    (lambda r: r.read(START.repeat(2, 1),
                      attention_mask=torch.tensor([[1], [0]])),
     "attention_mask: row 1: must have a real token"),
])
def test_readers_used_wrongly(use, words):
    for reader in (PlainReader(CHAIN), CachedReader(Sums())):
        with pytest.raises(ValueError) as error:
            use(reader)
        assert one_line(error).startswith(words)


def test_what_cannot_read():
    with pytest.raises(TypeError) as error:
        as_reader(torch.zeros(1))
    assert one_line(error) == ("model=Tensor: must be a reader, a model with "
                               "a cache, or a function of input_ids")
    reader = PlainReader(CHAIN)
    assert as_reader(reader) is reader


def test_no_repeat_without_a_text():
    with pytest.raises(ValueError, match="input_ids=None: must be what was"):
        apply_steps(torch.zeros(1, 3), [NoRepeat(2)])


def test_repeated_windows_are_counted():
    assert sampling.repeated([1, 2, 3, 4, 5]) == 0
    assert sampling.repeated([1] * 10, n=2) == 1 - 1 / 9
    assert sampling.repeated([1, 2, 1, 2, 1], n=2) == 0.5
    assert sampling.repeated([1, 2, 3, 4]) == 0
    with pytest.raises(ValueError, match="ids: are 3, must be n=4 or more"):
        sampling.repeated([1, 2, 3])
