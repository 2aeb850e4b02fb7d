"""Data, augmentation, results and explorers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import vitmini as vm
from vitmini import folders
from vitmini.augment import random_flip
from vitmini.data import describe_data, fits_on, mean_and_std
from vitmini.folders import list_pictures, read_pictures
from vitmini.pictures import read_image
from vitmini.records import save_result, summarize
from vitmini.runs import data_digest
from vitmini.siblings import photo_windows


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
        (lambda f: (f / "train/dog/1.png").write_bytes(b"no picture"), "1 of 10 .*dog/1.png"),
        (lambda f: picture(f / "train/dog/9.png", (5, 4)), r"one size: .*9.png"),
        (lambda f: [p.unlink() for p in f.glob("test/*/*")], "no pictures"),
        (lambda f: [(f / p / "empty").mkdir() for p in ("train", "test")], "empty holds no"),
        (lambda f: [shutil.rmtree(f / p / "dog") for p in ("train", "test")], "got .'cat'"),
        (lambda f: [shutil.rmtree(f / p) for p in ("train", "test")], "two classes or more"),
        (lambda f: [(f / p / "dog").rename(f / p / "d\n") for p in ("train", "test")], "printable"),
        (lambda f: shutil.rmtree(f / "train"), "train/ is missing"),
    ],
)
def test_a_spoiled_folder_is_refused_with_the_reason(folder, spoil, words):
    spoil(folder)
    with pytest.raises(ValueError, match=words):
        vm.load_data(folder)


def names(pictures):
    return [p.name for p in pictures]


@pytest.fixture
def plain(tmp_path):
    """Classes alone, without train/ and test/: of 10, 7 and 2 pictures."""
    for kind, count in (("ant", 10), ("bee", 7), ("cow", 2)):
        for i in range(count):
            picture(tmp_path / "farm" / kind / f"{i}.png", color=(i, 0, 0))
    return tmp_path / "farm"


def test_of_a_folder_of_classes_a_fifth_of_each_is_for_the_test(plain):
    listed = list_pictures(plain)
    assert listed.classes == ("ant", "bee", "cow")
    assert [
        [p.label for p in part].count(k) for part in (listed.train, listed.test) for k in range(3)
    ] == [
        *(8, 6, 1),
        *(2, 1, 1),
    ]
    every = sorted(p.relative_to(plain).as_posix() for p in plain.glob("*/*"))
    assert sorted(names(listed.pictures)) == every
    assert names(list_pictures(plain).test) == names(listed.test)
    picture(plain / "ant" / "more.png")  # one more picture changes the test by one at most
    assert len(set(names(list_pictures(plain).test)) ^ set(names(listed.test))) <= 2
    (plain / "cow" / "0.png").unlink()
    with pytest.raises(ValueError, match="cow holds one picture: a class needs two"):
        list_pictures(plain)


def test_val_is_taken_where_test_holds_no_classes(folder):
    wanted = [n.replace("test/", "val/") for n in names(list_pictures(folder).test)]
    (folder / "test").rename(folder / "val")
    assert names(list_pictures(folder).test) == wanted
    picture(folder / "test" / "unlabelled.png")  # ImageNet's test images have no classes
    assert names(list_pictures(folder).test) == wanted
    assert vm.load_data(folder).test_images.shape == (4, 3, 4, 6)


def test_a_class_may_be_called_train(tmp_path):
    for kind in ("bus", "train"):
        for i in range(2):
            picture(tmp_path / kind / f"{i}.png")
    assert list_pictures(tmp_path).classes == ("bus", "train")


def test_parts_under_other_names_are_not_taken_for_classes(tmp_path):
    """`Train` and `Test` would make two classes that no picture can tell apart."""
    for part in ("Train", "Test"):
        for kind in ("cat", "dog"):
            for i in range(2):
                picture(tmp_path / part / kind / f"{i}.png")
    with pytest.raises(ValueError, match=r"holds Test/ and Train/: .* call them train/ and test/"):
        vm.load_data(tmp_path)


def test_pictures_are_found_by_their_endings_in_folders_below_a_class_too(folder):
    before = names(list_pictures(folder).train)
    (folder / "train/cat/Thumbs.db").write_bytes(b"x")
    (folder / "train/cat/notes.txt").write_text("x")
    (folder / "train/cat/.hidden.png").write_bytes(b"x")
    (folder / "train/.git").mkdir()
    picture(folder / "train/cat/.trash/1.png")
    assert names(list_pictures(folder).train) == before
    picture(folder / "train/cat/more/deep/A.PNG")
    assert names(list_pictures(folder).train) == sorted([*before, "train/cat/more/deep/A.PNG"])


def test_links_are_followed_and_do_not_lead_in_circles(folder, tmp_path):
    before = names(list_pictures(folder).train)
    for name, goal in (("up", ".."), ("self", "."), ("root", folder), ("other", "../dog")):
        (folder / "train/cat" / name).symlink_to(goal)
    (folder / "train/cat/loop").symlink_to("loop")
    assert names(list_pictures(folder).train) == before
    picture(tmp_path / "elsewhere/x.png")
    (folder / "train/cat/linked").symlink_to(tmp_path / "elsewhere")
    assert "train/cat/linked/x.png" in names(list_pictures(folder).train)


def striped(path, size, **more):
    """Grey, with green in its central square."""
    image = Image.new("RGB", size, (128, 128, 128))
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    image.paste((0, 255, 0), (left, top, left + side, top + side))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **more)


def test_pictures_of_any_size_are_scaled_to_cover_and_cut_to_their_centre(folder, tmp_path):
    sizes = [(300, 100), (100, 300), (70, 210), (64, 64), (32, 32), (1, 1), (1, 100_001)]
    for i, size in enumerate(sizes):
        striped(folder / f"train/cat/big{i}.png", size)
    striped(folder / "train/cat/big8.jpg", (4000, 1000), quality=95)  # decoded smaller at once
    data = vm.load_data(folder, image_size=32)
    assert data.train_images.shape == (14, 3, 32, 32) and data.test_images.shape == (4, 3, 32, 32)
    green = torch.tensor([0, 255, 0])[:, None, None]
    for i in (3, 4, 5, 6, 7, 8, 10):  # of the one that is a line, neighbours shine through
        assert (data.train_images[i, :, 1:-1, 1:-1] - green).abs().max() <= 8, i
    wide = vm.load_data(folder, image_size=(8, 16)).train_images
    assert wide.shape == (14, 3, 8, 16)
    for i in (0, 1, 4):
        path = folder / f"train/cat/big{i}.png"
        assert torch.equal(read_image(path, 3, (8, 16)), wide[3 + i])  # predict sees the same
    with pytest.raises(ValueError, match=r"one size: train/cat/big0.png is .*image_size"):
        vm.load_data(folder)


def test_pictures_that_have_the_size_already_keep_every_bit(folder):
    noise = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(noise).save(folder / "train/cat/0.png")
    for size in (None, (4, 6)):
        image = vm.load_data(folder, image_size=size).train_images[0]
        assert torch.equal(image, torch.from_numpy(noise).permute(2, 0, 1))


@pytest.mark.parametrize("size", [0, -1, 1.5, "32", (4,), True])
def test_an_image_size_that_makes_no_sense_is_refused(folder, size):
    with pytest.raises(ValueError, match="image_size must be"):
        vm.load_data(folder, image_size=size)


def test_an_image_size_is_for_folders(tmp_path):
    for name in ("digits", "cifar10"):
        with pytest.raises(ValueError, match="image_size is for folders"):
            vm.load_data(name, root=tmp_path, image_size=16)


def test_what_is_transparent_is_seen_on_white(tmp_path):
    path = tmp_path / "a.png"
    for mode, clear, solid in (
        ("RGBA", (9, 9, 9, 0), (10, 20, 30, 255)),
        ("LA", (9, 0), (20, 255)),
    ):
        image = Image.new(mode, (4, 4), clear)
        image.paste(solid, (0, 0, 2, 4))
        image.save(path)
        pixels = read_image(path, 3, (4, 4))
        assert (pixels[:, :, 2:] == 255).all()
        assert pixels[:, 0, 0].tolist() == ([10, 20, 30] if mode == "RGBA" else [20] * 3)
        assert read_image(path, 1, (4, 4))[0, 0, 3] == 255
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 127))
    half.save(path)
    assert read_image(path, 3, (4, 4)).unique().tolist() == [128]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([1, 2, 3, 40, 50, 60])
    palette.putpixel((0, 0), 1)
    palette.save(path, transparency=0)
    pixels = read_image(path, 3, (4, 4))
    assert pixels[:, 0, 0].tolist() == [40, 50, 60] and pixels[:, 3, 3].tolist() == [255] * 3
    Image.new("RGB", (4, 4), (7, 7, 7)).save(path, transparency=(7, 7, 7))
    assert read_image(path, 3, (4, 4)).unique().tolist() == [255]
    deep = np.full((4, 4), 257 * 40, np.uint16)
    deep[:, 2:] = 300
    Image.fromarray(deep).save(path, transparency=300)
    pixels = read_image(path, 3, (4, 4))
    assert (pixels[:, :, :2] == 40).all() and (pixels[:, :, 2:] == 255).all()


def test_odd_pictures_are_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif", 3, (4, 4))[:, 0, 0].tolist() == [255, 0, 0]
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", 3, (4, 4)).max() <= 2
    Image.new("1", (4, 4), 1).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 3, (4, 4)).unique().tolist() == [255]
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.jpg")  # the ending lies
    assert read_image(tmp_path / "b.jpg", 3, (4, 4)).unique().tolist() == [9]
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "c.png", exif=b"Exif\0\0II*\0\xff\xff")
    assert read_image(tmp_path / "c.png", 3, (4, 4)).unique().tolist() == [9]


def test_broken_pictures_are_all_counted_and_named(folder, monkeypatch):
    cat, dog = folder / "train/cat", folder / "train/dog"
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "JPEG")
    (cat / "0.png").write_bytes(b"")
    (cat / "a cut.jpg").write_bytes(whole.getvalue()[:1000])
    (cat / "gone.png").symlink_to("nowhere")
    os.mkfifo(cat / "pipe.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(dog / "real.tiff")
    (dog / "phone.heic").write_bytes(b"....ftypheic")
    picture(dog / "zz bomb.png", (50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError) as refusal:
        vm.load_data(folder, image_size=8)
    line = str(refusal.value)
    assert line.startswith(f"7 of 16 pictures in {folder} cannot be read: train/cat/0.png (no ")
    assert "cat/a cut.jpg (" in line and "gone.png (No such file" in line
    assert len(re.findall(r"train/\w+/[^(]+ \(", line)) == 7 and "\n" not in line
    monkeypatch.setattr(folders, "_NAMED", 3)  # of very many, a message names the first
    with pytest.raises(ValueError, match=r"cut.jpg .*gone.png .* and 4 more$"):
        vm.load_data(folder, image_size=8)
    for name in ("0.png", "a cut.jpg", "gone.png"):
        (cat / name).unlink()
    with pytest.raises(ValueError, match=r"4 of .*pipe.png \(it is no reg.*heic .*type F"):
        vm.load_data(folder, image_size=8)
    for path in (cat / "pipe.png", dog / "real.tiff", dog / "phone.heic"):
        path.unlink()
    with pytest.raises(ValueError, match=r"1 of .* bomb.png \(.*decompression bomb"):
        vm.load_data(folder, image_size=8)


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, however the file is called."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("it was run"))
    code = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_text(code)
    with pytest.raises(ValueError, match="as a picture: no picture of a known kind"):
        read_image(tmp_path / "a.png", 3, (8, 8))


def test_a_size_that_no_memory_holds_is_refused_and_blamed_on_no_picture(folder, monkeypatch):
    for size in (8193, (8, 10**30)):
        with pytest.raises(ValueError, match="image_size must be at most 8192 pixels, got "):
            vm.load_data(folder, image_size=size)

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", no_memory)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", no_memory)
    with pytest.raises(MemoryError):
        read_image(folder / "train/dog/2.png", 3, (8, 8))


def test_a_picture_that_vanishes_is_named(folder):
    listed = list_pictures(folder)
    (folder / "train/dog/2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 10 .*train/dog/2.png \(No such file"):
        read_pictures(listed, (8, 8), folder)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"])
def test_damage_of_any_kind_ends_in_pixels_or_in_a_reason(tmp_path, kind):
    generator = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (16, 16, 3), np.uint8)).save(buffer, kind)
    whole, refused = np.frombuffer(buffer.getvalue(), np.uint8), 0
    for trial in range(100):
        spoiled = whole.copy()
        where = generator.integers(0, 100 if trial % 2 else len(whole), 1 + trial % 8) % len(whole)
        spoiled[where] = generator.integers(0, 256, len(where))
        (tmp_path / "x").write_bytes(spoiled[: len(whole) - trial % 3 * 50].tobytes())
        try:
            assert read_image(tmp_path / "x", 3, (8, 8)).shape == (3, 8, 8)
        except ValueError as error:
            assert "cannot read" in str(error)
            refused += 1
    assert refused


# The cache ----------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch):
    """The pictures that are decoded, one after the other."""
    from vitmini import folders

    done, real = [], folders.decode
    monkeypatch.setattr(folders, "decode", lambda path, *a: done.append(path) or real(path, *a))
    return done


def same(a, b):
    return data_digest(a) == data_digest(b) and (a.mean, a.std) == (b.mean, b.std)


def test_decoded_pictures_are_kept_and_mapped_into_memory(folder, tmp_path, reads):
    first = vm.load_data(folder, tmp_path / "cache", 8)
    assert len(reads) == 10
    again = vm.load_data(folder, tmp_path / "cache", 8)
    assert len(reads) == 10 and same(first, again)
    [file] = (tmp_path / "cache/decoded").iterdir()
    assert file.suffix == ".npy" and file.stat().st_size < 10 * 3 * 64 + 200
    if os.path.exists("/proc/self/maps"):
        assert str(file) in Path("/proc/self/maps").read_text()


def test_other_pictures_or_another_size_are_decoded_anew(folder, tmp_path, reads):
    root = tmp_path / "cache"
    first = vm.load_data(folder, root, 8)
    vm.load_data(folder, root, 16)
    assert len(reads) == 20 and len(list((root / "decoded").iterdir())) == 2
    os.utime(folder / "test/cat/0.png", ns=(1, 1))
    vm.load_data(folder, root, 8)
    assert len(reads) == 30, "an age counts"
    picture(folder / "test/cat/0.png", color=(1, 2, 3))
    changed = vm.load_data(folder, root, 8)
    assert len(reads) == 40 and not same(changed, first)
    (folder / "test/cat/0.png").rename(folder / "test/cat/z.png")
    vm.load_data(folder, root, 8)
    assert len(reads) == 50, "a name counts"
    assert len(list((root / "decoded").iterdir())) == 2, "older ones are removed"
    assert first.train_images.float().mean() > 0, "what is mapped stays readable"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path, x: path.write_bytes(b""),
        lambda path, x: path.write_bytes(path.read_bytes()[:-1]),
        lambda path, x: path.write_bytes(path.read_bytes() + b"x"),
        lambda path, x: path.write_bytes(b"text"),
        lambda path, x: np.save(path, x[:-1]),
        lambda path, x: np.save(path, x.astype(np.int8)),
        lambda path, x: np.save(path, x.reshape(len(x), 3, -1)),
        lambda path, x: np.save(path, x[:, :1]),
        lambda path, x: np.save(path, np.asfortranarray(x)),
        lambda path, x: np.save(path, np.array([{}] * len(x)), allow_pickle=True),
        lambda path, x: (
            np.savez(path.with_suffix(".npz"), x=x),
            path.with_suffix(".npz").rename(path),
        ),
        lambda path, x: path.write_bytes(path.read_bytes().replace(b"'shape'", b"'shop()'")),
    ],
)
@pytest.mark.parametrize("size", [None, 8])
def test_a_damaged_or_foreign_cache_is_built_again(tmp_path, reads, spoil, size):
    for part, kind, i in ((p, k, i) for p in ("train", "test") for k in "ab" for i in range(3)):
        picture(tmp_path / "own" / part / kind / f"{i}.png", (8, 8), (i, 50 * i, 9))
    first = vm.load_data(tmp_path / "own", tmp_path, size)
    [path] = (tmp_path / "decoded").iterdir()
    whole = path.read_bytes()
    path.unlink()  # the first one is mapped still
    path.write_bytes(whole)
    spoil(path, np.load(path))
    again = vm.load_data(tmp_path / "own", tmp_path, size)
    assert len(reads) == 24 and same(first, again) and path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(folder, tmp_path, monkeypatch):
    wanted = vm.load_data(folder, tmp_path / "cache", 8)
    (tmp_path / "file").write_text("no folder")
    assert same(vm.load_data(folder, tmp_path / "file", 8), wanted)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert same(vm.load_data(folder, tmp_path / "full", 8), wanted)
    assert list((tmp_path / "full/decoded").iterdir()) == []


def test_an_interrupted_cache_is_not_there(folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vitmini.folders.decode", interrupted)
        vm.load_data(folder, tmp_path / "cache", 8)
    assert list((tmp_path / "cache/decoded").iterdir()) == []
    old, new = (tmp_path / "cache/decoded" / n for n in (".a.1.part", ".a.2.part"))
    for part, age in ((old, 7200), (new, 0)):
        part.write_bytes(b"left by a process that was killed, or written by another one now")
        os.utime(part, (time.time() - age,) * 2)
    vm.load_data(folder, tmp_path / "cache", 8)
    assert not old.exists() and new.exists()


def test_mean_std_and_digest_of_blocks_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1500, 3, 64, 64), dtype=torch.uint8, generator=generator)
    images[:, 1] //= 3  # 18 MB: more than one block
    pixels = images.transpose(0, 1).flatten(1).double() / 255
    mean, std = mean_and_std(images)
    assert torch.allclose(mean, pixels.mean(1), rtol=0, atol=1e-12)
    assert torch.allclose(std, pixels.std(1), rtol=0, atol=1e-12)
    labels = torch.arange(1500)
    data = vm.ImageData("x", images, labels, images[:0], labels[:0], ("a",), (0.0,) * 3, (1.0,) * 3)
    whole = hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes())
    assert data_digest(data) == whole.hexdigest()
    assert mean_and_std(images[:1, :, :1, :1])[1].tolist() == [0, 0, 0]


def test_images_stay_off_a_device_that_they_would_fill_by_half(digits, monkeypatch):
    needed = digits.train_images.nbytes + digits.test_images.nbytes
    for free, fits in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**12))
        assert fits_on(torch.device("cuda"), digits) is fits
        assert fits_on(torch.device("cpu"), digits)
    there = replace(digits, train_images=digits.train_images.to("meta"))
    assert fits_on(torch.device("meta"), there), "what is on the device already"


def test_unknown_data_is_refused():
    for name in ("mnist", "", "a\0b", "x" * 5000):
        with pytest.raises(ValueError, match="digits, cifar10, cifar100 or a folder"):
            vm.load_data(name)


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


def test_windows_are_cut_out_of_photographs_of_each_scale():
    windows = photo_windows(6, 16, (1, 3))
    assert windows.shape == (6, 3, 16, 16) and windows.dtype == torch.uint8
    assert torch.equal(windows[0], vm.load_photo("cat", 16))  # at scale 1 there is one window
    photo = vm.load_photo("flower", 48)
    views = photo.unfold(1, 16, 1).unfold(2, 16, 1)  # (3, 33, 33, 16, 16)
    assert (views == windows[1][:, None, None]).all(-1).all(-1).all(0).sum() == 1
    assert torch.equal(photo_windows(6, 16, (1, 3)), windows)
    assert not torch.equal(photo_windows(6, 16, (1, 3), seed=1), windows)
    for wrong, words in (
        ((0, 16), "count must be a positive int, got 0"),
        ((2, True), "size must be a positive int, got True"),
        ((2, 16, ()), "scales must be one or more numbers"),
        ((2, 16, (0.5,)), "scales must be one or more numbers, 1 or larger"),
        ((2, 16, (float("nan"),)), "scales must be"),
    ):
        with pytest.raises(ValueError, match=words):
            photo_windows(*wrong)


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


def test_the_small_recipe_states_what_was_measured():
    from vitmini.recipes import Cifar10MiniMuon

    result, text = vm.load_result("train-cifar10-mini"), " ".join(Cifar10MiniMuon.__doc__.split())
    accuracy = result["metrics"]["test_accuracy_muon"]
    assert f"{accuracy['mean']:.1%} ± {accuracy['stderr']:.1%}" in text
    assert f"after {Cifar10MiniMuon().epochs} epochs" in text and len(result["seeds"]) == 3


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
