"""Runs that outlive the machine they ran on: a folder in Google Drive, a zip to take home.

Colab takes its machines back, with all that is on their disks. Elsewhere these functions do the
same on the disk that is there. Chapter: 7.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from pathlib import Path, PurePosixPath

from vitmini.runs import write_whole

_MOUNT = Path("/content/drive")  # where Colab's own examples put it
_RUNS = "vitmini-runs"


def run_folder(name: str, drive: bool = False) -> Path:
    """Name the folder of a run: `runs/name` here, or in Google Drive, where Colab has that.

    With `drive`, Colab asks for access to your Drive, once a session. The folder there is
    `MyDrive/vitmini-runs/name`, and what a run writes to it is there for the next machine.

    Raises: `ValueError` when `name` is empty or leads out of the folder of runs; `OSError` when
        Drive was not mounted.
    Chapter: 7
    """
    parts = PurePosixPath(name).parts if isinstance(name, str) and name.isprintable() else ()
    if not parts or ".." in parts or name.startswith("/") or "\\" in name:
        raise ValueError(f"name must be a simple name such as 'cifar10', got {name!r}")
    local = Path("runs", *parts)
    if not drive:
        return local
    if not _on_colab():
        print(f"no Google Drive here, this is not Colab: the run is kept in {local}")
        return local
    return _mount_drive() / _RUNS / Path(*parts)


def _on_colab() -> bool:
    return "google.colab" in sys.modules  # its kernel has loaded it


def _mount_drive() -> Path:
    """Mount the Drive, where that was not done, and return its folder of one's own files."""
    if not os.path.ismount(_MOUNT):
        from google.colab import drive

        try:
            drive.mount(str(_MOUNT))
        except Exception as error:  # Colab raises several types of its own
            told = " ".join(str(error).split()) or type(error).__name__
            raise OSError(_refusal(told)) from None
    mine = _MOUNT / "MyDrive"
    if not mine.is_dir():
        raise OSError(_refusal(f"{mine} is not there"))
    return mine


def _refusal(told: str) -> str:
    return (
        f"Google Drive was not mounted ({told}): run the cell again and allow access, or take "
        "drive=False, which trains as well but is lost with the machine unless you download it"
    )


def offer_download(folder: str | Path) -> Path:
    """Pack a run into a zip beside its folder, whole or not at all; on Colab, download it too.

    Unpacked into `runs` on another machine, the run goes on there. Returns the path of the zip.

    Raises: `ValueError` when `folder` is no folder or holds nothing.
    Chapter: 7
    """
    if not (isinstance(folder, (str, Path)) and str(folder) and Path(folder).is_dir()):
        raise ValueError(f"folder must be one that exists, got {str(folder)!r}")
    folder = Path(folder)
    if folder.name in ("", ".."):  # what lies beside it is to be named
        folder = folder.resolve()
    # What is half-written has a name with a dot in front.
    names = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    if not names:
        raise ValueError(f"folder must hold something to download, {folder} is empty")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:  # weights hardly shrink
        for path in names:
            archive.write(path, Path(folder.resolve().name) / path.relative_to(folder))
    target = folder.parent / f"{folder.resolve().name}.zip"
    write_whole(target, packed.getvalue())
    print(f"the run is in {target}")
    if _on_colab():
        from google.colab import files

        files.download(str(target))
    return target
