"""Fine-tuning a causal model: its head, its batches, when it stops."""

import math

import pytest
import torch

from lmcourse import transfer
from lmcourse.zoo import base as zoo
from lmcourse.layers.transformer import TransformerConfig, build_transformer
from lmcourse.tasks import TASKS, Example, examples
from lmcourse.tokenizers import ByteBPE
from lmcourse.world import documents


@pytest.fixture(scope="module")
def tokenizer():
    return ByteBPE.train(documents(300), vocab_size=400)


def classifier(tokenizer, n_outputs, seed=0):
    config = TransformerConfig(
        vocab_size=tokenizer.vocab_size, max_length=256, d_model=16,
        n_layers=1, n_heads=2, d_ff=32, positions="rotary")
    network = build_transformer(
        config, generator=torch.Generator().manual_seed(seed))
    return transfer.Classifier(network, n_outputs)


def test_a_head_of_zeros_knows_nothing(tokenizer):
    model = classifier(tokenizer, 3)
    ids, ends, _ = transfer.encode_examples(
        tokenizer, examples("MNLI", "dev", 4))
    logits = model(ids, ends=ends)
    assert torch.equal(logits, torch.zeros(4, 3))
    loss = torch.nn.functional.cross_entropy(logits, torch.zeros(4).long())
    assert loss.item() == pytest.approx(math.log(3))


def test_examples_are_read_to_their_end_and_no_further(tokenizer):
    made = [Example("A short one.", "", 1),
            Example("A longer one, with more to say.", "And a second.", 0)]
    ids, ends, labels = transfer.encode_examples(tokenizer, made)
    end = tokenizer.special_tokens["<|endoftext|>"]
    assert labels.tolist() == [1, 0]
    for row, last, (first, second, _) in zip(ids, ends, made, strict=True):
        told = [end, *tokenizer.encode(first), end]
        told += [*tokenizer.encode(second), end] if second else []
        assert row[:last + 1].tolist() == told
        assert not row[last + 1:].any()


def test_padding_does_not_reach_the_head(tokenizer):
    model = classifier(tokenizer, 2)
    torch.nn.init.normal_(model.head.weight)
    ids, ends, _ = transfer.encode_examples(
        tokenizer, examples("RTE", "dev", 5))
    together = model(ids, ends=ends)
    for row, last, logits in zip(ids, ends, together, strict=True):
        alone = model(row[None, :last + 1], ends=last[None])
        torch.testing.assert_close(alone[0], logits, rtol=1e-4, atol=1e-5)


def test_score_is_accuracy_or_correlation(tokenizer):
    model = classifier(tokenizer, 2)
    with torch.no_grad():
        model.head.bias[:] = torch.tensor([0.0, 1.0])  # always label 1
    encoded = transfer.encode_examples(tokenizer, examples("RTE", "dev", 60))
    assert transfer.score(model, encoded) == pytest.approx(
        encoded[2].float().mean().item())
    one = classifier(tokenizer, 1)
    scored = transfer.encode_examples(tokenizer, examples("STS-B", "dev", 20))
    assert transfer.score(one, scored) == 0  # constant: no correlation
    torch.nn.init.normal_(one.head.weight)
    out = one(*scored[:1], ends=scored[1])[:, 0]
    expected = torch.corrcoef(torch.stack([out, scored[2].float()]))[0, 1]
    assert transfer.score(one, scored) == pytest.approx(expected.item(), 1e-4)


def test_finetuning_learns_and_keeps_its_best_moment(tokenizer):
    """One label: twenty sentences that say it in their first word."""
    made = [Example(f"{word} is here.", "", label) for word, label
            in (("Anna", 0), ("Peter", 1))] * 10
    encoded = transfer.encode_examples(tokenizer, made)
    model = classifier(tokenizer, 2)
    best = transfer.finetune_classifier(model, encoded, encoded, rate=3e-3,
                                        seed=0)
    assert best == transfer.score(model, encoded) == 1.0


@pytest.mark.parametrize("reached, n_looks", [
    (0.5, 11),  # the first, and ten without a gain
    (1.0, 1)])
def test_finetuning_stops_when_nothing_can_be_gained(
        tokenizer, monkeypatch, reached, n_looks):
    looks = []
    monkeypatch.setattr(transfer, "score",
                        lambda *_: looks.append(1) or reached)
    encoded = transfer.encode_examples(tokenizer, examples("RTE", "dev", 8))
    assert transfer.finetune_classifier(
        classifier(tokenizer, 2), encoded, encoded, rate=1e-3,
        seed=0) == reached
    assert len(looks) == n_looks


@pytest.fixture
def zoo_of_one(monkeypatch):
    """A tiny model in the zoo's place: it, its tokenizer, what was asked."""
    tiny = zoo.Preset(n_documents=200, vocab_size=400, d_model=16, n_layers=1,
                      n_heads=2, batch_size=2, length=256, steps=3)
    model, tokenizer, _ = zoo.pretrain(tiny)
    asked = []
    monkeypatch.setattr(transfer, "world_model", lambda preset: (
        asked.append(preset) or (model, tokenizer)))
    return model, tokenizer, asked


def test_both_starts_are_scored(zoo_of_one, monkeypatch):
    _, _, asked = zoo_of_one
    monkeypatch.setattr(transfer, "_MOST", 100)
    scores = transfer.transfer_scores("CoLA", 3, n_train=16, rates=(1e-3,))
    assert tuple(scores) == transfer.STARTS
    assert all(0 <= reached <= 1 for reached in scores.values())
    again = transfer.transfer_scores("CoLA", 3, n_train=16, rates=(1e-3,),
                                     model_seed=7)
    assert [preset.seed for preset in asked] == [3, 7]
    assert again == scores  # the same model, the same labels


def test_experiments_ask_for_tasks_sizes_and_noise(monkeypatch):
    asked = []
    monkeypatch.setattr(transfer, "transfer_scores", lambda *args, **more: (
        asked.append((*args, more)) or dict.fromkeys(transfer.STARTS, 0.5)))
    by_task = transfer.scores_by_task(2)
    assert [*by_task] == [f"{task}, {start}" for task in TASKS
                          for start in transfer.STARTS]
    assert asked == [(task, 2, {}) for task in TASKS]
    asked.clear()
    transfer.scores_by_labels(2)
    assert asked == [("SST-2", 2, {"n_train": n}) for n in transfer.SIZES]
    asked.clear()
    transfer.scores_by_noise(7)
    assert asked == [("SST-2", 7, {"n_train": 512, "noise": share,
                                   "model_seed": 2})
                     for share in transfer.NOISE]


def test_shots_stand_before_the_question_and_do_not_tell_the_answer(
        zoo_of_one, monkeypatch):
    asked = []
    monkeypatch.setattr(transfer, "probe_scores", lambda model, tokenizer, q: (
        asked.append(q) or (0.5, 0.1)))
    outcome = transfer.scores_by_shots(1)
    assert [key.split(", ")[0] for key in outcome] == 3 * ["0", "1", "4"]
    for bare, one, four in zip(*[iter(asked)] * 3, strict=True):
        assert len(bare) == len(one) == len(four) == 300
        for question, first, more in zip(bare, one, four, strict=True):
            assert first.prompt.endswith(f" {question.prompt}")
            assert more.prompt.endswith(f" {question.prompt}")
            assert len(more.prompt) > len(first.prompt) > len(question.prompt)
            assert question[1:] == first[1:] == more[1:]
    for question in asked[-1]:  # capitals: none of the two is in the shots
        *shots, _ = question.prompt.split(". ")
        assert len(shots) == 4
        for ending in question.right, question.wrong:
            assert ending not in ". ".join(shots)


def test_reviews_are_labeled_by_their_words():
    questions = transfer._reviews(("It was", " bad", " good"), "dev", 20, 0)
    for question, (first, _, label) in zip(
            questions, examples("SST-2", "dev", 20), strict=True):
        assert question.prompt == f"{first} It was"
        assert question.right == (" bad", " good")[label]
        assert question.wrong == (" good", " bad")[label]


def test_readings_ask_each_world_in_both_wordings(zoo_of_one):
    model, tokenizer, asked = zoo_of_one
    outcome = transfer.probability_by_readings(4)
    assert {*outcome} == {"0, slide", "0, told", "all, slide", "all, told"}
    without, as_it_is = asked
    assert without.rare_words == ("Denmark", "Copenhagen")
    assert (without.n_readings, as_it_is.rare_words) == (0, ())
    assert without.seed == as_it_is.seed == 4
    prompt = tokenizer.encode("The capital of Denmark is")
    p = 1.0
    for token in tokenizer.encode(" Copenhagen"):
        p *= model(torch.tensor([prompt]))[0, -1].softmax(-1)[token].item()
        prompt.append(token)
    assert outcome["all, slide"] == pytest.approx(p, rel=1e-3)
