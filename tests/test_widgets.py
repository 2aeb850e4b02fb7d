"""Explorers of maps: what is written into the page, and what a reader sees when using them."""

from __future__ import annotations

import re

import pytest
import torch

import vitmini as vm
from vitmini.data import normalize
from vitmini.widgets import Choice, encode_picture, map_explorer

GRID = (2, 3)
N = 6


def maps_of(count, prefix=0):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, prefix + N, N, generator=generator).softmax(dim=-1)


def picture(channels=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (channels, 8, 12), dtype=torch.uint8, generator=generator)


# What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"maps": maps_of(2)}, r"maps must be \(1, 6, 6\)"),
        ({"maps": maps_of(1, 1)}, "0 prefix tokens and 6 patches"),
        ({"maps": maps_of(1), "notes": ["a", "b"]}, "notes must be 1"),
        ({"maps": maps_of(2), "choices": [Choice("head", "12")], "start": (2,)}, "start must hold"),
        ({"maps": maps_of(2), "choices": [Choice("head", "12")], "start": (0, 0)}, "start must"),
        ({"maps": maps_of(1), "image": b"GIF89a"}, "image must be the bytes of a PNG"),
    ],
)
def test_an_explorer_that_does_not_fit_together_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        map_explorer("x", grid=GRID, **options)


@pytest.mark.parametrize("image", [torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32).byte(), None])
def test_attention_explorer_wants_a_picture(image):
    model = vm.create_model("vit_cifar_mini", depth=1)
    with pytest.raises(ValueError, match=r"image must be uint8 \(C, H, W\)"):
        vm.widgets.attention_explorer(model, image, (0.5,) * 3, (0.5,) * 3)


def test_attention_explorer_wants_a_vit():
    with pytest.raises(ValueError, match="model must be a ViT of vitmini, got Linear"):
        vm.widgets.attention_explorer(torch.nn.Linear(1, 1), picture(), (0.5,) * 3, (0.5,) * 3)


def test_nothing_in_a_label_or_a_note_can_end_the_script():
    evil = "</script><b>&"
    text = map_explorer(evil, maps_of(1), GRID, notes=[evil], prefix=())._repr_html_()
    assert text.count("</script>") == 1 and "<b>" not in text


# What a reader sees ---------------------------------------------------------------------------


@pytest.fixture
def show(chromium):
    pages = []

    def show(explorer, width=800):
        page = chromium.new_page(viewport={"width": width, "height": 900}, has_touch=True)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.faults.append(m.text))
        page.set_content(f"<!doctype html><html lang=en>{explorer._repr_html_()}</html>")
        pages.append(page)
        return page

    yield show
    assert not any(page.faults for page in pages)
    for page in pages:
        page.close()


def colour(page, row, column, canvas=-1):
    """The pixel in the middle of a patch, where no frame is drawn."""
    return page.evaluate(
        """([k, x, y]) => [...[...document.querySelectorAll('canvas')].at(k)
        .getContext('2d').getImageData(x, y, 1, 1).data]""",
        [canvas, 40 * column + 20, 40 * row + 20],
    )


def numbers(text):
    """The words without their numbers, and the numbers: a map has 256 levels, no more."""
    found = re.findall(r"-?\d+\.\d+", text)
    return re.sub(r"-?\d+\.\d+", "#", text), [float(value) for value in found]


def test_words_and_colours_say_what_the_map_holds(show):
    maps = maps_of(2, 1)
    heads = [Choice("head", ["one", "two"])]
    notes = ["first note", "second note"]
    image = encode_picture(picture())
    page = show(map_explorer("Look", maps, GRID, image, heads, notes, ["class token"]))
    words = page.locator("p")
    query = 1 * 3 + 1  # the middle: row 2, column 2
    others = maps[0, 1 + query].clone()
    others[query] = -1
    best = others.argmax().item()
    text, values = numbers(words.inner_text())
    assert text == (
        f"The patch in row 2, column 2 attends most to row {best // 3 + 1}, "
        f"column {best % 3 + 1}: # %, itself: # %. first note"
    )
    expected = [100 * others.max().item(), 100 * maps[0, 1 + query, query].item()]
    assert values == pytest.approx(expected, abs=0.1)
    lightest = maps[0, 1 + query].argmax().item()
    assert colour(page, lightest // 3, lightest % 3) == [0xFD, 0xE7, 0x25, 255]
    assert colour(page, 0, 0, canvas=0)[3] == 0  # the picture shows through
    page.get_by_label("head", exact=True).press("ArrowRight")
    assert "second note" in words.inner_text()
    assert page.get_by_label("head", exact=True).get_attribute("aria-valuetext") == "two"
    page.get_by_label("from", exact=True).select_option("class token")
    best = maps[1, 0].argmax().item()
    assert words.inner_text() == (
        f"The class token attends most to row {best // 3 + 1}, column {best % 3 + 1}: "
        f"{100 * maps[1, 0].max():.1f} %. second note"
    )


@pytest.mark.parametrize("width", [800, 390])
def test_a_click_a_touch_and_the_keyboard_choose_the_same_patch(show, width):
    image = encode_picture(picture())
    page = show(map_explorer("Look", maps_of(1), GRID, image), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    words, canvases = page.locator("p"), page.locator("canvas")
    for k in range(2):
        box = canvases.nth(k).bounding_box()
        page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.2 * box["height"])
        clicked = words.inner_text()
        assert clicked.startswith("The patch in row 1, column 3 attends most")
        page.get_by_label("column", exact=True).press("Home")
        page.get_by_label("row", exact=True).press("End")
        assert words.inner_text().startswith("The patch in row 2, column 1")
        page.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 0.2 * box["height"])
        assert words.inner_text() == clicked
        page.get_by_label("column", exact=True).press("Home")
        page.get_by_label("column", exact=True).press("End")
        assert words.inner_text() == clicked
        assert canvases.nth(1).get_attribute("aria-label") == f"Map. {clicked}"


def test_limits_are_the_ends_of_the_colours_and_the_unit_can_be_none(show):
    maps = torch.linspace(-1, 1, 36).reshape(1, 6, 6)
    page = show(
        map_explorer("Alike", maps, GRID, relation="resembles most", limits=(-1, 1), unit="")
    )
    assert page.locator("canvas").count() == 1
    page.get_by_label("row", exact=True).press("Home")
    page.get_by_label("column", exact=True).press("Home")
    text, values = numbers(page.locator("p").inner_text())
    assert text == "The patch in row 1, column 1 resembles most row 2, column 3: #, itself: #."
    assert values == pytest.approx([maps[0, 0, 5].item(), -1.0], abs=0.01)
    assert colour(page, 0, 0) == [0x44, 0x01, 0x54, 255]
    ends = page.locator("figure > div output").all_inner_texts()
    assert ends[-2:] == ["-1.00", "1.00"]


def test_the_explorer_of_a_model_shows_its_attention_and_its_distances(show):
    torch.manual_seed(0)
    model = vm.create_model("vit_cifar_mini", image_size=(8, 12), depth=2, distilled=True)
    image, mean, std = picture(), (0.5,) * 3, (0.25,) * 3
    page = show(vm.widgets.attention_explorer(model, image, mean, std, layers=(-1,)))
    attn = vm.attention_maps(model, normalize(image[None], mean, std))[1]
    far = vm.attention_distance(attn[None], GRID, 4, 2)
    page.get_by_label("from", exact=True).select_option("distillation token")
    page.get_by_label("head", exact=True).press("End")
    top = 100 * attn[0, 2, 1, 2:].max().item()
    _, values = numbers(page.locator("p").inner_text())
    assert values == pytest.approx([top, far[0, 2].item()], abs=0.1)
    assert page.get_by_label("layer", exact=True).get_attribute("aria-valuetext") == "2"
    assert page.locator("option").all_inner_texts() == [
        "a patch", "class token", "distillation token"
    ]  # fmt: skip


def test_a_grey_picture_is_ink_on_paper():
    import io

    from PIL import Image

    pixels = picture(1)
    shown = Image.open(io.BytesIO(encode_picture(pixels)))
    assert shown.size == (12, 8) and shown.getpixel((3, 2)) == (255 - int(pixels[0, 2, 3]),) * 3
