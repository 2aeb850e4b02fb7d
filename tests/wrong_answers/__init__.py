"""Plausible wrong answers to the exercises, a module a chapter.

`WRONG[exercise]` lists pairs: a function that a reader might write, and words of the message that
the check must give for it.
"""


def swapped(text: str, *pairs: tuple[str, str]) -> str:
    """The right answer with one slip: each (right, wrong) must occur."""
    for right, wrong in pairs:
        assert right in text, right
        text = text.replace(right, wrong)
    return text
