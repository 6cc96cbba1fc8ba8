"""Chapter 30: the loss, the optimizer's groups, resuming, interruptions."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from lmcourse import training
from lmcourse.layers.transformer import TransformerConfig, build_transformer
from lmcourse.losses import chunked_cross_entropy, cross_entropy
from lmcourse.training import (
    History,
    Term,
    TokenBatches,
    TrainingConfig,
    causal_loss,
    evaluate,
    fit,
    get_device,
    get_precision,
    last_checkpoint,
    learning_rate_at,
    load_checkpoint,
    parameter_groups,
    save_checkpoint,
)

VOCAB, WIDTH = 11, 8


class Head(torch.nn.Linear):
    """A head with a loss of its own, as the book's Transformer has."""

    def loss(self, hidden_states, *, labels):
        return chunked_cross_entropy(hidden_states, weight=self.weight,
                                     bias=self.bias, labels=labels)


class Tiny(torch.nn.Module):
    """The smallest language model: it looks one token back, with dropout."""

    def __init__(self, dropout=0.0, seed=0, head=Head):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.nn.Embedding(VOCAB, WIDTH)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.dropout = torch.nn.Dropout(dropout)
        self.head = head(WIDTH, VOCAB)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=generator)

    def hidden_states(self, input_ids, *, balance=None):
        return self.norm(self.dropout(self.embedding(input_ids)))

    def forward(self, input_ids):
        return self.head(self.hidden_states(input_ids))


def some_batches(seed=3, batch_size=4, length=6):
    ids = torch.randint(VOCAB, (200,),
                        generator=torch.Generator().manual_seed(seed))
    return TokenBatches(ids, batch_size=batch_size, length=length, seed=seed)


def alone(function):
    """An objective of one term, which is divided by nothing."""
    return lambda model, batch: {"loss": Term(function(model, batch), 1)}


def equal_weights(one, other):
    return all(torch.equal(a, b) for a, b in
               zip(one.parameters(), other.parameters(), strict=True))


# resuming


def settings(**changes):
    return TrainingConfig(**{"steps": 20, "learning_rate": 0.05,
                             "warmup_steps": 3, **changes})


def same_but_for_time(one, other):
    one, other = dataclasses.asdict(one), dataclasses.asdict(other)
    return {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_resume_bit_for_bit(tmp_path, dropout):
    whole = Tiny(dropout)
    expected = fit(whole, some_batches(), config=settings())
    part = Tiny(dropout)
    history = fit(part, some_batches(), config=settings(), folder=tmp_path,
                  callback=lambda step, history: step == 10)
    assert history.stopped and len(history.loss) == 10
    fresh = Tiny(dropout, seed=99)
    torch.manual_seed(12345)  # must not matter
    history = fit(fresh, some_batches(), config=settings(), folder=tmp_path)
    assert equal_weights(whole, fresh)
    assert same_but_for_time(history, expected)
    assert len(history.loss) == 20 and not history.stopped


# the settings


@pytest.mark.parametrize("changes, message", [
    ({"steps": 0}, "steps=0: must be a whole number, at least 1"),
    ({"steps": -3}, "steps=-3: must be a whole number, at least 1"),
    ({"steps": 2.5}, "steps=2.5: must be a whole number, at least 1"),
    ({"warmup_steps": -1}, "warmup_steps=-1: must be a whole number"),
    ({"warmup_steps": 21}, "warmup_steps=21: must be at most steps=20"),
    ({"learning_rate": 0.0}, "learning_rate=0.0: must be above 0"),
    ({"learning_rate": math.nan}, "learning_rate=nan: must be above 0"),
    ({"min_learning_rate": 1.0}, "min_learning_rate=1.0: must be 0 to"),
    ({"min_learning_rate": -1.0}, "min_learning_rate=-1.0: must be 0 to"),
    ({"weight_decay": -0.1}, "weight_decay=-0.1: must be at least 0"),
    ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\): must be two numbers"),
    ({"betas": (0.9,)}, r"betas=\(0.9,\): must be two numbers"),
    ({"clip_norm": 0}, "clip_norm=0: must be above 0, or None"),
    ({"accumulation": 0}, "accumulation=0: must be a whole number"),
    ({"checkpoint_every": -1}, "checkpoint_every=-1: must be a whole"),
    ({"seed": -1}, "seed=-1: must be a whole number, at least 0"),
    ({"precision": "half"}, "precision='half': must be auto, float32"),
])
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        settings(**changes)
    assert "\n" not in str(error.value)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings().steps = 3


@pytest.mark.parametrize("low, warmup", [(0.0, 0), (0.02, 4), (0.0, 20)])
def test_schedule_is_its_closed_form(low, warmup):
    config = settings(warmup_steps=warmup, min_learning_rate=low)
    for step in range(20):
        rate = learning_rate_at(step, config)
        if step < warmup:
            assert rate == pytest.approx(0.05 * (step + 1) / warmup)
        else:
            half = (step - warmup) / (20 - warmup) * math.pi / 2
            # cos^2 of half the angle: the same curve, written otherwise
            assert rate == pytest.approx(
                low + (0.05 - low) * math.cos(half) ** 2)
    assert learning_rate_at(20, config) == pytest.approx(
        low if warmup < 20 else 0.05)


def test_groups_of_parameters():
    model = Tiny()
    model.embedding.weight = model.head.weight  # tied: comes once
    model.norm.bias.requires_grad_(False)
    decays, rests = parameter_groups(model, 0.3)
    assert [p is model.head.weight for p in decays["params"]] == [True]
    assert {id(p) for p in rests["params"]} == {
        id(model.norm.weight), id(model.head.bias)}
    assert decays["weight_decay"] == 0.3 and rests["weight_decay"] == 0.0
    with pytest.raises(ValueError, match="model: no parameter"):
        parameter_groups(model.requires_grad_(False), 0.3)


# precision


@pytest.mark.parametrize("device, capability, expected", [
    ("cpu", None, torch.float32),
    ("mps", None, torch.float32),
    ("cuda", (7, 5), torch.float16),  # a T4
    ("cuda", (8, 0), torch.bfloat16),
    ("cuda", (12, 0), torch.bfloat16),
])
def test_precision(device, capability, expected):
    assert get_precision(device, capability=capability) == expected


def test_precision_asks_the_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability",
                        lambda device: (7, 5))
    assert get_precision("cuda") == torch.float16


@pytest.mark.parametrize("cuda, mps, expected", [
    (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_device(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert get_device().type == expected


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_float32_weights(precision, tmp_path):
    """On a CPU as well; float16 with the scaler, which is resumed too."""
    config = settings(precision=precision)
    whole, part = Tiny(), Tiny()
    seen = []
    watch = alone(lambda m, b: seen.append(m(b).dtype) or m(b).sum())
    model = Tiny()
    fit(model, some_batches(), config=settings(steps=1, warmup_steps=0),
        objective=watch)
    fit(model, some_batches(), config=settings(
        steps=1, warmup_steps=0, precision=precision), objective=watch)
    assert seen == [torch.float32, getattr(torch, precision)]
    expected = fit(whole, some_batches(), config=config)
    plain = fit(Tiny(), some_batches(), config=settings())
    assert all(p.dtype == torch.float32 for p in whole.parameters())
    assert 0 < abs(expected.loss[-1] - plain.loss[-1]) < 0.1
    fit(part, some_batches(), config=config, folder=tmp_path,
        callback=lambda step, history: step == 7)
    fit(part, some_batches(), config=config, folder=tmp_path)
    assert equal_weights(whole, part)
    state = json.loads(
        (last_checkpoint(tmp_path) / "state.json").read_text())
    assert bool(state["scaler"]) == (precision == "float16")


# one step


def adamw_by_hand(p, g, *, lr, decay, betas, eps=1e-8):
    """Two steps of AdamW on a number with the gradients g."""
    m = v = 0.0
    for t, gradient in enumerate(g, start=1):
        p -= lr * decay * p
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient ** 2
        p -= lr * (m / (1 - betas[0] ** t)) / (
            math.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.5, 0.999)])
@pytest.mark.parametrize("decay", [0.0, 0.4])
def test_step_by_hand(betas, decay):
    """The loss 2p, then -3p: the gradients are 2 and -3, whatever p is."""
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 0.7)
    slopes = [2.0, -3.0]
    fit(model, lambda step: torch.tensor([[slopes[step]]]),
        config=TrainingConfig(steps=2, learning_rate=0.1, betas=betas,
                              min_learning_rate=0.1, weight_decay=decay,
                              clip_norm=None),
        objective=alone(lambda model, slope: (slope * model.weight).sum()))
    assert model.weight.item() == pytest.approx(
        adamw_by_hand(0.7, slopes, lr=0.1, decay=decay, betas=betas),
        abs=1e-12)


def test_fit_is_the_plain_loop():
    """Against torch.optim.AdamW in ten lines, clipping included."""
    model, reference, batches = Tiny(), Tiny(), some_batches()
    config = settings(clip_norm=0.5, weight_decay=0.2)
    history = fit(model, batches, config=config)
    matrices = [p for p in reference.parameters() if p.ndim > 1]
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.2},
         {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95))
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        batch = batches(step)
        loss = F.cross_entropy(reference(batch[:, :-1]).flatten(0, 1),
                               batch[:, 1:].flatten())
        assert history.loss[step] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        assert history.grad_norm[step] == pytest.approx(norm.item(),
                                                        rel=1e-3)
        optimizer.step()
    for p, q in zip(model.parameters(), reference.parameters(),
                    strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
    assert history.learning_rate == [learning_rate_at(s, config)
                                     for s in range(20)]
    assert history.n_tokens == [4 * 7] * 20
    assert max(history.grad_norm) > 0.5  # something was clipped


def test_clipping_bounds_the_gradient():
    seen = []

    def spy(optimizer, args, kwargs):
        seen.append(math.sqrt(sum(
            float(p.grad.square().sum())
            for g in optimizer.param_groups for p in g["params"])))

    from torch.optim.optimizer import register_optimizer_step_pre_hook
    handle = register_optimizer_step_pre_hook(spy)
    try:
        fit(Tiny(), some_batches(), config=settings(steps=3, clip_norm=0.1))
        fit(Tiny(), some_batches(), config=settings(steps=3, clip_norm=None))
    finally:
        handle.remove()
    assert max(seen[:3]) < 0.1001
    assert min(seen[3:]) > 0.1001


@pytest.mark.parametrize("pieces, head", [(2, torch.nn.Linear), (3, Head)])
def test_accumulated_is_the_large_batch(pieces, head):
    """Also with 3 pieces of 4 sequences, which are not of one size."""
    one, other = Tiny(head=head).double(), Tiny(head=head).double()
    a = fit(one, some_batches(), config=settings())
    b = fit(other, some_batches(), config=settings(accumulation=pieces))
    assert a.loss == pytest.approx(b.loss, abs=1e-9)
    assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-9)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


def masked(model, batch):
    """Two terms whose counts differ from sequence to sequence."""
    logits, terms = model(batch["ids"]), {}
    for name, weight in [("few", 1.0), ("many", 0.3)]:
        labels = batch[name]
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(),
                                ignore_index=-100, reduction="sum")
        terms[name] = Term(total, (labels >= 0).sum(), weight)
    return terms


MASKED = {"ids": torch.arange(12).reshape(3, 4) % VOCAB,
          "few": torch.tensor([[3, -100, -100, -100], [-100] * 4,
                               [1, 2, 3, -100]]),
          "many": torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7],
                                [-100, -100, -100, 9]])}


def only(name):
    return lambda model, batch: {name: masked(model, batch)[name]}


@pytest.mark.parametrize("pieces", [2, 3])
@pytest.mark.parametrize("objective", [masked, only("few"), only("many")])
def test_pieces_weigh_what_they_ask(objective, pieces):
    """Also a piece that asks for nothing; with dropout off, exactly."""
    one, other = Tiny().double(), Tiny().double()
    a = fit(one, lambda step: MASKED, objective=objective, config=settings())
    b = fit(other, lambda step: MASKED, objective=objective,
            config=settings(accumulation=pieces))
    assert a.loss == pytest.approx(b.loss, abs=1e-9)
    assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-9)
    for name in a.terms:
        assert a.terms[name] == pytest.approx(b.terms[name], abs=1e-9)
    for p, q in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-8)


def test_history_keeps_the_terms():
    history = fit(Tiny(), lambda step: MASKED, objective=masked,
                  config=settings())
    assert {name: len(means) for name, means in history.terms.items()} == {
        "few": 20, "many": 20}
    assert history.loss == pytest.approx([
        few + 0.3 * many for few, many in zip(*history.terms.values(),
                                              strict=True)])
    terms = masked(Tiny(), MASKED)
    for name, n in [("few", 4), ("many", 9)]:
        assert history.terms[name][0] == pytest.approx(
            terms[name].total.item() / n, rel=1e-5)


def test_noise_is_that_of_the_pieces_counted():
    """The pass that only counts does not change what dropout draws."""
    def counted(model, batch):
        drawn.append(torch.rand(()).item())
        return masked(model, batch)

    drawn = []
    fit(Tiny(), lambda step: MASKED, objective=counted,
        config=settings(steps=1, warmup_steps=0, accumulation=3))
    first, *counting, second, third = drawn
    assert counting == [second, third] and len({*drawn}) == 3


@pytest.mark.parametrize("result, message", [
    (torch.tensor(1.0), "objective: gave a Tensor, must give a dict"),
    ({}, "objective: gave a dict, must give a dict of names and Terms"),
    ({"loss": (torch.tensor(1.0), 1)}, "objective: gave a dict, must give"),
])
def test_an_objective_gives_terms(result, message):
    for call in (fit, evaluate):
        options = ({"config": settings()} if call is fit else {"steps": 1})
        with pytest.raises(TypeError, match=message):
            call(Tiny(), some_batches(), objective=lambda *_: result,
                 **options)


def test_experts_are_balanced_in_training_only():
    """The routers' losses are a term of their own, with its weight."""
    config = TransformerConfig(
        vocab_size=VOCAB, max_length=16, d_model=WIDTH, n_layers=2, n_heads=2,
        d_ff=8, feed_forward="swiglu", n_experts=4, n_active_experts=2)
    batch = some_batches()(0)
    model, balance = build_transformer(config), []
    model.hidden_states(batch[:, :-1], balance=balance)
    assert len(balance) == 2
    history = fit(model, lambda step: batch, config=settings(
        steps=1, warmup_steps=0), objective=lambda model, batch: causal_loss(
            model, batch, balance_weight=0.5))
    assert history.terms["balance"][0] == pytest.approx(
        sum(balance).item(), rel=1e-4)
    assert history.loss[0] == pytest.approx(
        history.terms["next token"][0] + 0.5 * sum(balance).item(), rel=1e-4)
    assert {*causal_loss(model.eval(), batch)} == {"next token"}
    dense = build_transformer(TransformerConfig(
        vocab_size=VOCAB, max_length=16, d_model=WIDTH, n_layers=2,
        n_heads=2, d_ff=8))
    assert {*causal_loss(dense.train(), batch)} == {"next token"}


def test_names_of_terms_stay():
    names = iter(["one", "one", "other"])
    with pytest.raises(ValueError, match=r"objective=\['other'\]: must be "
                                         r"\['one'\] as in the steps before"):
        fit(Tiny(), some_batches(), config=settings(), objective=lambda m, b:
            {next(names): Term(m(b).sum(), 1)})


def test_more_pieces_than_sequences():
    with pytest.raises(ValueError, match="accumulation=5: must be at most "
                                         "the 4 sequences of a batch"):
        fit(Tiny(), some_batches(), config=settings(accumulation=5))


def test_chunked_and_plain_objective_train_alike():
    one, other = Tiny().double(), Tiny(head=torch.nn.Linear).double()
    a = fit(one, some_batches(), config=settings())
    b = fit(other, some_batches(), config=settings())
    assert a.loss == pytest.approx(b.loss, abs=1e-9)


def test_first_loss_is_that_of_guessing():
    model = Tiny()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.zeros_(model.head.bias)
    assert fit(model, some_batches(), config=settings()).loss[0] == (
        pytest.approx(math.log(VOCAB), abs=1e-6))


def test_seed_chooses_the_noise():
    losses = [fit(Tiny(0.5), some_batches(), config=settings(seed=s)).loss
              for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_global_random_state_is_left_alone():
    """For batches, callback, and after it: as if the model drew nothing."""
    model = Tiny(0.5)

    def drawn(run):
        torch.manual_seed(7)
        seen = []

        def batches(step):
            seen.append(torch.rand(()).item())
            return some_batches()(step)

        run(batches, lambda step, history: seen.append(
            torch.rand(()).item()) if step < 4 else None)
        return [*seen, torch.rand(()).item()]

    def undisturbed(batches, callback):
        for step in range(4):
            batches(step)
            callback(step + 1, None)

    expected = drawn(undisturbed)
    assert expected == drawn(lambda batches, callback: fit(
        model, batches, callback=callback,
        config=settings(steps=4, accumulation=2)))
    torch.manual_seed(7)
    evaluate(model, some_batches(), steps=2, objective=alone(
        lambda model, batch: torch.rand(())))
    assert torch.rand(()).item() == expected[0]


def halving(step, config):
    return config.learning_rate * 0.5 ** step


OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=1, momentum=0.9),
    "Adafactor": lambda groups: torch.optim.Adafactor(groups, lr=1),
    "NAdam": lambda groups: torch.optim.NAdam(groups, lr=1),
}


def scaled(model):
    """The embedding at a hundredth of the rate, the rest as it is."""
    slow = [model.embedding.weight]
    rest = [p for p in model.parameters() if p is not slow[0]]
    return [{"params": slow, "lr_scale": 0.01}, {"params": rest}]


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("given", [False, True])
def test_another_optimizer_is_resumed_bit_for_bit(tmp_path, make, given):
    """With its groups' rates and a schedule of one's own."""
    def train(model, **options):
        if given:
            options |= {"optimizer": make(scaled(model))}
        else:
            options |= {"optimizer": make, "groups": scaled(model)}
        return fit(model, some_batches(), config=settings(),
                   schedule=halving, **options)

    whole, part, fresh = Tiny(0.3), Tiny(0.3), Tiny(0.3, seed=9)
    expected = train(whole)
    train(part, folder=tmp_path, callback=lambda step, history: step == 7)
    resumed = train(fresh, folder=tmp_path)
    assert equal_weights(whole, fresh)
    assert same_but_for_time(resumed, expected)
    assert expected.learning_rate == [halving(s, settings())
                                      for s in range(20)]


def test_scales_of_groups_hold_at_every_step():
    """Plain SGD: a step is the rate times the gradient, by group."""
    model, before = Tiny(), Tiny()
    gradients = {}
    batch = some_batches()(0)
    terms = causal_loss(before, batch)
    (terms["next token"].total / terms["next token"].count).backward()
    for name, p in before.named_parameters():
        gradients[name] = p.grad
    groups = scaled(model)
    rates = []
    fit(model, lambda step: batch, schedule=halving, groups=groups,
        config=settings(steps=1, warmup_steps=0, clip_norm=None),
        optimizer=lambda groups: rates.append(groups) or torch.optim.SGD(
            groups, lr=1))
    for (name, p), q in zip(model.named_parameters(), before.parameters(),
                            strict=True):
        scale = 0.01 if name == "embedding.weight" else 1.0
        torch.testing.assert_close(
            p, q - 0.05 * scale * gradients[name], rtol=1e-4, atol=1e-6)
    assert "lr" not in groups[0]  # the caller's groups are his
    seen = []
    optimizer = torch.optim.SGD(scaled(model), lr=1)
    fit(model, some_batches(), optimizer=optimizer, schedule=halving,
        config=settings(), callback=lambda step, history: seen.append(
            [g["lr"] for g in optimizer.param_groups]))
    assert seen == [[0.01 * halving(s, settings()), halving(s, settings())]
                    for s in range(20)]


@pytest.mark.parametrize("options, message", [
    (lambda m: {"groups": [{"params": m.parameters(), "lr": 1.0}]},
     "groups=lr=1.0: must be lr_scale, a factor of the schedule's rate"),
    (lambda m: {"groups": scaled(m),
                "optimizer": torch.optim.SGD(m.parameters(), lr=1)},
     "groups=2 of them: must be None, since the optimizer has its own"),
    (lambda m: {"groups": scaled(Tiny())},
     r"groups=a parameter \(11, 8\): must be the model's own"),
    (lambda m: {"schedule": lambda step, config: math.nan},
     "schedule=nan at step 0: must be a number, at least 0"),
])
def test_bad_optimizers_groups_and_schedules(options, message):
    model = Tiny()
    with pytest.raises(ValueError, match="^" + message):
        fit(model, some_batches(), config=settings(), **options(model))


@pytest.mark.parametrize("options, message", [
    (lambda m: {"optimizer": OPTIMIZERS["SGD"]},
     "optimizer=SGD: must be AdamW as in .*optimizer.safetensors"),
    (lambda m: {"groups": scaled(m)}, "groups: must be those of .*step-0"),
    (lambda m: {"schedule": halving}, r"schedule\(2, config\)=0.0125: must "
                                      "be 0.05.* as in .*step-00000003"),
])
def test_resuming_in_another_way_is_refused(tmp_path, options, message):
    fit(Tiny(), some_batches(), config=settings(), folder=tmp_path,
        callback=lambda step, history: step == 3)
    model, before = Tiny(seed=4), Tiny(seed=4)
    with pytest.raises(ValueError, match="^" + message):
        fit(model, some_batches(), config=settings(), folder=tmp_path,
            **options(model))
    assert equal_weights(model, before)


def test_mode_of_the_model_is_left_alone():
    model = Tiny().eval()
    modes = []
    fit(model, some_batches(), config=settings(steps=3),
        callback=lambda step, history: modes.append(model.training))
    assert modes == [True] * 3 and not model.training
    evaluate(model.train(), some_batches(), steps=1)
    assert model.training


def test_evaluate_is_the_mean_and_changes_nothing():
    model, batches = Tiny(0.5), some_batches()
    before = Tiny(0.5)
    loss = evaluate(model, batches, steps=3)
    model.eval()
    expected = [cross_entropy(model(b[:, :-1]), labels=b[:, 1:]).item()
                for b in map(batches, range(3))]
    assert loss == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert equal_weights(model, before)
    with pytest.raises(ValueError, match="steps=0: must be at least 1"):
        evaluate(model, batches, steps=0)


def test_callback_sees_every_step():
    seen = []
    fit(Tiny(), some_batches(), config=settings(steps=4), callback=(
        lambda step, history: seen.append((step, len(history.loss)))))
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_loss_that_is_not_a_number_stops_the_training():
    nan = alone(lambda model, batch: model(batch).sum() * math.nan)
    with pytest.raises(FloatingPointError, match="loss=nan at step 0: must "
                                                 "be finite"):
        fit(Tiny(), some_batches(), config=settings(), objective=nan)


def test_progress_bar_shows_loss_and_speed(capsys, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    fit(Tiny(), some_batches(), config=settings())
    shown = capsys.readouterr().err
    assert "20/20" in shown
    assert re.search(r"loss \d\.\d+, [\d,]+ tokens/s", shown)


# batches


def test_batches_are_windows_of_the_text():
    batches = TokenBatches(torch.arange(50), batch_size=3, length=5, seed=1)
    for step in range(30):
        batch = batches(step)
        assert batch.shape == (3, 6) and batch.dtype == torch.long
        assert (batch.diff(dim=1) == 1).all()
        assert batch.min() >= 0 and batch.max() < 50
        assert torch.equal(batch, batches(step))
    assert not torch.equal(batches(0), batches(1))
    other = TokenBatches(torch.arange(50), batch_size=3, length=5, seed=2)
    assert not torch.equal(batches(0), other(0))


def test_batches_reach_both_ends():
    batches = TokenBatches([0, 1, 2, 3], batch_size=8, length=2, seed=0)
    starts = {row[0] for step in range(9) for row in batches(step).tolist()}
    assert starts == {0, 1}


@pytest.mark.parametrize("changes, message", [
    ({"batch_size": 0}, "batch_size=0: must be a whole number, at least 1"),
    ({"batch_size": 1.5}, "batch_size=1.5: must be a whole number"),
    ({"length": 0}, "length=0: must be a whole number, at least 1"),
    ({"length": 4}, "length=4: must be below the text's 4 ids"),
    ({"input_ids": []}, "length=2: must be below the text's 0 ids"),
    ({"input_ids": torch.zeros(2, 9)}, r"input_ids=\(2, 9\): must be of "
                                       "one axis"),
])
def test_bad_batches(changes, message):
    arguments = {"input_ids": [0, 1, 2, 3], "batch_size": 2, "length": 2,
                 **changes}
    with pytest.raises(ValueError, match=message):
        TokenBatches(arguments.pop("input_ids"), **arguments)


# checkpoints


def trained(folder, **changes):
    model = Tiny()
    fit(model, some_batches(), folder=folder,
        config=settings(steps=6, **changes))
    return model


def test_checkpoints_at_intervals_and_two_are_kept(tmp_path):
    seen = []
    fit(Tiny(), some_batches(), config=settings(checkpoint_every=3),
        folder=tmp_path, callback=lambda step, history: seen.append(
            sorted(p.name for p in tmp_path.iterdir())))
    assert seen[3] == ["step-00000003"]
    assert seen[9] == ["step-00000006", "step-00000009"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000018", "step-00000020"]
    assert sorted(p.name for p in last_checkpoint(tmp_path).iterdir()) == [
        "model.safetensors", "optimizer.safetensors", "state.json"]


def test_a_finished_training_is_not_repeated(tmp_path):
    model = trained(tmp_path)
    again = Tiny(seed=5)
    history = fit(again, None, folder=tmp_path, config=settings(steps=6))
    assert equal_weights(model, again) and len(history.loss) == 6


def test_tied_weights_survive(tmp_path):
    def tied(seed):
        model = Tiny(seed=seed)
        model.embedding.weight = model.head.weight
        return model

    model = tied(0)
    fit(model, some_batches(), folder=tmp_path, config=settings(steps=2,
        warmup_steps=0))
    other = tied(1)
    load_checkpoint(last_checkpoint(tmp_path), model=other)
    assert equal_weights(model, other)
    assert other.embedding.weight is other.head.weight


def test_resuming_with_other_settings_is_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(ValueError, match="learning_rate=0.01: must be 0.05 "
                                         "as in .*step-00000006"):
        fit(Tiny(), some_batches(), folder=tmp_path,
            config=settings(steps=6, learning_rate=0.01))
    fit(Tiny(), some_batches(), folder=tmp_path,
        config=settings(steps=6, checkpoint_every=1, accumulation=2))


@pytest.mark.parametrize("change, message", [
    (lambda t: t.update({"head.bias": torch.zeros(3)}),
     r"head.bias has the shape \(3,\), must be \(11,\)"),
    (lambda t: t.pop("head.bias"),
     r"head.bias is missing, must have the shape \(11,\)"),
    (lambda t: t.update({"tail": torch.zeros(3)}),
     r"tail is not in the model, must"),
])
def test_a_checkpoint_that_does_not_fit(tmp_path, change, message):
    trained(tmp_path)
    path = last_checkpoint(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    model, before = Tiny(seed=4), Tiny(seed=4)
    with pytest.raises(ValueError, match="model.safetensors: " + message):
        fit(model, some_batches(), folder=tmp_path, config=settings(steps=6))
    assert equal_weights(model, before)  # nothing was half-loaded


def test_an_optimizer_that_does_not_fit(tmp_path):
    trained(tmp_path)
    path = last_checkpoint(tmp_path) / "optimizer.safetensors"
    tensors = load_file(path)
    tensors["head.bias.exp_avg"] = torch.zeros(3)
    save_file(tensors, path)
    model, before = Tiny(seed=4), Tiny(seed=4)
    with pytest.raises(ValueError, match=r"optimizer.safetensors: head.bias."
                       r"exp_avg has the shape \(3,\), must be \(11,\)"):
        fit(model, some_batches(), folder=tmp_path, config=settings(steps=6))
    assert equal_weights(model, before)


@pytest.mark.parametrize("name", ["model.safetensors",
                                  "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("keep", [5, 0.99])
def test_a_file_that_is_cut_short(tmp_path, name, keep):
    trained(tmp_path)
    path = last_checkpoint(tmp_path) / name
    whole = path.read_bytes()
    path.write_bytes(whole[:int(keep if keep >= 1 else keep * len(whole))])
    model, before = Tiny(seed=4), Tiny(seed=4)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        fit(model, some_batches(), folder=tmp_path, config=settings(steps=6))
    assert "\n" not in str(error.value)
    assert equal_weights(model, before)


def test_a_file_that_is_gone(tmp_path):
    trained(tmp_path)
    path = last_checkpoint(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors: cannot be read"):
        load_checkpoint(path, model=Tiny())
    (path / "state.json").unlink()
    with pytest.raises(FileNotFoundError, match="state.json: is not there"):
        load_checkpoint(path, model=Tiny())


def test_no_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None


# interruptions, in processes of their own

PROGRAM = """
import sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)  # as here: sums differ with the number of threads
from test_training import Tiny, settings, some_batches
from lmcourse import training
from lmcourse.layers.transformer import TransformerConfig, build_transformer
from lmcourse.losses import chunked_cross_entropy, cross_entropy

def slow(step, history):
    if step == 5:
        print("five", flush=True)
    if step >= 5:
        time.sleep(0.05)

{before}
history = training.fit(
    Tiny(0.3), some_batches(), folder=sys.argv[1], callback=slow,
    config=settings(checkpoint_every={every}))
print(history.stopped, len(history.loss), flush=True)
"""

SLOW_WRITING = """
write = training._write_tensors
def write_slowly(tensors, path):
    write(tensors, path)
    if "00000008" in str(path) and "optimizer" in str(path):
        print("writing", flush=True)
        time.sleep(60)
training._write_tensors = write_slowly
"""


def start(folder, *, before="", every=0):
    program = PROGRAM.format(tests=str(Path(__file__).parent), before=before,
                             every=every)
    return subprocess.Popen([sys.executable, "-c", program, str(folder)],
                            stdout=subprocess.PIPE, text=True,
                            env={**os.environ, "TQDM_DISABLE": "1"})


def finish(folder):
    """Resume, and compare with a training that nobody disturbed."""
    resumed, whole = Tiny(0.3, seed=8), Tiny(0.3)
    history = fit(resumed, some_batches(), folder=folder, config=settings())
    expected = fit(whole, some_batches(), config=settings())
    assert equal_weights(resumed, whole)
    assert same_but_for_time(history, expected)


@pytest.mark.timeout(120)
def test_ctrl_c_keeps_the_work(tmp_path):
    process = start(tmp_path)
    assert process.stdout.readline() == "five\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    stopped, steps = out.split()
    assert process.returncode == 0
    assert stopped == "True" and 5 <= int(steps) < 20
    assert last_checkpoint(tmp_path).name == f"step-{int(steps):08d}"
    finish(tmp_path)


@pytest.mark.timeout(120)
def test_killed_while_writing_a_checkpoint(tmp_path):
    process = start(tmp_path, before=SLOW_WRITING, every=4)
    assert process.stdout.readline() == "five\n"
    assert process.stdout.readline() == "writing\n"
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert len([*tmp_path.glob(".writing-step-00000008*")]) == 1
    assert last_checkpoint(tmp_path).name == "step-00000004"
    finish(tmp_path)
    assert not list(tmp_path.glob(".writing-*"))


def test_second_ctrl_c_does_not_wait():
    def impatient(step, history):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    model = Tiny().eval()
    with pytest.raises(KeyboardInterrupt):
        fit(model, some_batches(), config=settings(), callback=impatient)
    assert signal.getsignal(signal.SIGINT) is before
    assert not model.training


def test_fit_in_another_thread():
    histories = []
    thread = threading.Thread(target=lambda: histories.append(
        fit(Tiny(), some_batches(), config=settings())))
    thread.start()
    thread.join()
    assert isinstance(histories[0], History)
    assert not histories[0].stopped


def test_saving_twice_at_one_step(tmp_path):
    model = Tiny()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1))
    for mark in (1, 2):
        save_checkpoint(tmp_path, model=model, optimizer=optimizer, step=3,
                        state={"mark": mark})
    state = load_checkpoint(last_checkpoint(tmp_path), model=model,
                            optimizer=optimizer)
    assert (state["step"], state["mark"]) == (3, 2)


def test_nothing_is_pickled():
    source = Path(training.__file__).read_text()
    assert "torch.load" not in source and "pickle" not in source
