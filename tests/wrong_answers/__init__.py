"""Plausible wrong answers to the exercises, a module a chapter.

`WRONG[exercise]` lists pairs: a function that a reader might write, and words of the message that
the check must give for it.
"""
