"""Explorers: what is written into the page, and what a reader sees when using them."""

from __future__ import annotations

import re

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import vitmini as vm
from vitmini.data import normalize
from vitmini.positions import PUBLISHED
from vitmini.widgets import Choice, encode_picture, map_explorer, resolution_explorer

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
        ({"maps": maps_of(1), "alike": maps_of(1)}, r"alike must be \(6, 6\)"),
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
    assert colour(page, lightest // 3, lightest % 3) == [0xFC, 0xFF, 0xA4, 255]  # inferno
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
    assert colour(page, 0, 0) == [0x7F, 0x3B, 0x08, 255]  # PuOr: orange
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


@pytest.mark.parametrize("kind", ["learned", "learned2d", "sincos2d", "relative", "none"])
def test_the_explorer_of_a_model_shows_which_positions_resemble_the_chosen_one(show, kind):
    torch.manual_seed(1)
    model = vm.create_model("vit_cifar_mini", image_size=(8, 12), depth=1, pos_embed=kind)
    page = show(vm.widgets.attention_explorer(model, picture(), (0.5,) * 3, (0.25,) * 3), 390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    words, canvases = page.locator("p"), page.locator("canvas")
    if kind in ("relative", "none"):  # nothing is added to a token
        assert canvases.count() == 2 and "position" not in words.inner_text()
        return
    alike = vm.position_similarity(model.positions().detach(), GRID, 1).reshape(N, N)
    sides = {round(c.bounding_box()["width"]) for c in canvases.all()}
    assert canvases.count() == 3 and len(sides) == 1 and sides.pop() > 130
    for row, column in ((0, 0), (1, 2)):
        box = canvases.nth(2).bounding_box()
        x, y = ((k + 0.5) / n for k, n in ((column, 3), (row, 2)))
        page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        others = alike[3 * row + column].clone()
        others[3 * row + column] = -2
        told = re.search(
            r"Its position resembles most .* row (\d), column (\d): cosine (.*)\.$",
            words.inner_text(),
        )
        best = 3 * (int(told[1]) - 1) + int(told[2]) - 1
        assert others[best] == pytest.approx(others.max().item(), abs=1e-4)
        assert float(told[3]) == pytest.approx(others.max().item(), abs=0.006)
        assert colour(page, row, column) == [0x2D, 0x00, 0x4B, 255]  # as itself: the purple end
    page.get_by_label("from", exact=True).select_option("class token")
    assert "position" not in words.inner_text()
    assert colour(page, 0, 0) == [0xF6, 0xF6, 0xF7, 255]  # a class token has no place: white


CELLS = (
    """import datetime, io
import vitmini as vm
from PIL import Image
model = vm.create_model("vit_cifar_mini", depth=1)
explore = lambda image: vm.widgets.Html(f"<b>{image.unique().tolist()}</b>")
box = vm.widgets.own_picture(explore, vm.load_photo("cat", 32)[:, :1, :1])
button, shown = box.children
def choose(content):
    about = {"name": "me", "type": "image/png", "size": 1, "content": memoryview(content)}
    button.value = (about | {"last_modified": datetime.datetime.now()},)
file = io.BytesIO()
Image.new("RGB", (50, 40), (9, 9, 9)).save(file, "PNG")""",
    "choose(file.getvalue())",
    "choose(b'no picture')",
)


def test_a_live_notebook_takes_a_picture_of_the_readers_own(monkeypatch):
    found = []
    for count in (2, 3):  # the output of a widget is known when the notebook has run
        cells = [nbformat.v4.new_code_cell(text) for text in CELLS[:count]]
        notebook = nbformat.v4.new_notebook(cells=cells)
        monkeypatch.delenv("VITMINI_STATIC", raising=False)
        # Without a timeout nbclient may wait for ever for an answer that has come (its issue 312).
        NotebookClient(notebook, kernel_name="python3", timeout=20).execute()
        widgets = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
        [output] = [w for w in widgets.values() if w["model_name"] == "OutputModel"]
        found.append(str(output["state"]["outputs"]))
    assert "<b>[9]</b>" in found[0]
    assert "cannot read your picture as a picture: no picture of a known kind" in found[1]


def test_where_nobody_can_press_a_button_there_is_none(monkeypatch):
    def explore(image):
        return vm.widgets.Html(str(image.shape[0]))

    assert vm.widgets.own_picture(explore, picture())._repr_html_() == "3"  # no notebook
    monkeypatch.setattr(vm.widgets, "in_notebook", lambda: True)
    monkeypatch.setenv("VITMINI_STATIC", "1")  # a page that is being built
    assert vm.widgets.own_picture(explore, picture())._repr_html_() == "3"


def test_a_grey_picture_is_ink_on_paper():
    import io

    from PIL import Image

    pixels = picture(1)
    shown = Image.open(io.BytesIO(encode_picture(pixels)))
    assert shown.size == (12, 8) and shown.getpixel((3, 2)) == (255 - int(pixels[0, 2, 3]),) * 3


# The explorer of sizes ------------------------------------------------------------------------

SIZES = (8, 12, 16, 32)


def square(grid=3, **options):
    torch.manual_seed(0)
    given = {"image_size": 4 * grid, "depth": 1} | options
    return vm.create_model("vit_cifar_mini", **given)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": torch.nn.Linear(1, 1)}, "model must be a ViT of vitmini with learned"),
        ({"model": square(pos_embed="sincos2d")}, "with learned positions"),
        ({"model": square(image_size=(8, 12))}, "model must have a square grid"),
        ({"sizes": (8, 10)}, r"sizes must be multiples of the patch size 4, got \[8, 10\]"),
        ({"sizes": ()}, "sizes must be multiples"),
        ({"image": picture().float()}, "image must be a tensor uint8"),
        ({"before": {"mine": {8: 0.5}}}, "before must be of timm, DeiT, HF"),
    ],
)
def test_an_explorer_of_sizes_says_what_it_wants(options, words):
    given = {"model": square(), "image": picture(), "sizes": SIZES} | options
    with pytest.raises(ValueError, match=words):
        resolution_explorer("x", **given)


def test_sizes_and_conventions_give_the_maps_of_the_resized_table(show):
    """The page resizes by itself: its words and colours are those of `resize_pos_embed`."""
    model, sizes = square(), (4, *SIZES)
    page = show(resolution_explorer("Size", model, picture(), sizes, {"Google": {16: 0.25}}))
    words, image = page.locator("p"), page.locator("img")
    assert page.get_by_label("image", exact=True).get_attribute("aria-valuetext") == "12 px"
    assert "the size of the training" in words.inner_text()
    page.get_by_label("convention", exact=True).press("Home")
    pictures = set()
    for c, (name, (mode, antialias)) in enumerate(PUBLISHED.items()):
        page.get_by_label("image", exact=True).press("Home")
        for size in sizes:
            n = size // 4
            table = vm.resize_pos_embed(
                model.pos_embed.detach(), (n, n), (3, 3), 1, mode, antialias
            )
            maps = vm.position_similarity(table, (n, n))
            for key in ("Home", "End"):
                page.get_by_label("row", exact=True).press(key)
                page.get_by_label("column", exact=True).press(key)
                i = 0 if key == "Home" else n - 1
                values = maps[i, i].flatten().clone()
                text = words.inner_text()
                assert text.startswith(f"The patch in row {i + 1}, column {i + 1} of {n} x {n} ")
                values[i * n + i] = -1
                best = values.argmax().item()
                if n > 1:
                    assert f"that of row {best // n + 1}, column {best % n + 1}: cosine " in text
                    assert numbers(text)[1][0] == pytest.approx(values[best].item(), abs=0.006)
            if c and size != 12:
                plain = vm.resize_pos_embed(model.pos_embed.detach(), (n, n), (3, 3))[:, 1:]
                far = (100 * (table[:, 1:] - plain).norm() / plain.norm()).item()
                assert numbers(text)[1][1 if n > 1 else 0] == pytest.approx(far, abs=0.06)
            measured = (name, size) == ("Google", 16)
            assert ("Accuracy at 16 px: 25.0 % as it is." in text) == measured
            pictures.add(image.get_attribute("src"))
            page.get_by_label("image", exact=True).press("ArrowRight")
        page.get_by_label("convention", exact=True).press("ArrowRight")
    assert len(pictures) == len(sizes)


def test_the_place_in_the_picture_stays_when_the_size_changes(show):
    page = show(resolution_explorer("Size", square(4), picture(), (8, 16, 32)))
    words = page.locator("p")
    page.get_by_label("row", exact=True).press("Home")
    page.get_by_label("column", exact=True).press("End")
    page.get_by_label("image", exact=True).press("End")
    assert words.inner_text().startswith("The patch in row 2, column 8 of 8 x 8 ")
    page.get_by_label("image", exact=True).press("Home")
    assert words.inner_text().startswith("The patch in row 1, column 2 of 2 x 2 ")
    assert page.locator("svg").is_hidden()  # no accuracy is known


@pytest.mark.parametrize("width", [800, 390])
def test_the_accuracy_is_told_and_drawn_at_every_size(show, width):
    before = {"timm": {8: 0.3, 12: 0.6, 32: 0.4}}
    after = {8: 0.35, 12: 0.61, 16: 0.55, 32: 0.5}
    page = show(resolution_explorer("Size", square(), picture(), SIZES, before, after), width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    words, slider = page.locator("p"), page.get_by_label("image", exact=True)
    assert "Accuracy at 12 px: 60.0 % as it is, 61.0 % after an epoch" in words.inner_text()
    slider.press("End")
    assert "Accuracy at 32 px: 40.0 % as it is, 50.0 % after" in words.inner_text()
    slider.press("ArrowLeft")
    told = "Accuracy at 16 px: not measured with this convention, 55.0 % after"
    assert told in words.inner_text()
    chart = page.locator("svg")
    assert told in chart.get_attribute("aria-label")
    assert chart.locator("circle").count() == 1 + 3 and chart.locator("rect").count() == 1 + 4
    places = chart.locator("polyline").evaluate_all("all => all.map(l => l.points.length)")
    assert places == [3, 4]
    box = page.locator("canvas").nth(1).bounding_box()
    page.mouse.click(box["x"] + 0.1 * box["width"], box["y"] + 0.9 * box["height"])
    assert words.inner_text().startswith("The patch in row 4, column 1 of 4 x 4 ")
    page.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
    assert words.inner_text().startswith("The patch in row 1, column 4 of 4 x 4 ")


def test_the_explorer_of_the_courses_model_is_small_enough_for_a_page():
    model, sizes = vm.load_pretrained("vit_cifar_mini"), (16, 24, 28, 32, 40, 48, 64)
    explorer = resolution_explorer("Size", model, vm.load_photo("cat", 32), sizes)
    assert len(explorer._repr_html_()) < 200_000
