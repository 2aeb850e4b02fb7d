"""Data, augmentation, results and explorers."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import vitmini as vm
from vitmini.augment import random_flip
from vitmini.data import describe_data, read_image
from vitmini.records import save_result, summarize


def test_digits_are_scikit_learns_stratified_split(digits):
    x, y = load_digits(return_X_y=True)
    train, test, train_y, test_y = train_test_split(x, y, test_size=360, random_state=0, stratify=y)
    assert torch.equal(digits.train_labels, torch.from_numpy(train_y).long())
    assert torch.equal(digits.test_labels, torch.from_numpy(test_y).long())
    ink = torch.from_numpy(test).view(-1, 1, 8, 8) * 255 / 16
    assert digits.test_images.dtype == torch.uint8
    assert (digits.test_images.double() - ink).abs().max() <= 0.5
    assert digits.train_images.shape == (1437, 1, 8, 8) and len(train) == 1437


def test_normalized_training_images_have_mean_0_and_deviation_1(digits):
    x = digits.normalize(digits.train_images)
    assert abs(x.mean().item()) < 1e-4 and abs(x.std().item() - 1) < 1e-4


def picture(path, size=(6, 4), color=(10, 20, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        for kind, color in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
            for i in range(count):
                picture(tmp_path / "pets" / part / kind / f"{i}.png", color=color)
    return tmp_path / "pets"


def test_a_folder_of_pictures_is_a_data_set(folder):
    data = vm.load_data(folder)
    assert data.classes == ("cat", "dog") and data.name == "pets"
    assert data.train_images.shape == (6, 3, 4, 6) and data.test_images.shape == (4, 3, 4, 6)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train_images[0, :, 0, 0].tolist() == [255, 0, 0]


def test_a_local_cifar_folder_is_used_without_a_download(folder, monkeypatch):
    folder.rename(folder.parent / "cifar10")
    monkeypatch.setenv("VITMINI_DATA", str(folder.parent))
    assert vm.load_data("cifar10").classes == ("cat", "dog")
    assert vm.load_data("cifar10", root=folder.parent).name == "cifar10"


def test_a_result_says_which_copy_of_the_data_it_was_measured_on(folder, monkeypatch):
    monkeypatch.setenv("VITMINI_DATA", str(folder.parent))
    assert describe_data("digits") == "digits of scikit-learn"
    assert describe_data("cifar10") == "CIFAR-10"
    folder.rename(folder.parent / "cifar10")
    assert describe_data("cifar10") == "CIFAR-10, PNG copy"
    for path in (folder.parent / "cifar10").glob("*/*/*.png"):
        path.rename(path.with_suffix(".jpg"))
    assert describe_data("cifar10") == "CIFAR-10, JPEG copy"
    assert describe_data("cifar100") == "CIFAR-100"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "test").rename(f / "tests"), "test/ is missing"),
        (lambda f: (f / "test/dog").rename(f / "test/bird"), "same class folders"),
        (lambda f: (f / "train/dog/1.png").write_bytes(b"no picture"), "1.png as a picture"),
        (lambda f: picture(f / "train/dog/9.png", (5, 4)), r"one size: .*9.png"),
        (lambda f: [p.unlink() for p in f.glob("test/*/*")], "no pictures"),
        (lambda f: [(f / p / "empty").mkdir() for p in ("train", "test")], "empty holds no"),
    ],
)
def test_a_spoiled_folder_is_refused_with_the_reason(folder, spoil, words):
    spoil(folder)
    with pytest.raises(ValueError, match=words):
        vm.load_data(folder)


def test_unknown_data_is_refused():
    with pytest.raises(ValueError, match="digits, cifar10, cifar100 or a folder"):
        vm.load_data("mnist")


def test_read_image_fits_any_picture_to_the_model(tmp_path):
    picture(tmp_path / "a.png", (30, 20))
    assert read_image(tmp_path / "a.png", 1, (8, 8)).shape == (1, 8, 8)
    assert read_image(tmp_path / "a.png", 3, (4, 6)).shape == (3, 4, 6)
    (tmp_path / "b.png").write_text("text")
    with pytest.raises(ValueError, match=r"b\.png as a picture"):
        read_image(tmp_path / "b.png", 3, (4, 6))


def test_pictures_of_16_bits_keep_their_greys_and_others_are_refused(tmp_path):
    for value in (0, 2570, 32896, 65535):
        pixels = np.full((4, 4), value, np.uint16)
        Image.fromarray(pixels).save(tmp_path / "deep.png")
        assert read_image(tmp_path / "deep.png", 1, (4, 4)).unique().tolist() == [value // 257]
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "real.tiff")
    with pytest.raises(ValueError, match="type F"):
        read_image(tmp_path / "real.tiff", 1, (4, 4))


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees to show
    wide = Image.new("RGB", (4, 2))
    wide.putpixel((0, 0), (255, 255, 255))
    wide.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 1, (4, 2))[0].nonzero().tolist() == [[0, 1]]


def test_photographs_are_squares_of_the_size_asked_for():
    for name in ("flower", "china", "cat"):
        assert vm.load_photo(name, 64).shape == (3, 64, 64)
    with pytest.raises(ValueError, match="flower, china or cat"):
        vm.load_photo("dog")


def test_no_bounds_means_no_change():
    images = torch.rand(4, 2, 6, 9)
    assert torch.allclose(vm.random_affine(images), images, atol=1e-5)


def test_translation_moves_by_whole_pixels_where_it_is_told_to(monkeypatch):
    images = torch.rand(1, 1, 8, 8)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(shape))  # the largest amount
    moved = vm.random_affine(images, translate=0.25)  # two pixels of eight
    assert torch.allclose(moved[..., :6, :6], images[..., 2:, 2:], atol=1e-5)
    assert moved[..., 6:, :].abs().max() == 0 and moved[..., 6:].abs().max() == 0


def test_rotation_by_90_degrees_is_a_rotation(monkeypatch):
    images = torch.rand(1, 1, 6, 6)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.ones(shape))
    turned = vm.random_affine(images, degrees=90)
    assert torch.allclose(turned, images.rot90(1, (2, 3)), atol=1e-4)


def test_each_image_is_changed_by_its_own_amount():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 1, 8, 8).expand(16, -1, -1, -1)
    changed = vm.random_affine(images, 10, 0.1, 0.1, 10, generator)
    assert len({tuple(x.flatten().tolist()) for x in changed}) == 16


def test_flipping_mirrors_half_of_the_images_left_to_right():
    images = torch.rand(400, 3, 4, 6)
    generator = torch.Generator().manual_seed(0)
    flipped = random_flip(images, generator)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    kept = (flipped == images).flatten(1).all(1)
    assert (mirrored ^ kept).all() and 160 < mirrored.sum() < 240
    again = random_flip(images, generator)
    assert not torch.equal(again, flipped)
    assert torch.equal(random_flip(images, generator.manual_seed(0)), flipped)


@pytest.mark.parametrize("bound", ["degrees", "translate", "scale", "shear"])
def test_negative_bounds_are_refused(bound):
    with pytest.raises(ValueError, match=bound):
        vm.random_affine(torch.rand(1, 1, 4, 4), **{bound: -1.0})


def test_stored_results_load_and_say_what_they_were_measured_on():
    for name in ("train-digits", "patch-size-digits"):
        result = vm.load_result(name)
        assert result["profile"] != "ci", "a rehearsal is no result"
        for key in ("device", "versions", "commit", "date", "data", "seconds", "seeds"):
            assert result[key], key
        for metric in result["metrics"].values():
            fresh = summarize(metric["values"])
            assert metric["mean"] == pytest.approx(fresh["mean"])
            assert metric["stderr"] == pytest.approx(fresh["stderr"])
    with pytest.raises(ValueError, match="train-digits"):
        vm.load_result("nothing")


def test_a_saved_result_reads_back(tmp_path):
    path = save_result({"name": "x", "metrics": {}}, tmp_path)
    assert json.loads(path.read_text()) == {"name": "x", "metrics": {}}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_summarize_gives_the_standard_error_of_the_mean():
    values = [1.0, 2.0, 4.0]
    assert np.isclose(summarize(values)["stderr"], np.std(values, ddof=1) / 3**0.5)
    assert summarize([5.0])["stderr"] == 0.0


def test_the_recipe_states_what_was_measured():
    from vitmini.recipes import Digits

    result, text = vm.load_result("train-digits"), " ".join(Digits.__doc__.split())
    accuracy, seconds = result["metrics"]["test_accuracy"], result["metrics"]["seconds"]
    assert f"{accuracy['mean']:.1%} ± {accuracy['stderr']:.1%}" in text
    assert f"{len(result['seeds'])} seeds" in text
    assert f"{seconds['mean']:.0f} seconds" in text and result["device"] in text
    assert f"in {Digits().epochs} epochs" in text


def test_stepper_shows_one_frame_and_names_all():
    png = b"\x89PNG rest"
    frames = [vm.widgets.Frame(png, f"n{i}", f"what <{i}>") for i in range(3)]
    html = vm.widgets.stepper("A label", frames, start=1)._repr_html_()
    assert html.count("<img") == 3 and html.count(" hidden") == 2
    assert 'max="2" value="1"' in html and "what &lt;2&gt;" in html
    assert re.search(r'<label for="vm-a-label".*<input id="vm-a-label"', html)
    for bad, words in (([], "at least one"), (frames, "from 0 to 2")):
        with pytest.raises(ValueError, match=words):
            vm.widgets.stepper("x", bad, start=7)


@pytest.mark.parametrize("value", ["fast", "gpu"])
def test_an_impossible_profile_is_refused(monkeypatch, value):
    monkeypatch.setenv("VITMINI_PROFILE", value)
    if value == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ValueError, match="VITMINI_PROFILE"):
        vm.choose_profile()


def test_a_profile_is_chosen_and_printed(monkeypatch, capsys):
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    profile = vm.choose_profile()
    assert profile.pick(ci=1, cpu=2, gpu=3) == 1 and profile.device == "cpu"
    assert "ci" in capsys.readouterr().out
