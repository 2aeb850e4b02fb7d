"""Exercises that cannot be fooled: solutions pass, stubs fail, wrong answers fail, each its way."""

from __future__ import annotations

import importlib
import re

import pytest
from conftest import NOTEBOOKS, code_cells, each_notebook, read

import vitmini as vm
from vitmini.checks import WrongAnswer

FOUND = [
    (path, cell.metadata["exercise"])
    for path in NOTEBOOKS
    for cell in code_cells(read(path))
    if "solution" in cell.metadata.get("tags", [])
]
each_exercise = pytest.mark.parametrize(("path", "name"), FOUND, ids=[name for _, name in FOUND])


def wrong_answers(name):
    chapter, exercise = name.split(".")
    return importlib.import_module(f"wrong_answers.{chapter}").WRONG[exercise]


def check_of(name):
    chapter, exercise = name.split(".")
    return getattr(getattr(vm.checks, chapter), exercise)


def cell_of(path, name, tag):
    for cell in code_cells(read(path)):
        if cell.metadata.get("exercise") == name and tag in cell.metadata["tags"]:
            return cell.source
    raise AssertionError(f"{path.stem} has no {tag} for {name}")


def world(path):
    """The names that a reader has when the exercises begin: imports and library definitions."""
    names = {"vm": vm}
    for cell in code_cells(read(path))[1:]:  # the first one is the set-up
        for line in re.findall(r"^(?:import|from) [^(\n]*(?:\([^)]*\))?", cell.source, re.M):
            exec(line, names)
        if cell.source.startswith("# vitmini/"):
            exec(cell.source, names)
    return names


@each_exercise
def test_the_solution_of_the_chapter_passes(path, name, capsys):
    exec(cell_of(path, name, "solution"), world(path))
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and re.match(r"Exercise \d+\.\d solved: ", printed)


@each_exercise
def test_the_untouched_stub_fails_and_says_where_to_write(path, name):
    source = cell_of(path, name, "exercise")
    exec(source, world(path))  # with its check commented out, "run all" goes through
    call = source.splitlines()[-1]
    assert call == f"# vm.checks.{name}({name.split('.')[1]})"
    with pytest.raises(WrongAnswer, match="not written yet"):
        exec(source.replace(call, call[2:]), world(path))


@each_exercise
def test_wrong_answers_fail_each_with_its_own_message(path, name):
    messages = []
    assert len(wrong_answers(name)) >= 2
    for function, words in wrong_answers(name):
        with pytest.raises(WrongAnswer) as raised:
            check_of(name)(function)
        assert words in str(raised.value), (function.__name__, str(raised.value))
        messages.append(words)
    assert len(set(messages)) >= 2


@each_exercise
def test_an_answer_of_another_kind_is_diagnosed_not_crashed_on(path, name):
    for function in (lambda *_: None, lambda *_: "text", lambda *_: 1 / 0, lambda *_: [1, 2]):
        with pytest.raises(WrongAnswer):
            check_of(name)(function)


@each_notebook
def test_a_chapter_has_three_exercises_each_with_rating_minutes_and_hint(path):
    text = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    sections = re.split(r"^### (?=Exercise)", text.split("\n## Quiz")[0], flags=re.M)[1:]
    checked = [name for p, name in FOUND if p == path]
    assert len(checked) >= 3 and len(sections) >= len(checked)
    for section in sections:
        assert re.search(r"^[★☆]{3} · \d+ minutes", section, re.M), section[:60]
    assert text.count("<summary>Hint</summary>") >= len(checked)


@each_notebook
def test_a_quiz_has_five_questions_with_explained_answers(path):
    quiz = "\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")
    quiz = quiz.split("## Quiz")[1].split("## Summary")[0]
    assert len(re.findall(r"^\*\*\d\.\*\* .*\(a\).*\(b\).*\(c\).*\(d\)", quiz, re.M)) == 5
    answers = re.findall(r"<details>.*?\*\*\([a-d]\)\*\* (.*?)</details>", quiz, re.S)
    assert len(answers) == 5 and all(len(answer.split()) >= 8 for answer in answers)
