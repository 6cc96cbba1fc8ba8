"""The eight tasks: true labels, fair splits, and noise where it is asked."""

import re
from collections import Counter

import pytest

from lmcourse import tasks
from lmcourse.tasks import TASKS, Example, examples, split_of

SLIDE = {"MNLI": 392, "QQP": 363, "QNLI": 108, "SST-2": 67, "CoLA": 8.5,
         "STS-B": 5.7, "MRPC": 3.5, "RTE": 2.5}  # thousands of examples


def owner_of(text):
    """Who has what, in which color, as told by one sentence; or None."""
    for form in (r"(\w+) has a (\w+) (\w+)\.",
                 r"(\w+) got a (\w+) (\w+) from \w+\.",
                 r"\w+ gave (\w+) a (\w+) (\w+)\."):
        if match := re.fullmatch(form, text):
            return match.groups()
    if match := re.fullmatch(r"The (\w+) of (\w+) is (\w+)\.", text):
        item, owner, color = match.groups()
        return owner, color, item
    return None


def test_sizes_keep_the_proportions_of_the_slide():
    assert TASKS.keys() == SLIDE.keys()
    for name, thousands in SLIDE.items():
        assert TASKS[name].n_train == 50 * thousands


@pytest.mark.parametrize("name", TASKS)
def test_no_text_is_in_two_splits(name):
    seen = {split: {text for example in examples(name, split, 2000)
                    for text in example[:2] if text}
            for split in tasks.SPLITS}
    assert not seen["train"] & seen["dev"]
    assert not seen["train"] & seen["test"]
    assert not seen["dev"] & seen["test"]
    assert all(split_of(text) == split
               for split, texts in seen.items() for text in texts)


@pytest.mark.parametrize("name", [n for n in TASKS if TASKS[n].labels])
def test_labels_are_balanced(name):
    """Five standard errors of 2,000 examples."""
    counts = Counter(e.label for e in examples(name, "train", 2000))
    share = 1 / len(TASKS[name].labels)
    assert set(counts) == set(range(len(TASKS[name].labels)))
    for n in counts.values():
        assert abs(n / 2000 - share) < 5 * (share / 2000) ** 0.5


def test_examples_repeat_and_grow():
    assert examples("RTE", "dev", 30) == examples("RTE", "dev", 50)[:30]
    assert examples("RTE", "dev", 30) != examples("RTE", "dev", 30, seed=1)
    assert len(examples("RTE", "train")) == TASKS["RTE"].n_train
    assert len(examples("RTE", "test")) == 400
    assert isinstance(examples("RTE", "test", 1)[0], Example)


def test_mnli_by_reading():
    """An answer from the two texts alone, by the rules of the world."""
    for premise, hypothesis, label in examples("MNLI", "test", 1000):
        told = [owner_of(s) for s in re.split(r"(?<=\.) ", premise)]
        negated = re.fullmatch(
            r"(\w+) does not have a (\w+) (\w+)\.", hypothesis)
        claim = negated.groups() if negated else owner_of(hypothesis)
        if claim in told:
            expected = "contradiction" if negated else "entailment"
        elif claim and any((o, i) == (claim[0], claim[2])
                           for o, _, i in told):
            expected = "entailment" if negated else "contradiction"
        else:
            expected = "neutral"
        assert TASKS["MNLI"].labels[label] == expected, (premise, hypothesis)


def test_rte_by_reading():
    for first, second, label in examples("RTE", "test", 1000):
        who, _, thing = second.rstrip(".").split(" ")
        listed = re.split(r", and |, | to \w+ ", first.rstrip("."))
        assert label == (first.startswith(f"{who} ") and thing in listed)


def test_mrpc_by_reading():
    def gift(text):
        if match := re.fullmatch(r"(\w+) gave (\w+) a (.*)\.", text):
            return match.groups()
        if match := re.fullmatch(r"(\w+) got a (.*) from (\w+)\.", text):
            return match[3], match[1], match[2]
        return None

    for first, second, label in examples("MRPC", "test", 1000):
        assert label == (gift(first) == gift(second))


def test_qnli_by_reading():
    for question, sentence, label in examples("QNLI", "test", 1000):
        item, owner = re.search(r"the (\w+) of (\w+)", question).groups()
        told = owner_of(sentence)
        assert label == (told is not None and (told[0], told[2])
                         == (owner, item))


def test_qqp_by_reading():
    def asked(text):
        if sum_ := re.search(r"(?:is|much is) ([\d +]+)\?", text):
            return sorted(sum_[1].split(" + "))
        if color := re.search(r"the (\w+) of (\w+)( is| have|\?)", text):
            return color[1], color[2]
        place = re.search(r"did (\w+) \w+ the (\w+)\?", text)
        return place and place.groups()

    for first, second, label in examples("QQP", "test", 1000):
        assert label == (asked(first) == asked(second)), (first, second)


def test_sst2_by_reading():
    good = {word for word in "good great wonderful excellent lovely "
            "brilliant".split()}
    for text, _, label in examples("SST-2", "test", 1000):
        last = text.rstrip(".").split(", but ")[-1].split(" ")
        assert label == ((last[-1] in good) != ("not" in last)), text


def test_some_words_of_sst2_are_not_learned_from():
    train = " ".join(e.first for e in examples("SST-2", "train", 1000))
    test = " ".join(e.first for e in examples("SST-2", "test", 1000))
    for word in TASKS["SST-2"].unseen:
        assert word not in train
        assert word in test


def test_stsb_by_counting():
    for first, second, label in examples("STS-B", "test", 500):
        assert 0 <= label <= 5
        if label == 5:
            assert sorted(re.findall(r"\w+", first.lower())) == sorted(
                re.findall(r"\w+", second.lower()))


def test_noise_changes_so_many_labels_and_no_text():
    clean = examples("MNLI", "train", 4000)
    noisy = examples("MNLI", "train", 4000, noise=0.2)
    assert [e[:2] for e in clean] == [e[:2] for e in noisy]
    wrong = [(a.label, b.label) for a, b in zip(clean, noisy, strict=True)
             if a.label != b.label]
    assert len(wrong) / 4000 == pytest.approx(0.2, abs=0.03)
    assert len(set(wrong)) == 6  # each label becomes each other one
    scores = examples("STS-B", "train", 10, noise=1.0)
    assert [e.label for e in scores] == [
        5 - e.label for e in examples("STS-B", "train", 10)]


@pytest.mark.parametrize("call, message", [
    (lambda: examples("MNIST", "dev"), "task='MNIST': must be one of"),
    (lambda: examples("RTE", "exam"), "split='exam': must be one of"),
    (lambda: examples("RTE", "dev", -1), "n=-1: must be an integer"),
    (lambda: examples("RTE", "dev", 1.5), "n=1.5: must be an integer"),
    (lambda: examples("RTE", "dev", noise=-0.1), "noise=-0.1: must be"),
    (lambda: examples("RTE", "dev", seed=-1), "seed=-1: must be"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
