"""Heads for tasks, fine-tuning, metrics, dialogues, files of GLUE."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import copy
import json
import math
from dataclasses import replace

import datasets
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import transformers
from parity import (
    EAGER,
    distance,
    drawn,
    gradients,
    in_double,
    small_encoder,
    small_pieces,
    texts,
)

from lmcourse import finetuning
from lmcourse.checkpoints import load_model, save_model
from lmcourse.finetuning import (
    CHATML,
    FINETUNING,
    GLUE,
    GLUE_TABLE,
    METRICS,
    TASK_FAMILIES,
    WORLD_CHAT,
    Answered,
    Chosen,
    FineTuned,
    LabeledTask,
    Laid,
    Tagged,
    TaskConfig,
    add_head,
    answer_in_words,
    answered,
    as_dialogue,
    build_reader,
    encode_dialogue,
    encode_rows,
    evaluate_task,
    finetune,
    finetune_best,
    label_words,
    lay_out,
    layer_groups,
    predict,
    read_glue,
    task_loss,
    text_template,
    tune_on_dialogues,
    world_dialogues,
    world_task,
)
from lmcourse.losses import IGNORE_INDEX
from lmcourse.tasks import Example, split_of
from lmcourse.tokenizers import ByteBPE
from lmcourse.tokenizers.base import END_OF_TEXT
from lmcourse.training import TokenBatches, TrainingConfig
from lmcourse.world import documents
from lmcourse.zoo.base import Preset, prepare_decoder

SHORT = TrainingConfig(steps=30, learning_rate=3e-3, warmup_steps=3)


@pytest.fixture(scope="module")
def pieces():
    return small_pieces()


@pytest.fixture(scope="module")
def encoder(pieces):
    return small_encoder(pieces, std=0.1)


@pytest.fixture(scope="module")
def bpe():
    return ByteBPE.train(documents(1500), vocab_size=500)


@pytest.fixture(scope="module")
def decoder():
    ready = prepare_decoder(Preset(
        n_documents=1500, vocab_size=500, d_model=32, n_heads=2, length=160,
        steps=60, batch_size=4))
    ready.run()
    return ready.model, ready.tokenizer


# --- the reference library ---------------------------------------------

SIZES = dict(vocab_size=53, hidden_size=24, num_hidden_layers=2,
             num_attention_heads=4, intermediate_size=37,
             max_position_embeddings=20, num_labels=3, pad_token_id=0)
GPT = dict(vocab_size=53, n_embd=24, n_layer=2, n_head=4, n_positions=20,
           num_labels=3, pad_token_id=0)
DECODERS = {
    "gpt2": transformers.GPT2Config(**GPT),
    "openai-gpt": transformers.OpenAIGPTConfig(**GPT),
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
    "mistral": transformers.MistralConfig(**SIZES, num_key_value_heads=2,
                                          sliding_window=6),
    "qwen2": transformers.Qwen2Config(**SIZES, num_key_value_heads=2),
    "qwen3": transformers.Qwen3Config(**SIZES, num_key_value_heads=2,
                                      head_dim=6),
    "gemma": transformers.GemmaConfig(**SIZES, num_key_value_heads=2,
                                      head_dim=6),
}
CASES = [(family, name) for family in TASK_FAMILIES
         for name in [family.model_type] if name in DECODERS]


@pytest.mark.parametrize("family, name", CASES,
                         ids=[family.architecture for family, _ in CASES])
def test_decoders_with_heads(family, name, tmp_path):
    config = copy.deepcopy(DECODERS[name])
    if family.architecture.endswith("ForQuestionAnswering"):
        config.num_labels = 2
    theirs = drawn(config, make=getattr(transformers, family.architecture))
    theirs.set_attn_implementation("eager")
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.head == next(
        head for head, suffix in finetuning._TASK_MODELS.items()
        if family.architecture.endswith(suffix))
    input_ids, mask = texts(53)
    input_ids = input_ids.clamp(min=1).masked_fill(mask == 0, 0)
    with torch.no_grad(), in_double(theirs):
        # the row that is filled on the left, by itself
        alone = said(theirs, input_ids[1:2, 4:], mask[1:2, 4:])
        left = ours(input_ids, attention_mask=mask)[1:2]
    if ours.config.head != "sequence":
        left = left[:, 4:]
    assert distance(left, alone) < 1e-10
    input_ids, mask = input_ids[::2], mask[::2]
    whole = (slice(None) if ours.config.head == "sequence"
             else mask.bool())
    with in_double(theirs):
        expected = said(theirs, input_ids, mask)
        (expected[whole] ** 2).sum().backward()
    found = ours(input_ids, attention_mask=mask)
    assert distance(found[whole], expected[whole]) < 1e-10
    (found[whole] ** 2).sum().backward()
    for p in theirs.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    wanted = gradients(theirs, tmp_path)
    scale = max(g.abs().max() for g in wanted.values())
    for ours_name, p in ours.named_parameters():
        assert (p.grad - wanted[ours_name]).abs().max() < 1e-10 * scale
    save_model(ours, tmp_path / "ours")
    opened = type(theirs).from_pretrained(
        tmp_path / "ours", attn_implementation="eager")
    with torch.no_grad(), in_double(opened):
        assert distance(said(opened, input_ids, mask)[whole],
                        expected[whole]) < 1e-12
    assert load_model(tmp_path / "ours").config == ours.config


def said(theirs, input_ids, mask):
    out = theirs(input_ids, attention_mask=mask)
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    return out.logits


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Electra"])
def test_multiple_choice(kind, tmp_path):
    config = getattr(transformers, kind + "Config")(
        **SIZES | {"pad_token_id": 1 if kind == "Roberta" else 0,
                   "type_vocab_size": 1 if kind == "Roberta" else 2,
                   "num_labels": 2})
    theirs = drawn(config, make=getattr(transformers,
                                        kind + "ForMultipleChoice"))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert ours.config.head == "choice"
    ids = torch.randint(2, 53, (3, 4, 9),
                        generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 2, 5:] = 0
    more = {}
    if kind == "Roberta":
        more["position_ids"] = (mask.cumsum(2) - 1) + 2
    labels = torch.tensor([0, 3, 2])
    expected = theirs(ids, attention_mask=mask, labels=labels, **more)
    flat = {"attention_mask": mask.flatten(0, 1)}
    assert distance(ours(ids.flatten(0, 1), **flat).view(3, 4),
                    expected.logits) < 1e-10
    loss = ours(ids.flatten(0, 1), **flat, labels=labels)
    assert abs(loss.item() - expected.loss.item()) < 1e-6
    terms = task_loss(ours, {"input_ids": ids, "attention_mask": mask,
                             "labels": labels})
    assert abs(terms["label"].total.item() / 3 - loss.item()) < 1e-12
    save_model(ours, tmp_path / "ours")
    opened = type(theirs).from_pretrained(
        tmp_path / "ours", attn_implementation="eager")
    with torch.no_grad():
        assert distance(opened(ids, attention_mask=mask, **more).logits,
                        expected.logits) < 1e-12


def test_a_fine_tuned_model_opens_in_transformers(encoder, pieces, tmp_path):
    task = world_task("QNLI", n_train=64)
    tuned = finetune(encoder, pieces, task, config=SHORT)
    save_model(tuned.model, tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"] == ["BertForSequenceClassification"]
    assert settings["id2label"] == {"0": "not answered", "1": "answered"}
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, **EAGER).eval()
    assert theirs.config.label2id == {"not answered": 0, "answered": 1}
    rows = task.rows("test")[:20]
    batch = encode_rows(tuned.model, pieces, task, rows).batch
    labels = batch.pop("labels")
    assert labels.tolist() == [row.label for row in rows]
    batch["attention_mask"] = batch["attention_mask"].long()
    with torch.no_grad():
        said = theirs(**batch).logits
    assert said.argmax(1).tolist() == predict(tuned.model, pieces, task, rows)
    again = load_model(tmp_path)
    assert predict(again, pieces, task, rows) == said.argmax(1).tolist()


def test_a_decoder_keeps_its_weights(decoder):
    model, tokenizer = decoder
    for task, head in (("RTE", "sequence"), ("names", "token"),
                       ("answers", "span"), ("endings", "choice")):
        headed = add_head(model, task)
        assert isinstance(headed.config, TaskConfig)
        assert headed.config.head == head
        for name, tensor in headed.state_dict().items():
            if not name.startswith("head."):
                assert torch.equal(tensor, model.state_dict()[name])
                assert tensor.data_ptr() != model.state_dict()[
                    name].data_ptr()
    other = add_head(add_head(model, "RTE"), "MNLI")  # and once more
    assert other.config.n_labels == 3
    with pytest.raises(ValueError, match="head='poem': must be one of"):
        build_reader(replace(headed.config, head="poem"))


# --- layout ---------------------------------------------------------------

def test_the_longest_text_is_cut(pieces):
    """Against transformers' `longest_first`, for all small lengths."""
    peer = transformers.BertTokenizer(
        vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
        | {f"w{i}": 5 + i for i in range(40)})
    for a in range(1, 8):
        for b in range(1, 8):
            first, second = [*range(10, 10 + a)], [*range(20, 20 + b)]
            for room in range(5, 18):
                ours = lay_out(pieces, [first, second], max_length=room)
                theirs = peer.prepare_for_model(
                    first, second, max_length=room,
                    truncation="longest_first") if hasattr(
                        peer, "prepare_for_model") else None
                kept = [i for i in ours.input_ids if i >= 10]
                assert len(ours.input_ids) == min(room, a + b + 3)
                assert ours.cut == (a + b + 3 > room)
                n, m = ours.lengths
                assert kept == first[:n] + second[:m]
                if ours.cut:  # of two texts the longer one has given more
                    assert abs(n - m) <= 1 or min(n, m) in (a, b)
                if theirs is not None:
                    assert kept == [i for i in theirs["input_ids"] if i >= 10]


def test_templates_of_tokenizers(pieces, bpe):
    assert text_template(pieces, 1) == (("[CLS]", 0), (0, 0), ("[SEP]", 0))
    assert text_template(pieces, 2) == pieces.pair_template
    end = (END_OF_TEXT, 0)
    assert text_template(bpe, 1) == (end, (0, 0), end)
    assert text_template(bpe, 2) == (end, (0, 0), end, (1, 1), end)
    bare = ByteBPE.train(["some text"], vocab_size=260, special_tokens=())
    assert text_template(bare, 2) == ((0, 0), (1, 1))
    with pytest.raises(ValueError, match="leaves room for 1 ids of text"):
        lay_out(bpe, [[5] * 4, [6] * 9], max_length=4, whole=(0,))
    assert isinstance(lay_out(bpe, [[5]], max_length=4), Laid)


@pytest.mark.parametrize("which", ["pieces", "bpe"])
def test_words_and_spans_find_their_tokens(which, request, encoder, decoder):
    if which == "pieces":
        model, tokenizer = encoder, request.getfixturevalue(which)
    else:
        model, tokenizer = decoder
    task = world_task("new names", n_train=20)
    rows = task.rows("train")
    headed = add_head(model, task)
    encoded = encode_rows(headed, tokenizer, task, rows)
    for n, (row, place) in enumerate(zip(rows, encoded.places, strict=True)):
        ids = encoded.batch["input_ids"][n].tolist()
        labels = encoded.batch["labels"][n]
        assert labels[place].tolist() == [*row.label]
        assert (labels != IGNORE_INDEX).sum() == len(row.words)
        for i, word in zip(place, row.words, strict=True):
            token = tokenizer.decode([ids[i]]).strip().removeprefix("##")
            assert token == "[UNK]" or word.startswith(token)
    task = world_task("answers", n_train=20)
    rows = task.rows("train")
    headed = add_head(model, task)
    encoded = encode_rows(headed, tokenizer, task, rows)
    form = finetuning.FORMS["span"]
    for n, row in enumerate(rows):
        logits = torch.zeros(1, encoded.batch["input_ids"].shape[1], 2)
        first, last = encoded.batch["labels"][n].tolist()
        if first == IGNORE_INDEX:
            continue
        logits[0, first, 0] = logits[0, last, 1] = 1
        logits[0, last + 1:, 0] = 5  # a better beginning behind the end
        logits[0, last + 1:, 1] = -9
        assert form.read(logits, encoded.places[n]) == form.truth(row)


# --- training -------------------------------------------------------------

def test_fine_tuning_learns_every_form(encoder, pieces):
    config = replace(FINETUNING, learning_rate=5e-3, steps=250)
    for name, least in (("names", 0.5), ("CoLA", 0.53), ("answers", 0.08)):
        task = world_task(name)
        tuned = finetune(encoder, pieces, task, config=config)
        assert isinstance(tuned, FineTuned)
        assert [*tuned.scores] == ["dev", "test"]
        assert [*tuned.scores["test"]] == [*task.metrics]
        assert tuned.scores["test"][task.metrics[0]] > least, name
        assert tuned.scores["test"] == evaluate_task(tuned.model, pieces, task)
        assert not tuned.model.training
        assert all(math.isfinite(loss) for loss in tuned.history.loss)


def test_fine_tuning_leaves_the_model_and_repeats(encoder, pieces):
    before = copy.deepcopy(encoder.state_dict())
    a, b = (finetune(encoder, pieces, world_task("RTE"), config=SHORT)
            for _ in range(2))
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])
    for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(x, y)
    other = finetune(encoder, pieces, world_task("RTE"),
                     config=replace(SHORT, seed=1))
    assert other.history.loss != a.history.loss


def test_the_best_weights_are_kept(encoder, pieces, monkeypatch):
    """Scores at the looks are dictated; the weights of the best remain."""
    task = world_task("RTE", n_train=64)
    dictated, seen = iter([0.5, 0.9, 0.1, 0.2, 0.3, 0.4]), []
    monkeypatch.setitem(METRICS, "accuracy", lambda p, t: next(dictated, 0.0))
    original = finetuning._Looks.__call__

    def watched(self, step, history):
        stop = original(self, step, history)
        seen.append((step, [p.clone() for p in self.model.parameters()]))
        return stop

    monkeypatch.setattr(finetuning._Looks, "__call__", watched)
    tuned = finetune(encoder, pieces, task, look_every=5, patience=2,
                     config=replace(SHORT, steps=60))
    assert len(tuned.history.loss) == 20  # looks after 5, 10, 15, 20
    best = dict(seen)[10]
    for kept, then in zip(tuned.model.parameters(), best, strict=True):
        assert torch.equal(kept, then)


def test_without_dev_the_last_weights_stay(encoder, pieces):
    rows = world_task("RTE", n_train=40).rows("train")
    task = LabeledTask("mine", "sequence", ("no", "yes"), {"train": rows})
    tuned = finetune(encoder, pieces, task, config=SHORT)
    assert tuned.scores == {}
    assert len(tuned.history.loss) == SHORT.steps


def test_batches_answer_as_one_by_one(encoder, pieces, decoder):
    """Rows of different lengths, together and alone: 1e-6."""
    for model, tokenizer in ((encoder, pieces), decoder):
        for name in ("QNLI", "names", "answers", "endings"):
            task = world_task(name, n_train=12)
            rows = task.rows("train")
            headed = add_head(model, task).double().eval()
            together = encode_rows(headed, tokenizer, task, rows).batch
            with torch.no_grad():
                many = headed(**finetuning._flat(together))
                many = many.chunk(len(rows))
                for row, of_many in zip(rows, many, strict=True):
                    alone = encode_rows(headed, tokenizer, task, [row]).batch
                    one = headed(**finetuning._flat(alone))
                    if name in ("names", "answers"):
                        of_many = of_many[:, :one.shape[1]]
                    torch.testing.assert_close(one, of_many, atol=1e-6,
                                               rtol=0)


def test_the_best_rate_is_chosen_on_dev(encoder, pieces):
    task = world_task("names", n_train=200)
    options = dict(config=replace(SHORT, steps=60), look_every=20)
    chosen = finetune_best(encoder, pieces, task, rates=(1e-6, 5e-3),
                           **options)
    rated = [finetune(encoder, pieces, task, look_every=20, config=replace(
        options["config"], learning_rate=rate)) for rate in (1e-6, 5e-3)]
    on_dev = [each.scores["dev"]["tagged f1"] for each in rated]
    assert chosen.scores["dev"]["tagged f1"] == max(on_dev) > min(on_dev)


def test_lower_layers_are_slower(encoder, decoder):
    for model in (add_head(encoder, "RTE"), add_head(decoder[0], "RTE")):
        groups = layer_groups(model, decay=0.5, weight_decay=0.1)
        scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
        wanted = {"head": 1, "final_norm": 1, "layers.1": 0.5,
                  "layers.0": 0.25, "embeddings": 0.125}
        for name, p in model.named_parameters():
            part = next(part for part in wanted if name.startswith(part))
            assert scale[id(p)] == wanted[part], name
        assert len(scale) == len([*model.parameters()])
    with pytest.raises(ValueError, match="decay=0: must be above 0"):
        layer_groups(encoder, decay=0)


# --- metrics ---------------------------------------------------------------

def test_metrics_equal_the_libraries():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(2, 40))
        p, t = rng.integers(0, 2, (2, n))
        peers = {"accuracy": sklearn.metrics.accuracy_score,
                 "f1": lambda t, p: sklearn.metrics.f1_score(
                     t, p, zero_division=0),
                 "matthews": sklearn.metrics.matthews_corrcoef}
        for name, peer in peers.items():
            assert METRICS[name](p.tolist(), t.tolist()) == pytest.approx(
                peer(t, p), abs=1e-12)
        x, y = rng.integers(0, 6, (2, n)) + 0.5 * rng.integers(0, 2, (2, n))
        if len(set(x)) > 1 and len(set(y)) > 1:
            for name, peer in (("pearson", scipy.stats.pearsonr),
                               ("spearman", scipy.stats.spearmanr)):
                assert METRICS[name](x, y) == pytest.approx(
                    peer(x, y).statistic, abs=1e-12)
    assert METRICS["pearson"]([1, 1], [0, 1]) == 0


def test_metrics_of_tags_and_spans():
    true = [(1, 1, 0, 2), (0, 0)]
    assert METRICS["tagged f1"](true, true) == 1
    # a part of a run is none; of three found one is right, of two wanted
    assert METRICS["tagged f1"]([(1, 0, 0, 2), (1, 0)], true) == 2 / 5
    assert METRICS["tagged f1"]([(0,) * 4, (0, 0)], true) == 0
    rng = np.random.default_rng(1)
    p, t = rng.integers(0, 3, (2, 300))  # words by themselves: micro F1
    assert METRICS["tagged f1"]([(i,) for i in p], [(i,) for i in t]) == \
        pytest.approx(sklearn.metrics.f1_score(t, p, labels=[1, 2],
                                               average="micro"))
    assert METRICS["exact match"](["in  Peru", "x"], ["in Peru", "y"]) == 0.5
    assert METRICS["overlap f1"](["in Peru", ""], ["Peru", "x"]) == \
        pytest.approx((2 / 3 + 0) / 2)


def test_the_slides_averages():
    off = [name for name, (*scores, printed) in GLUE_TABLE.items()
           if abs(np.mean(scores) - printed) > 0.051]
    assert off == ["BiLSTM+ELMo+Attn"]
    assert round(np.mean(GLUE_TABLE[off[0]][:-1]), 2) == 70.94


# --- tasks of the world -----------------------------------------------------

@pytest.mark.parametrize("name", ["names", "new names", "answers", "endings"])
def test_tasks_of_the_world(name):
    a, b = world_task(name, n_train=50), world_task(name, n_train=50)
    assert a == b
    assert world_task(name, n_train=50, seed=1) != a
    assert [len(a.rows(s)) for s in ("train", "dev", "test")] == [
        50, 400, 1000]
    for split in a.splits:
        for row in a.rows(split)[:50]:
            if name == "answers":
                assert split_of(row.text) == split
            if name == "endings":
                assert split_of(row.text) == split


def test_new_names_are_new():
    task = world_task("new names", n_train=200)
    read = " ".join(documents(3000)).split()
    tagged = {word for row in task.rows("train")
              for word, label in zip(row.words, row.label, strict=True)
              if label}
    assert len(tagged) > 200 and not tagged & {*read}
    known = {word for split in ("train", "dev") for row in
             world_task("names").rows(split)
             for word, label in zip(row.words, row.label, strict=True)
             if label}
    tested = {word for row in world_task("names").rows("test")
              for word, label in zip(row.words, row.label, strict=True)
              if label}
    assert len(tested - known) > 30


# --- bad input ---------------------------------------------------------------

def test_bad_tasks_are_refused(encoder, pieces):
    with pytest.raises(ValueError, match="form='poem': must be one of"):
        LabeledTask("x", "poem", (), {})
    with pytest.raises(ValueError, match="metrics='taste': must be one of"):
        LabeledTask("x", "sequence", (), {}, ("taste",))
    with pytest.raises(ValueError, match="name='XNLI': must be one of"):
        world_task("XNLI")
    rows = [Example("a", "", 0), Example("b", "", 2)]
    task = LabeledTask("mine", "sequence", ("no", "yes"), {"train": rows,
                                                           "dev": []})
    with pytest.raises(ValueError, match="mine, train, row 1: label=2: must "
                                         "be in 0..1"):
        finetune(encoder, pieces, task, config=SHORT)
    for split in ("dev", "test"):
        with pytest.raises(ValueError, match=f"split='{split}': mine has no"):
            evaluate_task(encoder, pieces, task, split)
    wrong = [Tagged(("a", "b"), (0,)), Answered("q", "text", (3, 9)),
             Chosen("a", ("b", "c"), 2)]
    for form, row in zip(("token", "span", "choice"), wrong, strict=True):
        task = LabeledTask("mine", form, ("x",) if form == "token" else (),
                           {"train": [row]})
        with pytest.raises(ValueError, match="mine, train, row 0: label="):
            task.rows("train")
    uneven = [Chosen("a", ("b", "c"), 0), Chosen("a", ("b", "c", "d"), 0)]
    task = LabeledTask("mine", "choice", (), {"train": uneven})
    with pytest.raises(ValueError, match=r"options: rows have \[2, 3\]"):
        encode_rows(add_head(encoder, task), pieces, task, uneven)


def test_long_rows_are_cut_and_counted(encoder, pieces, decoder):
    rows = [Example("word " * 400, "short", 0), Example("short", "", 1)]
    task = LabeledTask("mine", "sequence", ("no", "yes"), {"train": rows})
    for model, tokenizer in ((encoder, pieces), decoder):
        headed = add_head(model, task)
        length = headed.config.max_length
        with pytest.warns(UserWarning, match="mine: 1 of 2 are longer than "
                                             f"max_length={length}"):
            encoded = encode_rows(headed, tokenizer, task, rows)
        assert encoded.n_cut == 1
        assert encoded.batch["input_ids"].shape[1] == length
    with pytest.warns(UserWarning, match="dialogues: 1 of 1 are longer"):
        tune_on_dialogues(*decoder, [[
            {"role": "user", "content": "word " * 400},
            {"role": "assistant", "content": "no"}]], config=replace(
                SHORT, steps=1, warmup_steps=0))
    tagged = [Tagged(("long",) * 90, (1,) * 90)]
    task = LabeledTask("mine", "token", ("x", "y"), {"train": tagged},
                       ("tagged f1",))
    with pytest.warns(UserWarning, match="1 of 1"):
        (answer,) = predict(add_head(encoder, task), pieces, task, tagged)
    assert len(answer) == 90 and set(answer[70:]) == {0}


# --- dialogues ---------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "Is it red?"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "Blue, I think."}]


def test_only_answers_have_labels(bpe):
    ids, labels = encode_dialogue(bpe, MESSAGES)
    assert bpe.decode(ids) == (
        f"{END_OF_TEXT}Question: Is it red?Answer: No.{END_OF_TEXT}"
        f"Question: What is it?Answer: Blue, I think.{END_OF_TEXT}")
    said = [i for i in labels if i != IGNORE_INDEX]
    assert bpe.decode(said) == (f" No.{END_OF_TEXT} Blue, I think."
                                f"{END_OF_TEXT}")
    assert all(label in (i, IGNORE_INDEX)
               for i, label in zip(ids, labels, strict=True))
    with pytest.raises(ValueError, match="role='system': must be one of"):
        encode_dialogue(bpe, [{"role": "system", "content": "Be brief."}])
    with pytest.raises(ValueError, match="messages: are none"):
        encode_dialogue(bpe, [])


def test_chatml_is_that_of_transformers(tmp_path):
    """Text and mask of answers, against a Jinja template of the library."""
    tokenizer = ByteBPE.train(documents(300), vocab_size=400, special_tokens=(
        "<|im_start|>", "<|im_end|>"))
    tokenizer.save(tmp_path)
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"))
    peer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + "
        "'<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
        "{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}")
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    theirs = peer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, labels = encode_dialogue(tokenizer, messages, template=CHATML)
    assert tokenizer.decode(ids) == peer.decode(theirs["input_ids"])
    if ids == theirs["input_ids"]:
        assert [int(label != IGNORE_INDEX) for label in labels] == \
            theirs["assistant_masks"]
    said = [i for i in labels if i != IGNORE_INDEX]
    assert tokenizer.decode(said) == "No.<|im_end|>Blue, I think.<|im_end|>"


def test_dialogues_are_learned(decoder):
    model, tokenizer = decoder
    dialogues = world_dialogues(4)
    assert dialogues == world_dialogues(4) != world_dialogues(4, seed=1)
    config = TrainingConfig(steps=150, learning_rate=3e-3, warmup_steps=15)
    before = copy.deepcopy(model.state_dict())
    tuned, history = tune_on_dialogues(model, tokenizer, dialogues,
                                       config=config, batch_size=4)
    assert answered(tuned, tokenizer, dialogues) == 1.0  # by heart
    assert answered(model, tokenizer, dialogues) < 1.0
    assert all(torch.equal(tensor, before[name])
               for name, tensor in model.state_dict().items())
    assert [*history.terms] == ["next token"]
    windows = TokenBatches(torch.arange(300), batch_size=2, length=16)
    _, history = tune_on_dialogues(model, tokenizer, dialogues, rehearse=(
        windows), config=SHORT, batch_size=4)
    assert [*history.terms] == ["told", "read"]
    # with a loss on everything, the questions are learned too
    everything, history = tune_on_dialogues(
        model, tokenizer, dialogues, config=SHORT, batch_size=4,
        answers_only=False)
    assert history.loss != tune_on_dialogues(
        model, tokenizer, dialogues, config=SHORT, batch_size=4)[1].loss


def test_labels_as_words(decoder):
    model, tokenizer = decoder
    assert label_words(world_task("STS-B", n_train=2)) == tuple("012345")
    with pytest.raises(ValueError, match="task: names has the form 'token'"):
        label_words(world_task("names", n_train=2))
    task = world_task("RTE", n_train=2)
    row = Example("Tom has a cup.", "Tom has it.", 1)
    assert as_dialogue(task, row) == [
        {"role": "user", "content": "Tom has a cup. Tom has it."},
        {"role": "assistant", "content": "yes"}]
    rows = world_task("RTE").rows("test")[:30]
    answers = answer_in_words(model, tokenizer, task, rows)
    for row, answer in zip(rows, answers, strict=True):  # one by one
        ids, labels = encode_dialogue(tokenizer, as_dialogue(task, row),
                                      template=WORLD_CHAT)
        n = next(i for i, label in enumerate(labels)
                 if label != IGNORE_INDEX)
        with torch.no_grad():
            logits = model(torch.tensor([ids[:n]]))[0, -1]
        words = [tokenizer.encode(" no")[0], tokenizer.encode(" yes")[0]]
        assert answer == logits[words].argmax().item()


# --- files of GLUE -----------------------------------------------------------

FILES = {
    "CoLA": "gj04\t1\t\tThe dog ran.\ngj04\t0\t*\tThe dog run the.\n",
    "SST-2": "sentence\tlabel\na fine film \t1\ndull . \t0\n",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
            '1\t1\t2\tHe said "no.\tHe said no.\n0\t3\t4\ta\tb\n',
    "STS-B": "index\tgenre\tsentence1\tsentence2\tscore\n"
             "0\tmain\tA man runs.\tA man ran.\t4.25\n",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
           "1\t2\t3\tWho?\tWho is it?\t1\n",
    "MNLI": "index\tsentence1\tsentence2\tgold_label\n"
            "0\ta\tb\tcontradiction\n1\tc\u2028d\te\tneutral\r\n",
    "QNLI": "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n",
    "RTE": "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n",
}
READ = {
    "CoLA": Example("The dog ran.", "", 1), "SST-2": Example(
        "a fine film ", "", 1),
    "MRPC": Example('He said "no.', "He said no.", 1),
    "STS-B": Example("A man runs.", "A man ran.", 4.25),
    "QQP": Example("Who?", "Who is it?", 1), "MNLI": Example("a", "b", 2),
    "QNLI": Example("Who?", "He.", 0), "RTE": Example("a", "b", 1),
}


@pytest.mark.parametrize("name", GLUE)
def test_glue_files(name, tmp_path, encoder, pieces):
    for file in ("train", GLUE[name].dev):
        (tmp_path / f"{file}.tsv").write_text(FILES[name], encoding="utf-8")
    task = read_glue(tmp_path, name)
    assert task.rows("train")[0] == READ[name]
    assert task.rows("dev") == task.rows("train")
    if name == "MNLI":
        assert task.rows("train")[1].first == "c\u2028d"
    tuned = finetune(encoder, pieces, task, config=replace(
        SHORT, steps=4), batch_size=2)
    assert [*tuned.scores["dev"]] == [*task.metrics]


@pytest.mark.parametrize("name", GLUE)
def test_glue_from_datasets(name):
    """The same rows as the library `datasets` has them."""
    spec, row = GLUE[name], READ[name]
    values = dict(zip(spec.fields, row[:2], strict=False)) | {
        "label": row.label, "idx": 0}
    split = datasets.Dataset.from_list([values])
    dev = "validation_matched" if name == "MNLI" else "validation"
    loaded = datasets.DatasetDict({"train": split, dev: split})
    task = read_glue(loaded, name)
    assert task.rows("train") == [row] == task.rows("dev")
    broken = datasets.DatasetDict({"train": datasets.Dataset.from_list(
        [values | {"label": 9}]), dev: split})
    with pytest.raises(ValueError, match=f"{name}, train, row 0: label=9"):
        read_glue(broken, name)


def test_broken_glue_files(tmp_path):
    good = FILES["RTE"]
    for text, message in (
            (good + "1\ta\tb\n", r"train.tsv, line 3: has 3 columns, must "
                                 "have 4"),
            (good + "1\ta\tb\tmaybe\n", r"train.tsv, line 3: label='maybe': "
                                        "must be one of entailment"),
            ("index\tsentence1\tlabel\n0\ta\tentailment\n",
             "line 2: has no column 'sentence2'")):
        (tmp_path / "train.tsv").write_text(text)
        (tmp_path / "dev.tsv").write_text(good)
        with pytest.raises(ValueError, match=message):
            read_glue(tmp_path, "RTE")
    (tmp_path / "train.tsv").write_text(FILES["STS-B"] + "1\tm\ta\tb\t7\n")
    (tmp_path / "dev.tsv").write_text(FILES["STS-B"])
    with pytest.raises(ValueError, match="line 3: label='7': must be a "
                                         "number from 0 to 5"):
        read_glue(tmp_path, "STS-B")
    (tmp_path / "train.tsv").write_text(FILES["STS-B"])
    (tmp_path / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="dev.tsv"):
        read_glue(tmp_path, "STS-B")
    with pytest.raises(ValueError, match="name='WNLI': must be one of CoLA"):
        read_glue(tmp_path, "WNLI")
