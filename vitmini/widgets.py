"""Explorers for the rendered page and for a notebook: plain HTML, no kernel, no library.

Chapter: 0 shows the first one, 11 the explorer of attention, 13 that of the resolution.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitmini.data import normalize
from vitmini.inspection import attention_distance, attention_maps
from vitmini.live import in_notebook
from vitmini.patches import as_pair
from vitmini.pictures import read_image
from vitmini.positions import PUBLISHED, position_similarity, resize_pos_embed


@dataclass(frozen=True)
class Frame:
    """One position of a stepper: a picture, the words beside the slider, and what it shows.

    `image` is the bytes of a PNG, JPEG, WebP or SVG file; `name` is short ("epoch 5"); `alt` is the
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

    `kind` is "png", "jpeg", "webp" or "svg"; photographs are smallest as "webp", curves are
    sharpest as "svg".
    Chapter: 0
    """
    from matplotlib import pyplot as plt

    if kind == "svg":
        from vitmini.plot import svg

        data = svg(figure).encode()
    else:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight")
        data = buffer.getvalue()
    plt.close(figure)
    return data


def _kind(image: bytes) -> str:
    if image.startswith(b"\x89PNG"):
        return "png"
    if image.startswith(b"\xff\xd8"):
        return "jpeg"
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    if image.lstrip()[:5] in (b"<?xml", b"<svg "):
        return "svg+xml"
    raise ValueError("image must be the bytes of a PNG, JPEG, WebP or SVG file")


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
    alike: Tensor | None = None,
) -> Html:
    """Make an explorer: choose a patch, and see the map that belongs to it.

    A click or touch on the picture or on a map chooses the patch; so do the sliders of row and
    column, by keyboard. Further sliders choose among the maps (a layer, a head). The words below
    say in numbers what the colours show. A second map can show how much the patches' positions
    resemble that of the chosen one; no slider changes it.

    Shapes: `maps` (M, P + N, N), a map over the N patches for each of the prefix tokens named in
        `prefix` and for each patch, M the product of the lengths of `choices`, the last one
        running fastest; `image` is the bytes of a PNG, JPEG or WebP file; `notes` says something
        of each of the M. `limits` are the values of the darkest and the lightest colour (None:
        from 0 to the largest of each map). `unit` "%" tells hundredths, "" the numbers themselves.
        `start` is the first position of each choice. `alike` (N, N) are cosines of positions.
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
    if alike is not None and tuple(alike.shape) != (N, N):
        raise ValueError(f"alike must be {(N, N)}, a map a patch, got {tuple(alike.shape)}")
    values = maps.detach().double().cpu()
    low, high = limits or (0.0, 0.0)
    colours = _SIGNED if limits and low == -high else _COLOURS
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
        "colours": colours,
        "alike": "",
        "signed": _SIGNED,
    }
    if alike is not None:
        steps = ((alike.detach().double().cpu() + 1) / 2 * 65535).round().clamp(0, 65535)
        program["alike"] = base64.b64encode(steps.numpy().astype("<u2").tobytes()).decode()
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
    pane = f'<div style="position:relative;{_TOUCH}">'
    canvas = '<canvas role="img" style="width:100%;cursor:crosshair;image-rendering:pixelated;'
    below = '<div style="font-size:.9em">{}</div>'
    shown = [f'{pane}{canvas}display:block"></canvas></div>{_legend(colours)}']
    if alike is not None:
        shown[0] += below.format("attention" if unit == "%" else "map")
        shown.append(f'{pane}{canvas}display:block"></canvas></div>{_legend(_SIGNED)}')
        shown[1] += below.format("positions alike")
    if image is not None:
        picture = f"data:image/{_kind(image)};base64,{base64.b64encode(image).decode()}"
        alt = html.escape(f"{label} The picture, in {rows} rows and {columns} columns of patches.")
        shown.insert(
            0,
            f'{pane}<img src="{picture}" alt="{alt}" style="display:block;width:100%;'
            f'image-rendering:pixelated">{canvas}position:absolute;inset:0;height:100%"></canvas>'
            "</div>",
        )
    panes = "".join(f"<div>{one}</div>" for one in shown)
    return Html(
        f'<figure class="vm-explorer" style="margin:1em 0" aria-label="{html.escape(label)}">'
        f'<div style="font-weight:600">{html.escape(label)}</div>'
        '<div style="display:grid;grid-template-columns:max-content minmax(6em,20em) 4em;'
        f'gap:0 .8em;align-items:center">{controls}</div>'
        '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5em,1fr));'
        f'gap:.8em;max-width:{18.5 * len(shown):g}em">{panes}</div>'
        f'<p aria-live="polite" style="margin:.4em 0;min-height:{5 if alike is not None else 3}em">'
        f"</p><script>({_EXPLORE})(document.currentScript.parentElement,{_in_script(program)})"
        "</script></figure>"
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

    Each head says its mean attention distance on this picture. Where the model adds a position to
    each token, a second map shows which positions resemble that of the chosen patch.
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
    table = vit.positions()
    alike = None if table is None else position_similarity(table.detach(), vit.grid, P)
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
        alike=None if alike is None else alike.flatten(2).flatten(0, 1),
    )


def own_picture(explore: Callable[[Tensor], Html], picture: Tensor) -> Any:
    """Show an explorer of a picture, and in a live notebook a button that takes the reader's own.

    The chosen file is read as `vm.pictures.read_image` does it, and stays on the machine that runs
    the notebook. Where nobody could press a button (a page that is being built, a kernel without
    ipywidgets), it is the explorer alone.

    Shapes: `explore` makes an explorer of an image uint8 (C, H, W); `picture` is the first one, and
        says channels and size.
    Chapter: 11
    """
    try:
        import ipywidgets
    except ImportError:
        ipywidgets = None
    if ipywidgets is None or os.environ.get("VITMINI_STATIC") or not in_notebook():
        return explore(picture)
    from IPython.display import clear_output, display

    button = ipywidgets.FileUpload(accept="image/*", description="your picture")
    shown = ipywidgets.Output()

    def show(image: Tensor | None, problem: str = "") -> None:
        with shown:
            clear_output(wait=True)
            print(problem) if image is None else display(explore(image))

    def take(change: Mapping[str, Any]) -> None:
        files = change["new"]  # ipywidgets 7 has them by name, 8 in a row
        files = list(files.values() if isinstance(files, Mapping) else files)
        if not files:
            return
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "your picture")
                path.write_bytes(bytes(files[-1]["content"]))
                image = read_image(path, picture.shape[0], (picture.shape[1], picture.shape[2]))
        except ValueError as error:
            show(None, str(error).replace(f"{folder}{os.sep}", ""))
        else:
            show(image)

    button.observe(take, "value")
    show(picture)
    return ipywidgets.VBox([button, shown])


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


def _slider(name: str, label: str, words: list[str], at: int, count: int = 0) -> str:
    """A slider with a word for each position; `count` of them can be reached, all if it is 0."""
    shown, last = html.escape(words[at]), (count or len(words)) - 1
    return (
        f'<label for="{name}">{html.escape(label)}</label>'
        f'<input id="{name}" type="range" min="0" max="{last}" value="{at}" step="1"'
        f' data-words="{html.escape(json.dumps(words))}" aria-valuetext="{shown}"'
        f' style="width:100%;height:2em"><output for="{name}">{shown}</output>'
    )


def _legend(colours: str) -> str:
    """A bar of the colours of a map, with places for the numbers at its ends."""
    end = '<output style="white-space:nowrap"></output>'
    return (
        f'<div style="display:flex;gap:.4em;align-items:center;margin:.3em 0">{end}'
        f'<span style="flex:1 1 2em;height:.8em;{_bar(colours)}"></span>{end}</div>'
    )


def _bar(colours: str) -> str:
    stops = ",".join(f"#{colour}" for colour in colours.split())
    return f"background:linear-gradient(to right,{stops})"


def _in_script(values: Any) -> str:
    """JSON that may stand in a script: no end of one can be in it."""
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


# A finger that moves sideways chooses a patch, one that moves up or down scrolls the page.
_TOUCH = "touch-action:pan-y pinch-zoom"
# Readable for the colour-blind: what cannot be negative, as in the figures of attention (inferno,
# in 16 steps); and what can, with white at 0, as in those of cosines (PuOr, in 17).
_COLOURS = (
    "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c c73e4c dd513a ed6925 f8850f fca50a "
    "fac62d f2e661 fcffa4"
)
_SIGNED = (
    "7f3b08 a04d07 be630a db7d12 ef9e3c fdbd6e fed7a2 fbe9cf f6f6f7 e3e4ef cecde4 b6b0d4 988dbe "
    "7967a6 5d3790 44176f 2d004b"
)
_POINT = """\
  for (const canvas of canvases) {
    let start;
    canvas.addEventListener('pointerdown', event => {
      canvas.setPointerCapture(event.pointerId);
      start = event;
      if (event.pointerType !== 'touch') point(event);  // a finger may only want to scroll
    });
    canvas.addEventListener('pointermove', event => {
      if (!event.buttons || !start) return;
      const [x, y] = [event.clientX - start.clientX, event.clientY - start.clientY].map(Math.abs);
      if (event.pointerType !== 'touch' || x > y) point(event);
    });
    canvas.addEventListener('click', point);
  }
"""
_EXPLORE = (
    """
function (figure, d) {
  const canvases = [...figure.querySelectorAll('canvas')], words = figure.querySelector('p');
  const sliders = [...figure.querySelectorAll('input')], chooser = figure.querySelector('select');
  const bytes = Uint8Array.from(atob(d.levels), c => c.charCodeAt(0)), N = d.rows * d.columns;
  const colours = d.colours.split(' '), side = 40;
  const ends = [...words.previousElementSibling.querySelectorAll('output')];
  const pairs = Uint8Array.from(atob(d.alike), c => c.charCodeAt(0)), signed = d.signed.split(' ');
  const alike = (a, b) => {
    const k = 2 * (a * N + b);
    return (pairs[k] + 256 * pairs[k + 1]) / 65535 * 2 - 1;
  };
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
    let near = -1;
    if (d.alike && token < 0) {
      for (let i = 0; i < N; i++)
        if (i !== patch && (near < 0 || alike(patch, i) > alike(patch, near))) near = i;
      text += ' Its position resembles most that of ' + place(near) + ': cosine ' +
        alike(patch, near).toFixed(2) + '.';
    }
    words.textContent = text;
    ends.forEach((end, i) => end.value = i > 1 ? ['-1.00', '1.00'][i - 2] : tell(i ? top : d.low));
    const last = canvases.length - 1 - (d.alike ? 1 : 0);  // the map; those of positions behind it
    canvases.forEach((canvas, k) => {
      canvas.width = side * d.columns; canvas.height = side * d.rows;
      canvas.setAttribute('aria-label', k < last ? asks + '.' :
        (k > last ? 'Positions alike. ' : 'Map. ') + text);
      const pen = canvas.getContext('2d');
      const paint = (i, palette, share) => {
        const at = Math.round(share * (palette.length - 1));
        pen.fillStyle = '#' + palette[Math.max(0, Math.min(palette.length - 1, at))];
        pen.fillRect(side * (i % d.columns), side * Math.floor(i / d.columns), side, side);
      };
      for (let i = 0; k >= last && i < N; i++)
        if (k === last) paint(i, colours, map[i] / 255);
        else paint(i, signed, token < 0 ? (alike(patch, i) + 1) / 2 : 0.5);
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
"""
    + _POINT
    + """\
  for (const control of [...sliders, ...(chooser ? [chooser] : [])])
    control.addEventListener('input', draw);
  draw();
}
"""
)


# An explorer of sizes -------------------------------------------------------------------------


def resolution_explorer(
    label: str,
    model: nn.Module,
    image: Tensor,
    sizes: Sequence[int],
    before: Mapping[str, Mapping[int, float]] | None = None,
    after: Mapping[int, float] | None = None,
    start: int | None = None,
) -> Html:
    """Make an explorer: drag the size of the image, and see the positions and the accuracy change.

    On the left the picture at that size with its patches, on the right how much the position of
    the chosen patch resembles all others after resizing, by one of the conventions `PUBLISHED`;
    below, the accuracy at all sizes. The page resizes the table itself, from one small matrix for
    each size and convention.

    Shapes: `image` uint8 (C, H, W), scaled to each of `sizes`, sides in pixels; `before` holds the
        accuracy by convention and size, `after` that after fine-tuning by size, as far as known;
        `start` is the size that is shown first (None: the model's own, or the first).
    Raises: `ValueError` when `model` is no square ViT with learned positions, a size is none of
        whole patches, or the picture is of another kind.
    Chapter: 13
    """
    vit: Any = model
    table = getattr(vit, "pos_embed", None)
    if not hasattr(vit, "grid") or not isinstance(table, nn.Parameter):
        raise ValueError("model must be a ViT of vitmini with learned positions")
    side, patch = vit.grid[0], as_pair(vit.config.patch_size, "patch_size")[0]
    if vit.grid != (side, side):
        raise ValueError(f"model must have a square grid, got {vit.grid}")
    if not sizes or any(not isinstance(s, int) or s < patch or s % patch for s in sizes):
        raise ValueError(f"sizes must be multiples of the patch size {patch}, got {list(sizes)}")
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3:
        raise ValueError("image must be a tensor uint8 (C, H, W)")
    for name in before or {}:
        if name not in PUBLISHED:
            raise ValueError(f"before must be of {', '.join(PUBLISHED)}; got {name!r}")
    patches = table.detach()[0, vit.num_prefix_tokens :].double().cpu()  # (N, D)
    scale = patches.abs().max().item() / 32767 or 1.0
    weights = [[_matrix(side, size // patch, *how) for size in sizes] for how in PUBLISHED.values()]
    tables = [[_resized(patches, w) for w in by_size] for by_size in weights]
    first = tables[0]
    apart = [
        [
            ((t - f).norm() / f.norm().clamp(min=1e-12)).item()
            for t, f in zip(found, first, strict=True)
        ]
        for found in tables
    ]
    known, tuned = before or {}, after or {}
    program = {
        "side": side,
        "sizes": list(sizes),
        "grids": [size // patch for size in sizes],
        "own": side * patch,
        "names": list(PUBLISHED),
        "scale": scale,
        "table": base64.b64encode((patches / scale).round().short().numpy().tobytes()).decode(),
        "weights": [
            [[float(f"{x:.5f}") for x in w.flatten().tolist()] for w in by_size]
            for by_size in weights
        ],
        "apart": [[round(value, 4) for value in values] for values in apart],
        "before": [[known.get(name, {}).get(size) for size in sizes] for name in PUBLISHED],
        "after": [tuned.get(size) for size in sizes],
        "pictures": [base64.b64encode(encode_picture(_scaled(image, s))).decode() for s in sizes],
        "colours": _SIGNED,
    }
    at = sizes.index(start) if start in sizes else 0
    if start is None and side * patch in sizes:
        at = list(sizes).index(side * patch)
    middle = program["grids"][at]
    words = [str(i + 1) for i in range(max(program["grids"]))]
    name = "vm-" + re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    sliders = [
        ("image", [f"{size} px" for size in sizes], at, len(sizes)),
        ("convention", list(PUBLISHED), 0, len(PUBLISHED)),
        ("row", words, middle // 2, middle),
        ("column", words, middle // 2, middle),
    ]
    controls = "".join(
        _slider(f"{name}-{i}", told, given, place, count)
        for i, (told, given, place, count) in enumerate(sliders)
    )
    pane = f'<div style="position:relative;flex:1 1 8em;max-width:18em;{_TOUCH}">'
    canvas = '<canvas role="img" style="width:100%;cursor:crosshair;image-rendering:pixelated;'
    alt = html.escape(f"{label} The picture at the size that the slider says.")
    return Html(
        f'<figure class="vm-explorer" style="margin:1em 0" aria-label="{html.escape(label)}">'
        f'<div style="font-weight:600">{html.escape(label)}</div>'
        '<div style="display:grid;grid-template-columns:max-content minmax(6em,20em) 6em;'
        f'gap:0 .8em;align-items:center">{controls}</div>'
        f'<div style="display:flex;gap:.8em;max-width:37em">{pane}'
        f'<img src="data:image/png;base64,{program["pictures"][at]}" alt="{alt}" '
        'style="display:block;width:100%;aspect-ratio:1;image-rendering:pixelated">'
        f'{canvas}position:absolute;inset:0;height:100%"></canvas></div>'
        f'{pane}{canvas}display:block"></canvas></div></div>'
        '<div style="display:flex;gap:.5em;align-items:center;margin:.3em 0"><output></output>'
        f'<span style="flex:0 1 10em;height:.8em;{_bar(_SIGNED)}"></span><output></output></div>'
        '<p aria-live="polite" style="margin:.4em 0;min-height:5em"></p>'
        '<svg role="img" viewBox="0 0 360 150" style="width:100%;max-width:28em"></svg>'
        f"<script>({_RESOLVE})(document.currentScript.parentElement,{_in_script(program)})</script>"
        "</figure>"
    )


def _matrix(old: int, new: int, mode: str, antialias: bool) -> Tensor:
    """What resizing does along one side, (new, old): on a grid it is done to columns and rows."""
    unit = torch.eye(old)[None]  # a table of `old` places, whose vectors say which they are
    return resize_pos_embed(unit, (1, new), (1, old), 0, mode, antialias)[0].double()


def _resized(patches: Tensor, weights: Tensor) -> Tensor:
    """(N, D) to another square grid, (N', D), by the matrix of one side."""
    square = patches.unflatten(0, (weights.shape[1],) * 2)
    return torch.einsum("ri,cj,ijd->rcd", weights, weights, square).flatten(0, 1)


def _scaled(image: Tensor, size: int) -> Tensor:
    scaled = F.interpolate(image[None].float(), (size, size), mode="bilinear", antialias=True)
    return scaled[0].round().clamp(0, 255).to(torch.uint8)


_RESOLVE = (
    """
function (figure, d) {
  const canvases = [...figure.querySelectorAll('canvas')], words = figure.querySelector('p');
  const sliders = [...figure.querySelectorAll('input')], picture = figure.querySelector('img');
  const [sizer, chooser, rower, columner] = sliders, chart = figure.querySelector('svg');
  const ends = [...words.previousElementSibling.querySelectorAll('output')];
  const colours = d.colours.split(' '), pixels = 480, kept = {};
  const bytes = Uint8Array.from(atob(d.table), c => c.charCodeAt(0)), o = d.side;
  const levels = new Int16Array(bytes.buffer), D = levels.length / (o * o);
  const share = v => (100 * v).toFixed(1) + ' %';
  let grid = d.grids[sizer.value];
  function table(c, s) {  // the whole table on the new grid: along the columns, then the rows
    if (kept[[c, s]]) return kept[[c, s]];
    const n = d.grids[s], w = d.weights[c][s], half = new Float64Array(o * n * D);
    const full = new Float64Array(n * n * D);
    for (let y = 0; y < o; y++) for (let x = 0; x < n; x++) for (let i = 0; i < o; i++)
      if (w[x * o + i]) for (let k = 0; k < D; k++)
        half[(y * n + x) * D + k] += w[x * o + i] * levels[(y * o + i) * D + k] * d.scale;
    for (let y = 0; y < n; y++) for (let i = 0; i < o; i++)
      if (w[y * o + i]) for (let k = 0; k < n * D; k++)
        full[y * n * D + k] += w[y * o + i] * half[i * n * D + k];
    for (let p = 0; p < n * n; p++) {
      const row = full.subarray(p * D, p * D + D), norm = Math.hypot(...row);
      if (norm) for (let k = 0; k < D; k++) row[k] /= norm;
    }
    return kept[[c, s]] = full;
  }
  function draw() {
    const s = +sizer.value, c = +chooser.value, n = d.grids[s];
    if (n !== grid) {  // the place in the picture stays
      for (const slider of [rower, columner]) {
        const place = Math.floor((+slider.value + 0.5) / grid * n);
        slider.max = n - 1; slider.value = place;
      }
      grid = n;
      picture.src = 'data:image/png;base64,' + d.pictures[s];
    }
    for (const slider of sliders) {
      const word = JSON.parse(slider.dataset.words)[slider.value];
      slider.setAttribute('aria-valuetext', word); slider.nextElementSibling.value = word;
    }
    const row = +rower.value, column = +columner.value, patch = row * n + column;
    const all = table(c, s), alike = [];
    for (let p = 0; p < n * n; p++) {
      let sum = 0;
      for (let k = 0; k < D; k++) sum += all[p * D + k] * all[patch * D + k];
      alike.push(sum);
    }
    const low = -1;
    let best = -1;
    alike.forEach((v, p) => { if (p !== patch && (best < 0 || v > alike[best])) best = p; });
    const place = p => 'row ' + (Math.floor(p / n) + 1) + ', column ' + (p % n + 1);
    let text = 'The patch in ' + place(patch) + ' of ' + n + ' x ' + n + ' ';
    text += best < 0 ? 'is alone.' : 'has the position most like that of ' + place(best) +
      ': cosine ' + alike[best].toFixed(2) + '.';
    text += d.sizes[s] === d.own ? ' This is the size of the training: nothing is resized.' :
      c ? " The table differs from timm's by " + share(d.apart[c][s]) + '.' : '';
    const was = d.before[c][s], is = d.after[s];
    if (was !== null || is !== null) text += ' Accuracy at ' + d.sizes[s] + ' px: ' + [
      was === null ? 'not measured with this convention' : share(was) + ' as it is',
      ...is === null ? [] : [share(is) + ' after an epoch at this size']].join(', ') + '.';
    words.textContent = text;
    ends[0].value = '-1.00'; ends[1].value = '1.00';
    const step = pixels / n;
    canvases.forEach((canvas, k) => {
      canvas.width = canvas.height = pixels;
      canvas.setAttribute('aria-label', k ? 'Map. ' + text : 'The patch in ' + place(patch) + '.');
      const pen = canvas.getContext('2d'), at = i => Math.round(i * step);
      for (let y = 0; y < n; y++) for (let x = 0; x < n; x++) {
        const place = [at(x), at(y), at(x + 1) - at(x), at(y + 1) - at(y)];
        const level = (alike[y * n + x] - low) / (1 - low) * (colours.length - 1);
        pen.fillStyle = '#' + colours[Math.max(0, Math.min(colours.length - 1, Math.round(level)))];
        pen.strokeStyle = '#fffa'; pen.lineWidth = 1.5;
        if (k) pen.fillRect(...place); else pen.strokeRect(...place);
      }
      for (const [colour, width] of [['#000', 7], ['#fff', 3]]) {
        pen.strokeStyle = colour; pen.lineWidth = width;
        pen.strokeRect(at(column) + 4, at(row) + 4, step - 8, step - 8);
      }
    });
    plot(s, c, text);
  }
  function plot(s, c, text) {
    const found = [...d.before.flat(), ...d.after].filter(v => v !== null);
    chart.style.display = found.length ? 'block' : 'none';
    if (!found.length) return;
    const top = Math.min(1, Math.ceil(10 * Math.max(...found)) / 10);
    const far = Math.log(d.sizes.at(-1) / d.sizes[0]) || 1;
    const x = i => 50 + 290 * Math.log(d.sizes[i] / d.sizes[0]) / far, y = v => 110 - 85 * v / top;
    const line = (values, colour, dash, mark) => {
      const known = values.map((v, i) => [x(i), v, i]).filter(p => p[1] !== null);
      const path = known.map(p => p[0] + ',' + y(p[1])).join(' ');
      const marks = known.map(p => mark(p[0], y(p[1]), p[2] === s, colour)).join('');
      return `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"
        stroke-dasharray="${dash}"/>${marks}`;
    };
    const dot = (a, b, here, colour) => `<circle cx="${a}" cy="${b}" r="${here ? 6 : 3}"
      fill="${colour}"/>`;
    const box = (a, b, here, colour) => {
      const h = here ? 5.5 : 3;
      return `<rect x="${a - h}" y="${b - h}" width="${2 * h}" height="${2 * h}"
        fill="${colour}"/>`;
    };
    const say = (a, b, told, anchor) => `<text x="${a}" y="${b}" text-anchor="${anchor}"
      font-size="13" fill="currentColor">${told}</text>`;
    const blue = '#2f7fc1', orange = '#c77700';
    chart.setAttribute('aria-label', 'Accuracy by size of the image. ' + text);
    chart.innerHTML = `<path d="M50 25V110H345" fill="none" stroke="currentColor"/>
      <path d="M${x(s)} 25V110" stroke="currentColor" stroke-dasharray="2 3"/>`
      + d.sizes.map((size, i) => say(x(i), 127, size, 'middle')).join('')
      + say(44, 30, (100 * top).toFixed(0) + ' %', 'end') + say(44, 114, '0', 'end')
      + say(345, 145, 'image (px)', 'end') + `<g>${dot(58, 12, false, blue)}</g>`
      + say(66, 16, 'as it is', 'start') + `<g>${box(140, 12, false, orange)}</g>`
      + say(148, 16, 'after an epoch at this size', 'start')
      + line(d.before[c], blue, '', dot) + line(d.after, orange, '6 3', box);
  }
  function point(event) {
    const box = event.target.getBoundingClientRect();
    rower.value = Math.floor((event.clientY - box.top) / box.height * grid);
    columner.value = Math.floor((event.clientX - box.left) / box.width * grid);
    draw();
  }
"""
    + _POINT
    + """\
  for (const slider of sliders) slider.addEventListener('input', draw);
  draw();
}
"""
)
