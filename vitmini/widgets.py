"""Explorers for the rendered page and for a notebook: plain HTML, no kernel, no library.

Chapter: 0 shows the first one, 11 the explorer of attention.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitmini.data import normalize
from vitmini.inspection import attention_distance, attention_maps
from vitmini.patches import as_pair


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


# An explorer of maps --------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A slider of an explorer: what is chosen, and the words for each position of it.

    Chapter: 11
    """

    name: str
    values: Sequence[str]


def map_explorer(
    label: str,
    maps: Tensor,
    grid: tuple[int, int],
    image: bytes | None = None,
    choices: Sequence[Choice] = (),
    notes: Sequence[str] = (),
    prefix: Sequence[str] = (),
    limits: tuple[float, float] | None = None,
    relation: str = "attends most to",
    unit: str = "%",
    start: Sequence[int] = (),
) -> Html:
    """Make an explorer: choose a patch, and see the map that belongs to it.

    A click or touch on the picture or on the map chooses the patch; so do the sliders of row and
    column, by keyboard. Further sliders choose among the maps (a layer, a head). The words below
    say in numbers what the colours show.

    Shapes: `maps` (M, P + N, N), a map over the N patches for each of the prefix tokens named in
        `prefix` and for each patch, M the product of the lengths of `choices`, the last one
        running fastest; `image` is the bytes of a PNG, JPEG or WebP file; `notes` says something
        of each of the M. `limits` are the values of the darkest and the lightest colour (None:
        from 0 to the largest of each map). `unit` "%" tells hundredths, "" the numbers themselves.
        `start` is the first position of each choice.
    Raises: `ValueError` when these do not fit together.
    Chapter: 11
    """
    rows, columns = as_pair(grid, "grid")
    N, M = rows * columns, math.prod(len(choice.values) for choice in choices)
    if tuple(maps.shape) != (M, len(prefix) + N, N):
        raise ValueError(
            f"maps must be {(M, len(prefix) + N, N)}: {M} choices, {len(prefix)} prefix tokens and "
            f"{N} patches, got {tuple(maps.shape)}"
        )
    if notes and len(notes) != M:
        raise ValueError(f"notes must be {M}, one for each choice, got {len(notes)}")
    start = tuple(start) or (0,) * len(choices)
    if len(start) != len(choices) or not all(
        0 <= i < len(choice.values) for i, choice in zip(start, choices, strict=True)
    ):
        raise ValueError(f"start must hold a position of each of the choices, got {start}")
    values = maps.detach().double().cpu()
    low, high = limits or (0.0, 0.0)
    tops = values.amax(dim=2) if limits is None else torch.full(values.shape[:2], high)
    spans = (tops - low).clamp(min=1e-12)[..., None]
    levels = ((values - low) / spans * 255).round().clamp(0, 255).to(torch.uint8)
    name = "vm-" + re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    program = {
        "rows": rows,
        "columns": columns,
        "prefix": len(prefix),
        "names": list(prefix),
        "sizes": [len(choice.values) for choice in choices],
        "low": low,
        "tops": [float(f"{top:.3g}") for top in tops.flatten().tolist()],
        "levels": base64.b64encode(levels.numpy().tobytes()).decode(),
        "notes": list(notes),
        "unit": unit,
        "relation": relation,
        "colours": _COLOURS,
    }
    sliders = [(c.name, list(c.values), i) for c, i in zip(choices, start, strict=True)]
    sliders += [("row", [str(i + 1) for i in range(rows)], rows // 2)]
    sliders += [("column", [str(i + 1) for i in range(columns)], columns // 2)]
    controls = "".join(_slider(f"{name}-{i}", *given) for i, given in enumerate(sliders))
    if prefix:
        asked = "".join(f"<option>{html.escape(word)}</option>" for word in ("a patch", *prefix))
        controls = (
            f'<label for="{name}-from">from</label><select id="{name}-from" style="font:inherit;'
            f'max-width:100%">{asked}</select><span></span>{controls}'
        )
    pane = '<div style="position:relative;flex:1 1 8em;max-width:18em;touch-action:manipulation">'
    canvas = '<canvas role="img" style="width:100%;cursor:crosshair;image-rendering:pixelated;'
    panes = f'{pane}{canvas}display:block"></canvas></div>'
    if image is not None:
        picture = f"data:image/{_kind(image)};base64,{base64.b64encode(image).decode()}"
        alt = html.escape(f"{label} The picture, in {rows} rows and {columns} columns of patches.")
        panes = (
            f'{pane}<img src="{picture}" alt="{alt}" style="display:block;width:100%;'
            f'image-rendering:pixelated">{canvas}position:absolute;inset:0;height:100%"></canvas>'
            f"</div>{panes}"
        )
    return Html(
        f'<figure class="vm-explorer" style="margin:1em 0" aria-label="{html.escape(label)}">'
        f'<div style="font-weight:600">{html.escape(label)}</div>'
        '<div style="display:grid;grid-template-columns:max-content minmax(6em,20em) 4em;'
        f'gap:0 .8em;align-items:center">{controls}</div>'
        f'<div style="display:flex;gap:.8em;max-width:37em">{panes}</div>'
        '<div style="display:flex;gap:.5em;align-items:center;margin:.3em 0"><output></output>'
        f'<span style="flex:0 1 10em;height:.8em;background:linear-gradient(to right,{_BAR})">'
        "</span><output></output></div>"
        '<p aria-live="polite" style="margin:.4em 0;min-height:3em"></p>'
        f"<script>({_EXPLORE})(document.currentScript.parentElement,{_in_script(program)})</script>"
        "</figure>"
    )


def attention_explorer(
    model: nn.Module,
    image: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    label: str = "What does a patch attend to?",
    layers: Sequence[int] | None = None,
) -> Html:
    """Make the explorer of a model's attention on one picture, a reader's own for instance.

    Each head says its mean attention distance on this picture.
    Shapes: `image` uint8 (C, H, W), of the model's size, such as `vm.pictures.read_image` gives;
        `mean` and `std` a channel, which the model's images are normalised with; `layers` as for
        `attention_maps`.
    Raises: `ValueError` when the image is not of that kind, or the model not a ViT of vitmini's.
    Chapter: 11
    """
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        shape = tuple(getattr(image, "shape", ()))
        raise ValueError(
            f"image must be uint8 (C, H, W), got {getattr(image, 'dtype', '')} {shape}"
        )
    if not hasattr(model, "config") or not hasattr(model, "grid"):
        raise ValueError(f"model must be a ViT of vitmini, got {type(model).__name__}")
    vit: Any = model
    attn = attention_maps(vit, normalize(image[None], mean, std), layers).cpu()
    L, _, heads, T, _ = attn.shape
    P = vit.num_prefix_tokens
    far = attention_distance(attn, vit.grid, vit.config.patch_size, P)
    notes = [f"Mean distance of this head: {d:.1f} pixels." for d in far.flatten().tolist()]
    depth = len(vit.blocks)
    numbers = range(depth) if layers is None else [i % depth for i in layers]
    return map_explorer(
        label,
        attn[:, 0, :, :, P:].reshape(L * heads, T, T - P),
        vit.grid,
        encode_picture(image),
        [
            Choice("layer", [str(i + 1) for i in numbers]),
            Choice("head", [str(i + 1) for i in range(heads)]),
        ],
        notes,
        ("class token", "distillation token")[:P],
    )


def encode_picture(image: Tensor) -> bytes:
    """Write a picture as the bytes of a PNG file.

    Shapes: `image` uint8 (C, H, W), of one channel (ink on paper) or three.
    Chapter: 11
    """
    from PIL import Image

    pixels = image.cpu() if image.shape[0] == 3 else (255 - image.cpu()).expand(3, -1, -1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _slider(name: str, label: str, words: list[str], at: int) -> str:
    shown = html.escape(words[at])
    return (
        f'<label for="{name}">{html.escape(label)}</label>'
        f'<input id="{name}" type="range" min="0" max="{len(words) - 1}" value="{at}" step="1"'
        f' data-words="{html.escape(json.dumps(words))}" aria-valuetext="{shown}"'
        f' style="width:100%;height:2em"><output for="{name}">{shown}</output>'
    )


def _in_script(values: Any) -> str:
    """JSON that may stand in a script: no end of one can be in it."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


# Viridis in 16 steps: readable for the colour-blind, and in grey.
_COLOURS = (
    "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 "
    "a5db36 d2e21b fde725"
)
_BAR = ",".join(f"#{colour}" for colour in _COLOURS.split())
_EXPLORE = """
function (figure, d) {
  const canvases = [...figure.querySelectorAll('canvas')], words = figure.querySelector('p');
  const sliders = [...figure.querySelectorAll('input')], chooser = figure.querySelector('select');
  const bytes = Uint8Array.from(atob(d.levels), c => c.charCodeAt(0)), N = d.rows * d.columns;
  const colours = d.colours.split(' '), side = 40;
  const ends = [...words.previousElementSibling.querySelectorAll('output')];
  const tell = v => d.unit === '%' ? (100 * v).toFixed(1) + ' %' : v.toFixed(2) + d.unit;
  const place = i => 'row ' + (Math.floor(i / d.columns) + 1) + ', column ' + (i % d.columns + 1);
  function draw() {
    let which = 0;
    d.sizes.forEach((size, i) => which = which * size + +sliders[i].value);
    for (const s of sliders) {
      const word = JSON.parse(s.dataset.words)[s.value];
      s.setAttribute('aria-valuetext', word);
      s.nextElementSibling.value = word;
    }
    const [row, column] = sliders.slice(-2).map(s => +s.value), patch = row * d.columns + column;
    const token = chooser ? chooser.selectedIndex - 1 : -1;
    const query = token < 0 ? d.prefix + patch : token, T = d.prefix + N;
    const from = (which * T + query) * N, top = d.tops[which * T + query];
    const map = bytes.subarray(from, from + N), value = i => d.low + map[i] / 255 * (top - d.low);
    let best = -1;
    map.forEach((level, i) => {
      if ((token >= 0 || i !== patch) && (best < 0 || level > map[best])) best = i;
    });
    const asks = token < 0 ? 'The patch in ' + place(patch) : 'The ' + d.names[token];
    let text = asks + ' ' + d.relation + ' ' + place(best) + ': ' + tell(value(best));
    text += token < 0 ? ', itself: ' + tell(value(patch)) + '.' : '.';
    text += d.notes.length ? ' ' + d.notes[which] : '';
    words.textContent = text;
    ends.forEach((end, i) => end.value = tell(i ? top : d.low));
    canvases.forEach((canvas, k) => {
      canvas.width = side * d.columns; canvas.height = side * d.rows;
      canvas.setAttribute('aria-label', k === canvases.length - 1 ? 'Map. ' + text : asks + '.');
      const pen = canvas.getContext('2d');
      if (k === canvases.length - 1) map.forEach((level, i) => {
        pen.fillStyle = '#' + colours[Math.round(level / 255 * (colours.length - 1))];
        pen.fillRect(side * (i % d.columns), side * Math.floor(i / d.columns), side, side);
      });
      if (token < 0) for (const [colour, width] of [['#000', 9], ['#fff', 4]]) {
        pen.strokeStyle = colour; pen.lineWidth = width;
        pen.strokeRect(side * column + 5, side * row + 5, side - 10, side - 10);
      }
    });
  }
  function point(event) {
    const box = event.target.getBoundingClientRect();
    sliders.at(-2).value = Math.floor((event.clientY - box.top) / box.height * d.rows);
    sliders.at(-1).value = Math.floor((event.clientX - box.left) / box.width * d.columns);
    if (chooser) chooser.selectedIndex = 0;
    draw();
  }
  for (const canvas of canvases) {
    canvas.addEventListener('pointerdown', point);
    canvas.addEventListener('pointermove', event => { if (event.buttons) point(event); });
  }
  for (const control of [...sliders, ...(chooser ? [chooser] : [])])
    control.addEventListener('input', draw);
  draw();
}
"""
