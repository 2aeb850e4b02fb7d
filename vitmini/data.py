"""Pictures and labels, whole, as uint8 tensors that can live on the device.

Chapter: 7.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageData:
    """A data set in memory.

    Shapes: images uint8 (N, C, H, W), labels int64 (N,); `mean` and `std` per channel of the
        training images, for pixels in [0, 1].
    Chapter: 7
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels into float32 with mean 0 and deviation 1. Chapter: 7."""
        return normalize(images, self.mean, self.std)

    def to(self, device: str | torch.device) -> ImageData:
        """Move all images and labels to a device, once. Chapter: 7."""
        tensors: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **tensors)


def load_data(name_or_folder: str | Path, root: str | Path | None = None) -> ImageData:
    """Load a data set by name (`digits`, `cifar10`, `cifar100`) or from a folder of pictures.

    `digits` is embedded in scikit-learn: 1,437 images to train on and 360 to test on, by
    `train_test_split(test_size=360, random_state=0)`, stratified. CIFAR comes from
    `root/cifar10/{train,test}/<class>/*` where that exists, otherwise through torchvision's
    download into `root` (default: `$VITMINI_DATA`, else the user's cache folder). A folder holds
    `{train,test}/<class>/*`, pictures of one size.

    Shapes: see `ImageData`; digits are (N, 1, 8, 8), CIFAR (N, 3, 32, 32).
    Raises: `ValueError` for an unknown name, a folder of another layout, a broken picture, or a
        download that failed.
    Chapter: 7
    """
    name = str(name_or_folder)
    cache = Path(root) if root is not None else _cache()
    if name == "digits":
        return _load_digits()
    if name in ("cifar10", "cifar100"):
        if (cache / name / "train").is_dir():
            return _load_folder(cache / name, name)
        return _download_cifar(name, cache)
    if name and Path(name).is_dir():
        return _load_folder(Path(name), Path(name).resolve().name)
    raise ValueError(
        f"data must be digits, cifar10, cifar100 or a folder that exists, got {name!r}"
    )


def describe_data(name: str) -> str:
    """Say in words which copy of a data set `load_data(name)` reads, as results record it.

    A local folder of JPEG files is not the original: re-encoding costs a little accuracy.
    Chapter: 7
    """
    words = {"digits": "digits of scikit-learn", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
    folder = _cache() / name / "train"
    if name != "digits" and folder.is_dir():
        shown = (p for p in folder.glob("*/*") if p.is_file() and not p.name.startswith("."))
        first = next(shown, folder)
        kind = "JPEG" if first.suffix.lower() in (".jpg", ".jpeg") else first.suffix[1:].upper()
        return f"{words.get(name, name)}, {kind} copy"
    return words.get(name, name)


def _cache() -> Path:
    return Path(os.environ.get("VITMINI_DATA") or Path.home() / ".cache" / "vitmini")


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Turn pixels from 0 to 255 into float32 with mean 0 and deviation 1 in each channel.

    Shapes: `images` (B, C, H, W), uint8 or float -> float32 of the same shape; `mean` and `std`
        for pixels in [0, 1], one a channel.
    Chapter: 7
    """
    images = images.float()
    center, spread = (constants(values, images).view(-1, 1, 1) for values in (mean, std))
    return (images / 255 - center) / spread


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Write a few numbers on the device of `like`, in its type.

    `torch.tensor(values, device=...)` copies them there, and waits for all that the device has
    still to do; filling them in waits for nothing.

    Shapes: returns (len(values),).
    Chapter: 7
    """
    return torch.cat([like.new_full((1,), value) for value in values])


def load_photo(name: str = "flower", size: int = 224) -> Tensor:
    """Load one of three photographs, cropped to its central square and resized.

    Shapes: returns uint8 (3, size, size). `flower` is by vultilion, `china` by danielbuechele,
        both under CC BY 2.0 and from scikit-learn; `cat` is Chelsea, by Stefan van der Walt,
        CC0.
    Raises: `ValueError` for another name or a size that is not positive.
    Chapter: 1
    """
    if name not in ("flower", "china", "cat"):
        raise ValueError(f"name must be flower, china or cat, got {name!r}")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive int, got {size!r}")
    from PIL import Image

    if name == "cat":
        with resources.as_file(resources.files("vitmini") / "photos" / "cat.jpg") as path:
            photo = _open_picture(path, "RGB")
    else:
        from sklearn.datasets import load_sample_image

        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return _to_tensor(square.resize((size, size), Image.Resampling.LANCZOS))


def read_image(path: str | Path, channels: int, image_size: tuple[int, int]) -> Tensor:
    """Read one picture of any size for a model that wants `channels` and (rows, columns).

    Shapes: returns uint8 (C, H, W); resized as a whole, grey when `channels` is 1.
    Raises: `ValueError` when the file cannot be read as a picture, or `channels` is not 1 or 3.
    Chapter: 7
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    from PIL import Image

    picture = _open_picture(path, "L" if channels == 1 else "RGB")
    rows, columns = image_size
    if picture.size != (columns, rows):
        picture = picture.resize((columns, rows), Image.Resampling.LANCZOS)
    return _to_tensor(picture)


def _open_picture(path: str | Path, mode: str):  # -> PIL image, upright, 8 bits a channel
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16"):
                pixels = (np.asarray(picture).astype(np.float64) / 257).round()
                picture = Image.fromarray(pixels.astype(np.uint8))
            if picture.mode in ("I", "F"):
                raise ValueError(f"its pixels are of type {picture.mode}, not 8 or 16 bits")
            return picture.convert(mode)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read {path} as a picture: {error}") from None


def _to_tensor(picture) -> Tensor:  # PIL image -> uint8 (C, H, W)
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def _make(name, train_images, train_labels, test_images, test_labels, classes) -> ImageData:
    pixels = train_images.transpose(0, 1).flatten(1).double() / 255  # (C, N*H*W)
    spread = pixels.std(1, correction=int(pixels.shape[1] > 1))
    return ImageData(
        name,
        train_images,
        train_labels.long(),
        test_images,
        test_labels.long(),
        tuple(classes),
        tuple(round(v, 6) for v in pixels.mean(1).tolist()),
        tuple(round(max(v, 1e-3), 6) for v in spread.tolist()),
    )


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).view(-1, 1, 8, 8)
    pixels = (images * 255 / 16).round().to(torch.uint8)  # the file counts ink from 0 to 16
    split = train_test_split(pixels.numpy(), labels, test_size=360, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in split)
    return _make("digits", train, train_labels, test, test_labels, map(str, range(10)))


def _load_folder(folder: Path, name: str) -> ImageData:
    parts, found = {}, {}
    for part in ("train", "test"):
        if not (folder / part).is_dir():
            raise ValueError(f"data folder {folder} must hold train/ and test/, {part}/ is missing")
        kinds = [p.name for p in (folder / part).iterdir() if p.is_dir()]
        found[part] = sorted(kind for kind in kinds if not kind.startswith("."))
    if not found["train"] or found["train"] != found["test"]:
        raise ValueError(
            f"data folder {folder} must hold the same class folders in train/ and test/, "
            f"got {found['train']} and {found['test']}"
        )
    for part in ("train", "test"):
        pictures: list[Tensor] = []
        labels: list[int] = []
        for label, kind in enumerate(found[part]):
            for path in sorted((folder / part / kind).iterdir()):
                if path.is_file() and not path.name.startswith("."):
                    pictures.append(_read_same_size(path, pictures))
                    labels.append(label)
        for label, kind in enumerate(found[part]):
            if label not in labels:
                raise ValueError(f"data folder {folder / part / kind} holds no pictures")
        parts[part] = torch.stack(pictures), torch.tensor(labels)
    if parts["train"][0].shape[1:] != parts["test"][0].shape[1:]:
        raise ValueError(f"pictures in {folder} must have one size in train/ and test/")
    return _make(name, *parts["train"], *parts["test"], found["train"])


def _read_same_size(path: Path, before: list[Tensor]) -> Tensor:
    picture = _to_tensor(_open_picture(path, "RGB"))
    if before and picture.shape != before[0].shape:
        raise ValueError(
            f"pictures must have one size: {path} is {tuple(picture.shape[1:])}, "
            f"others are {tuple(before[0].shape[1:])}"
        )
    return picture


def _download_cifar(name: str, cache: Path) -> ImageData:
    from torchvision.datasets import CIFAR10, CIFAR100

    cls = CIFAR10 if name == "cifar10" else CIFAR100
    try:
        train, test = (cls(cache, train=train, download=True) for train in (True, False))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot download {name}: {error}; is the network up? Pictures in "
            f"{cache / name}/{{train,test}}/<class>/ would be used instead"
        ) from None
    (a, b), (c, d) = (
        (torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets))
        for s in (train, test)
    )
    return _make(name, a, b, c, d, train.classes)
