"""Explorers for the rendered page and for a notebook: plain HTML, no kernel, no library.

Chapter: 0 shows the first one.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Frame:
    """One position of a stepper: a picture, the words beside the slider, and what it shows.

    `image` is the bytes of a PNG, JPEG or WebP file; `name` is short ("epoch 5"); `alt` is the
    text for those who do not see the picture, which is also printed below it.
    Chapter: 0
    """

    image: bytes
    name: str
    alt: str


class Html:
    """HTML that a notebook displays, without needing IPython to build it. Chapter: 0."""

    def __init__(self, text: str):
        self.text = text

    def _repr_html_(self) -> str:
        return self.text


def stepper(label: str, frames: Sequence[Frame], start: int = 0) -> Html:
    """Make a slider that steps through pictures, by pointer, touch or arrow keys.

    Shapes: `frames` in order; `start` is the index of the one that is shown first.
    Raises: `ValueError` without frames, or for a `start` outside of them.
    Chapter: 0
    """
    if not frames:
        raise ValueError("frames must hold at least one Frame")
    if not 0 <= start < len(frames):
        raise ValueError(f"start must be from 0 to {len(frames) - 1}, got {start}")
    pictures = "".join(
        f'<div class="vm-frame" data-name="{html.escape(f.name)}"{"" if i == start else " hidden"}>'
        f'<img src="data:image/{_kind(f.image)};base64,{base64.b64encode(f.image).decode()}"'
        f' alt="{html.escape(f.alt)}" style="max-width:100%;height:auto">'
        f'<p style="margin:.4em 0">{html.escape(f.alt)}</p></div>'
        for i, f in enumerate(frames)
    )
    name = "vm-" + re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    change = (
        "const e=this.closest('figure').querySelectorAll('.vm-frame');"
        "e.forEach((f,i)=>f.hidden=i!=this.value);const n=e[this.value].dataset.name;"
        "this.setAttribute('aria-valuetext',n);this.nextElementSibling.value=n"
    )
    return Html(
        f'<figure class="vm-stepper" style="margin:1em 0">'
        f'<label for="{name}" style="display:block;font-weight:600">{html.escape(label)}</label>'
        f'<input id="{name}" type="range" min="0" max="{len(frames) - 1}" value="{start}" step="1"'
        f' aria-valuetext="{html.escape(frames[start].name)}" oninput="{change}"'
        f' style="width:min(24em,70%);height:2em;vertical-align:middle">'
        f'<output for="{name}" style="margin-left:.8em">{html.escape(frames[start].name)}</output>'
        f"<div>{pictures}</div></figure>"
    )


def figure_bytes(figure: Any, kind: str = "png", dpi: int = 100) -> bytes:
    """Draw a matplotlib figure into the bytes of a file and close it.

    `kind` is "png", "jpeg" or "webp"; photographs are smallest as "webp".
    Chapter: 0
    """
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def _kind(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"\xff\xd8"):
        return "jpeg"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    raise ValueError("image must be the bytes of a PNG, JPEG or WebP file")
