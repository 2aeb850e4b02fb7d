"""What a run shows while it goes on: a picture in a notebook, lines elsewhere.

Chapter: 7.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitmini.recipes import TrainConfig

_TEXT = "learning curve"  # of the stored output: tests compare it, so it tells no time


def describe_epoch(record: Mapping[str, float]) -> str:
    """Say an epoch in words: its loss, and its accuracy where it has one. Chapter: 7."""
    val = f", validation {record['val_accuracy']:.1%}" if "val_accuracy" in record else ""
    return f"loss {record['train_loss']:.3f}{val}"


class LiveCurve:
    """Show a run epoch by epoch: `train(..., on_epoch=LiveCurve(config, folder))`.

    In a notebook it is one picture, which is drawn again after an epoch, at most once a second
    and never for more than a tenth of the time, and for certain after the last one. Elsewhere it
    is a line an epoch. Epochs that a resumed run has behind it come from `folder`, or from
    `history`, and are shown at once. With `$VITMINI_PROFILE` set to ci the picture tells no time.

    Raises: `ValueError` when both `folder` and `history` are given, or one of them is not what
        it should be.
    Chapter: 7
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: str | Path | None = None,
        history: Sequence[Mapping[str, float]] = (),
    ):
        if not isinstance(config, TrainConfig):
            raise ValueError(f"config must be the TrainConfig of the run, got {config!r}")
        if folder is not None and (not isinstance(folder, (str, Path)) or not str(folder)):
            raise ValueError(f"folder must be the folder of the run, got {folder!r}")
        if not (isinstance(history, Sequence) and _are_whole(history)):
            raise ValueError("history must hold records as train gives them, from epoch 1 on")
        if folder is not None and history:
            raise ValueError("folder and history must not both be given: the folder has a history")
        self.epochs = config.epochs
        self.folder = None if folder is None else Path(folder)
        self.history = self._earlier() if folder is not None else list(history)
        self._notebook = in_notebook()
        self._display: Any = None
        self._next = 0.0  # when drawing is due again
        if self.history:
            self._show_earlier()

    def __call__(self, record: Mapping[str, float]) -> None:
        """Show one more epoch. Chapter: 7."""
        if len(self.history) < record["epoch"] - 1:  # the checkpoint was ahead of the metrics
            self.history = self._earlier()
        self.history = [r for r in self.history if r["epoch"] < record["epoch"]] + [record]
        if not self._notebook:
            print(f"epoch {record['epoch']}/{self.epochs}: {describe_epoch(record)}", flush=True)
        elif record["epoch"] == self.epochs or time.monotonic() >= self._next:
            self._draw()

    def _show_earlier(self) -> None:
        if self._notebook:
            self._draw()
        else:
            print(f"{len(self.history)} of {self.epochs} epochs are done", flush=True)

    def _earlier(self) -> list[Mapping[str, float]]:
        """Read the epochs in the folder, as far as they are whole and belong to this run."""
        path = (self.folder or Path()) / "metrics.jsonl"
        try:
            lines = path.read_text().splitlines() if path.is_file() else []
            records = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError):
            return []
        return records if _are_whole(records) and len(records) <= self.epochs else []

    def _draw(self) -> None:
        start = time.monotonic()
        from IPython.display import display

        from vitmini import plot
        from vitmini.widgets import figure_bytes

        figure = plot.learning_curve(self.history, epochs=self.epochs, title=self._title())
        picture = base64.b64encode(figure_bytes(figure)).decode()
        data = {"image/png": picture, "text/plain": _TEXT}
        if self._display is None:
            self._display = display(data, raw=True, display_id=True)
        else:
            self._display.update(data, raw=True)
        now = time.monotonic()
        self._next = now + max(1.0, 9 * (now - start))

    def _title(self) -> str:
        done, total = len(self.history), self.epochs
        if os.environ.get("VITMINI_PROFILE") == "ci":
            return f"epoch {done} of {total}"
        seconds = [r["seconds"] for r in self.history if "seconds" in r]
        if not seconds:
            return f"epoch {done} of {total}"
        if done == total:
            return f"{total} epochs in {_duration(sum(seconds))}"
        each = statistics.median(seconds[-5:])  # the first ones may compile or warm up
        left = _duration(each * (total - done))
        return f"epoch {done} of {total} · {_duration(each)} each · {left} left"


def _are_whole(records: Sequence[Any]) -> bool:
    """Whether these are records of numbers, one an epoch from the first one on."""
    return all(
        isinstance(record, Mapping)
        and record.get("epoch") == i
        and "train_loss" in record
        and all(isinstance(value, (int, float)) for value in record.values())
        for i, record in enumerate(records, start=1)
    )


def _duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def in_notebook() -> bool:
    """Whether a kernel runs this, which shows pictures; IPython is not loaded to find out.

    Chapter: 7
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
