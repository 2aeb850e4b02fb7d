"""A folder of pictures: which ones, decoded in parallel, and kept decoded for the next time.

Chapter: 7.
"""

from __future__ import annotations

import hashlib
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitmini.convert import one_line
from vitmini.pictures import ENDINGS, decode, printable

_FORMAT = 1  # of the cache: another number when the same files would give other pixels
_BLOCK = 2**28  # bytes of pixels that are decoded at a time
_NAMED = 20  # pictures that a message names


class Picture(NamedTuple):
    """A file below the folder, the number of its class, its size in bytes and its age."""

    name: str
    label: int
    size: int
    mtime: int


@dataclass(frozen=True)
class PictureFolder:
    """What a folder of pictures holds, before any of them is opened. Chapter: 7."""

    folder: Path
    classes: tuple[str, ...]
    train: tuple[Picture, ...]
    test: tuple[Picture, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Those to train on, then those to test on."""
        return self.train + self.test


# Which pictures -----------------------------------------------------------------------------


def list_pictures(folder: Path) -> PictureFolder:
    """Find the pictures of a folder, their classes, and which of them are for the test.

    `{train,test}/<class>/*`, or `val/` where `test/` holds no classes (ImageNet's layout). In a
    folder of classes alone, `<class>/*`, a fifth of each class is for the test (at least one),
    chosen by a hash of the names: the same ones each time, and nearly so when pictures are added.
    As in torchvision's `ImageFolder`, pictures in folders below a class belong to it, links are
    followed, and a file is a picture by its ending; others and hidden ones are passed over.

    Raises: `ValueError` when the layout is another one, parts have other names, a class is empty,
        or a class that has to be split has one picture.
    Chapter: 7
    """
    try:
        parts = [part for part in ("train", "test", "val") if (folder / part).is_dir()]
        filled = [part for part in parts if _folders_in(folder / part)]
        if filled or ("train" in parts and len(parts) > 1):
            return _list_parts(folder, parts, filled)
        classes = _folders_in(folder)
        if classes and all(name.lower().startswith(("train", "test", "val")) for name in classes):
            raise ValueError(
                f"data folder {folder} holds {'/ and '.join(classes)}/: if these are parts, not "
                "classes, call them train/ and test/ (or val/)"
            )
        return _split(folder, *_list_classes(folder, folder))
    except OSError as error:
        raise ValueError(f"cannot list the pictures in {folder}: {one_line(error)}") from None


def _list_parts(folder: Path, parts: list[str], filled: list[str]) -> PictureFolder:
    for name, choice in (("train", ("train",)), ("test", ("test", "val"))):
        if not set(choice) & set(parts):
            raise ValueError(
                f"data folder {folder} must hold train/ and test/ (or val/), {name}/ is missing"
            )
    named = [part for part in parts if part != "train"]
    test_part = next((part for part in named if part in filled), named[0])
    classes, train = _list_classes(folder, folder / "train")
    test_classes, test = _list_classes(folder, folder / test_part)
    if classes != test_classes:
        raise ValueError(
            f"data folder {folder} must hold the same class folders in train/ and {test_part}/, "
            f"got {_some(classes)} and {_some(test_classes)}"
        )
    return PictureFolder(folder, tuple(classes), tuple(train), tuple(test))


def _split(folder: Path, classes: list[str], pictures: list[Picture]) -> PictureFolder:
    train: list[Picture] = []
    test: list[Picture] = []
    for label, group in groupby(pictures, key=lambda picture: picture.label):
        own = list(group)
        if len(own) < 2:
            raise ValueError(
                f"data folder {folder / classes[label]} holds one picture: a class needs two or "
                "more, one to train on and one to test with"
            )
        chosen = {p.name for p in sorted(own, key=_lot)[: max(1, round(len(own) / 5))]}
        test += [picture for picture in own if picture.name in chosen]
        train += [picture for picture in own if picture.name not in chosen]
    return PictureFolder(folder, tuple(classes), tuple(train), tuple(test))


def _lot(picture: Picture) -> bytes:
    return hashlib.sha256(os.fsencode(picture.name)).digest()


def _list_classes(folder: Path, part: Path) -> tuple[list[str], list[Picture]]:
    classes = _folders_in(part)
    if len(classes) < 2:
        raise ValueError(
            f"data folder {part} must hold a folder of pictures for each of two classes or more, "
            f"got {_some(classes)}"
        )
    known = {_identity(path) for path in (folder, part, *(part / kind for kind in classes))}
    pictures: list[Picture] = []
    for label, kind in enumerate(classes):
        if not kind.isprintable():
            raise ValueError(f"class folders must have printable names, {part} holds {kind!r}")
        found = sorted(_walk(str(folder), (part / kind).relative_to(folder), label, set(known)))
        if not found:
            raise ValueError(
                f"data folder {part / kind} holds no pictures (files that end in "
                f"{', '.join(ENDINGS)})"
            )
        pictures += found
    return classes, pictures


def _folders_in(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name[0] != "." and os.path.isdir(e.path))


def _walk(root: str, start: Path, label: int, seen: set[tuple[int, int]]) -> Iterator[Picture]:
    """Go through a class and the folders below it, each once: links may lead in circles."""
    todo = [start.as_posix()]
    while todo:
        name = todo.pop()
        with os.scandir(f"{root}/{name}") as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    identity = _identity(entry.path)
                    if identity not in seen:
                        seen.add(identity)
                        todo.append(f"{name}/{entry.name}")
                elif os.path.splitext(entry.name)[1].lower() in ENDINGS:
                    size = mtime = -1
                    with suppress(OSError):  # a link to nowhere: told when it is to be read
                        size, mtime = entry.stat().st_size, entry.stat().st_mtime_ns
                    yield Picture(f"{name}/{entry.name}", label, size, mtime)


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{names[:5]}{more}" if names else "none"


# Their pixels -------------------------------------------------------------------------------


def read_pictures(listed: PictureFolder, image_size: tuple[int, int] | None, cache: Path) -> Tensor:
    """Give the pixels of all pictures, from the cache where they were decoded before.

    Shapes: returns uint8 (N, 3, H, W), in the order of `listed.pictures`; memory-mapped and
        read-only, or in memory where `cache` cannot be written.
    Raises: `ValueError` when a picture cannot be read, or their sizes differ and `image_size`
        is None.
    Chapter: 7
    """
    count, place = len(listed.pictures), _cache_place(listed, image_size)
    path = cache / "decoded" / f"{place}-{_fingerprint(listed)}.npy"
    pixels = _open_cache(path, count, image_size)
    if pixels is None:
        with suppress(OSError):  # a full disk, a folder of somebody else: memory has to do
            _write_cache(path, count, _decode_all(listed, image_size))
            pixels = _open_cache(path, count, image_size)
    if pixels is None:
        pixels = _collect(count, _decode_all(listed, image_size))
    with suppress(OSError):
        _forget_older(path, place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that such a tensor must not be written to
        return torch.from_numpy(pixels)


def _collect(count: int, blocks: Iterator[np.ndarray]) -> np.ndarray:
    first = next(blocks)
    pixels, done = np.empty((count, *first.shape[1:]), np.uint8), 0
    for block in chain([first], blocks):
        pixels[done : done + len(block)] = block
        done += len(block)
    return pixels


def _decode_all(
    listed: PictureFolder, image_size: tuple[int, int] | None
) -> Iterator[np.ndarray]:  # uint8 (B, 3, H, W), block after block
    """Decode in threads, since Pillow works outside of Python's lock.

    From the first broken picture on nothing comes out, but all are tried: each is to be named.
    """
    from tqdm import tqdm

    names = [picture.name for picture in listed.pictures]
    shape = None if image_size is None else (3, *image_size)
    threads, start = min(32, os.cpu_count() or 1), 0
    broken: list[str] = []
    quiet = len(names) < 1000 or not sys.stderr.isatty()
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(desc="pictures", total=len(names), leave=False, disable=quiet) as bar,
    ):
        while start < len(names):
            count = 1 if shape is None else min(1024, max(threads, _BLOCK // math.prod(shape)))
            block = names[start : start + count]
            start += len(block)
            size = min(16, -(-len(block) // threads))  # a task for each picture would cost more
            tasks = [block[i : i + size] for i in range(0, len(block), size)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, about what it reads nevertheless
                decoded = pool.map(lambda t: _decode_some(listed.folder, t, image_size), tasks)
                results = list(zip(block, chain.from_iterable(decoded), strict=True))
            for name, pixels in results:
                shown = printable(name)
                if isinstance(pixels, str):
                    broken.append(f"{shown} ({pixels})")
                    continue
                shape = shape or pixels.shape
                if pixels.shape != shape:
                    raise ValueError(
                        f"pictures in {listed.folder} must have one size: {shown} is "
                        f"{pixels.shape[1:]}, others are {shape[1:]}; image_size brings all to one"
                    )
            if not broken:
                yield np.stack([pixels for _, pixels in results])
            bar.update(len(block))
    if broken:
        raise ValueError(
            f"{len(broken)} of {len(names)} pictures in {listed.folder} cannot be read: "
            f"{', '.join(broken[:_NAMED])}"
            + (f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else "")
        )


def _decode_some(
    folder: Path, names: list[str], image_size: tuple[int, int] | None
) -> list[np.ndarray | str]:  # pixels, or the reason why there are none
    results: list[np.ndarray | str] = []
    for name in names:
        try:
            results.append(decode(f"{folder}/{name}", "RGB", image_size))
        except ValueError as error:
            results.append(str(error))
    return results


# The cache ----------------------------------------------------------------------------------


def _cache_place(listed: PictureFolder, image_size: tuple[int, int] | None) -> str:
    """Name what a newer cache of the same folder and size replaces."""
    own = listed.folder.resolve()
    where = hashlib.sha256(os.fsencode(own)).hexdigest()[:8]
    size = "own-size" if image_size is None else f"{image_size[0]}x{image_size[1]}"
    return f"{own.name[:40]}-{where}-{size}"


def _fingerprint(listed: PictureFolder) -> str:
    """Hash names, sizes and ages: the pictures are read again when one of them changes."""
    digest = hashlib.sha256(f"format {_FORMAT}".encode())
    for name, _, size, mtime in listed.pictures:
        digest.update(os.fsencode(f"\0{name}\0{size}\0{mtime}"))
    return digest.hexdigest()[:24]


def _open_cache(path: Path, count: int, image_size: tuple[int, int] | None) -> np.ndarray | None:
    """Map a cache into memory if it is whole; what is damaged or foreign is none."""
    try:
        pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        whole = path.stat().st_size == pixels.offset + pixels.nbytes
        size = image_size or pixels.shape[2:]
    except Exception:  # a damaged header drives numpy into many kinds of errors
        return None
    fits = pixels.shape == (count, 3, *size) and len(size) == 2 and pixels.flags.c_contiguous
    return pixels if whole and fits and pixels.dtype == np.uint8 else None


def _write_cache(path: Path, count: int, blocks: Iterator[np.ndarray]) -> None:
    """Write a cache whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            for i, block in enumerate(blocks):
                if i == 0:
                    shape = (count, *block.shape[1:])
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(block.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _forget_older(path: Path, place: str) -> None:
    """Remove caches of the folder as it was before, and what a killed process left half-way."""
    for old in path.parent.iterdir():
        stale = old.suffix == ".part" and old.stat().st_mtime < time.time() - 600
        if stale or (old.name.startswith(f"{place}-") and old != path):
            old.unlink(missing_ok=True)
