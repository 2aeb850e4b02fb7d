"""Figures that compute what they show: the augmentations, the operations, the learning curve."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

import vitmini as vm
from vitmini.augment import OPERATIONS
from vitmini.plot import BLUE, ORANGE

CAT, FLOWER = vm.load_photo("cat", 48), vm.load_photo("flower", 48)


def rows(figure):
    """The pictures of each row (H, W, 3), under the name on its left."""
    found = {}
    for axes in figure.axes:
        if axes.texts:
            pictures = found.setdefault(axes.texts[0].get_text(), [])
        if axes.images:
            pictures.append(torch.tensor(axes.images[0].get_array()))
    return found


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_every_augmentation_is_drawn_and_changes_the_image():
    found = rows(vm.plot.augmentations(CAT, FLOWER))
    names = ["image, partner", "crop", "resized crop", "flip", "affine", "RandAugment"]
    names += ["TrivialAugment", "AutoAugment", "colour jitter", "erasing", "mixup", "CutMix"]
    assert list(found) == names
    image, partner = found.pop("image, partner")
    assert torch.equal(image, CAT.permute(1, 2, 0)) and torch.equal(
        partner, FLOWER.permute(1, 2, 0)
    )
    for name, pictures in found.items():
        assert len(pictures) == 4
        assert any(not torch.equal(picture, image) for picture in pictures), name
        assert len({picture.numpy().tobytes() for picture in pictures}) > 1, name
    from_partner = (found["CutMix"][1] == partner).all(-1)
    from_image = (found["CutMix"][1] == image).all(-1)
    assert (from_image | from_partner).all() and from_image.any()
    assert all(torch.equal(p, image) or torch.equal(p, image.flip(1)) for p in found["flip"])


def test_a_figure_of_lines_is_vectors_and_one_of_pictures_is_not():
    lines = vm.plot.lines({"a": ([1, 2], [3.0, 4.0])}, "x (px)", "y")
    text = lines._repr_svg_()
    assert text == vm.plot.svg(lines) and text.count("<image") == 0 and "<path" in text
    image = vm.widgets.figure_bytes(lines, "svg")
    assert image.decode() == text
    page = vm.widgets.stepper("x", [vm.widgets.Frame(image, "one", "A line.")])._repr_html_()
    assert "data:image/svg+xml;base64," in page
    assert not hasattr(vm.plot.images(CAT[None]), "_repr_svg_")


def test_a_seed_draws_the_same_figure_again():
    first, again, other = (rows(vm.plot.augmentations(CAT, seed=seed)) for seed in (1, 1, 2))
    assert all(map(torch.equal, first["affine"], again["affine"]))
    assert not all(map(torch.equal, first["affine"], other["affine"]))


def test_every_operation_is_drawn_as_torchvision_does_it():
    figure = vm.plot.operations(CAT)
    found = rows(figure)
    fixed = found.pop("no strength")
    heads = titles(figure)
    assert heads[:4] == ["Identity", "AutoContrast", "Equalize", "Invert"]
    assert set(found) | set(heads[:4]) == set(OPERATIONS)
    drawn = dict(zip(heads[:4], fixed, strict=True))
    for name, picture in drawn.items():
        theirs = _apply_op(CAT, name, 0.0, InterpolationMode.NEAREST, None)
        assert torch.equal(picture, theirs.permute(1, 2, 0)), name
    strengths = iter(heads[4:])
    for name, pictures in found.items():
        for picture in pictures:
            strength = float(next(strengths).strip("° pxbits").replace("−", "-"))
            theirs = _apply_op(CAT, name, strength, InterpolationMode.NEAREST, None)
            difference = (picture.int() - theirs.permute(1, 2, 0).int()).abs()
            wrong = (difference > (0 if name in OPERATIONS[1:6] else 1)).float().mean()
            assert wrong < 0.01, (name, strength)


@pytest.mark.parametrize("image", [CAT[:1], CAT[:, :24], torch.zeros(1, 8, 8, dtype=torch.uint8)])
def test_grey_wide_and_tiny_images_are_drawn(image):
    assert len(rows(vm.plot.augmentations(image, draws=2))) == 12
    assert len(rows(vm.plot.operations(image))) == 12


def test_the_figures_fit_a_phone_and_a_stored_notebook():
    from PIL import Image

    for figure in (vm.plot.augmentations(CAT, FLOWER), vm.plot.operations(CAT)):
        # on a phone's 390 pixels the smallest letters are at least 9 pixels high
        width = figure.get_figwidth() * 72
        texts = [t for axes in figure.axes for t in (axes.title, *axes.texts) if t.get_text()]
        assert min(text.get_fontsize() for text in texts) * 390 / width >= 9
        file = vm.widgets.figure_bytes(figure, dpi=110)
        assert 250 < Image.open(io.BytesIO(file)).width < 1000
        assert len(base64.b64encode(file)) < 600_000


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vm.plot.augmentations(CAT.float()), "image must be uint8"),
        (lambda: vm.plot.augmentations(CAT[None]), "image must be uint8"),
        (lambda: vm.plot.operations(CAT[:2]), "image must be uint8"),
        (lambda: vm.plot.augmentations(CAT, FLOWER[:, :24]), "partner must be uint8 of shape"),
        (lambda: vm.plot.augmentations(CAT, draws=1), "draws must be at least 2"),
    ],
)
def test_a_picture_that_cannot_be_drawn_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_one_model_has_one_colour_whatever_its_lines():
    metric = {"mean": 0.5, "stderr": 0.01}
    names = ("ViT, weak", "ViT, strong", "ResNet, weak", "ResNet, strong")
    figure = vm.plot.against({n: ([1, 2], [metric] * 2) for n in names}, "x", "y")
    lines = [bars.lines[0] for bars in figure.axes[0].containers]
    assert [line.get_color() for line in lines] == [BLUE, BLUE, ORANGE, ORANGE]
    assert [line.get_linestyle() for line in lines] == ["-", "--"] * 2
    assert [line.get_marker() for line in lines] == ["o", "o", "s", "s"]
    plain = vm.plot.against({n: ([1, 2], [metric] * 2) for n in ("a", "b")}, "x", "y")
    lines = [bars.lines[0] for bars in plain.axes[0].containers]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]


def test_sizes_are_named_in_plain_numbers_and_flops_in_powers_of_ten():
    metric = {"mean": 0.5, "stderr": 0.01}
    labels = []
    for places in ((500, 2_000, 10_000), (3e11, 2e12, 2e13)):
        figure = vm.plot.against({"ViT": (places, [metric] * 3)}, "x", "accuracy (%)")
        figure.canvas.draw()
        [axes] = figure.axes
        assert axes.get_ylim()[0] < 49 and axes.get_ylim()[1] > 51  # the errors are in sight
        labels.append([text.get_text() for text in axes.get_xticklabels()])
    assert labels[0] == ["500", "2,000", "10,000"]
    assert all("10^" in text for text in labels[1])


# Attention ------------------------------------------------------------------------------------


def test_queries_are_framed_and_each_map_says_its_largest_weight():
    maps = torch.full((2, 2, 3, 6), 0.01)
    maps[1, 0, 2, 5] = 0.25
    figure = vm.plot.queries_on_images([CAT, CAT], maps, [(0, 1), (2, 5)], ["near", "far"])
    axes = figure.axes
    assert len(axes) == 6 and [a.get_title() for a in axes[:3]] == ["image", "near", "far"]
    words = [a.texts[0].get_text() for a in axes if a.texts]
    assert words == ["up to 1.0%", "up to 1.0%", "up to 25.0%", "up to 1.0%"]
    height, width = CAT.shape[1:]
    for place, (row, column) in ((0, (0, 1)), (2, (0, 1)), (4, (2, 5))):
        frame = axes[place].patches[-1]
        assert frame.get_xy() == (column * width / 6 - 0.5, row * height / 3 - 0.5)
        assert (frame.get_width(), frame.get_height()) == (width / 6, height / 3)


def test_distances_stand_beside_their_lines_of_reference():
    far = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    figure = vm.plot.head_distances({"a": far, "b": far}, uniform=4.0, near=1.5)
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines["uniform"].get_ydata()) == [4.0, 4.0]
        assert list(lines["3 x 3 around"].get_ydata()) == [1.5, 1.5]
        assert list(lines["mean of the heads"].get_ydata()) == [1.5, 4.0]
        assert axes.get_ylim()[1] > 5
    [legend] = figure.legends
    assert len(legend.get_texts()) == 3
    assert len(vm.plot.head_distances({"a": far}, uniform=4.0).legends[0].get_texts()) == 2


# Positions ------------------------------------------------------------------------------------


def test_similarity_maps_are_one_picture_with_a_tile_for_each_patch():
    maps = vm.position_similarity(vm.sincos_positions((3, 5), 16), (3, 5), num_prefix_tokens=0)
    axes = vm.plot.similarity_maps(maps).axes[0]
    sheet = torch.tensor(axes.images[0].get_array().filled(float("nan")))
    assert axes.images[0].get_clim() == (-1, 1)
    assert len(axes.patches) == 15 and sheet.shape == (3 * 4 - 1, 5 * 6 - 1)
    for i in range(3):
        for j in range(5):
            tile = sheet[4 * i : 4 * i + 3, 6 * j : 6 * j + 5]
            assert torch.equal(tile, maps[i, j])
    assert sheet.isnan().sum() == sheet.numel() - 15 * 15
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "2", "3", "4", "5"]


def test_with_a_stride_tiles_keep_their_numbers():
    maps = vm.position_similarity(vm.sincos_positions((5, 5), 16), (5, 5), num_prefix_tokens=0)
    axes = vm.plot.similarity_maps(maps, stride=2).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1", "3", "5"]
    alone = vm.plot.similarity_maps(maps[2:3, 2:3]).axes[0]
    assert [t.get_text() for t in alone.get_xticklabels()] == [""]


def test_maps_of_places_are_framed_and_say_their_scale():
    maps = torch.zeros(2, 3, 2, 3)
    maps[1, 2, 0, 0], maps[0, 1, 1, 1] = -2.0, 0.5
    figure = vm.plot.place_maps({"cosine": maps / 2, "dot": maps}, [(1, 2), (0, 1)])
    axes = figure.axes
    assert [a.get_title() for a in axes[:2]] == ["cosine\n-1.00 to 1.00", "dot\n-2.00 to 2.00"]
    assert axes[0].images[0].get_clim() == (-1, 1) and axes[3].images[0].get_clim() == (-2, 2)
    assert axes[0].patches[-1].get_xy() == (1.5, 0.5) and axes[2].patches[-1].get_xy() == (
        0.5,
        -0.5,
    )
    assert torch.equal(torch.tensor(axes[3].images[0].get_array()), maps[0, 1])
    assert axes[2].get_ylabel() == "row 1,\ncolumn 2"


@pytest.mark.parametrize(("old", "new"), [(4, 6), (8, 4), (2, 2)])
def test_new_patches_read_where_the_two_conventions_say(old, new):
    """A line goes up from each new centre: to its own place, or between the outermost centres."""
    for axes, corners in zip(vm.plot.resized_places(old, new).axes, (False, True), strict=True):
        ups = [line.get_xdata() for line in axes.lines if list(line.get_ydata()) == [0, 1]]
        unit = torch.arange(float(old)).reshape(1, 1, -1)  # which old patch is read
        size = {"mode": "linear", "align_corners": corners}
        read = torch.nn.functional.interpolate(unit, new, **size).flatten()
        for (start, end), place, i in zip(ups, read.tolist(), range(new), strict=True):
            assert start == pytest.approx((i + 0.5) / new)
            inside = min(max(end * old - 0.5, 0), old - 1)  # beyond the border: its value
            assert inside == pytest.approx(place, abs=1e-5)


def test_resized_places_wants_two_patches():
    with pytest.raises(ValueError, match="old and new must be at least 2, got 1 and 4"):
        vm.plot.resized_places(1, 4)
