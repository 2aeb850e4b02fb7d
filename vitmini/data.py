"""Pictures and labels as uint8 tensors: on the device where they fit, else batch by batch.

Chapter: 7.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitmini.folders import list_pictures, read_pictures
from vitmini.patches import as_pair

NAMES = ("digits", "cifar10", "cifar100")
_LARGEST = 8192  # pixels a side: no picture of a class is looked at in more


@dataclass(frozen=True)
class ImageData:
    """A data set, in memory or in a memory-mapped file (which must not be written to).

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


def load_data(
    name_or_folder: str | Path,
    root: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> ImageData:
    """Load a data set by name (`digits`, `cifar10`, `cifar100`) or from a folder of pictures.

    `digits` is embedded in scikit-learn: 1,437 images to train on and 360 to test on, by
    `train_test_split(test_size=360, random_state=0)`, stratified. CIFAR comes from
    `root/cifar10/{train,test}/<class>/*` where that exists, otherwise through torchvision's
    download into `root` (default: `$VITMINI_DATA`, else the user's cache folder).

    A folder holds `{train,test}/<class>/*`, or `{train,val}`, or only `<class>/*`, of which a
    fifth is kept for the test. Pictures may lie deeper; a file is one by its ending (JPEG, PNG,
    GIF, WebP, BMP, TIFF, PPM, AVIF, HEIC), others and hidden ones are passed over. Each is turned
    upright, put on white where it is transparent, made RGB, scaled until it covers `image_size`
    and cut to its centre; without `image_size` all must have one size. Decoded pictures are kept
    in `root/decoded` for the next time, and mapped into memory from there.

    Shapes: see `ImageData`; digits are (N, 1, 8, 8), CIFAR (N, 3, 32, 32), a folder's pictures
        (N, 3, rows, columns). `image_size` in pixels, an int or (rows, columns).
    Raises: `ValueError` for an unknown name, a folder of another layout, pictures that cannot be
        read (it names them), or a download that failed.
    Chapter: 7
    """
    name = str(name_or_folder)
    size = None if image_size is None else as_pair(image_size, "image_size")
    if size and max(size) > _LARGEST:
        raise ValueError(f"image_size must be at most {_LARGEST} pixels, got {max(size)}")
    if name in NAMES and size is not None:
        raise ValueError(f"image_size is for folders of pictures, {name} has a size of its own")
    if name == "digits":
        return _load_digits()
    cache = Path(root) if root is not None else _cache()
    if name in NAMES:
        if (cache / name / "train").is_dir():
            return _load_folder(cache / name, name, None, cache)
        return _download_cifar(name, cache)
    if os.path.isdir(name):
        return _load_folder(Path(name), Path(name).resolve().name, size, cache)
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


def first_images(data: ImageData, count: int, shown: int | None = None) -> ImageData:
    """Keep `count` training images, a random choice that is the same in every call.

    A larger choice holds the smaller one. With `shown`, they are repeated in turn until there are
    so many: an epoch then has one length, however few the images.
    Raises: `ValueError` when there are fewer, or `shown` is less than `count`.
    Chapter: 8
    """
    total = len(data.train_labels)
    if not 1 <= count <= total:
        raise ValueError(f"count must be from 1 to {total}, got {count!r}")
    if shown is not None and shown < count:
        raise ValueError(f"shown must be at least count = {count}, got {shown!r}")
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    ids = order[torch.arange(shown or count) % count]
    return replace(data, train_images=data.train_images[ids], train_labels=data.train_labels[ids])


# Batches ------------------------------------------------------------------------------------


def fits_on(device: torch.device, data: ImageData) -> bool:
    """Say whether all images leave half of the device's free memory to the model, or more.

    What is there already fits; on a CPU, what is larger than the memory stays in its file.

    Chapter: 7
    """
    if data.train_images.device.type == device.type:
        return True
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return data.train_images.nbytes + data.test_images.nbytes <= free / 2


def take_batches(
    data: ImageData, batches: Sequence[Tensor], device: torch.device, stream: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the training images and labels of each batch of indices, on `device`.

    With `stream`, images that are not on a device stay where they are, and workers fetch the next
    batches while the device computes; both ways give the same bytes.

    Shapes: indices (B,) -> uint8 (B, C, H, W) and int64 (B,).
    Chapter: 7
    """
    if not (stream and data.train_images.is_cpu):
        for ids in batches:
            yield data.train_images[ids], data.train_labels[ids]
        return
    here = torch.cat(list(batches)).cpu().split(list(map(len, batches)))  # waits once, not for each
    fetched = _Fetched(data.train_images, data.train_labels, here)
    workers = _count_workers(data.train_images[:1].nbytes * max(map(len, batches)))
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        fetched,
        batch_size=None,  # `fetched` holds whole batches already
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else it draws from the numbers that dropout draws from
    )
    for images, labels in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


@dataclass(frozen=True)
class _Fetched(Dataset[tuple[Tensor, Tensor]]):
    """Batches as a data set of PyTorch's: each is gathered when it is asked for."""

    images: Tensor
    labels: Tensor
    batches: Sequence[Tensor]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[self.batches[i]], self.labels[self.batches[i]]


def _count_workers(batch_bytes: int) -> int:
    """As many as shared memory has room for; none where they cannot share the images by forking."""
    if sys.platform != "linux" or not os.path.isdir("/dev/shm"):
        return 0
    room = shutil.disk_usage("/dev/shm").free // (4 * batch_bytes)
    return min(4, (os.cpu_count() or 1) - 1, room)


# Named sets ---------------------------------------------------------------------------------


def _make(name, train_images, train_labels, test_images, test_labels, classes) -> ImageData:
    mean, std = mean_and_std(train_images)
    return ImageData(
        name,
        train_images,
        train_labels.long(),
        test_images,
        test_labels.long(),
        tuple(classes),
        tuple(round(v, 6) for v in mean.tolist()),
        tuple(round(max(v, 1e-3), 6) for v in std.tolist()),
    )


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Measure each channel's mean and standard deviation, for pixels in [0, 1].

    How often each of the 256 values occurs says all, and is counted block by block without
    rounding: the images may be larger than the memory.

    Shapes: `images` uint8 (N, C, H, W) -> two times float64 (C,).
    Chapter: 7
    """
    counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
    for block in in_blocks(images):
        for c in range(len(counts)):
            counts[c] += torch.bincount(block[:, c].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    n = counts.sum(1)
    mean = (counts * values).sum(1) / n
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (n - 1).clamp(min=1)
    return mean, variance.sqrt()


def in_blocks(images: Tensor) -> tuple[Tensor, ...]:
    """Split a tensor, which may be a file, into views of about 16 MiB. Chapter: 7."""
    each = images.nbytes // max(1, len(images))
    return images.split(max(1, 2**24 // max(1, each)))


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(images).view(-1, 1, 8, 8)
    pixels = (images * 255 / 16).round().to(torch.uint8)  # the file counts ink from 0 to 16
    split = train_test_split(pixels.numpy(), labels, test_size=360, random_state=0, stratify=labels)
    train, test, train_labels, test_labels = (torch.from_numpy(part) for part in split)
    return _make("digits", train, train_labels, test, test_labels, map(str, range(10)))


def _load_folder(
    folder: Path, name: str, image_size: tuple[int, int] | None, cache: Path
) -> ImageData:
    listed = list_pictures(folder)
    pixels = read_pictures(listed, image_size, cache)
    labels = torch.tensor([picture.label for picture in listed.pictures])
    n = len(listed.train)
    return _make(name, pixels[:n], labels[:n], pixels[n:], labels[n:], listed.classes)


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
