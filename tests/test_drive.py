"""Runs on machines that are taken away: Google Drive, a download, one writer at a time.

Colab is simulated: a package `google.colab` whose `drive.mount` shows a folder of this disk. Each
process is a machine of its own, of which only that folder stays.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import signal
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import vitmini as vm
from vitmini import colab, runs
from vitmini.__main__ import main

TINY = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_ratio": 2.0}
CONFIG = vm.TrainConfig(
    epochs=5, warmup=1, cpu_threads=1, precision="float32", model_options=TINY, ema=0.9
)
# The cell that one repeats on each new machine.
CELL = f"""
import sys, pathlib, torch
sys.path.insert(0, sys.argv[1])
import google.colab  # Colab's kernel has
import vitmini as vm
from vitmini import colab
colab._MOUNT = pathlib.Path("content/drive").absolute()
config = vm.{CONFIG!r}
torch.manual_seed(0)
folder = vm.run_folder("tiny", drive=True)
model = vm.create_model("vit_digits", **config.model_options)
data = vm.load_data("digits")
vm.train(model, data, config, out=folder, resume=True, on_epoch=vm.LiveCurve(config, folder))
"""


@pytest.fixture
def standin(tmp_path):
    """A folder to import `google.colab` from."""
    package = tmp_path / "standin" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "drive.py").write_text(
        "import os\n"
        "def mount(path):\n"
        "    os.makedirs(path)\n"
        "    os.symlink(os.environ['HIS_DRIVE'], os.path.join(path, 'MyDrive'))\n"
        "    print('Mounted at', path)\n"
    )
    return tmp_path / "standin"


def machine(folder, drive, standin):
    """Start the cell on a machine that has nothing but the Drive."""
    folder.mkdir()
    drive.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith("VITMINI")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HIS_DRIVE": str(drive)}
    return subprocess.Popen(
        [sys.executable, "-c", CELL, str(standin)], cwd=folder, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_run_in_drive_survives_the_loss_of_its_machine_byte_for_byte(tmp_path, standin):
    process = machine(tmp_path / "first", tmp_path / "drive", standin)
    finished = 0
    for line in process.stdout:
        if line.startswith("epoch "):
            finished = int(line.split()[1].split("/")[0])
        if finished == 2:
            process.send_signal(signal.SIGKILL)  # in the middle of the third epoch
            break
    assert process.wait(60) == -signal.SIGKILL
    run = tmp_path / "drive" / "vitmini-runs" / "tiny"
    assert not (run / "model.safetensors").exists()

    second = machine(tmp_path / "second", tmp_path / "drive", standin)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0 and err == "", err
    epochs = [int(line.split()[1].split("/")[0]) for line in out.splitlines() if "loss" in line]
    assert finished + 1 <= epochs[0] <= finished + 2 and epochs[-1] == 5  # no finished one is lost
    assert f"{epochs[0] - 1} of 5 epochs are done" in out or f"{finished} of 5" in out

    unbroken = machine(tmp_path / "third", tmp_path / "other", standin)
    assert unbroken.wait(120) == 0
    other = tmp_path / "other" / "vitmini-runs" / "tiny"
    whole = (other / "model.safetensors").read_bytes()
    assert (run / "model.safetensors").read_bytes() == whole
    assert not any(p.suffix for p in (tmp_path / "second").rglob("*") if p.is_file())


# Folders ---------------------------------------------------------------------------------------


def stand_in(monkeypatch, mount=None, download=None):
    """Be on Colab, in this process."""
    package = types.ModuleType("google.colab")
    package.drive = types.SimpleNamespace(mount=mount)
    package.files = types.SimpleNamespace(download=download)
    monkeypatch.setitem(sys.modules, "google.colab", package)


def test_a_folder_is_local_where_no_drive_is_wanted_or_there(capsys):
    assert vm.run_folder("plain") == Path("runs/plain") and capsys.readouterr().out == ""
    assert vm.run_folder("a/b", drive=True) == Path("runs/a/b")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "not Colab" in out and str(Path("runs/a/b")) in out


def test_drive_is_mounted_once_and_the_run_lies_among_ones_own_files(monkeypatch, tmp_path):
    mounted = []

    def mount(path):
        mounted.append(path)
        (Path(path) / "MyDrive").mkdir(parents=True)

    monkeypatch.setattr(colab, "_MOUNT", tmp_path / "drive")
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in mounted)
    stand_in(monkeypatch, mount)
    for _ in range(2):
        folder = vm.run_folder("plain", drive=True)
        assert folder == tmp_path / "drive" / "MyDrive" / "vitmini-runs" / "plain"
    assert mounted == [str(tmp_path / "drive")]
    assert vm.run_folder("plain") == Path("runs/plain")


def refuse(path):
    raise ValueError("mount failed:\n  access denied")


@pytest.mark.parametrize("mount", [refuse, lambda path: None])
def test_a_drive_that_is_refused_says_what_still_works(monkeypatch, tmp_path, mount):
    monkeypatch.setattr(colab, "_MOUNT", tmp_path / "drive")
    stand_in(monkeypatch, mount)
    with pytest.raises(OSError, match=r"Google Drive was not mounted .*drive=False") as refusal:
        vm.run_folder("plain", drive=True)
    assert "\n" not in str(refusal.value)
    # a folder that a run of before made where the Drive should be is no Drive
    (tmp_path / "drive" / "MyDrive").mkdir(parents=True)
    if mount is refuse:
        with pytest.raises(OSError, match="access denied"):
            vm.run_folder("plain", drive=True)


@pytest.mark.parametrize(
    "name", ["", ".", "/tmp/x", "../x", "a/../../x", "a\\b", "a\0b", "a\nb", 3, None]
)
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(ValueError, match="name must be a simple name"):
        vm.run_folder(name)


# Downloads ---------------------------------------------------------------------------------------


def some_run(tmp_path):
    folder = tmp_path / "runs" / "plain"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name)
    (folder / ".checkpoint.pt.part").write_text("half")
    return folder


def test_a_run_is_packed_whole_and_downloaded_on_colab(tmp_path, monkeypatch, capsys):
    folder, loaded = some_run(tmp_path), []
    target = vm.offer_download(folder)
    assert target == tmp_path / "runs" / "plain.zip" and str(target) in capsys.readouterr().out
    stand_in(monkeypatch, download=loaded.append)
    assert vm.offer_download(folder) == target and loaded == [str(target)]
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["plain/config.json", "plain/model.safetensors"]
    assert {p.name for p in folder.parent.iterdir()} == {"plain", "plain.zip"}


@pytest.mark.parametrize("name", [".", "../plain"])
def test_a_zip_lies_beside_its_folder_however_that_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(some_run(tmp_path))
    for _ in range(2):
        target = vm.offer_download(name)
        assert target.resolve() == tmp_path / "runs" / "plain.zip"
        with zipfile.ZipFile(target) as archive:
            assert archive.namelist() == ["plain/config.json", "plain/model.safetensors"]


def test_a_zip_that_cannot_be_finished_is_not_there(tmp_path, monkeypatch):
    folder, loaded = some_run(tmp_path), []
    stand_in(monkeypatch, download=loaded.append)
    monkeypatch.setattr(runs.os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(OSError, match=r"cannot write .*plain\.zip"):
        vm.offer_download(folder)
    assert not (folder.parent / "plain.zip").exists() and loaded == []
    for empty in (tmp_path / "nothing", tmp_path / "empty", "", 3, None):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="folder must"):
            vm.offer_download(empty)


# A drive's whims ------------------------------------------------------------------------------


def fail(number):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    return failing


def tiny():
    torch.manual_seed(0)
    return vm.create_model("vit_digits", **TINY)


SHORT = dataclasses.replace(CONFIG, epochs=3)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_drive_that_cannot_sync_is_believed(digits, tmp_path, monkeypatch, number):
    monkeypatch.setattr(runs.os, "fsync", fail(number))
    runs.write_whole(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text() == "b"


def test_a_write_follows_no_link_and_leaves_no_half_behind(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.part").symlink_to("precious")
    (tmp_path / "a").symlink_to("precious")
    runs.write_whole(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text() == "b" and (tmp_path / "precious").read_text() == "precious"
    monkeypatch.setattr(runs.os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(OSError, match=r"cannot write .*a \(No space left"):
        runs.write_whole(tmp_path / "a", "c")
    assert {p.name for p in tmp_path.iterdir()} == {"a", "precious"}


def test_a_disk_that_fails_to_sync_is_not_believed(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("before")
    monkeypatch.setattr(runs.os, "fsync", fail(errno.EIO))
    with pytest.raises(OSError, match=r"cannot write .*a \(Input/output error\)"):
        runs.write_whole(tmp_path / "a", "b")
    assert (tmp_path / "a").read_text() == "before"


def test_a_drive_that_vanishes_is_one_line_and_the_run_goes_on_when_it_is_back(digits, tmp_path):
    drive, away = tmp_path / "drive", tmp_path / "away"

    def vanish(record):
        if record["epoch"] == 2:
            drive.rename(away)

    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt .*the drive gone") as error:
        vm.train(tiny(), digits, SHORT, out=drive / "run", on_epoch=vanish)
    assert "\n" not in str(error.value) and not drive.exists()
    away.rename(drive)
    epochs = []
    vm.train(
        tiny(),
        digits,
        SHORT,
        drive / "run",
        resume=True,
        on_epoch=lambda r: epochs.append(r["epoch"]),
    )
    vm.train(tiny(), digits, SHORT, tmp_path / "whole")
    assert epochs == [3]  # the lock of the run that failed is gone, though its error is kept
    assert (drive / "run" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()


# One writer at a time --------------------------------------------------------------------------

HOLD = """
import sys, time, dataclasses, vitmini as vm
config = dataclasses.replace(vm.RECIPES["digits"], epochs=2)
def wait(record):
    print("one epoch", flush=True)
    time.sleep(300)
model = vm.create_model(config.model)
vm.train(model, vm.load_data("digits"), config, out=sys.argv[1], on_epoch=wait)
"""


def test_a_folder_has_one_writer_and_is_free_when_that_one_is_killed(tmp_path, monkeypatch, capsys):
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    first = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == "one epoch\n"
        config = dataclasses.replace(vm.RECIPES["digits"], epochs=2)
        with pytest.raises(ValueError, match="is being written to by another run"):
            vm.train(tiny(), vm.load_data("digits"), config, out=folder, resume=True)
        again = ["train", "--recipe", "digits", "--epochs", "2", "--resume", "--out", str(folder)]
        again += ["--device", "cpu"]
        with monkeypatch.context() as patch:
            patch.setattr("vitmini.__main__.load_data", lambda _: pytest.fail("data were read"))
            assert main(again) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and "by another run" in err
    finally:
        first.kill()
        first.wait()
    assert main(again) == 0
    assert "2 epochs, test accuracy" in capsys.readouterr().out
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    names = {"checkpoint.pt", "config.json", "metrics.jsonl", "model.safetensors"}
    assert {p.name for p in folder.iterdir()} == names  # the lock is no file


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_a_drive_without_locks_goes_without(tmp_path, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", fail(number))
    with runs.lock_run(tmp_path), runs.lock_run(tmp_path):
        pass


def test_a_system_without_locks_goes_without(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
    with runs.lock_run(tmp_path / "new"), runs.lock_run(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()


def test_a_lock_ends_with_its_process_though_a_worker_lives_on(tmp_path):
    """As a worker that fetches batches does, for seconds, when its run is killed."""
    (ours, his), (ready, begun) = os.pipe(), os.pipe()
    with runs.lock_run(tmp_path):
        worker = os.fork()
        if not worker:
            os.close(his)
            os.write(begun, b"x")
            os.read(ours, 1)
            os._exit(0)
        os.read(ready, 1)
        with pytest.raises(ValueError, match="by another run"), runs.lock_run(tmp_path):
            pass
    try:
        with runs.lock_run(tmp_path):
            pass
    finally:
        os.close(his)
        os.waitpid(worker, 0)
        for end in (ours, ready, begun):
            os.close(end)


def test_a_lock_ends_with_its_block_and_with_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), runs.lock_run(tmp_path):
            with pytest.raises(ValueError, match="by another run"), runs.lock_run(tmp_path):
                pass
            raise KeyError
    assert list(tmp_path.iterdir()) == []
