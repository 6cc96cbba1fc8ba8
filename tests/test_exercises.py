"""Each check of the book takes right answers and refuses plausible wrong ones.

The answers stand in `answers/NN.toml`; `exercises.py` says how they are run.
"""

import functools

import exercises
import matplotlib.pyplot as plt
import pytest

BOOK = [path for path in exercises.chapters() if exercises.checks(path)]
WITH_ANSWERS = [p for p in BOOK if exercises.exercises(p.stem)]
# chapters that have no answers yet: none, and it stays so
WAITING = set()
EXERCISES = [(path.stem, exercise.number) for path in WITH_ANSWERS
             for exercise in exercises.exercises(path.stem)]


@functools.cache
def outcomes(stem):
    """A chapter's cells are run once for all of its exercises."""
    plt.switch_backend("Agg")
    found = exercises.run(stem)
    plt.close("all")
    return found


@pytest.mark.parametrize("stem, number", EXERCISES)
def test_check(stem, number, monkeypatch):
    monkeypatch.chdir(exercises.ROOT / "nbs")  # as in a kernel
    for answer, right, error in outcomes(stem)[number]:
        said = f"{stem} {number}: {answer}: {error!r}"
        if right:
            assert error is None, f"a right answer is refused: {said}"
        else:
            assert error is not None, f"a wrong answer passes: {said}"
            assert type(error) is AssertionError, f"no refusal: {said}"
            assert str(error).strip(), f"the check does not say why: {said}"


@pytest.mark.parametrize("path", WITH_ANSWERS, ids=lambda p: p.stem)
def test_each_check_has_two_right_and_two_wrong_answers(path):
    found = {e.number: (len(e.right), len(e.wrong))
             for e in exercises.exercises(path.stem)}
    assert sorted(found) == sorted(exercises.checks(path))
    assert [n for n, sizes in found.items() if min(sizes) < 2] == []


def test_each_answers_file_belongs_to_a_chapter_and_most_have_one():
    numbers = {path.stem.split("_")[0] for path in BOOK}
    files = {path.stem for path in exercises.ANSWERS.glob("*")}
    assert files <= numbers
    assert numbers - files <= WAITING


CELLS = """
import math
factor = 2
===
def scaled(x):
    return factor * x
print(scaled(1))
===
factor = 3
===
lost = 1 / 0
===
numbers = [1]
numbers.append(2)
===
numbers[0] = 5
===
def check_1(answer):
    assert answer == scaled(len(numbers)), "another length"
===
def solution():
    return scaled(2) + 0 * len(lost)
===
factor, numbers = 4, []
"""


def test_a_slice_holds_what_the_check_needs_and_no_more():
    cells = [exercises.Code(source) for source in CELLS.split("===")]
    exercise = exercises.Exercise("1", right=["check_1(6)"])
    assert exercise.cells(cells) == [0, 1, 2, 4, 5, 6]


def test_a_slice_holds_what_an_answer_names():
    cells = [exercises.Code(source) for source in CELLS.split("===")]
    answer = "def own(x):\n    return math.pi * x\nown(solution())"
    exercise = exercises.Exercise("1", wrong=[answer], needs=["factor"])
    assert exercise.cells(cells) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_names_of_a_comprehension_are_its_own():
    code = exercises.Code("import os\nrows = [n for n in names]\nos.getcwd()")
    assert (code.binds, code.needs) == ({"os", "rows"}, {"names"})
