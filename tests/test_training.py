"""Chapter 30: the loss, the optimizer's groups, resuming, interruptions."""

import dataclasses
import functools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from damage import sign
from safetensors.torch import load_file, save_file

from lmcourse import training
from lmcourse.files import MANIFEST
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

    def hidden_states(self, input_ids):
        return self.norm(self.dropout(self.embedding(input_ids)))

    def forward(self, input_ids, *, labels=None, balance=None):
        hidden_states = self.hidden_states(input_ids)
        if labels is None:
            return self.head(hidden_states)
        return self.head.loss(hidden_states, labels=labels)


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


@pytest.mark.parametrize("pieces, head", [(2, torch.nn.Linear), (4, Head)])
def test_accumulated_is_the_large_batch(pieces, head):
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


@pytest.mark.parametrize("pieces", [3])
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


@pytest.mark.parametrize("pieces", [3, 5])
def test_pieces_are_equal(pieces):
    """A mean of the means of uneven pieces would not be the mean."""
    with pytest.raises(ValueError, match=f"accumulation={pieces}: must be a "
                                         "divisor of the 4 sequences"):
        fit(Tiny(), some_batches(), config=settings(accumulation=pieces))


def test_an_objective_of_a_mean_alone_is_right_in_pieces():
    def mean(model, batch):
        logits = model(batch[:, :-1]).flatten(0, 1)
        return {"loss": Term(F.cross_entropy(logits, batch[:, 1:].flatten()),
                             1)}

    one, other = Tiny().double(), Tiny().double()
    a = fit(one, some_batches(), objective=mean, config=settings())
    b = fit(other, some_batches(), objective=mean,
            config=settings(accumulation=4))
    assert a.loss == pytest.approx(b.loss, abs=1e-9)
    assert a.grad_norm == pytest.approx(b.grad_norm, abs=1e-9)


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


# steps that are not finite


class Scared(torch.autograd.Function):
    """Passes numbers on, and gradients of NaN back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * math.nan


def broken_at(steps, *, loss):
    """`causal_loss` whose loss, or whose gradient, is NaN at some steps."""
    batches = some_batches()

    def objective(model, batch):
        (term,) = causal_loss(model, batch).values()
        if any(torch.equal(batch, batches(step)) for step in steps):
            total = term.total * math.nan if loss else Scared.apply(term.total)
            term = term._replace(total=total)
        return {"loss": term}

    return objective


@pytest.mark.parametrize("loss", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(loss):
    model, snapshots = Tiny(), {}
    model.norm = torch.nn.BatchNorm1d(6)  # over the positions; has buffers
    with pytest.warns(UserWarning, match="^step 4: loss=.*nan.*: must be "
                                         "finite; it is left out$"):
        history = fit(model, some_batches(), config=settings(),
                      objective=broken_at([4, 7], loss=loss),
                      callback=lambda step, history: snapshots.update(
                          {step: {n: t.clone() for n, t in
                                  model.state_dict().items()}}))
    assert history.skipped == [4, 7] and len(history.loss) == 20
    for step in range(2, 21):
        same = all(torch.equal(t, snapshots[step][n])
                   for n, t in snapshots[step - 1].items())
        assert same == (step - 1 in (4, 7)), step
    assert math.isnan(history.loss[4]) == loss
    assert math.isnan(history.grad_norm[4])
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("loss", [True, False])
def test_three_in_a_row_stop_the_training(tmp_path, loss):
    """And leave a checkpoint from which it can go on."""
    model, whole = Tiny(), Tiny()
    fit(whole, some_batches(), config=settings(),
        callback=lambda step, history: step == 9)
    options = {"config": settings(checkpoint_every=5), "folder": tmp_path}
    with (pytest.warns(UserWarning, match="^step 9: "),
          pytest.raises(FloatingPointError, match="at step 11, the third in a"
                                                  " row: must be finite")):
        fit(model, some_batches(), **options,
            objective=broken_at([2, 4, 9, 10, 11], loss=loss))
    assert last_checkpoint(tmp_path).name == "step-00000012"
    resumed = Tiny(seed=3)
    history = fit(resumed, some_batches(), **options,
                  objective=broken_at([], loss=loss))
    assert history.skipped == [2, 4, 9, 10, 11]
    assert len(history.loss) == 20
    assert all(p.isfinite().all() for p in resumed.parameters())


def test_float16_looks_for_its_scale():
    """A gradient beyond 65,504 halves the scale; that is no bad step."""
    def steep(model, batch):
        (term,) = causal_loss(model, batch).values()
        return {"loss": term._replace(total=1e3 * term.total)}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = fit(Tiny(head=torch.nn.Linear), some_batches(),
                      objective=steep, config=settings(precision="float16"))
    assert history.skipped == [*range(len(history.skipped))]
    assert 3 < len(history.skipped) < 16
    never = broken_at(range(40), loss=False)
    with (pytest.warns(UserWarning, match="is left out"),
          pytest.raises(FloatingPointError, match="the third in a row")):
        fit(Tiny(), some_batches(), objective=never,
            config=settings(precision="float16", steps=40))


def test_float16_keeps_its_first_step():
    """The scale of 65,536 itself is no number of float16."""
    history = fit(Tiny(), some_batches(), config=settings(
        precision="float16"))
    assert not history.skipped


def test_weights_in_half_precision():
    with pytest.raises(ValueError, match="model=parameters in float16: must "
                                         "be float32; precision="):
        fit(Tiny().half(), some_batches(), config=settings())
    with pytest.warns(UserWarning, match="parameters in bfloat16, where "
                                         "steps below a 256th") as told:
        fit(Tiny().bfloat16(), some_batches(), config=settings(steps=3))
    assert Path(told[0].filename).name == "test_training.py"


def test_gradients_from_before_do_not_count():
    one, other = Tiny(), Tiny()
    other.head.weight.grad = torch.ones_like(other.head.weight)
    for model in (one, other):
        fit(model, some_batches(), config=settings())
    assert equal_weights(one, other)


def test_a_compiled_model_is_trained_compiled(tmp_path):
    """Its graph is run, and its files are those of the plain model."""
    calls = []

    def backend(graph, inputs):
        def run(*arguments):
            calls.append(graph)
            return graph(*arguments)
        return run

    config = TransformerConfig(vocab_size=VOCAB, max_length=16, n_layers=1,
                               d_model=WIDTH, n_heads=2, d_ff=8)
    plain, model = build_transformer(config), build_transformer(config)
    compiled = torch.compile(model, backend=backend)
    fit(compiled, some_batches(), config=settings(), folder=tmp_path,
        callback=lambda step, history: step == 10)
    assert len(calls) >= 10
    before = len(calls)
    fit(compiled, some_batches(), config=settings(), folder=tmp_path)
    assert len(calls) >= before + 10
    fit(plain, some_batches(), config=settings())
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    again = build_transformer(config)
    load_checkpoint(last_checkpoint(tmp_path), model=again)
    assert equal_weights(again, model)


# padding and packing

DOCUMENTS = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 10, 0, 1, 2, 3], [4, 5]]


def padded(side):
    """The documents, one in a row of seven."""
    rows, real = [], []
    for ids in DOCUMENTS:
        pad, mask = [8] * (7 - len(ids)), [1] * len(ids)
        rows.append(pad + ids if side == "left" else ids + pad)
        real.append([0] * len(pad) + mask if side == "left"
                    else mask + [0] * len(pad))
    return {"input_ids": torch.tensor(rows),
            "attention_mask": torch.tensor(real)}


def packed():
    """Two rows with two documents each, eight tokens long."""
    rows = [DOCUMENTS[0] + DOCUMENTS[1], DOCUMENTS[2] + DOCUMENTS[3]]
    ids = [[0] * 5 + [1] * 3, [0] * 6 + [1] * 2]
    return {"input_ids": torch.tensor(rows), "document_ids": torch.tensor(ids)}


def reader(positions="rotary", **changes):
    return build_transformer(TransformerConfig(**{
        "vocab_size": VOCAB, "max_length": 16, "n_layers": 2, "d_model": 16,
        "n_heads": 2, "d_ff": 16, "positions": positions,
        "initializer_range": 0.5, **changes})).double()


@pytest.mark.parametrize("changes", [
    {}, {"positions": "learned"}, {"positions": "sinusoidal"},
    {"attention": "sliding", "window": 3}])
@pytest.mark.parametrize("batch", [padded("left"), padded("right"), packed()],
                         ids=["left", "right", "packed"])
def test_documents_cost_what_they_cost_alone(changes, batch):
    """Padding is not paid for, and packed documents do not meet; the oracle
    reads one document after the other.
    """
    model = reader(**changes)
    alone = [causal_loss(model, torch.tensor([ids]))["next token"]
             for ids in DOCUMENTS]
    (term,) = causal_loss(model, batch).values()
    assert term.count == sum(each.count for each in alone) == 12
    assert term.total.item() == pytest.approx(
        sum(each.total.item() for each in alone), abs=1e-9)


def test_a_model_without_a_loss_is_told_of_padding():
    """It gets the mask as an argument, and gives logits."""
    model = reader()
    plain = torch.nn.Module()
    plain.forward = lambda input_ids, **seen: model(input_ids, **seen)
    for batch in (padded("left"), packed()):
        assert causal_loss(plain, batch)["next token"].total.item() == (
            pytest.approx(causal_loss(model, batch)["next token"]
                          .total.item(), abs=1e-9))


def test_labels_of_ones_own():
    """Only the answers are asked for."""
    batch = padded("right")
    labels = batch["input_ids"].clone()
    labels[:, :2] = -100
    model = reader()
    (term,) = causal_loss(model, {**batch, "labels": labels}).values()
    logits = model(batch["input_ids"][:, :-1]).log_softmax(dim=-1)
    expected, count = 0.0, 0
    for row, ids in enumerate(DOCUMENTS):
        for place in range(2, len(ids)):
            expected -= logits[row, place - 1, ids[place]].item()
            count += 1
    assert term.count == count
    assert term.total.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("change, message", [
    ({"attention_mask": torch.ones(4, 3)},
     r"attention_mask=\(4, 3\): must be \(B, T \+ 1\).*has \(4, 7\)"),
    ({"input_ids": torch.ones(7)}, r"input_ids=\(7,\): must be \(B, T"),
    ({"token_type_ids": torch.ones(4, 7)}, "batch=.*'token_type_ids'.: must "
                                           "be a dict with input_ids, and"),
    ({"input_ids": None}, "batch=.'attention_mask'.: must be a dict with in"),
])
def test_bad_batches_of_documents(change, message):
    batch = {name: x for name, x in {**padded("left"), **change}.items()
             if x is not None}
    with pytest.raises(ValueError, match=message):
        causal_loss(reader(), batch)


def test_a_piece_without_labels():
    """The last rows ask for nothing; in pieces it is the same training."""
    batch = packed()
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][1] = -100
    histories, models = [], []
    for pieces in (1, 2):
        models.append(reader())
        histories.append(fit(models[-1], lambda step: batch,
                             config=settings(accumulation=pieces)))
    one, other = histories
    assert one.loss == pytest.approx(other.loss, abs=1e-9)
    assert one.grad_norm == pytest.approx(other.grad_norm, abs=1e-9)
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    (term,) = causal_loss(models[0], nothing).values()
    assert (term.total.item(), term.count) == (0, 0)


def test_padding_does_not_balance_experts():
    model = reader(feed_forward="swiglu", n_experts=4,
                   n_active_experts=2).train()
    batch = padded("right")
    balance = []
    for ids in DOCUMENTS:
        seen = []
        model.hidden_states(torch.tensor([ids]), balance=seen)
        balance.append(seen)
    longer = {name: torch.cat([x, torch.zeros_like(x)], dim=1)
              for name, x in batch.items()}
    values = [causal_loss(model, each)["balance"] for each in (batch, longer)]
    assert values[0].total.item() == pytest.approx(values[1].total.item(),
                                                   abs=1e-12)
    only = {name: x[:1] for name, x in batch.items()}
    (short,) = [causal_loss(model, only)["balance"].total.item()]
    assert short == pytest.approx(sum(balance[0]).item(), abs=1e-12)


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
        MANIFEST, "model.safetensors", "optimizer.safetensors", "state.json"]


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
    sign(path.parent)
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
    sign(path.parent)
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
    assert str(error.value).endswith("no other checkpoint is whole")
    assert "\n" not in str(error.value)
    assert equal_weights(model, before)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json",
                                  "optimizer.safetensors", MANIFEST])
def test_a_flipped_bit_sends_back_to_the_checkpoint_before(tmp_path, name):
    """Any of 12 bits of each file; the training is that of before."""
    fit(Tiny(0.3), some_batches(), folder=tmp_path,
        config=settings(checkpoint_every=7))
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*")
            if path.is_file()}
    whole = Tiny(0.3)
    fit(whole, some_batches(), config=settings())
    path = tmp_path / "step-00000020" / name
    draws = random.Random(name)
    for _ in range(12):
        for file, data in kept.items():
            file.write_bytes(data)
        data = bytearray(kept[path])
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
        path.write_bytes(data)
        model = Tiny(0.3, seed=9)
        with pytest.warns(UserWarning, match="step-00000020.*; step-00000014 "
                                             "is taken instead$") as told:
            history = fit(model, some_batches(), folder=tmp_path,
                          config=settings(checkpoint_every=7))
        assert len(told) == 1
        assert "\n" not in str(told[0].message)
        assert equal_weights(model, whole) and len(history.loss) == 20


def test_what_is_no_checkpoint_is_left_alone(tmp_path):
    (tmp_path / "step-00000003-backup").mkdir()
    (tmp_path / "step-notes.txt").write_text("mine")
    (tmp_path / "step-99999999").write_text("a file")
    (tmp_path / ".writing-mine").write_text("mine")
    fit(Tiny(), some_batches(), folder=tmp_path,
        config=settings(checkpoint_every=3))
    fit(Tiny(), some_batches(), folder=tmp_path, config=settings())
    assert {p.name for p in tmp_path.iterdir()} == {
        "step-00000003-backup", "step-notes.txt", "step-99999999",
        ".writing-mine", "step-00000018", "step-00000020"}


def test_a_finished_training_is_extended(tmp_path):
    """The steps after the twentieth have the longer schedule's rates."""
    fit(Tiny(), some_batches(), folder=tmp_path, config=settings())
    model, longer = Tiny(seed=2), settings(steps=30)
    history = fit(model, some_batches(), folder=tmp_path, config=longer)
    assert len(history.loss) == 30
    assert history.learning_rate == (
        [learning_rate_at(step, settings()) for step in range(20)]
        + [learning_rate_at(step, longer) for step in range(20, 30)])
    again = fit(Tiny(), some_batches(), folder=tmp_path, config=longer)
    assert len(again.loss) == 30
    with pytest.raises(ValueError, match="steps=20: must be at least the 30 "
                                         "that were made in .*step-00000030"):
        fit(Tiny(), some_batches(), folder=tmp_path, config=settings())


def other_loss(model, batch):
    return causal_loss(model, batch)


@pytest.mark.parametrize("options, message", [
    ({"batches": some_batches(seed=4)}, r"batches\(4\): is another batch"),
    ({"objective": other_loss}, "objective=test_training.other_loss: must be "
                                "lmcourse.training.causal_loss as in"),
    ({"objective": lambda model, batch: {"one": causal_loss(
        model, batch)["next token"]}}, "objective=test_training.<lambda>"),
    ({"objective": functools.partial(causal_loss, balance_weight=0.5)},
     r"objective's arguments=\[\('balance_weight', 0.5\)\]: must be \[\]"),
])
def test_resuming_with_other_data_or_objective(tmp_path, options, message):
    arguments = {"batches": some_batches(), "config": settings(),
                 "folder": tmp_path}
    fit(Tiny(), **arguments, callback=lambda step, history: step == 5)
    model, before = Tiny(seed=4), Tiny(seed=4)
    with pytest.raises(ValueError, match=f"^{message}.*or use another folder"):
        fit(model, **{**arguments, **options})
    assert equal_weights(model, before)


def test_terms_of_other_names_are_refused_before_anything_changes(tmp_path):
    """Functions without names of their own cannot be told apart otherwise."""
    def named(name):
        return lambda model, batch: {name: causal_loss(
            model, batch)["next token"]}

    def model_of(seed):
        model = Tiny(seed=seed)
        model.norm = torch.nn.BatchNorm1d(6)
        return model

    fit(model_of(0), some_batches(), config=settings(), folder=tmp_path,
        objective=named("one"), callback=lambda step, history: step == 5)
    model, before = model_of(4), model_of(4).state_dict()
    with pytest.raises(ValueError, match=r"^objective's terms=\['other'\]: "
                                         r"must be \['one'\] as in "):
        fit(model, some_batches(), config=settings(), folder=tmp_path,
            objective=named("other"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Teacher:
    """Its `repr` says where in memory it is."""


def guided(model, batch, *, teacher):
    return causal_loss(model, batch)


def test_where_an_argument_lies_does_not_matter(tmp_path):
    """Another process has the same teacher at another address."""
    for stop, teacher in [(5, Teacher()), (9, Teacher())]:
        assert " at 0x" in repr(teacher)
        history = fit(Tiny(), some_batches(), config=settings(),
                      folder=tmp_path, callback=lambda step, _, stop=stop:
                      step == stop, objective=functools.partial(
                          guided, teacher=teacher))
    assert len(history.loss) == 9


EDITED = """
import sys
sys.path.insert(0, {tests!r})
from test_training import Tiny, settings, some_batches
from lmcourse.training import causal_loss, fit


def mine(model, batch):
    terms = causal_loss(model, batch)  {comment}
    return {{name: term._replace(weight={weight}) for name, term
            in terms.items()}}


model = Tiny()
before = model.head.weight.clone()
try:
    history = fit(model, some_batches(), config=settings(), objective=mine,
                  folder=sys.argv[1], callback=lambda step, _: step in (5, 9))
    print(len(history.loss))
except ValueError as error:
    print(error, (model.head.weight == before).all().item())
"""


def test_an_objective_that_was_edited(tmp_path):
    """In a script or a notebook; a comment is no edit."""
    said = []
    for weight, comment in [(1.0, ""), (1.0, "# a comment"), (0.5, "")]:
        program = tmp_path / "program.py"
        program.write_text(EDITED.format(tests=str(Path(__file__).parent),
                                         weight=weight, comment=comment))
        said.append(subprocess.run(
            [sys.executable, str(program), str(tmp_path / "run")], text=True,
            capture_output=True, check=True).stdout.strip())
    assert said[:2] == ["5", "9"]
    assert re.match("objective: __main__.mine was edited after .*step-0+9, "
                    "must be as it was, or use another folder True$", said[2])


@pytest.mark.parametrize("where", ["callback", "batches", "objective"])
def test_an_exception_leaves_a_checkpoint(tmp_path, where):
    def fail(*_):
        raise KeyError("a bug of mine")

    def fail_late(function):
        times = iter(range(100))
        return lambda *given: function(*given) if next(times) < 12 else fail()

    arguments = {"callback": lambda step, history: None,
                 "batches": some_batches(), "objective": causal_loss}
    arguments[where] = fail_late(arguments[where])
    with pytest.raises(KeyError, match="a bug of mine"):
        fit(Tiny(0.3), config=settings(), folder=tmp_path, **arguments)
    made = 13 if where == "callback" else 12
    assert last_checkpoint(tmp_path).name == f"step-{made:08d}"
    if where != "objective":
        finish(tmp_path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    """It is tried before the first step."""
    (tmp_path / "file").touch()
    steps = []
    with pytest.raises(OSError, match="file/run: cannot be written to, Not a"):
        fit(Tiny(), some_batches(), folder=tmp_path / "file/run",
            config=settings(), callback=lambda step, _: steps.append(step))
    assert not steps


FULL = """
import sys, resource, signal
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from test_training import Tiny, settings, some_batches
from lmcourse.training import fit

def full(step, history):
    if step == 9:  # a file may not be longer than 2,000 bytes from now on
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

fit(Tiny(0.3), some_batches(), config=settings(checkpoint_every=4),
    folder=sys.argv[1], callback=full)
"""


def test_a_disk_that_is_full(tmp_path):
    """The checkpoint before stays, and nothing half is left beside it."""
    done = subprocess.run(
        [sys.executable, "-c", FULL.format(tests=str(Path(__file__).parent)),
         str(tmp_path)], text=True, capture_output=True)
    assert done.returncode == 1
    assert "step-00000012" in done.stderr or "too large" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000004", "step-00000008"]
    finish(tmp_path)


def test_a_file_that_is_gone(tmp_path):
    trained(tmp_path)
    path = last_checkpoint(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors: is missing"):
        load_checkpoint(path, model=Tiny())
    with pytest.raises(FileNotFoundError, match="manifest.json: is not ther"):
        load_checkpoint(tmp_path / "nowhere", model=Tiny())


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
