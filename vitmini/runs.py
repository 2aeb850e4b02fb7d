"""The folder of a run: written whole or not at all, resumed, and read again with suspicion.

Chapter: 7.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from vitmini.baselines import AnyConfig, build_network, read_config, write_config
from vitmini.convert import one_line
from vitmini.data import ImageData, in_blocks
from vitmini.distill import Teacher
from vitmini.optim import Trainer
from vitmini.recipes import TrainConfig

_DAMAGE = (
    AttributeError,
    KeyError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)


# A run's folder -----------------------------------------------------------------------------


def check_run(
    out: str | Path, config: TrainConfig, resume: bool = False, teacher: Teacher | None = None
) -> Path:
    """Refuse a folder that a run must not be written to, before any data is read.

    Raises: `ValueError` when `out` is no path or a file, holds a run already (without `resume`),
        holds the run of another configuration or teacher (with it), or is being written to by
        another process.
    Chapter: 7
    """
    if not isinstance(out, (str, Path)) or not str(out):
        raise ValueError(f"out must name a folder, got {out!r}")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; out must be a folder")
    names = ("config.json", "checkpoint.pt", "metrics.jsonl", "model.safetensors")
    if not any((folder / name).exists() for name in names):
        return folder
    if not resume:
        raise ValueError(f"{folder} already holds a run: choose another folder, or resume it")
    standard = json.loads(json.dumps(dataclasses.asdict(TrainConfig())))
    description = _read_config(folder)
    theirs = standard | description["train"]  # an older run lacks newer options
    ours = json.loads(json.dumps(dataclasses.asdict(config)))  # as it reads back
    changed = [k for k in sorted(ours | theirs) if ours.get(k) != theirs.get(k)]
    if changed:
        k = changed[0]
        name = k if k in ours else repr(k)  # the file is somebody's: it may hold anything
        raise ValueError(
            f"{folder} holds another run: its {name} is {theirs.get(k)!r}, not {ours.get(k)!r}"
        )
    if description.get("teacher") != (None if teacher is None else teacher.identity()):
        raise ValueError(f"{folder} holds another run: its teacher is not the one given")
    with lock_run(folder):  # is it free?
        return folder


_locks: set[int] = set()  # descriptors of the folders that this process writes to


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Make a run's folder, and let nobody else write a run there while the block lasts.

    The lock is the system's, on the folder itself: it ends with the process, also with `kill -9`,
    and leaves no file behind. Where the system or the drive has no such locks, there is none.

    Raises: `ValueError` when another process has the lock.
    Chapter: 7
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder)
    if descriptor is not None:
        _locks.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _locks:
            _locks.remove(descriptor)
            os.close(descriptor)


def _leave_locks() -> None:
    """A forked worker lives on for seconds after a run that was killed: the lock must not."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def _lock(folder: Path) -> int | None:
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(
            f"{folder} is being written to by another run: let that one end, or choose another "
            "folder"
        ) from None
    except OSError:  # a network drive without locks
        os.close(descriptor)
        return None
    return descriptor


def data_digest(data: ImageData) -> str:
    """Hash all images and labels, so that a run knows its data again. Chapter: 7."""
    digest = hashlib.sha256()
    for tensor in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        for block in in_blocks(tensor):
            digest.update(block.cpu().numpy().tobytes())
    return digest.hexdigest()


def open_run(
    folder: Path,
    config: TrainConfig,
    model_config: AnyConfig,
    data: ImageData,
    trainer: Trainer,
    teacher: Teacher | None = None,
) -> list[dict[str, float]]:
    """Start a run in `folder`, or take over the state of the one that is there.

    A run that starts keeps its first weights: whoever goes on with it begins where it began.
    Shapes: returns the records of the epochs that are done.
    Raises: `ValueError` when the folder holds another run, or its checkpoint is damaged.
    Chapter: 7
    """
    description = {
        "train": dataclasses.asdict(config),
        "model": write_config(model_config),
        "data": {
            "name": data.name,
            "classes": data.classes,
            "mean": data.mean,
            "std": data.std,
            "sha256": data_digest(data),
        },
    }
    if teacher is not None:
        description["teacher"] = teacher.identity()
    description = json.loads(json.dumps(description))  # as it reads back: tuples become lists
    if (folder / "config.json").exists():
        theirs = _read_config(folder)
        for part in ("model", "data"):
            if theirs[part] != description[part]:
                raise ValueError(f"{folder} holds another run: its {part} is not the one given")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.json", json.dumps(description, indent=2) + "\n")
    told = _read_bytes(folder / "config.json")
    trainer.run_digest = hashlib.sha256(told).hexdigest()
    if not (folder / "checkpoint.pt").exists():
        if (folder / "model.safetensors").exists():
            return _take_over_finished(folder, trainer, config.epochs)
        _save_checkpoint(folder, trainer, [])
        return []
    checkpoint = _read_checkpoint(folder / "checkpoint.pt")
    try:
        if checkpoint.pop("run", trainer.run_digest) != trainer.run_digest:  # older ones do not say
            raise ValueError("it is another run's")
        history = _check_history(checkpoint.pop("history"), config.epochs)
        trainer.load_state_dict(checkpoint, begun=bool(history))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'checkpoint.pt'} does not fit this run: {one_line(error)}"
        ) from None
    if history:
        _write_metrics(folder, history)
    return history


def _take_over_finished(folder: Path, trainer: Trainer, epochs: int) -> list[dict[str, float]]:
    """Do without the checkpoint of a run that is done: it is large, and for going on alone."""
    try:
        lines = _read_bytes(folder / "metrics.jsonl").splitlines()
        history = _check_history([json.loads(line) for line in lines], epochs)
        if len(history) < epochs:
            raise ValueError(f"it holds {len(history)} of {epochs} epochs")
    except _DAMAGE as error:
        raise ValueError(
            f"{folder} is a finished run without a checkpoint.pt, and its metrics.jsonl is damaged "
            f"or gone: {one_line(error)}"
        ) from None
    weights = load_run(folder)[0].state_dict()
    for module in (trainer.model, trainer.evaluated):
        module.load_state_dict(weights)
    return history


def _check_history(history: Any, epochs: int) -> list[dict[str, float]]:
    keys = {"epoch", "train_loss", "lr", "seconds"}
    if not isinstance(history, list) or len(history) > epochs:
        raise ValueError("its history is not that of this run's epochs")
    for i, record in enumerate(history, start=1):
        if not isinstance(record, dict):
            raise ValueError("its history holds more than records")
        if not all(type(v) in (int, float) and abs(v) < math.inf for v in record.values()):
            raise ValueError("its history holds more than numbers")
        wanted = keys | ({"test_accuracy", "test_loss"} if i == epochs else set())
        if set(record) - {"val_accuracy"} != wanted or record["epoch"] != i:
            raise ValueError(f"its record of epoch {i} is incomplete")
    return history


def _write_metrics(folder: Path, history: list[dict[str, float]]) -> None:
    write_whole(folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in history))


def save_epoch(folder: Path, trainer: Trainer | None, history: list[dict[str, float]]) -> None:
    """Write `checkpoint.pt`, then `metrics.jsonl`, each whole or not at all.

    Without a `trainer` it writes the metrics alone: a small model on a fast device would else
    spend as much time on its checkpoints as on its epochs.
    Chapter: 7
    """
    if trainer is not None:
        _save_checkpoint(folder, trainer, history)
    _write_metrics(folder, history)


def _save_checkpoint(folder: Path, trainer: Trainer, history: list[dict[str, float]]) -> None:
    buffer = io.BytesIO()
    torch.save({**trainer.state_dict(), "history": history, "run": trainer.run_digest}, buffer)
    write_whole(folder / "checkpoint.pt", buffer.getvalue())


def save_weights(folder: Path, model: nn.Module) -> None:
    """Write `model.safetensors`, with a hash of the weights: the end of a run. Chapter: 7."""
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    _, weights = _split(save_safetensors(state))
    head = {"sha256": hashlib.sha256(weights).hexdigest()}
    write_whole(folder / "model.safetensors", save_safetensors(state, head))


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Take the bytes of a safetensors file apart: what its head says of itself, the numbers."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]).get("__metadata__") or {}, content[end:]


def load_run(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """Load the model of a finished run, in evaluation mode, and what its `config.json` says.

    Shapes: the model is a `ViT`, or what `create_baseline` gives.
    Raises: `ValueError` when the folder holds no finished run, or a damaged one.
    Chapter: 7
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder that holds a run")
    description = _read_config(folder)
    path = folder / "model.safetensors"
    if not path.exists():
        raise ValueError(f"{folder} holds no finished run: {path.name} is missing, resume it first")
    try:
        fields: dict[str, Any] = description["model"]
        config = read_config(fields)
        _check_data(description, config)
        weights = load_safetensors(content := _read_bytes(path))
        head, numbers = _split(content)
        told = head.get("sha256")  # the weights of an older run, or of somebody else, do not say
        if told not in (None, hashlib.sha256(numbers).hexdigest()):
            raise ValueError("its weights are not those that were written")
        depth = getattr(getattr(config, "vit", config), "depth", 0)
        if depth > len(weights):  # it would be built for ever
            raise ValueError(f"it holds no weights for {depth} blocks")
        with torch.device("meta"):  # no memory yet: the shapes may be anything
            shapes = {k: (v.shape, v.dtype) for k, v in build_network(config).state_dict().items()}
        if {k: (v.shape, v.dtype) for k, v in weights.items()} != shapes:
            raise ValueError("names, shapes or types of the weights are not those of config.json")
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("the weights are not finite")
        model = build_network(config)
        model.load_state_dict(weights)
    except (SafetensorError, MemoryError, *_DAMAGE) as error:
        raise ValueError(f"{path} is damaged or not this run's: {one_line(error)}") from None
    return model.eval(), description


def load_teacher(folder: str | Path) -> Teacher:
    """Make a teacher of a finished run: it sees pictures as it did in its own training.

    Raises: `ValueError` when the folder holds no finished run, or a damaged one.
    Chapter: 10
    """
    model, description = load_run(folder)
    data = description["data"]
    return Teacher(model, data["mean"], data["std"], model.config.image_size, data["classes"])


def _check_data(description: dict[str, Any], config: AnyConfig) -> None:
    data, name = description["data"], description["train"]["data"]
    classes, mean, std = data["classes"], data["mean"], data["std"]
    if not isinstance(name, str) or not isinstance(data["sha256"], str):
        raise ValueError("config.json does not name the data")
    if not isinstance(classes, list) or len(classes) != config.num_classes:
        raise ValueError("config.json must name one class for each logit")
    if not all(isinstance(c, str) and c.isprintable() for c in classes):
        raise ValueError("config.json must name classes in printable words")
    for values in (mean, std):
        numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
        if not numbers or len(values) != config.in_channels or not all(map(math.isfinite, values)):
            raise ValueError("config.json must hold a mean and a std for each channel")
    if max(map(abs, mean)) > 1e6 or not 1e-6 <= min(std) <= max(std) <= 1e6:
        raise ValueError("config.json must hold a mean and a positive std of pixels")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        description = json.loads(_read_bytes(path))
        if not all(isinstance(description[part], dict) for part in ("train", "model", "data")):
            raise ValueError("a part is missing")
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no run: config.json is missing") from None
    except _DAMAGE as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}") from None
    return description


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about formats that it then refuses
            content = io.BytesIO(_read_bytes(path))
            archive = zipfile.ZipFile(content)  # torch.load does not look at the checksums
            packed = any(member.compress_type for member in archive.infolist())  # it never is
            if packed or archive.testzip():
                raise ValueError("its bytes are not those that were written")
            content.seek(0)
            checkpoint = torch.load(content, map_location="cpu", weights_only=True)
        if not isinstance(checkpoint, dict):
            raise ValueError("it holds no dictionary")
    except Exception:  # torch, pickle and zipfile each have their own
        raise ValueError(
            f"{path} is damaged, or holds more than tensors and plain values: nothing was run"
        ) from None
    return checkpoint


def _read_bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would be waited for, a device has no end
        raise ValueError("it is no regular file")
    return path.read_bytes()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all, also when the machine stops half-way.

    Raises: `OSError` when the folder cannot be written to, or not any more.
    Chapter: 7
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)  # a link that lies there would lead to another file
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            _sync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # half of it would keep a full disk full
            temporary.unlink(missing_ok=True)
        raise OSError(
            f"cannot write {path} ({error.strerror or error}): is the disk full, or the drive "
            "gone? What was written before is whole: resume when the folder is back"
        ) from None


def _sync(descriptor: int) -> None:
    """Have the file on the disk; some network drives cannot say when it is, and are believed."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
