"""Draw the pictures that stand outside of any cell: the wordmark, the cover, each chapter's first.

    python book/draw.py        writes book/static/*.svg and *.png; commit what changed

Nothing in them is invented: patches, matrices and tokens are those of the photograph.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.textpath import TextPath
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vitmini as vm  # noqa: E402
from vitmini.data import normalize  # noqa: E402
from vitmini.encoder import residual_stream  # noqa: E402
from vitmini.plot import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY  # noqa: E402

STATIC = ROOT / "book" / "static"
TILES = [
    BLUE,
    SKY,
    GREEN,
    ORANGE,
    SKY,
    ORANGE,
    BLUE,
    GREEN,
    RED,
    BLUE,
    PURPLE,
    SKY,
    GREEN,
    RED,
    SKY,
    BLUE,
]


def icon(x: float = 0, y: float = 0, side: float = 64) -> str:
    """Sixteen tiles: a picture as a sequence."""
    step = side / 4
    return "".join(
        f'<rect x="{x + i % 4 * step + 1:g}" y="{y + i // 4 * step + 1:g}" width="{step - 2:g}" '
        f'height="{step - 2:g}" rx="2" fill="{color}"/>'
        for i, color in enumerate(TILES)
    )


def outline(text: str, x: float, y: float, size: float, color: str) -> str:
    """Text as an SVG path, so that it looks the same without the font."""
    path = TextPath((0, 0), text, size=size, prop=FontProperties(weight="bold"))
    commands = []
    for points, code in path.iter_segments():
        pairs = [f"{x + px:.1f} {y - py:.1f}" for px, py in points.reshape(-1, 2)]
        commands.append({1: "M", 2: "L", 3: "Q", 4: "C"}.get(int(code), "Z"))
        if commands[-1] != "Z":
            commands[-1] += " ".join(pairs)
    return f'<path d="{"".join(commands)}" fill="{color}"/>'


def svg(name: str, width: int, height: int, title: str, body: str) -> None:
    (STATIC / name).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title>{body}</svg>\n'
    )


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A drawing area whose unit is a tenth of an inch."""
    figure = plt.figure(figsize=(width, height), dpi=110, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width * 10), ylim=(0, height * 10))
    axes.set_axis_off()
    return figure, axes


def show(
    axes: Axes, image: torch.Tensor, x: float, y: float, w: float, h: float, **options
) -> None:
    pixels = image.permute(1, 2, 0) if image.ndim == 3 and image.shape[0] == 3 else image.squeeze()
    axes.imshow(
        pixels, extent=(x, x + w, y, y + h), aspect="auto", interpolation="nearest", **options
    )


def grid(axes: Axes, x: float, y: float, side: float, cells: int, color: str = "white") -> None:
    for i in range(cells + 1):
        at = i * side / cells
        axes.plot([x + at, x + at], [y, y + side], color=color, linewidth=1.2)
        axes.plot([x, x + side], [y + at, y + at], color=color, linewidth=1.2)


def arrow(axes: Axes, x: float, y: float, length: float = 4.0) -> None:
    axes.add_patch(
        FancyArrowPatch(
            (x, y), (x + length, y), arrowstyle="-|>", mutation_scale=18, color=GREY, lw=2
        )
    )


def box(axes: Axes, x: float, y: float, w: float, h: float, text: str, color: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=1", fc=color, ec="none")
    )
    axes.text(
        x + w / 2,
        y + h / 2,
        text,
        ha="center",
        va="center",
        color="white",
        fontsize=15,
        weight="bold",
    )


def save(figure: Figure, name: str) -> None:
    """Write a PNG of 128 colours, a third of the size: chapters carry it inside."""
    figure.savefig(STATIC / name, dpi=110)
    plt.close(figure)
    Image.open(STATIC / name).convert("RGB").quantize(128).save(STATIC / name, optimize=True)


def cover() -> None:
    photo = vm.load_photo("flower", 224)
    figure, axes = canvas(9, 3.6)
    side = 24
    show(axes, photo, 1, 8, side, side)
    grid(axes, 1, 8, side, 4)
    axes.text(13, 4, "a picture", ha="center", fontsize=15)
    arrow(axes, 26, 20)
    patches = vm.patchify(photo[None], 56)[0].view(16, 3, 56, 56)
    tile = 5
    for i, patch in enumerate(patches):
        show(axes, patch, 31.5 + i % 4 * (tile + 1), 8.5 + (3 - i // 4) * (tile + 1), tile, tile)
    axes.text(43, 4, "16 patches", ha="center", fontsize=15)
    arrow(axes, 56, 20)
    box(axes, 61.5, 11, 13, 18, "trans-\nformer", BLUE)
    axes.text(68, 4, "attention", ha="center", fontsize=15)
    arrow(axes, 76, 20, 3)
    axes.text(84.5, 20, "flower", ha="center", va="center", fontsize=19, weight="bold", color=RED)
    axes.text(84.5, 4, "a class", ha="center", fontsize=15)
    save(figure, "cover.png")


def first_digits() -> None:
    image = vm.load_data("digits").train_images[3]
    figure, axes = canvas(8, 3)
    show(axes, image, 1, 6, 22, 22, cmap="gray_r", vmin=0, vmax=255)
    grid(axes, 1, 6, 22, 2, RED)
    axes.text(12, 2, "8 x 8 pixels", ha="center", fontsize=14)
    arrow(axes, 24, 17)
    patches = vm.patchify(image[None], 4)[0].view(4, 1, 4, 4)
    for i, patch in enumerate(patches):
        y = 24 - i * 7 - 2
        show(axes, patch, 30, y, 6, 6, cmap="gray_r", vmin=0, vmax=255)
        axes.add_patch(Rectangle((30, y), 6, 6, fill=False, ec=RED, lw=1.2))
    axes.text(39.5, 15, "4 patches", ha="left", va="center", fontsize=14, rotation=90)
    arrow(axes, 43, 17)
    parameters = sum(p.numel() for p in vm.create_model("vit_digits").parameters())
    box(axes, 48, 9, 15, 16, "ViT", BLUE)
    axes.text(55.5, 2, f"{parameters:,} numbers to learn", ha="center", fontsize=14)
    arrow(axes, 64, 17)
    label = vm.load_data("digits").train_labels[3].item()
    axes.text(
        73.5, 17, f"“{label}”", ha="center", va="center", fontsize=30, weight="bold", color=RED
    )
    save(figure, "00-build.png")


def patches() -> None:
    torch.manual_seed(0)
    photo = vm.load_photo("flower", 224)
    sequence = vm.patchify(photo[None].float() / 255, 16)
    tokens = vm.PatchEmbed()(photo[None].float() / 127.5 - 1).detach()
    figure, axes = canvas(8, 3.4)
    show(axes, photo, 0.6, 8, 21, 21)
    grid(axes, 0.6, 8, 21, 14)
    axes.text(11, 3.5, "14 x 14 patches\nof 16 x 16 x 3", ha="center", va="center", fontsize=13)
    arrow(axes, 22.2, 18.5, 3.5)
    show(axes, sequence, 26.5, 8, 22, 21, cmap="gray", vmin=0, vmax=1)
    axes.text(
        37.5, 3.5, "a matrix: 196 rows\nof 768 numbers", ha="center", va="center", fontsize=13
    )
    arrow(axes, 49, 18.5, 3)
    box(axes, 52.5, 13.5, 5, 10, "E", BLUE)
    axes.text(55, 10.8, "learned", ha="center", fontsize=13)
    arrow(axes, 58, 18.5, 3)
    show(axes, tokens, 61.8, 8, 17.5, 21, cmap="PuOr", vmin=-1.5, vmax=1.5)
    axes.text(70.5, 3.5, "196 tokens\nof width D", ha="center", va="center", fontsize=13)
    save(figure, "01-build.png")


def bars(axes: Axes, vectors: torch.Tensor, x: float, y: float, w: float, step: float) -> None:
    """Each vector (D,) as a row of coloured cells, the first one on top."""
    for i, vector in enumerate(vectors):
        top = y - i * step
        axes.imshow(
            vector[None],
            extent=(x, x + w, top, top + step * 0.72),
            aspect="auto",
            cmap="PuOr",
            vmin=-1,
            vmax=1,
            interpolation="nearest",
        )


def positions() -> None:
    torch.manual_seed(0)
    photo = vm.load_photo("flower", 225)
    tokens = vm.PatchEmbed(225, 75, 3, 12)(photo[None].float() / 255)[0].detach()
    tokens = torch.cat([torch.zeros(1, 12).normal_(std=0.4), tokens / tokens.abs().max()])
    table = vm.sincos_positions((3, 3), 12)
    table = torch.cat([torch.zeros(1, 12), table])
    figure, axes = canvas(8, 3.6)
    show(axes, photo, 0.6, 9, 21, 21)
    grid(axes, 0.6, 9, 21, 3)
    axes.text(11, 4, "9 patches", ha="center", va="center", fontsize=13)
    arrow(axes, 22.2, 19.5, 3.5)
    bars(axes, tokens, 31, 29.2, 12, 2.5)
    axes.text(30.4, 30.2, "class", ha="right", va="center", fontsize=12, color=RED)
    axes.text(37, 4, "10 tokens", ha="center", va="center", fontsize=13)
    axes.text(45.6, 19.5, "+", ha="center", va="center", fontsize=26, weight="bold", color=BLUE)
    bars(axes, table, 48.5, 29.2, 12, 2.5)
    axes.text(54.5, 4, "10 positions", ha="center", va="center", fontsize=13)
    axes.text(63.2, 19.5, "=", ha="center", va="center", fontsize=26, weight="bold", color=BLUE)
    bars(axes, (tokens + table) / 1.5, 66, 29.2, 12, 2.5)
    axes.text(72, 4, "tokens that know\ntheir place", ha="center", va="center", fontsize=13)
    axes.set(xlim=(0, 80), ylim=(0, 36))
    save(figure, "02-build.png")


def attention() -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 8, generator=generator)
    q, k, v = (x @ torch.randn(8, 8, generator=generator) / 8**0.5 for _ in range(3))
    out, weights = vm.attention_by_hand(q, k, v)
    figure, axes = canvas(8, 3.2)

    def column(vectors: torch.Tensor, x: float, y: float, w: float, name: str, step: float) -> None:
        bars(axes, (vectors / vectors.abs().max()).detach(), x, y, w, step)
        axes.text(x + w / 2, y - 3 * step + 0.4, name, ha="center", va="center", fontsize=13)

    column(x, 1, 19.5, 12, "3 tokens", 3.5)
    arrow(axes, 14, 17.5, 3.5)
    for i, (vectors, name) in enumerate(((q, "queries"), (k, "keys"), (v, "values"))):
        column(vectors, 19, 28 - i * 9.6, 11, name, 2.2)
    arrow(axes, 31, 17.5, 3.5)
    axes.imshow(weights, extent=(37, 52, 10, 25), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(3):
        for j in range(3):
            value = weights[i, j].item()
            color = "white" if value > 0.55 else "black"
            place = (39.5 + 5 * j, 22.5 - 5 * i)
            axes.text(*place, f"{value:.2f}", ha="center", va="center", fontsize=13, color=color)
    axes.text(44.5, 6.5, "weights: each row\nadds up to 1", ha="center", va="center", fontsize=13)
    arrow(axes, 54, 17.5, 3.5)
    column(out, 60, 19.5, 12, "3 mixtures\nof the values", 3.5)
    axes.set(xlim=(0, 76), ylim=(0, 32))
    save(figure, "03-build.png")


def encoder() -> None:
    """The stream of one block of the trained model: class token and five patches of the flower."""
    card = vm.load_card("vit_cifar_mini")
    model: Any = vm.load_pretrained("vit_cifar_mini")
    photo = normalize(vm.load_photo("flower", 32)[None], card["mean"], card["std"])
    with torch.no_grad():
        tokens = model.patch_embed(photo)
        tokens = torch.cat([model.cls_token, tokens], dim=1) + model.positions()
        states, _ = residual_stream(model.blocks[:1], tokens)
    figure, axes = canvas(8, 3.6)
    axes.add_patch(
        FancyArrowPatch((0.5, 9), (79.5, 9), arrowstyle="-|>", mutation_scale=30, color=SKY, lw=9)
    )
    words = "the residual stream: six tokens of a trained model"
    axes.text(40, 1.4, words, ha="center", va="center", fontsize=14)
    path: Any = {"arrowstyle": "-|>", "mutation_scale": 16, "color": GREY, "lw": 2}
    for left, state in zip((3, 35, 67), states, strict=True):
        rows = state[0, [0, 10, 20, 28, 36, 45], :10]
        axes.add_patch(Rectangle((left - 0.5, 3.9), 10, 10.4, fc="white", ec="none", zorder=2))
        for i, row in enumerate(rows):
            top = 12.4 - i * 1.65
            axes.imshow(
                row[None],
                extent=(left, left + 9, top, top + 1.3),
                aspect="auto",
                cmap="PuOr",
                vmin=-2.5,
                vmax=2.5,
                interpolation="nearest",
                zorder=3,
            )
    for x, name, color in ((14.5, "attention", BLUE), (46.5, "MLP", GREEN)):
        axes.add_patch(FancyArrowPatch((x + 0.5, 9), (x + 0.5, 17.6), **path))
        box(axes, x - 3, 17.8, 7, 5, "norm", GREY)
        axes.add_patch(FancyArrowPatch((x + 0.5, 22.8), (x + 0.5, 25.8), **path))
        box(axes, x - 5.5, 26, 12, 6, name, color)
        axes.plot([x + 6.5, x + 16], [29, 29], color=GREY, lw=2)
        axes.add_patch(FancyArrowPatch((x + 16, 29.1), (x + 16, 11.2), **path))
        axes.text(x + 16, 9, "+", ha="center", va="center", fontsize=24, weight="bold", color=RED)
        axes.text(x + 17.2, 22, "adds", ha="left", va="center", fontsize=13)
        axes.text(x - 0.8, 15.2, "reads", ha="right", va="center", fontsize=13)
    axes.set(xlim=(0, 80), ylim=(0, 36))
    save(figure, "04-build.png")


def whole_model() -> None:
    """A photograph through the embedded model: its tokens, class token and answers are real."""
    model, card = vm.load_pretrained("vit_cifar_mini"), vm.load_card("vit_cifar_mini")
    photo = vm.load_photo("cat", 32)
    mean, std = (torch.tensor(card[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        first = model.embed(((photo / 255 - mean) / std)[None])
        last = model.norm(model.blocks(first))
        chances = model.head(last[:, 0]).softmax(1)[0]
    figure, axes = canvas(8, 3.9)
    show(axes, photo, 0.5, 14, 17, 17)
    grid(axes, 0.5, 14, 17, 8)
    axes.text(9, 6.5, "an image in\n64 patches", ha="center", va="center", fontsize=13)
    arrow(axes, 18.5, 22.5, 2.5)
    rows = [0, 1, 9, 17, 25, 33, 41, 49, 57]  # the class token and one patch of each row

    def column(tokens: torch.Tensor, x: float) -> None:
        kept = tokens[0, rows, :10]
        bars(axes, kept / kept.abs().quantile(0.95), x, 31.5, 9, 2.3)
        axes.add_patch(Rectangle((x - 0.3, 31.2), 9.6, 2.3, fill=False, ec=RED, lw=2.2))

    column(first, 22.5)
    axes.text(
        27,
        6.5,
        "class token and\n64 patches, with\npositions",
        ha="center",
        va="center",
        fontsize=13,
    )
    arrow(axes, 33, 22.5, 2.5)
    for i in range(4):
        box(axes, 37 + 0.9 * i, 13 + 0.9 * i, 9, 15, "block" if i == 3 else "", SKY)
    axes.text(43, 6.5, "4 blocks\nand a norm", ha="center", va="center", fontsize=13)
    arrow(axes, 50, 22.5, 2.5)
    column(last, 54)
    axes.text(58.5, 6.5, "the same tokens,\nafterwards", ha="center", va="center", fontsize=13)
    arrow(axes, 64.3, 32.6, 2.5)
    best = chances.topk(4)
    for i, (chance, label) in enumerate(
        zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ):
        y = 30 - 4.6 * i
        axes.add_patch(Rectangle((69, y), 10 * chance, 1.7, color=BLUE))
        words = f"{card['classes'][label]} {chance:.0%}"
        axes.text(69, y + 2.9, words, ha="left", va="center", fontsize=12)
    axes.text(73.5, 6.5, "head: ten\nclasses", ha="center", va="center", fontsize=13)
    axes.set(xlim=(0, 80), ylim=(0, 39))
    save(figure, "06-build.png")


def initialisation() -> None:
    """Three stacks: the area of a disc is the measured length scale of its layer."""
    from vitmini.initialisation import length_scales

    figure, axes = canvas(8, 3.4)
    rows = ((1.0, "fades", SKY), (2.0, "keeps", BLUE), (2.5, "explodes", RED))
    for i, (factor, word, color) in enumerate(rows):
        y = (29.5, 21.5, 11)[i]
        generator = torch.Generator().manual_seed(0)
        lengths = length_scales([256] * 9, factor=factor, draws=40, generator=generator).mean(0)
        axes.text(1, y + 1.6, f"variance {factor:g} / n", va="center", fontsize=14)
        axes.text(1, y - 1.8, word, va="center", fontsize=14, color=color, weight="bold")
        axes.plot([20, 71], [y, y], color=GREY, linewidth=1, zorder=0)
        for layer, length in enumerate(lengths.tolist()):
            axes.add_patch(Circle((21 + 6.3 * layer, y), 1.7 * length**0.5, color=color))
    axes.text(21, 2.4, "input", ha="center", fontsize=13)
    axes.text(46, 2.4, "ReLU layers", ha="center", fontsize=13)
    axes.text(71.4, 2.4, "layer 8", ha="center", fontsize=13)
    axes.set(xlim=(0, 80), ylim=(0, 34), aspect="equal")
    save(figure, "05-build.png")


def training() -> None:
    """One photograph, and what eleven changes of the library make of it."""
    from vitmini import augment

    photo = vm.load_photo("cat", 128).float()[None]
    flower = vm.load_photo("flower", 128).float()
    generator = torch.Generator().manual_seed(4)

    def operation(name: str, strength: float) -> torch.Tensor:
        which = torch.tensor([augment.OPERATIONS.index(name)])
        return augment.apply_operations(photo, which, torch.tensor([strength]), bilinear=True)

    one = torch.ones(1)
    both = torch.cat([photo, flower[None]])
    cut = both.clone()
    cut[0, :, 12:76, 56:120] = flower[:, 12:76, 56:120]
    erased = (photo / 255 - 0.5) / 0.25
    erased = augment.random_erasing(erased, 1.0, (0.12, 0.2), generator=generator)
    changed = {
        "the photograph": photo,
        "shifted": augment.crop_at(photo, one.long() * 4, one.long() * 30, 16),
        "cut out": augment.resized_crop(photo, one * 8, one * 16, one * 72, one * 80, (128, 128)),
        "mirrored": photo.flip(-1),
        "rotated": operation("Rotate", 25.0),
        "sheared": operation("ShearX", 0.3),
        "brighter": operation("Brightness", 0.5),
        "solarised": operation("Solarize", 130.0),
        "posterised": operation("Posterize", 2.0),
        "erased": (erased * 0.25 + 0.5) * 255,
        "mixup": 0.6 * photo + 0.4 * flower,
        "CutMix": cut[:1],
    }
    figure, axes = canvas(8, 3.2)
    for i, (name, image) in enumerate(changed.items()):
        x, y = 1.5 + 13.1 * (i % 6), 18.4 - 15.2 * (i // 6)
        show(axes, image[0].round().clamp(0, 255).to(torch.uint8), x, y, 11.6, 11.6)
        axes.text(x + 5.8, y - 1.6, name, ha="center", va="center", fontsize=11)
    axes.set(xlim=(0, 80), ylim=(0, 32), aspect="equal")
    save(figure, "07-build.png")


def three_models() -> None:
    """ViT, hybrid and ResNet on one photograph; maps and tokens are those of fresh weights."""
    from vitmini.baselines import feature_map

    torch.manual_seed(0)
    photo = vm.load_photo("cat", 32)
    images = photo[None].float() / 127.5 - 1
    cnn: Any = feature_map(vm.create_baseline("resnet18_cifar")).eval()
    vit: Any = vm.create_model("vit_cifar")
    hybrid: Any = vm.create_baseline("hybrid_cifar").eval()
    with torch.no_grad():
        maps = {  # the length of the features, at each position
            "hybrid": [hybrid.cnn[:n](images)[0].norm(dim=0) for n in (4, 5, 6)],
            "ResNet": [cnn[:n](images)[0].norm(dim=0) for n in (4, 5, 6, 7)],
        }
        patches = vit.patch_embed(images)[0]
        positions = hybrid.vit.patch_embed(hybrid.cnn(images))[0]
    figure, axes = canvas(8, 4.2)
    rows = (("ViT", 29.2, patches), ("hybrid", 16.2, positions), ("ResNet", 3.2, None))
    for name, y, tokens in rows:
        axes.text(0.5, y + 5.2, name, va="center", fontsize=15, weight="bold")
        show(axes, photo, 10.6, y, 10.5, 10.5)
        x = 25.2
        if name == "ViT":
            grid(axes, 10.6, y, 10.5, 8)
            axes.text(26.8, y + 5.2, "patches, one by one", va="center", fontsize=13, color=GREY)
        else:
            for i, features in enumerate(maps[name]):
                side = (9.5, 6.5, 4.2, 2.6)[i]
                middle = y + 5.2 - side / 2
                show(axes, features, x, middle, side, side, cmap="inferno")
                count = features.shape[0]
                axes.text(x + side / 2, y - 1.1, f"{count}", ha="center", va="center", fontsize=12)
                x += side + 1.6
        arrow(axes, 21.5, y + 5.2, 3.2)
        arrow(axes, 50.5 if tokens is not None else 54, y + 5.2, 2.6)
        if tokens is not None:
            scale = tokens.abs().quantile(0.95)
            bars(axes, tokens[[0, 18, 27, 36, 54], :8] / scale, 53.7, y + 8, 6.5, 2)
            arrow(axes, 60.7, y + 5.2, 2.2)
            box(axes, 63.4, y + 0.7, 8.2, 9, "blocks", BLUE)
        else:
            box(axes, 58, y + 2.2, 13.6, 6, "mean", GREEN)
        arrow(axes, 72.2, y + 5.2, 2.2)
        axes.text(77.3, y + 5.2, "class", ha="center", va="center", fontsize=13)
    axes.set(xlim=(0, 80), ylim=(0, 42))
    save(figure, "08-build.png")


def distillation() -> None:
    """One cut photograph for both: its tokens are those of an untrained distilled ViT."""
    from vitmini.augment import resized_crop

    photo, one = vm.load_photo("cat", 128).float()[None], torch.ones(1)
    cut = resized_crop(photo, one * 6, one * 14, one * 92, one * 92, (32, 32)).flip(-1)
    cut = cut.round().clamp(0, 255).to(torch.uint8)
    torch.manual_seed(0)
    model = vm.create_model("vit_cifar_mini", distilled=True)
    with torch.no_grad():
        first = model.embed(normalize(cut, (0.5,) * 3, (0.25,) * 3))[0]
        last = model.norm(model.blocks(first[None]))[0]
    figure, axes = canvas(8, 3.6)
    show(axes, cut[0], 0.8, 14, 15, 15)
    axes.text(8.3, 10.2, "one cut picture\nfor both", ha="center", va="center", fontsize=13)
    path: Any = {"arrowstyle": "-|>", "mutation_scale": 18, "color": GREY, "lw": 2}
    for start, end in (((16.5, 25), (21, 28.5)), ((16.5, 17), (24, 7.5))):
        axes.add_patch(FancyArrowPatch(start, end, **path))
    kept = first[[0, 1, 10, 20, 28, 37, 45], :10]
    kept = kept / kept.norm(dim=1, keepdim=True) * 2  # prefix tokens start small
    bars(axes, kept, 22.3, 35.2, 10, 2.4)
    for row, color in ((0, RED), (1, GREEN)):
        place = (22, 34.9 - 2.4 * row)
        axes.add_patch(Rectangle(place, 10.6, 2.35, fill=False, ec=color, lw=2.4))
    axes.text(27.3, 17.6, "2 tokens, patches", ha="center", va="center", fontsize=13)
    arrow(axes, 33.4, 28.5, 2.6)
    box(axes, 36.6, 20.5, 9.5, 16.5, "ViT", BLUE)
    axes.text(41.4, 17.6, "student", ha="center", va="center", fontsize=13)
    arrow(axes, 46.8, 28.5, 2.6)
    both = last[:2, :10] / last[:2].abs().max() * 1.5
    for row, color, head in ((0, RED, "class head"), (1, GREEN, "distillation head")):
        y = 32.7 - 9 * row
        bars(axes, both[row][None], 50.3, y, 10, 2.4)
        axes.add_patch(Rectangle((50, y - 0.3), 10.6, 2.35, fill=False, ec=color, lw=2.4))
        axes.text(62, y + 0.9, head, ha="left", va="center", fontsize=13, color=color)
    axes.text(62, 30.6, "learns the label", ha="left", va="center", fontsize=13)
    axes.text(62, 21.6, "learns what the", ha="left", va="center", fontsize=13)
    axes.text(62, 18.8, "teacher decides", ha="left", va="center", fontsize=13)
    box(axes, 25, 3.2, 21, 8.6, "ResNet, frozen", GREY)
    axes.text(35.5, 13.6, "teacher", ha="center", va="center", fontsize=13)
    axes.plot([46.5, 69], [7.5, 7.5], color=GREY, lw=2)
    axes.add_patch(FancyArrowPatch((69, 7.3), (69, 17.6), **path))
    axes.set(xlim=(0, 80), ylim=(2, 38))
    save(figure, "10-build.png")


def attention_distances() -> None:
    """One query in the heads that look nearest and farthest on a photograph, by their means."""
    model, card = vm.load_pretrained("vit_cifar_mini"), vm.load_card("vit_cifar_mini")
    cat = vm.load_photo("cat", 32)
    images = normalize(cat[None], card["mean"], card["std"])
    maps = vm.attention_maps(model, images)[:, 0, :, 1:, 1:]  # (layers, heads, 64, 64)
    far = vm.measure_attention_distance(model, images)  # (layers, heads)
    query, side = 3 * 8 + 2, 20.0
    figure, axes = canvas(8, 3.2)
    show(axes, cat, 2, 9, side, side)
    pixels = vm.patch_distances((8, 8), 4)[query]
    words = f"a query; uniform\nattention: {pixels.mean():.1f} px"
    axes.text(2 + side / 2, 5.5, words, ha="center", va="center", fontsize=13)
    for x, index in ((26, far.argmin()), (50, far.argmax())):
        layer, head = divmod(int(index), far.shape[1])
        weights = maps[layer, head, query]
        show(axes, weights.reshape(1, 8, 8), x, 9, side, side, cmap="inferno", vmin=0)
        looks = (weights * pixels).sum() / weights.sum()
        words = f"layer {layer + 1}, head {head + 1}:\n{looks:.1f} px"
        axes.text(x + side / 2, 5.5, words, ha="center", va="center", fontsize=13)
    for x in (2, 26, 50):
        row, column, step = query // 8, query % 8, side / 8
        place = (x + column * step, 9 + side - (row + 1) * step)
        axes.add_patch(Rectangle(place, step, step, fill=False, ec="white", lw=2.5))
    axes.set(xlim=(0, 72), ylim=(2, 31), aspect="equal")
    save(figure, "11-build.png")


def similarity() -> None:
    """A place of the trained model and what resembles it, before and after; four components."""
    model: Any = vm.load_pretrained("vit_cifar_mini")
    torch.manual_seed(0)
    fresh: Any = vm.create_model("vit_cifar_mini")
    row, column, side = 2, 3, 16.5
    figure, axes = canvas(8, 2.9)
    show(axes, vm.load_photo("cat", 32), 1, 9, side, side)
    grid(axes, 1, 9, side, 8)
    axes.text(1 + side / 2, 5.4, "64 places,\none marked", ha="center", va="center", fontsize=13)
    for x, tables, word in ((21.0, fresh, "fresh"), (41.0, model, "trained")):
        maps = vm.position_similarity(tables.pos_embed.detach(), (8, 8))
        show(axes, maps[row, column], x, 9, side, side, cmap="PuOr", vmin=-1, vmax=1)
        words = f"its likeness to\neach place, {word}"
        axes.text(x + side / 2, 5.4, words, ha="center", va="center", fontsize=13)
    for x in (1.0, 21.0, 41.0):
        step = side / 8
        place = (x + column * step, 9 + side - (row + 1) * step)
        for color, thick in (("white", 5.0), (RED, 2.5)):
            frame = Rectangle(place, step, step, fill=False, ec=color, lw=thick, zorder=5)
            axes.add_patch(frame)
    components = vm.patch_filters(model.patch_embed.proj.weight, 4)
    for i, tile in enumerate(components):
        low, high = tile.min(), tile.max()
        x, y = 61 + 8.75 * (i % 2), 9 + 8.75 * (1 - i // 2)
        show(axes, (tile - low) / (high - low), x, y, 7.75, 7.75)
    words = "what its filters\nare made of"
    axes.text(61 + side / 2, 5.4, words, ha="center", va="center", fontsize=13)
    axes.set(xlim=(0, 79), ylim=(2.5, 27), aspect="equal")
    save(figure, "12-build.png")


def interpolation() -> None:
    """One photograph on two grids, and the position of one place in both, resized."""
    model: Any = vm.load_pretrained("vit_cifar_mini")
    table = model.pos_embed.detach()
    figure, axes = canvas(8, 2.4)
    height = 16.0
    for x, cells, row, column in ((1, 8, 3, 2), (44, 12, 5, 3)):
        maps = vm.position_similarity(vm.resize_pos_embed(table, (cells, cells)), (cells, cells))
        show(axes, vm.load_photo("cat", 4 * cells), x, 6, height, height)
        grid(axes, x, 6, height, cells)
        alike = maps[row, column].reshape(1, cells, cells)
        show(axes, alike, x + 18, 6, height, height, cmap="PuOr", vmin=-1, vmax=1)
        for left in (x, x + 18):
            step = height / cells
            place = (left + column * step, 6 + height - (row + 1) * step)
            axes.add_patch(Rectangle(place, step, step, fill=False, ec="black", lw=3, zorder=5))
        words = f"{4 * cells} pixels: {cells} x {cells} patches"
        axes.text(x + 17, 3.6, words, ha="center", va="center", fontsize=13)
    arrow(axes, 36.8, 14, 5.4)
    axes.text(39.5, 23.8, "resize the positions", ha="center", va="center", fontsize=13)
    axes.set(xlim=(0, 79), ylim=(2, 25.5), aspect="equal")
    save(figure, "13-build.png")


def main() -> None:
    STATIC.mkdir(exist_ok=True)
    svg("icon.svg", 64, 64, "Sixteen coloured tiles", icon())
    words = outline("Vision Transformers", 76, 28, 23, "#2f7fc1")
    words += outline("from Scratch", 76, 56, 23, "#b3701d")
    svg("logo.svg", 350, 64, "Vision Transformers from Scratch", icon() + words)
    cover()
    first_digits()
    patches()
    positions()
    attention()
    encoder()
    initialisation()
    whole_model()
    training()
    three_models()
    distillation()
    attention_distances()
    similarity()
    interpolation()


if __name__ == "__main__":
    main()
