"""Templates, scores of options, calibration, few shots, healing."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import math
from dataclasses import replace

import pytest
import torch
import transformers
from parity import drawn, small_encoder, small_pieces

from lmcourse.checkpoints import load_model
from lmcourse.finetuning import FINETUNING
from lmcourse.models.bert import BERT as RECIPE
from lmcourse.models.bert import prepare_bert
from lmcourse.prompting import (
    NORMALIZATIONS,
    PROMPTS,
    SLIDE_TEMPLATES,
    AskedOption,
    Leaderboard,
    Template,
    classify,
    encode_option,
    few_shot,
    gap_scores,
    label_scores,
    next_tokens,
    option_scores,
    score_options,
    score_prompts,
    tune_template,
)
from lmcourse.tasks import examples
from lmcourse.tokenizers import ByteBPE
from lmcourse.tokenizers.base import END_OF_TEXT
from lmcourse.world import documents
from lmcourse.zoo.base import Preset, prepare_decoder

PROMPT = "The music was not boring. The play was"
OPTIONS = [" good", " bad", " a bit too long", " Zebra!"]


@pytest.fixture(scope="module")
def decoder():
    ready = prepare_decoder(Preset(n_documents=1500, vocab_size=500,
                                   d_model=32, n_heads=2, length=64,
                                   steps=40, batch_size=8))
    ready.run()
    return ready.model.double().eval(), ready.tokenizer


@pytest.fixture(scope="module")
def pieces():
    return small_pieces()


@pytest.fixture(scope="module")
def encoder(pieces):
    return small_encoder(pieces, std=0.2).double().eval()


@torch.no_grad()
def directly(model, prompt_ids, option_ids):
    """The sum over an option's ids, each from a pass over all before it."""
    total = 0.0
    for i in range(len(option_ids)):
        ids = torch.tensor([prompt_ids + option_ids[:i]])
        p = model(ids)[0, -1].softmax(dim=-1)[option_ids[i]]
        total += math.log(p.item())
    return total


def test_scores_are_sums_of_log_probabilities(decoder):
    model, tokenizer = decoder
    scores = score_options(model, tokenizer, PROMPT, OPTIONS)
    assert [*scores] == OPTIONS
    for option, score in scores.items():
        wanted = directly(model, tokenizer.encode(PROMPT),
                          tokenizer.encode(option))
        assert score == pytest.approx(wanted, abs=1e-5)


def test_normalizations_of_the_harness(decoder):
    """Those of lm-evaluation-harness: acc, acc_norm; and per token, byte."""
    model, tokenizer = decoder
    options = [" good", " é à ü", " a bit too long"]
    sums = score_options(model, tokenizer, PROMPT, options)
    by_hand = {"sum": lambda o: 1, "tokens": lambda o: len(
        tokenizer.encode(o)), "characters": lambda o: len(o[1:]),
        "bytes": lambda o: len(o[1:].encode("utf-8"))}
    assert by_hand.keys() == NORMALIZATIONS.keys()
    for name, length in by_hand.items():
        found = score_options(model, tokenizer, PROMPT, options,
                              normalize=name)
        for option in options:
            assert found[option] == pytest.approx(
                sums[option] / length(option), abs=1e-6)
    assert len({len(o) for o in (" é à ü".encode(), " é à ü")}) == 2


def test_batches_score_as_one_by_one(decoder, encoder, pieces):
    model, tokenizer = decoder
    prompts = ["The play was", PROMPT, "I", "On Sunday, Tom went to the zoo. "
               "He saw a zebra. The zebra was"]
    together = score_prompts(model, tokenizer, prompts, OPTIONS)
    for prompt, row in zip(prompts, together, strict=True):
        one = score_prompts(model, tokenizer, [prompt], OPTIONS)[0]
        torch.testing.assert_close(one, row, atol=1e-6, rtol=0)
    in_parts = score_prompts(model, tokenizer, prompts, OPTIONS,
                             batch_size=3)
    torch.testing.assert_close(in_parts, together, atol=1e-6, rtol=0)
    prompts = [f"{prompt} {{mask}}." for prompt in prompts]
    together = score_prompts(encoder, pieces, prompts, ["good", "bad show"])
    for prompt, row in zip(prompts, together, strict=True):
        one = score_prompts(encoder, pieces, [prompt], ["good", "bad show"])
        torch.testing.assert_close(one[0], row, atol=1e-6, rtol=0)


def test_the_prompt_is_read_once(decoder, monkeypatch):
    """Tokens that go through the layers, counted."""
    model, tokenizer = decoder
    read, original = [], type(model).hidden_states

    def counted(self, input_ids=None, **more):
        read.append(input_ids.numel())
        return original(self, input_ids, **more)

    monkeypatch.setattr(type(model), "hidden_states", counted)
    score_options(model, tokenizer, PROMPT, OPTIONS)
    longest = max(len(tokenizer.encode(option)) for option in OPTIONS)
    assert read == [len(tokenizer.encode(PROMPT)),
                    len(OPTIONS) * (longest - 1)]


def test_text_behind_the_gap_counts(decoder):
    model, tokenizer = decoder
    prompt = "It was{mask}. The play was over."
    scores = score_options(model, tokenizer, prompt, [" good", " bad"])
    for option, score in scores.items():
        whole = tokenizer.encode(f"It was{option}. The play was over.")
        start = tokenizer.encode("It was")
        assert whole[:len(start)] == start
        assert score == pytest.approx(
            directly(model, start, whole[len(start):]), abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_published_models_score_alike(kind, tmp_path):
    """Any model that `load_model` opens, against transformers' logits."""
    tokenizer = ByteBPE.train(documents(300), vocab_size=400)
    config = transformers.GPT2Config(
        vocab_size=400, n_embd=24, n_layer=2, n_head=4, n_positions=64) \
        if kind == "gpt2" else transformers.LlamaConfig(
        vocab_size=400, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=37,
        max_position_embeddings=64)
    theirs = drawn(config)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    scores = score_options(ours, tokenizer, PROMPT, OPTIONS)
    start = tokenizer.encode(PROMPT)
    for option, score in scores.items():
        ids = start + tokenizer.encode(option)
        with torch.no_grad():
            log_p = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = sum(log_p[i - 1, ids[i]].item()
                     for i in range(len(start), len(ids)))
        assert score == pytest.approx(wanted, abs=1e-4)


# --- where a prompt ends --------------------------------------------------

def test_healing_takes_the_prompts_last_token_back(decoder):
    _, tokenizer = decoder
    whole = tokenizer.encode("The play was good")
    plain = encode_option(tokenizer, "The play was", " good")
    assert plain == AskedOption(whole[:-1], whole[-1:])
    healed = encode_option(tokenizer, "The play was ", "good")
    assert healed == plain
    glued = encode_option(tokenizer, "The play was ", "good", heal=False)
    assert glued == AskedOption(tokenizer.encode("The play was "),
                          tokenizer.encode("good"))
    assert glued.prompt + glued.option != whole
    inside = encode_option(tokenizer, "The play was go", "od")
    assert inside.prompt + inside.option == whole
    end = tokenizer.special_tokens[END_OF_TEXT]
    assert encode_option(tokenizer, "", "good").prompt == [end]
    bare = ByteBPE.train(["some text"], vocab_size=260, special_tokens=())
    with pytest.raises(ValueError, match="prompt='': must have a token"):
        encode_option(bare, "", "text")
    assert encode_option(tokenizer, "Just{mask}! || A", " b") == \
        encode_option(tokenizer, "Just{mask}! A", " b")


def test_options_that_heal_to_other_lengths(decoder):
    """Two options, of which one shares the prompt's last token."""
    model, tokenizer = decoder
    ids = tokenizer.encode(PROMPT)
    asked = [AskedOption(ids, [33]), AskedOption(ids[:-1], [300, 44, 45])]
    found = option_scores(model, [asked])[0]
    for each, score in zip(asked, found.tolist(), strict=True):
        assert score == pytest.approx(directly(model, *each), abs=1e-5)


def test_next_tokens(decoder):
    model, tokenizer = decoder
    with torch.no_grad():
        p = model(torch.tensor([tokenizer.encode(PROMPT)]))[0, -1].softmax(-1)
    best = next_tokens(model, tokenizer, PROMPT, k=3)
    assert [x for _, x in best] == pytest.approx(p.topk(3).values.tolist(),
                                                 abs=1e-5)
    assert best[0][0] == tokenizer.decode([p.argmax().item()])
    healed = next_tokens(model, tokenizer, PROMPT + " ", k=400, heal=True)
    assert all(word.startswith(" ") for word, p in healed if p > 0)
    assert sum(p for _, p in healed) == pytest.approx(1, abs=1e-4)
    p = p.where(torch.tensor([tokenizer.decode([i]).startswith(" ")
                              for i in range(len(p))]), 0)
    assert healed[0][1] == pytest.approx((p.max() / p.sum()).item(), abs=1e-4)


# --- masked models ----------------------------------------------------------

def test_gaps_by_hand(encoder, pieces):
    names = pieces.special_tokens
    for prompt, pair in (("It was {mask}. The play.", None),
                         ("Just {mask}! || The play.", ("Just", "The play."))):
        for option in ("good", "bad show"):
            ids = pieces.encode(option)
            text = prompt.replace("{mask}", " ".join(["[MASK]"] * len(ids)))
            if pair:
                first, _, second = text.partition("||")
                input_ids, kinds = pieces.encode_pair(
                    first.strip(), second.strip(), allowed_special=(
                        "[MASK]",))
                assert 1 in kinds
            else:
                input_ids = pieces.encode(text, add_special_tokens=True,
                                          allowed_special=("[MASK]",))
                kinds = [0] * len(input_ids)
            with torch.no_grad():
                log_p = encoder(torch.tensor([input_ids]), token_type_ids=(
                    torch.tensor([kinds])))[0].log_softmax(-1)
            gaps = [i for i, x in enumerate(input_ids)
                    if x == names["[MASK]"]]
            wanted = sum(log_p[i, j].item() for i, j in zip(gaps, ids,
                                                            strict=True))
            found = gap_scores(encoder, pieces, [prompt], [option])
            assert found.item() == pytest.approx(wanted, abs=1e-5)


def test_templates_are_learned(pieces):
    """A rule of one word, from 60 rows, in the gap of each pattern."""
    ready = prepare_bert(replace(
        RECIPE.presets["small"], n_documents=1500, vocab_size=500,
        d_model=32, steps=40))
    ready.run()
    model, tokenizer = ready.model, ready.tokenizer
    rows = [(f"The {thing} was {look}.", "", int(look == "new"))
            for thing in ("cup", "hat", "coat", "belt", "pot", "mug")
            for look in ("new", "old")] * 3
    for pattern in (SLIDE_TEMPLATES["P1"], SLIDE_TEMPLATES["P4"]):
        ask = Template(pattern)
        tuned = tune_template(
            model, tokenizer, ask, ("bad", "good"), rows,
            config=replace(FINETUNING, steps=120, learning_rate=5e-3))
        said = classify(tuned, tokenizer, ask, ("bad", "good"),
                        [row[0] for row in rows])
        assert said == [row[2] for row in rows]
    assert not all(torch.equal(a, b) for a, b in zip(
        tuned.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match="word='bad show': has 2 tokens"):
        tune_template(model, tokenizer, ask, ("bad show", "good"), rows)


# --- templates, labels, calibration ----------------------------------------

def test_templates():
    ask = Template("{text} or {second}? {mask}")
    assert ask.fill("a", "b") == "a or b? {mask}"
    assert Template("{mask}").fill("x") == "{mask}"
    assert Template("{text} {mask}").fill("{second} {x}") == (
        "{second} {x} {mask}")  # a text is not a pattern
    for pattern, n in (("{text}", 0), ("{mask} {mask}", 2)):
        with pytest.raises(ValueError, match=f"has {n} times"):
            Template(pattern)
    with pytest.raises(ValueError, match="{review} must be {text}"):
        Template("{review} {mask}")
    with pytest.raises(ValueError, match="must not have {mask}"):
        ask.fill("a {mask}")
    assert len(set(PROMPTS)) == 24
    for pattern in (*PROMPTS, *SLIDE_TEMPLATES.values()):
        Template(pattern)


def test_few_shot():
    shots = [("It rained.", "", 0), ("The sun shone.", "", 1)]
    ask = few_shot(Template("{text} It was {mask}."), shots, ("bad", "good"))
    assert ask.fill("Snow fell.") == (
        "It rained. It was bad. The sun shone. It was good. Snow fell. It "
        "was {mask}.")
    more = few_shot(ask, [("Hail.", "", 0)], ("bad", "good"), separator="\n")
    assert more.fill("x").startswith(ask.before + "Hail. It was bad.\n")


def test_labels_and_calibration(decoder):
    model, tokenizer = decoder
    ask, words = Template("{text} The play was {mask}."), ("bad", "good")
    texts = ["The music was dull.", "The cast was lovely."]
    found = label_scores(model, tokenizer, ask, words, texts)
    assert found.exp().sum(dim=1).tolist() == pytest.approx([1, 1])
    for text, row in zip(texts, found, strict=True):
        sums = torch.tensor([*score_options(
            model, tokenizer, f"{text} The play was{{mask}}.",
            [" bad", " good"]).values()])
        torch.testing.assert_close(row, sums.log_softmax(dim=0), atol=1e-5,
                                   rtol=0)
    free = label_scores(model, tokenizer, ask, words, ["", "N/A"]).exp()
    wanted = found.exp() / free.mean(dim=0)
    wanted = wanted / wanted.sum(dim=1, keepdim=True)
    calibrated = label_scores(model, tokenizer, ask, words, texts,
                              content_free=("", "N/A"))
    torch.testing.assert_close(calibrated.exp(), wanted, atol=1e-5, rtol=0)
    assert classify(model, tokenizer, ask, words, texts) == \
        found.argmax(dim=1).tolist()
    pairs = label_scores(model, tokenizer, Template("{text} {second} {mask}"),
                         words, [("a", "b"), ("c", "d")])
    assert pairs.shape == (2, 2)


def test_a_leaderboard():
    board = Leaderboard([1, 0, 1, 1])
    board.add("all", [1, 1, 1, 1])
    board.add("right", [1, 0, 1, 1])
    assert board.entries == {"all": 0.75, "right": 1.0}
    assert [line.split()[-1] for line in str(board).split("\n")] == [
        "right", "all"]
    assert "0.75 +- 0.22  all" in str(board)
    board.add("all", [0, 0, 0, 0])
    assert board.entries["all"] == 0.25
    with pytest.raises(ValueError, match="predicted: are 3, must be 4"):
        board.add("short", [1, 1, 1])


# --- bad input --------------------------------------------------------------

@pytest.mark.parametrize("options, message", [
    ([" good", ""], "option='': is empty"),
    ([" good", "  "], "is empty"),
    ([" good", " bad", " good"], "option=' good': has the same ids as"),
    ([" good"], "must be at least two"),
])
def test_bad_options(decoder, options, message):
    with pytest.raises(ValueError, match=message):
        score_options(*decoder, PROMPT, options)


def test_options_that_are_the_same_in_ids(encoder, pieces):
    assert pieces.encode("good") == pieces.encode(" good")
    with pytest.raises(ValueError, match="' good': has the same ids as 'goo"):
        score_options(encoder, pieces, "It was {mask}.", ["good", " good"])


def test_bad_prompts(decoder, encoder, pieces):
    with pytest.raises(ValueError, match="prompts: are none"):
        score_prompts(*decoder, [], [" good", " bad"])
    with pytest.raises(ValueError, match="has 2 times {mask}"):
        score_options(*decoder, "{mask} {mask}", [" good", " bad"])
    with pytest.raises(ValueError, match="normalize='mean': must be one of"):
        score_options(*decoder, PROMPT, [" good", " bad"], normalize="mean")
    with pytest.raises(ValueError, match="has no {mask}, which a masked"):
        score_options(encoder, pieces, "It was", ["good", "bad"])
    with pytest.raises(ValueError, match="must say {mask}, and not"):
        score_options(encoder, pieces, "{mask} [MASK]", ["good", "bad"])


def test_long_prompts_lose_their_beginning(decoder):
    model, tokenizer = decoder
    long = "Tom saw a zebra. " * 60 + PROMPT
    with pytest.warns(UserWarning, match="prompts: 1 of 2 are longer than "
                                         "max_length=128, and cut at the "):
        scores = score_prompts(model, tokenizer, [PROMPT, long], OPTIONS)
    longest = max(len(tokenizer.encode(option)) for option in OPTIONS)
    kept = tokenizer.encode(long)[longest - 128:]
    for option, score in zip(OPTIONS, scores[1].tolist(), strict=True):
        assert score == pytest.approx(
            directly(model, kept, tokenizer.encode(option)), abs=1e-5)


def test_examples_stay_the_same(decoder):
    """The mode of a model is left as it was."""
    model, tokenizer = decoder
    model.train()
    score_options(model, tokenizer, PROMPT, OPTIONS)
    assert model.training
    model.eval()
    assert examples("SST-2", "test", 1)[0].first
