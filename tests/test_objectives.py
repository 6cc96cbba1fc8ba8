"""Ways to hide a part of a text: statistics, oracles, bad input."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import transformers

from lmcourse.losses import IGNORE_INDEX
from lmcourse.objectives import (
    Changed,
    Framed,
    Labeled,
    Masking,
    PairBatches,
    choose_spans,
    choose_tokens,
    choose_words,
    corrupt_spans,
    draw,
    hide,
    infill,
    mask_spans,
    mask_tokens,
    mask_words,
    permute,
    replace_tokens,
    shuffle_sentences,
)
from lmcourse.training import TokenBatches

V, MASK, SPECIAL = 200, 4, (0, 1, 2, 3, 4)
MASKING = Masking(V, MASK, SPECIAL)


def at(seed):
    return torch.Generator().manual_seed(seed)


def some_ids(*shape, seed=0, low=0):
    return torch.randint(low, V, shape, generator=at(seed))


class Words:
    """What `Masking.of` asks of a tokenizer."""

    special_tokens = {"[PAD]": 1, "[MASK]": 7, "[SEP]": 0}
    vocab_size = 50


def test_masking_of_a_tokenizer():
    assert Masking.of(Words(), rate=0.3) == Masking(50, 7, (1, 7, 0), 0.3)
    assert Masking.of(Words(), mask_token="[SEP]").mask_id == 0
    with pytest.raises(ValueError, match=r"^mask_token='<mask>': must be "
                       r"one of the tokenizer's special tokens, \['\[PAD"):
        Masking.of(Words(), mask_token="<mask>")


@pytest.mark.parametrize("name, value, allowed", [
    ("rate", 1, r"in \[0, 1\)"), ("rate", -0.01, r"in \[0, 1\)"),
    ("rate", math.nan, r"in \[0, 1\)"), ("random", 1.5, r"in \[0, 1\]"),
    ("unchanged", -1, r"in \[0, 1\]"),
    ("unchanged", 0.95, "at most 1 - random=0.1")])
def test_shares_are_checked(name, value, allowed):
    with pytest.raises(ValueError, match=f"^{name}={value}: must be "
                                         f"{allowed}$"):
        Masking(V, MASK, **{name: value})


def counts(seen, labels, ids):
    """Chosen, masked, replaced, unchanged: shares of the ordinary tokens."""
    ordinary = ~torch.isin(ids, torch.tensor(SPECIAL))
    chosen = labels != IGNORE_INDEX
    assert not (chosen & ~ordinary).any()
    assert torch.equal(seen[~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    masked = chosen & (seen == MASK)
    same = chosen & (seen == ids)
    n = ordinary.sum()
    return torch.stack([chosen.sum(), masked.sum(), same.sum(),
                        (chosen & ~masked & ~same).sum()]) / n, n


def test_statistics_are_those_of_the_reference():
    """10^6 tokens; each share within 4.5 standard errors of both."""
    ids = some_ids(1000, 1000)
    ours, n = counts(**rename(mask_tokens(ids, masking=MASKING,
                                          generator=at(1))), ids=ids)
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=tokens())
    words.add_special_tokens({"pad_token": "0", "unk_token": "1",
                              "cls_token": "2", "sep_token": "3",
                              "mask_token": "4"})
    torch.manual_seed(0)
    collate = transformers.DataCollatorForLanguageModeling(
        words, mlm_probability=0.15)
    batch = collate([{"input_ids": row} for row in ids])
    theirs, _ = counts(batch["input_ids"], batch["labels"], ids)
    for a, b, p in zip(ours, theirs, (0.15, 0.12, 0.015, 0.015),
                       strict=True):
        error = math.sqrt(p * (1 - p) / n)
        # a random token is the mask or the same in one case of V
        assert abs(a - p) < 4.5 * error + 0.015 * 2 / V
        assert abs(a - b) < 4.5 * math.sqrt(2) * error


def rename(batch):
    return {"seen": batch["input_ids"], "labels": batch["labels"]}


def tokens():
    """A tokenizer of the library whose tokens are the numbers below V."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({str(i): i for i in range(V)},
                                      unk_token="1"))


def test_random_tokens_are_any():
    """A chi-square with V - 1 degrees: below mean + 5 deviations."""
    ids = torch.full((1000, 1000), 50)
    always = Masking(V, MASK, SPECIAL, rate=0.2, random=1.0, unchanged=0.0)
    seen = mask_tokens(ids, masking=always, generator=at(0))
    chosen = seen["input_ids"][seen["labels"] != IGNORE_INDEX]
    assert chi_square(torch.bincount(chosen, minlength=V),
                      torch.full((V,), 1 / V)) < 5


def chi_square(found, p):
    """Pearson's statistic in deviations from its mean."""
    expected = found.sum() * p
    degrees = len(p) - 1
    statistic = ((found - expected) ** 2 / expected).sum()
    return (statistic - degrees) / math.sqrt(2 * degrees)


def test_words_are_hidden_whole():
    """As a loop over words would do, and each with the same rate."""
    continues = torch.arange(V) % 3 == 0
    ids = some_ids(300, 200, seed=2)
    chosen = choose_words(ids, continues=continues, masking=MASKING,
                          generator=at(3))
    n_words = n_chosen = 0
    for row, marks in zip(ids.tolist(), chosen.tolist(), strict=True):
        word = None  # whether the present word is hidden
        for token, mark in zip(row, marks, strict=True):
            if token in SPECIAL:
                assert not mark
                word = None
                continue
            if word is None or not continues[token]:
                word, n_words = mark, n_words + 1
                n_chosen += mark
            assert mark == word
    error = math.sqrt(0.15 * 0.85 / n_words)
    assert abs(n_chosen / n_words - 0.15) < 4.5 * error


def test_a_word_after_a_special_token_is_a_word_of_its_own():
    """`[SEP] ##s`: there is nothing that it could continue."""
    continues = torch.arange(V) >= 100
    ids = torch.tensor([[10, 3, 110, 111]] * 2000)
    chosen = choose_words(ids, continues=continues, generator=at(0),
                          masking=Masking(V, MASK, SPECIAL, rate=0.5))
    assert torch.equal(chosen[:, 2], chosen[:, 3])
    assert (chosen[:, 0] != chosen[:, 2]).any()


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.5])
@pytest.mark.parametrize("mean_length", [1, 3.8, 6])
def test_spans_have_rate_and_length(rate, mean_length):
    """The rate everywhere in a text; the lengths of spans that stand alone.

    Against a loop that lets a span begin at each place: the share of hidden
    tokens, of first tokens of a run, and at both ends of a text.
    """
    ids = torch.full((20_000, 40), 50)
    chosen = choose_spans(ids, masking=Masking(V, MASK, SPECIAL, rate),
                          generator=at(5), mean_length=mean_length).double()
    error = math.sqrt(rate * (1 - rate) / 20_000)
    for place in (0, 1, 20, 39):
        assert abs(chosen[:, place].mean() - rate) < 4.5 * error
    if rate == 0.05 and mean_length > 1:
        begins = (chosen[:, 1:] > chosen[:, :-1]).sum()
        mean = chosen.sum() / (begins + chosen[:, 0].sum())
        assert mean == pytest.approx(mean_length, rel=0.12)


def test_spans_leave_special_tokens():
    ids = some_ids(200, 50, seed=4)
    hidden = mask_spans(ids, masking=Masking(V, MASK, SPECIAL, rate=0.5),
                        generator=at(1))["labels"]
    assert not torch.isin(hidden[hidden >= 0], torch.tensor(SPECIAL)).any()
    for length in (0.5, 10, 99):
        with pytest.raises(ValueError, match=f"^mean_length={length}: must "
                                             "be at least 1, below longest"):
            choose_spans(ids, masking=MASKING, generator=at(1),
                         mean_length=length)


@pytest.mark.parametrize("change", [
    mask_tokens, mask_spans,
    partial(mask_words, continues=torch.zeros(V, dtype=torch.bool))])
def test_rate_zero_hides_nothing(change):
    ids = some_ids(4, 9)
    batch = change(ids, masking=Masking(V, MASK, SPECIAL, rate=0.0),
                   generator=at(0))
    assert torch.equal(batch["input_ids"], ids)
    assert (batch["labels"] == IGNORE_INDEX).all()


def test_hiding_nothing_and_everything():
    ids = some_ids(3, 7, low=5)
    for chosen in (torch.zeros(3, 7).bool(), torch.ones(3, 7).bool()):
        batch = hide(ids, chosen=chosen, generator=at(0), masking=Masking(
            V, MASK, SPECIAL, random=0.0, unchanged=0.0))
        assert torch.equal(batch["input_ids"], ids.where(~chosen, MASK))
        assert torch.equal(batch["labels"], ids.where(chosen, IGNORE_INDEX))


DOCUMENTS = [[[10 * d + s] * (1 + (d + s) % 3) for s in range(2 + d % 3)]
             for d in range(1, 12)] + [[[7, 7, 7]]]  # one sentence: no pair
MARKS = {"cls_id": 2, "sep_id": 3, "pad_id": 0}


def halves(batch):
    """The two texts of each row, checked for their frame."""
    for ids, kinds, real, label in zip(*(batch[name].tolist() for name in (
            "input_ids", "token_type_ids", "attention_mask",
            "next_sentence_label")), strict=True):
        n = sum(real)
        assert real == [True] * n + [False] * (len(real) - n)
        assert ids[n:] == [0] * (len(ids) - n) and ids[0] == 2
        cut = ids.index(3)
        assert ids[n - 1] == 3 and ids[:n].count(3) == 2
        assert kinds == [0] * (cut + 1) + [1] * (n - cut - 1) + [0] * (
            len(ids) - n)
        yield ids[1:cut], ids[cut + 1:n - 1], label


def splits():
    """All pairs of neighbors: what precedes a border and what follows."""
    for document in DOCUMENTS:
        for cut in range(1, len(document)):
            yield tuple(sum(document[:cut], [])), tuple(
                sum(document[cut:], []))


@pytest.mark.parametrize("order", [False, True])
def test_pairs_are_what_they_are_called(order):
    batches = PairBatches(DOCUMENTS, batch_size=500, length=40, order=order,
                          seed=1, **MARKS)
    followers, met, labels = set(splits()), set(), []
    for step in range(4):
        for first, second, label in halves(batches(step)):
            a, b = tuple(first), tuple(second)
            labels.append(label)
            if label == 0:
                assert (a, b) in followers
                met.add((a, b))
            elif order:
                assert (b, a) in followers
            else:
                assert a[0] // 10 != b[0] // 10  # of another document
                assert any(a == x for x, _ in followers)
                assert any(b == y for _, y in followers)
    assert met == followers
    assert abs(np.mean(labels) - 0.5) < 4.5 * 0.5 / math.sqrt(2000)


def test_pairs_are_cut_at_their_outer_ends():
    documents = [[[*range(100, 130)], [*range(130, 160)]],
                 [[50, 51], [52, *range(60, 95)]], [[5], [6]]]
    batches = PairBatches(documents, batch_size=200, length=13, **MARKS)
    seen = {(len(a), len(b)) for a, b, label in halves(batches(0))
            if label == 0}
    assert seen == {(5, 5), (2, 8), (1, 1)}
    for first, second, label in halves(batches(0)):
        if label == 0:
            assert first[-1] + 1 == second[0]


def test_pairs_follow_from_seed_and_step():
    def batch(seed, step, **more):
        return PairBatches(DOCUMENTS, batch_size=8, length=20, seed=seed,
                           **MARKS | more)(step)

    assert all(torch.equal(batch(0, 3)[name], batch(0, 3)[name])
               for name in batch(0, 3))
    others = [batch(0, 4), batch(1, 3)]
    assert not any(torch.equal(batch(0, 3)["input_ids"], other["input_ids"])
                   for other in others)


@pytest.mark.parametrize("documents, length, message", [
    (DOCUMENTS, 4, "^length=4: must be at least 5"),
    (DOCUMENTS[:1] + DOCUMENTS[-1:], 20, "^documents: 1 have two sentences"),
    ([], 20, "^documents: 0 have two")])
def test_pairs_need_sentences_and_room(documents, length, message):
    with pytest.raises(ValueError, match=message):
        PairBatches(documents, batch_size=2, length=length, **MARKS)


def test_pieces_get_their_frame():
    batches = TokenBatches(torch.arange(10, 90), batch_size=3, length=5)
    framed = Framed(batches, cls_id=2, sep_id=3)(7)["input_ids"]
    assert torch.equal(framed[:, 1:-1], batches(7))
    assert (framed[:, 0] == 2).all() and (framed[:, -1] == 3).all()


def test_changes_follow_from_seed_and_step():
    ids = some_ids(4, 30, low=5)
    source = Changed(lambda step: {"input_ids": ids, "more": step},
                     partial(mask_tokens, masking=MASKING), seed=1)
    assert source(3)["more"] == 3
    assert torch.equal(source(3)["labels"], source(3)["labels"])
    assert not torch.equal(source(3)["labels"], source(4)["labels"])
    other = Changed(lambda step: ids, partial(mask_tokens, masking=MASKING))
    assert not torch.equal(source(3)["labels"], other(3)["labels"])


@pytest.mark.parametrize("paired", [False, True])
def test_static_masks_stay(paired):
    """Each token of the corpus is hidden in all readings, or in none."""
    flat = torch.arange(5, 185)[None]  # in order: an id is a place
    masked = mask_tokens(flat, masking=Masking(V, MASK, SPECIAL, rate=0.4),
                         generator=at(0))

    def source(row, marks):
        cut = row[0].reshape(9, 2, 10).tolist()
        if paired:
            return PairBatches(cut, batch_size=16, length=23, **marks)
        return Framed(TokenBatches(row[0], batch_size=16, length=9),
                      cls_id=marks["cls_id"], sep_id=marks["sep_id"])

    batches = Labeled(source(masked["input_ids"], MARKS), source(
        masked["labels"], dict.fromkeys(MARKS, IGNORE_INDEX)))
    hidden, seen = set(), set()
    for step in range(60):
        batch = batches(step)
        asked = batch["labels"] != IGNORE_INDEX
        hidden |= set(batch["labels"][asked].tolist())
        plain = batch["input_ids"][~asked]
        seen |= set(plain[plain > 4].tolist())
    assert hidden == set(masked["labels"][masked["labels"] >= 0].tolist())
    assert not hidden & seen


def test_draws_follow_the_distribution():
    """A chi-square with 49 degrees: below mean + 5 deviations."""
    logits = 2 * torch.randn(50, generator=at(0))
    drawn = draw(logits.expand(200_000, -1),
                 chance=torch.rand(200_000, generator=at(1)))
    assert chi_square(torch.bincount(drawn, minlength=50),
                      logits.softmax(0)) < 5


def test_draws_at_the_ends():
    logits = torch.tensor([[0.0, -1e9, 0.0]])
    for chance, wanted in [(0.0, 0), (0.49, 0), (0.51, 2), (1 - 1e-8, 2)]:
        assert draw(logits, chance=torch.tensor([chance])).item() == wanted
    flat = torch.zeros(1, 30_000, dtype=torch.float16)
    top = draw(flat, chance=torch.tensor([1 - 2 ** -24]))
    assert 0 <= top.item() < 30_000


def test_replaced_tokens_follow_the_generator():
    """What is drawn equal counts as original."""
    ids = torch.full((400, 500), 9)
    masked = mask_tokens(ids, generator=at(0), masking=Masking(
        V, MASK, SPECIAL, random=0.0, unchanged=0.0))
    gaps = masked["labels"] != IGNORE_INDEX
    logits = torch.randn(V, generator=at(1))
    found = replace_tokens(**masked, logits=logits.expand(int(gaps.sum()),
                                                          -1),
                           chance=torch.rand(ids.shape, generator=at(2)))
    drawn = found["input_ids"][gaps]
    assert chi_square(torch.bincount(drawn, minlength=V),
                      logits.softmax(0)) < 5
    assert torch.equal(found["labels"][gaps], (drawn != 9).long())
    assert (drawn == 9).any()
    assert not found["labels"][~gaps].any()
    assert torch.equal(found["input_ids"][~gaps], ids[~gaps])


def test_no_gaps_to_fill():
    ids = some_ids(2, 5)
    found = replace_tokens(ids, labels=torch.full((2, 5), IGNORE_INDEX),
                           logits=torch.zeros(0, V),
                           chance=torch.rand(2, 5, generator=at(0)))
    assert torch.equal(found["input_ids"], ids)
    assert not found["labels"].any()


def test_orders_are_orders():
    """By brute force: who comes before whom."""
    ids = some_ids(50, 6, seed=1)
    batch = permute(ids, n_predicted=2, generator=at(0))
    orders = set()
    for row, mask, labels in zip(ids, batch["mask"][:, 0], batch["labels"],
                                 strict=True):
        rank = mask.sum(dim=1).tolist()
        assert sorted(rank) == [0, 1, 2, 3, 4, 5]
        for i in range(6):
            for j in range(6):
                assert mask[i, j].item() == (rank[j] < rank[i])
            wanted = row[i].item() if rank[i] >= 4 else IGNORE_INDEX
            assert labels[i].item() == wanted
        orders.add(tuple(rank))
    assert len(orders) > 40
    for n in (0, 7):
        with pytest.raises(ValueError, match=f"^n_predicted={n}: must be 1"):
            permute(ids, n_predicted=n, generator=at(0))


def unfolded(seen, asked, sentinels):
    """The text again, from both sides of a span corruption."""
    spans = {}
    for i in asked:
        if i in sentinels:
            last = spans.setdefault(i, [])
        else:
            last.append(i)
    return [j for i in seen for j in (spans[i] if i in sentinels else [i])]


@pytest.mark.parametrize("T, rate, mean_length", [
    (2, 0.15, 3), (7, 0.5, 1), (40, 0.15, 3), (40, 0.9, 2), (33, 0.3, 8)])
def test_spans_and_sentinels_make_the_text_again(T, rate, mean_length):
    ids, sentinels = some_ids(40, T, low=5), [*range(500, 540)]
    batch = corrupt_spans(ids, sentinel_ids=sentinels, generator=at(0),
                          rate=rate, mean_length=mean_length)
    n_hidden = min(max(round(T * rate), 1), T - 1)
    n_spans = min(max(round(n_hidden / mean_length), 1), T - n_hidden)
    assert batch["input_ids"].shape == (40, T - n_hidden + n_spans)
    assert batch["labels"].shape == (40, n_hidden + n_spans)
    for row, seen, asked in zip(ids.tolist(), batch["input_ids"].tolist(),
                                batch["labels"].tolist(), strict=True):
        used = [i for i in seen if i in sentinels]
        assert used == sentinels[:n_spans] == [
            i for i in asked if i in sentinels]
        assert unfolded(seen, asked, sentinels) == row


def test_spans_lie_anywhere():
    """But at the beginning, which is seen; the end, as in T5, is hidden."""
    ids = torch.arange(100, 112).repeat(4000, 1)
    batch = corrupt_spans(ids, sentinel_ids=[500, 501], generator=at(0),
                          rate=0.25, mean_length=1.5)
    hidden = [int((batch["labels"] == i).sum()) for i in range(100, 112)]
    assert hidden[0] == 0 and hidden[-1] == 4000
    assert min(hidden[1:]) > 150 and sum(hidden) == 3 * 4000


@pytest.mark.parametrize("options, message", [
    ({"rate": 1.0}, "^rate=1.0: must be in"),
    ({"sentinel_ids": [500]}, "^sentinel_ids has 1: must have 2 for texts")])
def test_span_corruption_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        corrupt_spans(some_ids(2, 40), generator=at(0),
                      **{"sentinel_ids": [*range(500, 540)], **options})
    with pytest.raises(ValueError, match=r"^input_ids of shape \(2, 1\): "):
        corrupt_spans(some_ids(2, 1), sentinel_ids=[9], generator=at(0))


def test_infilling_against_a_loop():
    ids = some_ids(60, 30, low=5)
    rule = Masking(V, MASK, SPECIAL, rate=0.3)
    batch = infill(ids, masking=rule, generator=at(4), pad_id=0)
    chosen = choose_spans(ids, masking=rule, generator=at(4),
                          mean_length=3.0)
    assert torch.equal(batch["labels"], ids)
    for row, marks, seen, real in zip(
            ids.tolist(), chosen.tolist(), batch["input_ids"].tolist(),
            batch["attention_mask"].tolist(), strict=True):
        wanted = []
        for i, (token, hidden) in enumerate(zip(row, marks, strict=True)):
            if not hidden:
                wanted.append(token)
            elif i == 0 or not marks[i - 1]:
                wanted.append(MASK)
        n = len(wanted)
        assert seen == wanted + [0] * (len(seen) - n)
        assert real == [True] * n + [False] * (len(seen) - n)
    assert batch["input_ids"].shape[1] == max(
        sum(real) for real in batch["attention_mask"].tolist())


def test_sentences_change_places_whole():
    ids = torch.tensor([[10, 11, 9, 12, 9, 13, 14, 15, 9, 16]] * 200)
    batch = shuffle_sentences(ids, end_ids=[9], generator=at(0))
    assert torch.equal(batch["labels"], ids)
    parts = {(10, 11, 9), (12, 9), (13, 14, 15, 9), (16,)}
    orders = set()
    for row in batch["input_ids"].tolist():
        found, rest = [], tuple(row)
        while rest:
            part = next(p for p in parts if rest[:len(p)] == p)
            found, rest = [*found, part], rest[len(part):]
        assert set(found) == parts and len(found) == 4
        orders.add(tuple(found))
    assert len(orders) == 24


def test_choosing_by_token_is_independent():
    """Neighbors are chosen together as often as chance has it."""
    ids = torch.full((1000, 400), 50)
    chosen = choose_tokens(ids, masking=MASKING, generator=at(0))
    both = (chosen[:, 1:] & chosen[:, :-1]).double().mean()
    p = 0.15 ** 2
    assert abs(both - p) < 4.5 * math.sqrt(2 * p / chosen.numel())
