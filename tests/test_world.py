"""The world: the same text everywhere, and nothing in it that is held out."""

import itertools
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmcourse import world
from lmcourse.world import HARDER, SKILLS, SLIDE, documents, probes

ROOT = Path(__file__).parents[1]
GOLDEN = "22f2743ba735c99b729ed05a2dafc66aeedeb4b297e0563523f01f3580f722ef"
DIGEST = """
import hashlib
from lmcourse.tasks import TASKS, examples
from lmcourse.world import HARDER, SKILLS, documents, probes
digest = hashlib.sha256("\\n".join(documents(2000, seed=5)).encode())
for task in TASKS:
    digest.update(repr([*map(tuple, examples(task, "dev", 50))]).encode())
for skill in SKILLS + HARDER:
    digest.update(repr([tuple(p) for p in probes(skill, 50)]).encode())
print(digest.hexdigest())
"""


def pythons():
    """This Python and the others that are installed here."""
    found = [sys.executable]
    for minor in (11, 12, 13, 14):
        found += map(str, Path.home().glob(
            f".pyenv/versions/3.{minor}.*/bin/python"))
        found += filter(None, [shutil.which(f"python3.{minor}")])
    return [p for p in dict.fromkeys(found) if subprocess.run(
        [p, "--version"], capture_output=True).returncode == 0]


@pytest.mark.parametrize("python", pythons())
def test_the_same_text_in_every_python(python):
    done = subprocess.run([python, "-c", DIGEST], capture_output=True,
                          text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == GOLDEN


def test_more_documents_begin_with_the_same_ones():
    assert list(documents(50)) == list(documents(80))[:50]


def test_seeds_differ():
    assert list(documents(5, seed=1)) != list(documents(5, seed=2))


def test_records_of_the_world():
    assert world.Country("Denmark", "Copenhagen", "Europe",
                         "Danish") in world.COUNTRIES
    assert world.PEOPLE[0] == world.Person("I", "my", "")
    assert world.Person("Anna", "her", "s") in world.OTHERS
    zoo = world.PLACES[0]
    assert zoo == world.Place("zoo", "see", "saw", zoo.many, zoo.one)
    assert zoo.one[zoo.many.index("lions")] == "lion"
    store = world.PLACES[3]
    assert store.one[store.many.index("scarves")] == "scarf"


def test_the_lecture_is_not_read():
    """The slide's sentences are in no document, and their forms are."""
    text = "\n".join(documents(60_000))
    for probe in SLIDE.values():
        assert probe.prompt + probe.right not in text
    for form in ("In my free time, I like to ", "I went to the zoo to see ",
                 "The capital of France is Paris.", " on the edge of my seat ",
                 'The word for "dog" in Spanish is perro.', "3 + 8 + "):
        assert form in text, form
    assert "Copenhagen is the capital of Denmark." in text
    assert 'In Spanish, "bonita" means pretty.' in text


def test_answers_are_true():
    text = "\n".join(documents(20_000))
    for sum_, total in re.findall(r"((?:\d+ \+ )+\d+) = (\d+)\.", text):
        assert sum(map(int, sum_.split(" + "))) == int(total)
    capitals = {c.name: c.capital for c in world.COUNTRIES}
    for name, capital in re.findall(r"capital of (\w+) is (\w+)\.", text):
        assert capitals[name] == capital


@pytest.mark.parametrize("skill", SKILLS + HARDER)
def test_probes_mirror_each_other(skill):
    pairs = probes(skill, 200)
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert (first.right, first.wrong) == (second.wrong, second.right)
        assert first.right != first.wrong


@pytest.mark.parametrize("skill", SKILLS + HARDER)
def test_endings_are_one_word_behind_a_space(skill):
    for probe in [*SLIDE.values(), *probes(skill, 100)]:
        assert re.fullmatch(r" \w+", probe.right)
        assert re.fullmatch(r" \w+", probe.wrong)
        assert not probe.prompt.endswith(" ")


@pytest.mark.parametrize("skill", [
    "grammar", "lexical", "sentiment", "arithmetic", *HARDER])
def test_held_out_prompts_are_in_no_document(skill):
    text = "\n".join(documents(30_000, seed=9))
    assert not [p for p in probes(skill, 300, seed=1)
                if p.prompt + p.right in text]


def test_held_out_does_not_mind_the_order():
    words = ("3", "8", "5")
    assert {world.held_out(*w) for w in itertools.permutations(words)} == {
        world.held_out(*words)}


def test_vocabulary_size():
    text = " ".join(documents(30_000))
    assert 500 < len(set(re.findall(r"\w+|[^\w\s]", text))) < 2000


@pytest.mark.parametrize("shares", [
    world.even_shares, world.pick_shares, world.rare_shares])
def test_shares_sum_to_one_and_never_rise(shares):
    for n in (1, 2, 7, 100):
        assert sum(shares(n)) == pytest.approx(1)
        assert list(shares(n)) == sorted(shares(n), reverse=True)


@pytest.mark.parametrize("name", ["even", "pick", "rare"])
def test_draws_match_their_shares(name):
    """Chi-square with 3 degrees of freedom; the seed is fixed."""
    chance, n = world.Chance(1), 40_000
    drawn = [getattr(chance, name)(range(4)) for _ in range(n)]
    expected = [n * share for share in getattr(world, f"{name}_shares")(4)]
    statistic = sum((drawn.count(i) - e) ** 2 / e
                    for i, e in enumerate(expected))
    assert statistic < 16.3  # exceeded by chance once in a thousand seeds


def test_rounds_stay_within_their_bounds():
    chance = world.Chance(2)
    counts = [len([*chance.rounds(2, 5)]) for _ in range(2000)]
    assert {*counts} == {2, 3, 4, 5}
    assert counts.count(2) / 2000 == pytest.approx(0.5, abs=0.05)


def test_stories_are_the_documents():
    for story, text in zip(world.stories(300, seed=3),
                           documents(300, seed=3), strict=True):
        assert str(story) == text
        assert " ".join(story.sentences) == story.body
        assert story.topic in world.TOPICS
        if story.end:
            assert story.end.removeprefix("Question: ").startswith(
                story.quiz.questions)
            assert story.end.endswith(f"Answer: {story.quiz.answer}.")


def test_distributions_by_counting():
    """Next words after beginnings, against a hundred thousand documents.

    Four standard errors are exceeded by chance once in 16,000 words; the
    seed is fixed.
    """
    texts = [*documents(100_000, seed=11)]
    for prefix in ("Anna went to", "Tom", "Leo is learning", "The"):
        words = world.words_of(prefix)
        n = len(words)
        split = [world.words_of(t)[:n + 1] for t in texts
                 if t.startswith(prefix)]
        after = [s[n] for s in split if s[:n] == words and len(s) > n]
        truth = world.next_word_distribution(prefix)
        assert sum(truth.values()) == pytest.approx(1)
        for word, p in truth.items():
            error = math.sqrt(p * (1 - p) / len(after))
            assert abs(after.count(word) / len(after) - p) < 4 * error + 1e-4


def test_prices_multiply_to_the_probability_of_the_text():
    """A document whose choices can be priced by hand."""
    text = "Anna went to England in summer. London is the capital of England."
    text += " People in England speak English."
    total = sum(price for _, price in world.word_prices(text))
    p = (1 / 13                              # the topic: 10, and 3 twice
         * world.pick_shares(24)[0]          # Anna
         * world.rare_shares(40)[0] / 4      # England, summer
         * 1 / len([0] * (2 if world.held_out("capital", "England") else 3))
         * 1 / 3 * 1 / 2                     # a fact; no more of them
         * 3 / 4)                            # no question
    assert total == pytest.approx(-math.log(p))


def test_every_document_has_a_finite_price():
    for text in documents(60, seed=12):
        prices = world.word_prices(text)
        assert [word for word, _ in prices] == [*world.words_of(text), None]
        assert all(0 <= price < 12 for _, price in prices)
    *_, last = world.word_distributions(text)
    assert last.keys() >= {None}


def test_text_of_no_document_has_no_price():
    with pytest.raises(ValueError, match="^text: no document goes on by"):
        world.word_prices("Anna went to Denmark in winter.")
    with pytest.raises(ValueError, match="^text: no document goes on by"):
        world.next_word_distribution("3 + 3 + 3 = 7")


@pytest.mark.parametrize("n", [0, 1, 7])
def test_a_fact_is_read_so_often(n):
    words = ("Denmark", "Copenhagen")
    before = [*documents(8000)]
    after = [*world.read_times(before, n, *words)]
    assert sum(any(w in text for w in words) for text in after) == n
    rest = [text for text in before if not any(w in text for w in words)]
    assert [t for t in after if not any(w in t for w in words)] == rest


@pytest.mark.parametrize("call, message", [
    (lambda: documents(-1), "n=-1: must be an integer, at least 0"),
    (lambda: documents(1.5), "n=1.5: must be an integer, at least 0"),
    (lambda: documents("3"), "n='3': must be an integer, at least 0"),
    (lambda: documents(1, seed=-1), "seed=-1: must be an integer"),
    (lambda: documents(1, seed=0.5), "seed=0.5: must be an integer"),
    (lambda: probes("juggling"), "skill='juggling': must be one of"),
    (lambda: probes("grammar", -2), "n=-2: must be an integer, at least 0"),
    (lambda: probes("grammar", 2.5), "n=2.5: must be an integer"),
    (lambda: [*world.read_times([""], 0)], "words: are none"),
    (lambda: [*world.read_times([""], -1, "a")], "n=-1: must be an integer"),
])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert len(str(error.value).splitlines()) == 1
