"""One picture: from a file of any kind and size to a tensor of uint8.

Chapter: 7.
"""

from __future__ import annotations

import os
import stat
import warnings
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitmini.convert import one_line

ENDINGS = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".avif", ".heic", ".heif"),
)


def read_image(path: str | Path, channels: int, image_size: tuple[int, int]) -> Tensor:
    """Read one picture of any size for a model that wants `channels` and (rows, columns).

    It is scaled until it covers the size, then its centre is cut out, as `load_data` does it.

    Shapes: returns uint8 (C, H, W); grey when `channels` is 1.
    Raises: `ValueError` when the file cannot be read as a picture, or `channels` is not 1 or 3.
    Chapter: 7
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about what it reads nevertheless
            return torch.from_numpy(decode(path, "L" if channels == 1 else "RGB", image_size))
    except ValueError as error:
        raise ValueError(f"cannot read {printable(path)} as a picture: {error}") from None


def printable(path: str | Path) -> str:
    """Show a file's name in one line, whatever it is called. Chapter: 7."""
    return str(path) if str(path).isprintable() else repr(str(path))


def decode(path: str | Path, mode: str, image_size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a picture, upright, on white where it is transparent, in 8 bits a channel.

    Shapes: `mode` is "L" (grey) or "RGB"; returns uint8 (C, H, W), scaled and cut to `image_size`
        (rows, columns), or as large as the file says.
    Raises: `ValueError` with the reason why the file cannot be read; nothing else, whatever the
        file holds.
    Chapter: 7
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise ValueError("it is no regular file")
        with Image.open(path, formats=_formats()) as file:
            if image_size is not None:  # a JPEG much larger than that is decoded smaller at once
                file.draft(None, (2 * max(image_size),) * 2)
            file.load()
            picture = _on_white(_in_8_bits(_upright(file))).convert(mode)
        if image_size is not None and picture.size != image_size[::-1]:
            picture = ImageOps.fit(picture, image_size[::-1], Image.Resampling.LANCZOS)
    except UnidentifiedImageError:
        raise ValueError("no picture of a known kind") from None
    except MemoryError:  # the size that is asked for is at fault, not the picture
        raise
    except Exception as error:  # a decoder raises whatever a damaged file drives it into
        reason = isinstance(error, OSError) and error.strerror
        raise ValueError(reason or one_line(error)) from None
    return _to_array(picture)


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
            photo = Image.open(path).convert("RGB")
    else:
        from sklearn.datasets import load_sample_image

        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side))
    return torch.from_numpy(_to_array(square.resize((size, size), Image.Resampling.LANCZOS)))


def _formats() -> list[str]:
    """Pillow's names for what `ENDINGS` say, as far as it is installed with them.

    It would try others, too: to read PostScript that is called x.png, it runs Ghostscript.
    """
    from PIL import Image

    known = Image.registered_extensions()
    return sorted({known[ending] for ending in ENDINGS if ending in known})


def _upright(picture):  # PIL image -> PIL image
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # what says how to turn it is damaged, the pixels are not
        return picture


def _in_8_bits(picture):  # PIL image -> PIL image
    from PIL import Image

    if picture.mode.startswith("I;16"):
        pixels = np.asarray(picture)
        grey = Image.fromarray((pixels / 257).round().astype(np.uint8))
        if isinstance(clear := picture.info.get("transparency"), int):
            grey.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
        return grey
    if picture.mode in ("I", "F"):
        raise ValueError(f"its pixels are of type {picture.mode}, not 8 or 16 bits")
    return picture


def _on_white(picture):  # PIL image -> PIL image
    from PIL import Image

    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _to_array(picture) -> np.ndarray:  # PIL image -> uint8 (C, H, W)
    pixels = np.array(picture)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
