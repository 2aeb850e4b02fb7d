"""Training and its folder: what is learned, what is kept, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import weakref
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, vitmini
from pretended_cuda import pretended_cuda
from safetensors.torch import load_file, save_file
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import vitmini as vm
from vitmini import experiments
from vitmini.__main__ import main
from vitmini.optim import (
    Muon,
    Trainer,
    build_optimizers,
    build_trainer,
    choose_precision,
    compile_model,
    learning_rate_at,
    orthogonalize,
)
from vitmini.runs import load_run
from vitmini.train import epoch_order, prepare_batch, split_validation, train_step

FILES = {"checkpoint.pt", "config.json", "metrics.jsonl", "model.safetensors"}
TRAIN = ("train", "--recipe", "digits", "--device", "cpu")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of three epochs, from the command line."""
    folder = tmp_path_factory.mktemp("run") / "three"
    done = vitmini(*TRAIN, "--epochs", "3", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def copy(run, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes((run[0] / name).read_bytes())
    return folder


def refused(*arguments):
    """The one line on stderr with which the command line refuses."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    assert code == 2 and out.getvalue() == "", (out.getvalue(), err.getvalue())
    assert err.getvalue().count("\n") == 1 and err.getvalue().startswith("vitmini: ")
    return err.getvalue()


def accepted(*arguments):
    """What the command line prints when all goes well, without a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(a) for a in arguments])
    assert code == 0 and err.getvalue() == "", (code, err.getvalue())
    return out.getvalue()


def test_the_digits_recipe_reaches_97_percent_on_an_unseen_seed(digits):
    config = dataclasses.replace(vm.RECIPES["digits"], seed=20_261_120)
    torch.manual_seed(config.seed)
    history = vm.train(vm.create_model(config.model), digits, config)
    assert len(history) == config.epochs and history[-1]["test_accuracy"] >= 0.97


def test_a_run_leaves_its_four_files_and_a_line_an_epoch(run):
    folder, done = run
    assert {p.name for p in folder.iterdir()} == FILES
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = {"epoch", "train_loss", "lr", "seconds", "val_accuracy"}
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [set(line) for line in lines[:2]] == [keys, keys]
    assert set(lines[2]) == keys | {"test_accuracy", "test_loss"}
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:3]] == [
        "epoch 1/3",
        "epoch 2/3",
        "epoch 3/3",
    ]
    assert done.stderr == ""


def test_evaluate_repeats_the_number_of_the_last_line(run, digits):
    last = json.loads((run[0] / "metrics.jsonl").read_text().splitlines()[-1])
    model, _ = load_run(run[0])
    assert vm.evaluate(model, digits)["accuracy"] == last["test_accuracy"]
    assert f"{last['test_accuracy']:.2%}" in accepted("evaluate", run[0])


def test_the_same_seed_gives_the_same_bytes(run, tmp_path):
    again = vitmini(*TRAIN, "--epochs", "3", "--out", tmp_path / "again")
    assert again.returncode == 0
    accepted(*TRAIN, "--epochs", "3", "--seed", "1", "--out", tmp_path / "other")
    weights = [
        (folder / "model.safetensors").read_bytes()
        for folder in (run[0], tmp_path / "again", tmp_path / "other")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_killed_and_resumed_gives_the_same_bytes(run, tmp_path):
    command = [sys.executable, "-m", "vitmini", *TRAIN, "--epochs", "3", "--resume"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    folder, kills = tmp_path / "killed", 0
    for wanted in (1, 2):  # kill as soon as this many epochs are on disk
        process = subprocess.Popen([*command, "--out", str(folder)], env=env)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            metrics = folder / "metrics.jsonl"
            if metrics.exists() and len(metrics.read_text().splitlines()) >= wanted:
                process.send_signal(signal.SIGKILL)
                kills += process.wait() == -signal.SIGKILL
            time.sleep(0.005)
    done = vitmini(*TRAIN, "--epochs", "3", "--resume", "--out", folder)
    assert done.returncode == 0 and kills >= 1
    assert (folder / "model.safetensors").read_bytes() == (
        run[0] / "model.safetensors"
    ).read_bytes()
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == FILES


def test_training_leaves_the_callers_random_numbers_and_threads_alone(digits):
    config = dataclasses.replace(vm.RECIPES["digits"], epochs=1)
    model = vm.create_model("vit_digits", dropout=0.1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    vm.train(model, digits, config)
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads


def test_resuming_a_finished_run_changes_nothing(copy):
    before = {name: (copy / name).read_bytes() for name in FILES}
    said = accepted(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert "3 epochs, test accuracy" in said
    assert {name: (copy / name).read_bytes() for name in FILES} == before


def test_a_run_is_not_overwritten(copy):
    before = {name: (copy / name).read_bytes() for name in FILES}
    assert "already holds a run" in refused(*TRAIN, "--epochs", "3", "--out", copy)
    assert {name: (copy / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(
    ("changed", "word"),
    [(("--seed", "7"), "seed"), (("--epochs", "4"), "epochs"), (("--data", "cifar10"), "data")],
)
def test_resume_refuses_another_run_before_it_reads_data(copy, changed, word, monkeypatch):
    monkeypatch.setattr("vitmini.__main__.load_data", lambda _: pytest.fail("data were read"))
    arguments = [*TRAIN, "--epochs", "3", *changed, "--resume", "--out", copy]
    line = refused(*arguments)
    assert "holds another run" in line and f"its {word} is" in line


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.json"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_run_is_refused(copy, name, damage):
    whole = (copy / name).read_bytes()
    spoiled = {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[damage]
    (copy / name).write_bytes(spoiled)
    line = refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert name in line and "damaged" in line


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_hostile_checkpoint_is_refused_and_not_executed(copy, tmp_path):
    trap = tmp_path / "executed"
    torch.save({"model": Hostile(trap)}, copy / "checkpoint.pt")
    line = refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert "more than tensors" in line and not trap.exists()
    (copy / "checkpoint.pt").write_bytes(pickle.dumps(Hostile(trap)))
    refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert not trap.exists()


@pytest.mark.parametrize("content", [{}, {"model": {}, "optimizer": {}, "history": []}, [1]])
def test_a_foreign_checkpoint_is_refused(copy, content):
    torch.save(content, copy / "checkpoint.pt")
    line = refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert "checkpoint.pt" in line


def spoil_moment(c):
    c["optimizers"][0]["state"][0]["exp_avg"] = torch.zeros(3)  # the fused step would read past it


def spoil_memory(c):
    """One number that claims to be a matrix: the fused step would write past it."""
    state = c["optimizers"][0]["state"][0]
    state["exp_avg"] = torch.zeros(1).expand(state["exp_avg"].shape)


def spoil_step(c):
    c["optimizers"][0]["state"][0]["step"] = torch.tensor(3)


def spoil_type(c):
    c["model"]["head.bias"] = c["model"]["head.bias"] * 1j


def spoil_group(c):
    c["optimizers"][0]["param_groups"][0]["maximize"] = True


def spoil_weight(c):
    c["model"]["head.bias"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_moment, "another shape"),
        (spoil_group, "other settings"),
        (spoil_weight, "head.bias"),
        (spoil_memory, "lies in memory in another way"),
        (spoil_step, "another shape or type"),
        (spoil_type, "head.bias is of another type"),
        (lambda c: c["model"]["head.bias"].fill_(math.nan), "head.bias is not finite: begin"),
        (lambda c: c["optimizers"][0]["state"][1]["exp_avg_sq"].fill_(math.inf), "not finite"),
        (lambda c: c["history"][0].update(train_loss=math.nan), "more than numbers"),
        (lambda c: c["optimizers"][0]["param_groups"].pop(), "does not fit"),
        (lambda c: c["optimizers"][0]["param_groups"][0].pop("betas"), "other settings"),
        (lambda c: c["optimizers"][0]["state"].pop(0), "does not fit"),
        (lambda c: c["optimizers"][0]["state"][1]["exp_avg_sq"].fill_(-1), "sq 1 is below 0"),
        (lambda c: c["optimizers"][0]["state"][0]["step"].fill_(-1), "step 0 is below 0"),
        (lambda c: c["history"].clear(), "history is empty, but"),
        (lambda c: c["optimizers"][0]["state"].clear(), "does not fit"),
        (lambda c: c["history"].append(c["history"][-1]), "history"),
        (lambda c: c["history"].__setitem__(1, {"epoch": 2}), "epoch 2 is incomplete"),
        (lambda c: c["history"][0].update(epoch=torch.tensor(1)), "more than numbers"),
        (lambda c: c.update(history={}), "history"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(copy, spoil, words):
    checkpoint = torch.load(copy / "checkpoint.pt", weights_only=True)
    spoil(checkpoint)
    torch.save(checkpoint, copy / "checkpoint.pt")
    before = {name: (copy / name).read_bytes() for name in FILES}
    line = refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert "checkpoint.pt" in line and words in line
    assert {name: (copy / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("train", "data", None),
        ("train", "data", 3),
        ("data", "mean", "x"),
        ("data", "mean", [0.1, 0.2]),
        ("data", "std", [0.0]),
        ("data", "std", [math.inf]),
        ("data", "mean", [1e300]),
        ("data", "std", [1e-60]),
        ("data", "classes", ["a"]),
        ("data", "classes", ["\x1b[31m"] * 10),
        ("data", "classes", 7),
        ("data", "sha256", None),
        ("model", "mlp_ratio", math.inf),
        ("model", "dim", 10**9),
        ("model", "depth", 10**9),
        ("model", "dim", "64"),
        ("model", "surprise", 1),
    ],
)
def test_a_hostile_config_is_refused(copy, part, field, value):
    description = json.loads((copy / "config.json").read_text())
    description[part][field] = value
    (copy / "config.json").write_text(json.dumps(description))
    save_file(load_file(copy / "model.safetensors"), copy / "model.safetensors")  # it says no hash
    for command in (("evaluate", copy), ("predict", copy, "x.png")):
        line = refused(*command)
        assert "damaged or not this run's" in line and "that were written" not in line


def test_a_hostile_stride_of_a_resnet_is_refused():
    with pytest.raises(ValueError, match="stem_stride must be at most 64"):
        vm.find_config("resnet_mini", stem_stride=2**70)


def test_what_a_hostile_config_calls_its_options_does_not_reach_the_terminal(copy):
    description = json.loads((copy / "config.json").read_text())
    description["train"]["\x1b[31mred\x07"] = 1
    (copy / "config.json").write_text(json.dumps(description))
    line = refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert line.strip().isprintable() and "another run: its '\\x1b[31mred" in line


@pytest.mark.parametrize("name", ["config.json", "checkpoint.pt", "model.safetensors"])
def test_a_pipe_or_a_device_is_not_waited_for(copy, name):
    """Where there is no such check, this test has no end."""
    command = (*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    command = ("evaluate", copy) if name == "model.safetensors" else command
    (copy / name).unlink()
    os.mkfifo(copy / name)
    assert name in refused(*command)
    (copy / name).unlink()
    (copy / name).symlink_to("/dev/zero")
    assert name in refused(*command)


@pytest.mark.parametrize(
    "spoiled",
    [{"scale": "x"}, {"scale": math.inf}, {"growth_factor": 1e9}, {"_growth_tracker": -1}],
)
def test_a_checkpoint_with_another_loss_scaling_is_refused(digits, tmp_path, spoiled):
    config = dataclasses.replace(SHORT, epochs=1, precision="float16")
    vm.train(tiny(), few(digits), config, out=tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    checkpoint["scaler"].update(spoiled)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="loss scaling has other settings"):
        vm.train(tiny(), few(digits), config, out=tmp_path, resume=True)


def test_a_config_of_endless_brackets_is_refused(copy):
    (copy / "config.json").write_text("[" * 100_000)
    assert "config.json is damaged" in refused("evaluate", copy)


def test_metrics_that_were_lost_are_written_again(copy):
    whole = (copy / "metrics.jsonl").read_bytes()
    (copy / "metrics.jsonl").write_text("garbage")
    accepted(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert (copy / "metrics.jsonl").read_bytes() == whole


def test_a_name_of_data_means_the_same_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    """The first run makes a folder digits/, and the second one is to go on in it."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main([*TRAIN, "--epochs", "1", "--resume", "--out", "digits"]) == 0
        assert "digits: 1 epoch, test accuracy" in out.getvalue()


def test_a_folder_of_data_is_found_from_elsewhere_and_known_again(tmp_path, monkeypatch):
    from PIL import Image

    for part in ("train", "test"):
        for kind, ink in (("a", 20), ("b", 200)):
            (tmp_path / "own" / part / kind).mkdir(parents=True)
            for i in range(6):
                picture = Image.new("L", (8, 8), ink + i)
                picture.save(tmp_path / "own" / part / kind / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*TRAIN, "--data", "own", "--epochs", "1", "--out", "run"]) == 0
        monkeypatch.chdir("/")
        assert main(["evaluate", str(tmp_path / "run")]) == 0
    again = (*TRAIN, "--data", "own", "--epochs", "1", "--resume", "--out", tmp_path / "run")
    assert "a folder that exists, got 'own'" in refused(*again)  # not: that it is another run
    Image.new("L", (8, 8), 128).save(tmp_path / "own" / "test" / "a" / "new.png")
    assert "changed since" in refused("evaluate", tmp_path / "run")


def test_weights_that_are_damaged_or_missing_are_refused(copy):
    (copy / "model.safetensors").write_bytes(b"junk")
    assert "damaged" in refused("evaluate", copy)
    (copy / "model.safetensors").unlink()
    assert "no finished run" in refused("evaluate", copy)


def flip(path, share):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", ["checkpoint.pt", "model.safetensors"])
def test_a_flipped_bit_is_found(copy, name, share):
    flip(copy / name, share)
    before = {name: (copy / name).read_bytes() for name in FILES}
    resume = (*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert name in refused(*(resume if name == "checkpoint.pt" else ("evaluate", copy)))
    assert {name: (copy / name).read_bytes() for name in FILES} == before


def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_lost(copy, tmp_path):
    other = tmp_path / "other"
    accepted(*TRAIN, "--epochs", "3", "--seed", "6", "--out", other)
    own = {name: (copy / name).read_bytes() for name in FILES}
    (copy / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    line = refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert "checkpoint.pt does not fit this run: it is another run's" in line
    for name in FILES - {"checkpoint.pt"}:
        assert (copy / name).read_bytes() == own[name]


def test_a_finished_run_needs_no_checkpoint_and_is_not_trained_anew(copy):
    (copy / "checkpoint.pt").unlink()
    before = {name: (copy / name).read_bytes() for name in FILES - {"checkpoint.pt"}}
    resume = (*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    accepted(*resume)
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before
    lines = (copy / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_bytes(b"".join(lines[:2]))
    assert "without a checkpoint.pt, and its metrics.jsonl" in refused(*resume)
    (copy / "metrics.jsonl").unlink()
    assert "without a checkpoint.pt, and its metrics.jsonl" in refused(*resume)


def test_a_finished_run_without_its_checkpoint_gives_its_average(digits, tmp_path):
    config = dataclasses.replace(SHORT, ema=0.9)
    history = vm.train(tiny(), few(digits), config, tmp_path)
    (tmp_path / "checkpoint.pt").unlink()
    model = tiny()
    assert vm.train(model, few(digits), config, tmp_path, resume=True) == history
    assert vm.evaluate(model, digits)["accuracy"] == history[-1]["test_accuracy"]


def test_a_packed_checkpoint_is_not_unpacked(copy):
    """A few bytes may be gigabytes of zeros; PyTorch writes none, and would read it."""
    with zipfile.ZipFile(copy / "checkpoint.pt") as whole:
        members = {m.filename: whole.read(m) for m in whole.infolist()}
    with zipfile.ZipFile(copy / "checkpoint.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    line = refused(*TRAIN, "--epochs", "3", "--resume", "--out", copy)
    assert "checkpoint.pt is damaged" in line


def test_files_of_a_run_before_they_said_whose_they_are_still_serve(copy):
    checkpoint = torch.load(copy / "checkpoint.pt", weights_only=True)
    del checkpoint["run"]
    torch.save(checkpoint, copy / "checkpoint.pt")
    save_file(load_file(copy / "model.safetensors"), copy / "model.safetensors")
    accepted("evaluate", copy)
    accepted(*TRAIN, "--epochs", "3", "--resume", "--out", copy)


def test_weights_that_are_not_finite_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    weights["head.bias"][3] = math.nan
    save_file(weights, copy / "model.safetensors")
    assert "not finite" in refused("evaluate", copy)


def test_a_distilled_model_is_refused_before_anything_is_written(digits, tmp_path):
    model = vm.create_model("vit_digits", distilled=True)
    with pytest.raises(ValueError, match="needs a teacher"):
        vm.train(model, digits, vm.RECIPES["digits"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_predict_names_the_classes_of_pictures(run, tmp_path, digits):
    from PIL import Image

    for i in (0, 1):
        ink = digits.test_images[i, 0].numpy()
        Image.fromarray(ink).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / f"{i}.png")
    said = accepted("predict", run[0], tmp_path / "0.png", tmp_path / "1.png", "--top", "2")
    lines = said.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{tmp_path / '0.png'}: ") and lines[0].count("%") == 2
    (tmp_path / "bad.png").write_text("text")
    assert "bad.png" in refused("predict", run[0], tmp_path / "0.png", tmp_path / "bad.png")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_of_any_kind_are_shown_in_one_line_on_any_terminal(tmp_path):
    for kind in ("猫", "狗"):
        photographs(tmp_path / "bilder 图", {kind: 3})
    own = ("--data", "bilder 图", "--epochs", "1", "--out", "run")
    plain = {"PYTHONIOENCODING": "ascii"}
    done = vitmini(*TRAIN, *own, cwd=tmp_path, **plain)
    assert done.returncode == 0 and "bilder \\u56fe: 2 classes" in done.stdout, done.stderr
    whole = (tmp_path / "bilder 图" / "猫" / "IMG_0000.JPG").read_bytes()
    odd = [os.fsencode(tmp_path) + name for name in (b"/a\nb.jpg", b"/\x1b[31m.jpg", b"/\xff.jpg")]
    for path in odd:
        with open(path, "wb") as file:
            file.write(whole)
    done = vitmini("predict", "run", *map(os.fsdecode, odd), cwd=tmp_path, **plain)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr
    assert "\x1b" not in done.stdout and "\\u732b" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("fly",), "invalid choice"),
        (("train",), "--recipe"),
        (("train", "--recipe", "nothing", "--out", "x"), "recipe must be one of digits"),
        ((*TRAIN, "--out", "x", "--epochs", "0"), "epochs must be an int of 1 or more"),
        ((*TRAIN, "--out", "x", "--epochs", "many"), "invalid int"),
        ((*TRAIN, "--out", "x", "--seed", "-1"), "seed must be"),
        ((*TRAIN, "--out", "x", "--data", "nowhere"), "data must be"),
        ((*TRAIN, "--out", __file__), "is a file"),
        ((*TRAIN, "--out", ""), "out must name a folder"),
        ((*TRAIN, "--out", "x", "--data", ""), "data must be"),
        (("experiment", "train-digits", "--out", __file__), "File exists"),
        ((*TRAIN, "--out", "/proc/nothing/run"), "/proc/nothing"),
        (("train", "--recipe", "digits", "--out", "x", "--device", "tpu"), "invalid choice"),
        (("evaluate", "/nonexistent"), "not a folder"),
        (("evaluate", "/"), "no run"),
        (("predict", "/nonexistent", "a.png"), "not a folder"),
        (("experiment", "nothing"), "train-digits"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_reaches_the_shell_as_one_line_and_status_2():
    done = vitmini("train", "--recipe", "nothing", "--out", "x")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused():
    assert "cuda is not available" in refused(
        "train", *TRAIN[1:3], "--out", "x", "--device", "cuda"
    )


@pytest.mark.parametrize("command", ["", "train", "evaluate", "predict", "experiment"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*[command] * bool(command), "--help"])
    assert stop.value.code == 0 and "usage: python -m vitmini" in capsys.readouterr().out


def test_an_experiment_writes_its_result(tmp_path, monkeypatch):
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    accepted("experiment", "train-digits", "--out", tmp_path)
    result = json.loads((tmp_path / "train-digits.json").read_text())
    assert result["profile"] == "ci" and len(result["metrics"]["test_accuracy"]["values"]) == 2


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("positions-cifar10", "test_accuracy_relative"),
        ("pooling-digits", "test_accuracy_mean_0.01"),
        ("attention-digits", "test_accuracy_unscaled_4"),
        ("norm-digits", "train_loss_post_0_12_slow"),
        ("patch-size-cifar10", "test_accuracy_patch_4"),
        ("learning-rate-cifar10", "test_accuracy_0.0001_0"),
        ("optimizer-cifar10", "test_accuracy_sgd_0.01_decayed"),
        ("augmentation-cifar10", "train_loss_cutmix"),
        ("ingredients-cifar10", "train_loss_cutmix"),
        ("train-cifar10-mini", "test_accuracy_muon"),
        ("equal-images-cifar10", "test_accuracy_float32_64_twice"),
        ("attention-cost-cpu", "bytes_by_hand_over_fused_64"),
    ],
)
def test_each_experiment_runs_in_seconds(name, key, tmp_path, monkeypatch):
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", name, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["name"] == name and result["profile"] == "ci"
    assert key in result["metrics"] and result["curves"]


def test_the_ingredients_lead_from_the_small_recipe_to_the_large_ones(monkeypatch):
    """The last arm has all that `cifar10` has, and each arm one thing more than the one before."""
    small = dataclasses.replace(vm.RECIPES["digits"], epochs=1), 200, {"patch_size": 2}
    monkeypatch.setattr(experiments, "_small_cifar", lambda profile: small)
    monkeypatch.setattr(experiments, "_train_arms", lambda *given: given[3])
    arms = list(experiments.ingredients_cifar10(vm.Profile("gpu", "cpu")).values())
    goal = vm.RECIPES["cifar10"]
    model, settings = arms[-1]
    assert arms[0] == ({}, {}) and model == goal.model_options
    same = ("optimizer", "crop", "flip", "rand_ops", "label_smoothing", "cutmix")
    moved = ("degrees", "translate", "scale", "shear")
    average = {"ema": 0.995}  # of 200 steps, in a run of 2,600
    assert settings == {name: getattr(goal, name) for name in (*same, *moved)} | average
    for before, after in itertools.pairwise(arms):
        assert all(after[i].items() >= before[i].items() for i in (0, 1)) and after != before


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    config = vm.TrainConfig(epochs=10, warmup=2, learning_rate=1.0)
    rates = [learning_rate_at(step, 5, config) for step in range(50)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10] == 1.0 and rates[30] == pytest.approx(0.5) and rates[-1] < 0.01
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))


KINDS = ("learned", "learned2d", "sincos2d", "relative", "none")


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("pos_embed", KINDS)
def test_only_matrices_decay_and_no_token_or_table_of_positions(pos_embed, distilled):
    model = vm.create_model(
        "vit_digits", distilled=distilled, layer_scale=0.1, pos_embed=pos_embed, depth=2
    )
    [adamw] = build_optimizers(model, vm.TrainConfig())
    decay, rest = adamw.param_groups
    names = {id(p): n for n, p in model.named_parameters()}
    matrices = {"patch_embed.proj", "head", *(["head_dist"] * distilled)}
    for i in range(2):
        matrices |= {f"blocks.{i}.{n}" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert {names[id(p)] for p in decay["params"]} == {f"{name}.weight" for name in matrices}
    assert len(decay["params"]) + len(rest["params"]) == len(names)
    assert rest["weight_decay"] == 0 and decay["weight_decay"] == 0.05


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("pos_embed", KINDS)
def test_a_run_with_any_positions_loads_and_resumes(pos_embed, pool, digits, tmp_path):
    few = dataclasses.replace(
        digits,
        train_images=digits.train_images[:100],
        train_labels=digits.train_labels[:100],
        test_images=digits.test_images[:50],
        test_labels=digits.test_labels[:50],
    )
    config = dataclasses.replace(vm.RECIPES["digits"], epochs=1, warmup=0)

    def fresh():
        torch.manual_seed(0)
        return vm.create_model("vit_digits", pos_embed=pos_embed, pool=pool, depth=2)

    model, out = fresh(), tmp_path / "run"
    history = vm.train(model, few, config, out=out)
    before = dict(fresh().named_parameters())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    if pos_embed in ("learned", "learned2d", "relative"):
        assert any("pos" in name for name in changed)
    loaded, _ = load_run(out)
    assert loaded.config.pos_embed == pos_embed
    images = few.normalize(few.test_images)
    assert torch.equal(loaded(images), model.eval()(images))
    assert vm.evaluate(loaded, few)["loss"] == history[-1]["test_loss"]
    whole = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").unlink()
    vm.train(fresh(), few, config, out=out, resume=True)  # weights from the checkpoint alone
    assert (out / "model.safetensors").read_bytes() == whole


@pytest.mark.parametrize("flip", [True, False])
def test_images_are_mirrored_only_where_the_recipe_says_so(flip, digits, monkeypatch):
    flipped = []

    def record(images, generator):
        flipped.append(len(images))
        return images

    monkeypatch.setattr(sys.modules["vitmini.train"], "random_flip", record)
    config = dataclasses.replace(vm.RECIPES["digits"], epochs=1, flip=flip)
    vm.train(vm.create_model("vit_digits", depth=1), digits, config)
    assert sum(flipped) == (1437 - 144 if flip else 0)


def test_validation_images_are_never_trained_on(digits):
    config = vm.RECIPES["digits"]
    train, val = split_validation(1437, config)
    assert len(val) == 144 and sorted([*train.tolist(), *val.tolist()]) == list(range(1437))
    other = split_validation(1437, dataclasses.replace(config, seed=9))[1]
    assert torch.equal(val, other)


def broken(data, **changes):
    return dataclasses.replace(data, **{k: f(getattr(data, k)) for k, f in changes.items()})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": "vit_digits"}, "model must be a ViT"),
        ({"model": torch.nn.Linear(2, 2)}, "model must be one that vitmini built"),
        ({"data": "digits"}, "data must be an ImageData"),
        ({"config": "digits"}, "config must be a TrainConfig"),
        ({"config": {"epochs": 1}}, "config must be a TrainConfig"),
        ({"on_epoch": 3}, "on_epoch must be a function"),
        ({"out": 3}, "out must name a folder"),
        ({"out": ""}, "out must name a folder"),
        ({"model": {"num_classes": 5}}, r"a class for each of the data's 10, got num_classes=5"),
        ({"model": {"num_classes": 20}}, "got num_classes=20"),
        ({"train_images": lambda x: x / 255}, "train_images must be uint8"),
        ({"test_images": lambda x: x[:, 0]}, r"test_images must be uint8 .* \(360, 8, 8\)"),
        ({"train_labels": lambda y: y[:5]}, r"train_labels must be int64 \(1437,\)"),
        ({"train_labels": lambda y: y.int()}, "train_labels must be int64"),
        ({"train_labels": lambda y: y + 5}, "train_labels must be from 0 to 9, got 5 to 14"),
        ({"test_labels": lambda y: y - 1}, "test_labels must be from 0 to 9, got -1 to 8"),
        ({"test_images": lambda x: x[:0], "test_labels": lambda y: y[:0]}, "at least one image"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(digits, monkeypatch, tmp_path, more, words):
    monkeypatch.chdir(tmp_path)
    given = {"model": vm.create_model("vit_digits"), "data": digits, "config": SHORT}
    changes = {k: more[k] for k in more if k.startswith(("train_", "test_"))}
    given |= {k: v for k, v in more.items() if k not in changes}
    given |= {"data": broken(digits, **changes)} if changes else {}
    if isinstance(given["model"], dict):
        given["model"] = vm.create_model("vit_digits", **given["model"])
    with pytest.raises(ValueError, match=words):
        vm.train(**{"out": tmp_path / "run"} | given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, -1, 1.5, "8", None])
def test_what_cannot_be_measured_is_refused_by_name(digits, size):
    model = vm.create_model("vit_digits")
    with pytest.raises(ValueError, match="batch_size must be"):
        vm.evaluate(model, digits, size)
    with pytest.raises(ValueError, match="data must be"):
        vm.evaluate(model, "digits")
    with pytest.raises(ValueError, match="model must be"):
        vm.evaluate("digits", digits)
    none = broken(digits, test_images=lambda x: x[:0], test_labels=lambda y: y[:0])
    with pytest.raises(ValueError, match="data must hold test images"):
        vm.evaluate(model, none)


@pytest.mark.parametrize(
    ("rate", "epochs", "share", "words"),
    [
        (1e40, 2, 0.1, "the weights are not finite at the end of epoch 1: try a learning_rate"),
        (1e30, 2, 0.1, "the validation loss of epoch 1 is not finite: try a learning_rate"),
        (1e30, 1, 0.0, "the test loss is not finite: try a learning_rate below 1e\\+30"),
    ],
)
def test_a_last_step_that_breaks_the_model_is_no_success(
    digits, tmp_path, rate, epochs, share, words
):
    """The loss of a step is that of the weights before it."""
    config = dataclasses.replace(SHORT, epochs=epochs, warmup=0, learning_rate=rate)
    config = dataclasses.replace(config, val_share=share)
    with pytest.raises(FloatingPointError, match=words):
        vm.train(tiny(), few(digits, 96), config, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert not torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]


def test_a_model_in_another_precision_is_refused_before_anything_is_written(digits, tmp_path):
    with pytest.raises(ValueError, match=r"float32, got torch.float64: call model.float\(\)"):
        vm.train(tiny().double(), few(digits), SHORT, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(digits):
    config = dataclasses.replace(vm.RECIPES["digits"], epochs=1, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"epoch 1 on: try a learning_rate below 1e\+30"):
        vm.train(vm.create_model("vit_digits"), digits, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
        ("warmup", -1),
        ("val_share", 1.0),
        ("label_smoothing", 1.0),
        ("cpu_threads", 0),
        ("epoch_images", 0),
        ("epoch_images", 2.5),
        ("flip", 1),
        ("flip", None),
        ("seed", -1),
        ("seed", 0.5),
        ("stream", 1),
        ("image_size", 0),
        ("image_size", True),
        ("image_size", 30),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        vm.TrainConfig(**{field: value})


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(vm.TrainConfig)])
def test_settings_of_another_type_are_refused_by_name(field):
    """What a form, a table or numpy may hand over; `config.json` could not even hold some of it."""
    values = ["1", "", b"1", None, True, 1.5, math.nan, math.inf, -1, 10**400, [1], {"name": 1}]
    values += [np.int64(3), np.float32(0.5), torch.tensor(1), Path("x"), {}, {3: 1}, {"dim": "x"}]
    for value in values:
        try:
            config = vm.TrainConfig(**{field: value})
        except ValueError as error:
            name = "dim|model_options" if field == "model_options" else field
            assert re.search(name, str(error)) and "\n" not in str(error)
        else:
            assert json.loads(json.dumps(dataclasses.asdict(config)))[field] == value


# Optimizers, precision, averages, memory -----------------------------------------------------

TINY = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_ratio": 2.0}
SHORT = vm.TrainConfig(epochs=3, warmup=1, batch_size=128, cpu_threads=1, learning_rate=3e-3)


def few(digits, count=384):
    return dataclasses.replace(
        digits, train_images=digits.train_images[:count], train_labels=digits.train_labels[:count]
    )


def tiny(**more):
    torch.manual_seed(0)
    return vm.create_model("vit_digits", **TINY | more)


OPTIONS = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "muon": {"optimizer": "muon"},
    "ema": {"ema": 0.9},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "accumulate": {"accumulate": 3},
    "mixing": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
    "everything": {
        "optimizer": "muon",
        "ema": 0.9,
        "precision": "float16",
        "accumulate": 2,
        "crop": 1,
        "flip": True,
        "rand_ops": 1,
        "erasing": 0.25,
        "repeats": 2,
        "mixup": 0.2,
        "model_options": {"drop_path": 0.1},
    },
}
each_option = pytest.mark.parametrize("more", OPTIONS.values(), ids=OPTIONS)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch before 2.9")


@each_option
def test_every_option_learns(digits, more):
    config = dataclasses.replace(SHORT, epochs=12, **more)
    history = vm.train(tiny(**config.model_options), few(digits), config)
    assert history[-1]["test_accuracy"] > (0.15 if more.get("erasing") else 0.3)
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@each_option
def test_a_run_that_was_cut_off_ends_byte_for_byte_alike(digits, tmp_path, more):
    """Cut off after the second epoch was written, with all that each option has to remember."""
    config = dataclasses.replace(SHORT, **more)
    data = few(digits)

    class CutOff(Exception):
        pass

    def cut_off(record):
        if record["epoch"] == 2:
            raise CutOff

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    vm.train(tiny(**config.model_options), data, config, out=whole)
    with pytest.raises(CutOff):
        vm.train(tiny(**config.model_options), data, config, out=parts, on_epoch=cut_off)
    torch.manual_seed(7)
    again = vm.create_model("vit_digits", **TINY | config.model_options)  # other fresh weights
    vm.train(again, data, config, out=parts, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


@pytest.mark.parametrize("fresh", [False, True], ids=["the same model", "another model"])
def test_a_run_that_ended_before_its_first_checkpoint_begins_where_it_began(
    digits, tmp_path, fresh
):
    config, data = dataclasses.replace(SHORT, epochs=2, save_every=2), few(digits)

    def cut_off(record):
        raise KeyboardInterrupt

    vm.train(tiny(), data, config, tmp_path / "whole")
    model = tiny()
    with pytest.raises(KeyboardInterrupt):
        vm.train(model, data, config, tmp_path / "parts", on_epoch=cut_off)
    if fresh:
        torch.manual_seed(7)
        model = vm.create_model("vit_digits", **TINY)
    vm.train(model, data, config, tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_what_a_caller_does_to_a_record_stays_with_the_caller(digits, tmp_path):
    config, data = dataclasses.replace(SHORT, epochs=3), few(digits)

    def scribble(record):
        epoch = record["epoch"]
        record.clear()
        if epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vm.train(tiny(), data, config, tmp_path, on_epoch=scribble)
    history = vm.train(tiny(), data, config, tmp_path, resume=True, on_epoch=scribble)
    assert [record["epoch"] for record in history] == [1, 2, 3]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_run_with_frozen_parameters_goes_on(digits, tmp_path, optimizer):
    config, data = dataclasses.replace(SHORT, epochs=2, optimizer=optimizer), few(digits)

    def frozen():
        model = tiny()
        model.patch_embed.requires_grad_(False)
        model.blocks[0].requires_grad_(False)
        return model

    def cut_off(record):
        raise KeyboardInterrupt

    vm.train(frozen(), data, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        vm.train(frozen(), data, config, tmp_path / "parts", on_epoch=cut_off)
    vm.train(frozen(), data, config, tmp_path / "parts", resume=True)
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_a_run_whose_first_steps_were_all_skipped_goes_on(digits, tmp_path, optimizer):
    """Loss scaling begins high: on few images, an epoch may be the one step that it skips."""
    config = dataclasses.replace(
        SHORT, epochs=2, warmup=0, precision="float16", optimizer=optimizer, learning_rate=1e-6
    )

    def steep():
        model = tiny()
        torch.nn.init.normal_(model.head.weight, std=500)
        return model

    def cut_off(record):
        checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert checkpoint["scaler"]["scale"] < 65536  # it was skipped
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vm.train(steep(), few(digits, 96), config, tmp_path, on_epoch=cut_off)
    assert len(vm.train(steep(), few(digits, 96), config, tmp_path, resume=True)) == 2


def test_a_run_with_pairs_in_its_options_is_known_again(digits, tmp_path):
    """JSON knows no tuples: what was (2, 4) reads back as [2, 4]."""
    config = dataclasses.replace(SHORT, epochs=1, model_options={"patch_size": (2, 4)})
    vm.train(tiny(patch_size=(2, 4)), few(digits), config, out=tmp_path)
    assert len(vm.train(tiny(patch_size=(2, 4)), few(digits), config, tmp_path, resume=True)) == 1


def test_a_run_from_before_an_option_existed_goes_on(digits, tmp_path):
    config = dataclasses.replace(SHORT, epochs=1)
    vm.train(tiny(), few(digits), config, out=tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    del description["train"]["auto"]
    (tmp_path / "config.json").write_text(json.dumps(description))
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    checkpoint["run"] = hashlib.sha256((tmp_path / "config.json").read_bytes()).hexdigest()
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    assert len(vm.train(tiny(), few(digits), config, tmp_path, resume=True)) == 1
    other = dataclasses.replace(config, auto=True)
    with pytest.raises(ValueError, match="its auto is False, not True"):
        vm.train(tiny(), few(digits), other, tmp_path, resume=True)


def test_an_averages_accuracy_is_the_one_that_counts(digits, tmp_path):
    config = dataclasses.replace(SHORT, ema=0.5)
    model = tiny()
    history = vm.train(model, few(digits), config, out=tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    raw, average = checkpoint["model"], checkpoint["average"]
    assert not torch.equal(raw["head.weight"], average["module.head.weight"])
    assert torch.equal(model.state_dict()["head.weight"], average["module.head.weight"])
    assert vm.evaluate(model, digits)["accuracy"] == history[-1]["test_accuracy"]
    loaded, _ = load_run(tmp_path)
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_an_average_is_the_weighted_mean_of_all_steps(digits):
    """Two parameters' history, weighted by hand."""
    config = dataclasses.replace(SHORT, epochs=1, ema=0.75)
    trainer = build_trainer(tiny(), config)
    seen = []
    for step in range(4):
        for p in trainer.model.parameters():
            p.grad = torch.ones_like(p) * (step + 1)
        trainer.update()
        seen.append(trainer.model.head.bias.detach().clone())
    mean = seen[0]
    for value in seen[1:]:
        mean = 0.75 * mean + 0.25 * value
    assert torch.allclose(trainer.evaluated.head.bias, mean, atol=1e-7)


def test_muon_gets_the_matrices_of_the_blocks_and_adamw_the_rest():
    model = tiny()
    adamw, muon = build_optimizers(model, dataclasses.replace(SHORT, optimizer="muon"))
    names = {id(p): n for n, p in model.named_parameters()}
    of_muon = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    kinds = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert of_muon == {f"blocks.{i}.{k}.weight" for i in range(2) for k in kinds}
    of_adamw = {names[id(p)] for g in adamw.param_groups for p in g["params"]}
    assert of_adamw | of_muon == set(names.values()) and not of_adamw & of_muon
    decayed = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert decayed == {"patch_embed.proj.weight", "head.weight"}
    assert muon.param_groups[0]["weight_decay"] == SHORT.weight_decay


@needs_muon
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(24, 24), (72, 24), (24, 96)])
def test_muon_takes_pytorchs_steps(shape, dtype, monkeypatch):
    """PyTorch's is always in bfloat16; ours takes what the device computes fast."""
    monkeypatch.setattr("vitmini.optim.choose_precision", lambda *_: dtype)

    def weights():
        generator = torch.Generator().manual_seed(0)
        return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for _ in range(3)]

    ours, theirs = weights(), weights()
    settings = {"lr": 0.02, "weight_decay": 0.05}
    muon = Muon(ours, **settings)
    reference = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    start = [p.detach().clone() for p in ours]
    generator = torch.Generator().manual_seed(9)
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        muon.step()
        reference.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        difference = (a - b).norm() / (b - before).norm()
        assert difference < (0.02 if dtype == torch.bfloat16 else 0.05)  # it rounds


def test_muon_refuses_what_is_no_matrix():
    for shape in ((4,), (2, 3, 4)):
        with pytest.raises(ValueError, match="params must be matrices"):
            Muon([torch.nn.Parameter(torch.ones(shape))])


class Launches(TorchDispatchMode):
    """Counts what computes, and what would make the host wait for a device."""

    VIEWS = (
        "view",
        "_unsafe_view",
        "expand",
        "permute",
        "transpose",
        "slice",
        "select",
        "split",
        "unsqueeze",
        "squeeze",
        "unbind",
        "detach",
        "alias",
        "as_strided",
        "empty",
        "t.",
    )
    WAITS = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "is_nonzero")

    def __init__(self, harmless=()):
        super().__init__()
        self.total, self.waits = 0, []
        self.harmless = [t.data_ptr() for t in harmless]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        self.total += not name.startswith(self.VIEWS)
        if name.startswith(self.WAITS) and args[0].data_ptr() not in self.harmless:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def test_a_step_gives_a_gpu_no_reason_to_wait(digits):
    """No number is read from the device, and none is copied to it, with everything switched on."""
    config = dataclasses.replace(SHORT, **OPTIONS["everything"])
    config = dataclasses.replace(config, precision="bfloat16", jitter=0.3, resized_crop=0.5)
    trainer, data = build_trainer(tiny(), config), few(digits)
    ids, generator = torch.arange(128), torch.Generator().manual_seed(0)
    train_step(
        trainer,
        *prepare_batch(data, data.train_images[ids], data.train_labels[ids], config, generator),
        config,
    )
    assert trainer.average is not None
    with Launches(harmless=[trainer.average.n_averaged]) as counted:  # it stays on the CPU
        train_step(
            trainer,
            *prepare_batch(data, data.train_images[ids], data.train_labels[ids], config, generator),
            config,
        )
    assert counted.total > 300 and counted.waits == []
    with Launches() as counted:  # the test would notice
        torch.ones(3).sum().item()
        torch.tensor([1.0, 2.0])
    assert len(counted.waits) == 2


def test_compiled_images_are_the_same_images(digits):
    """And the draws of one generator after the other are compiled once."""
    config = dataclasses.replace(SHORT, crop=1, flip=True, rand_ops=1, mixup=0.8, cutmix=1.0)
    counter = CompileCounter()
    compiled = torch.compile(prepare_batch, backend=counter, dynamic=False)
    for seed in range(10):
        g, h = (torch.Generator().manual_seed(seed) for _ in range(2))
        ids = torch.arange(seed, seed + 64)
        batch = digits.train_images[ids], digits.train_labels[ids]
        ours, plain = compiled(digits, *batch, config, g), prepare_batch(digits, *batch, config, h)
        assert all(map(torch.equal, ours, plain))
        if seed == 0:
            frames = counter.frame_count
    assert 1 <= frames == counter.frame_count < 20
    torch.compiler.reset()


@pytest.mark.parametrize("drop_path", [0.0, 0.2])
def test_blocks_that_are_compiled_one_by_one_share_code_and_all_weights(monkeypatch, drop_path):
    """Of 12 blocks that differ in their rate of DropPath only, at most two are compiled."""
    counter, plain_compile = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", functools.partial(plain_compile, backend=counter))
    model = tiny(depth=12, drop_path=drop_path).train()
    twin = compile_model(model, "blocks").train()
    assert twin is not model and list(twin.state_dict()) == list(model.state_dict())
    kept = [network.state_dict(keep_vars=True).values() for network in (model, twin)]
    assert all(ours is theirs for ours, theirs in zip(*kept, strict=True))
    images, expected = torch.randn(16, 1, 8, 8), deepcopy(model)
    for network in (twin, expected):
        torch.manual_seed(3)
        network(images).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4), name
    assert counter.frame_count == (2 if drop_path else 1)
    model.eval()
    assert twin.training and not model.training
    torch.compiler.reset()


def test_what_has_no_blocks_is_compiled_whole(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: (model, "whole"))
    model, resnet = tiny(), vm.create_baseline("resnet_mini")
    assert compile_model(model) == (model, "whole") == compile_model(model, True)
    assert compile_model(resnet, "blocks") == (resnet, "whole")


def test_the_command_line_says_what_is_compiled(tmp_path):
    command = ["train", "--recipe", "digits", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert main([*command, "--compile", "blocks"]) == 0
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["train"]["compile"] == "blocks"
    assert "argument --compile: invalid choice: 'yes'" in refused(*command, "--compile", "yes")


def test_a_run_saves_as_often_as_it_is_told(digits, tmp_path):
    config = dataclasses.replace(SHORT, epochs=5, save_every=2)
    saved = []

    def look(record):
        path = tmp_path / "parts" / "checkpoint.pt"
        if path.exists():
            saved.append((record["epoch"], len(torch.load(path, weights_only=True)["history"])))
        if saved == [(1, 0), (2, 2), (3, 2)]:
            raise KeyboardInterrupt

    vm.train(tiny(), few(digits), config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        vm.train(tiny(), few(digits), config, tmp_path / "parts", on_epoch=look)
    vm.train(tiny(), few(digits), config, tmp_path / "parts", resume=True, on_epoch=look)
    assert saved == [(1, 0), (2, 2), (3, 2), (3, 2), (4, 4), (5, 5)]
    whole, parts = (tmp_path / name / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


def test_muon_leaves_singular_vectors_and_levels_singular_values():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 64, 32, generator=generator)
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    steps = orthogonalize(matrices)
    assert steps.dtype == torch.float32 and steps.shape == matrices.shape
    inner = U.mT @ steps @ Vh.mT  # diagonal, where the vectors are the same
    diagonal = inner.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6 and diagonal.max() < 1.3
    assert (inner - torch.diag_embed(diagonal)).abs().max() < 0.05


def test_muon_launches_no_more_kernels_for_more_layers():
    def launches(depth):
        model = tiny(depth=depth)
        muon = build_optimizers(model, dataclasses.replace(SHORT, optimizer="muon"))[1]
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        muon.step()
        with Launches() as counted:
            muon.step()
        return counted.total

    assert launches(2) == launches(6) < 150


def test_accumulation_takes_the_same_step(digits):
    """Without dropout, a batch in parts is the batch: the same weights up to rounding."""

    def weights(parts):
        model = tiny()
        config = dataclasses.replace(SHORT, epochs=1, accumulate=parts, optimizer="sgd")
        vm.train(model, few(digits), config)
        return torch.cat([p.flatten() for p in model.parameters()])

    whole, start = weights(1), torch.cat([p.flatten() for p in tiny().parameters()])
    assert (weights(5) - whole).abs().max() < 1e-5 < (whole - start).abs().max()


@pytest.mark.parametrize(
    ("precision", "device", "capability", "wanted"),
    [
        ("auto", "cpu", None, torch.float32),
        ("auto", "cuda", (7, 5), torch.float16),  # T4: PyTorch says that it has bfloat16
        ("auto", "cuda", (8, 0), torch.bfloat16),
        ("auto", "cuda", (9, 0), torch.bfloat16),
        ("float32", "cuda", (9, 0), torch.float32),
        ("bfloat16", "cpu", None, torch.bfloat16),
    ],
)
def test_precision_follows_what_a_card_really_has(
    monkeypatch, precision, device, capability, wanted
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    assert choose_precision(precision, torch.device(device)) == wanted


@pytest.mark.parametrize("precision", ["int8", None, 3, torch.float32])
def test_a_precision_that_is_none_is_refused(precision):
    with pytest.raises(ValueError, match="precision must be one of auto, float32"):
        choose_precision(precision, "cpu")


def test_half_precision_computes_in_it_and_keeps_weights_in_float32(digits):
    for precision in ("bfloat16", "float16"):
        model, seen = tiny(), []
        model.blocks[0].mlp.fc1.register_forward_hook(lambda *a, seen=seen: seen.append(a[2].dtype))
        vm.train(model, few(digits, 128), dataclasses.replace(SHORT, epochs=1, precision=precision))
        assert getattr(torch, precision) in seen
        assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_loss_that_is_not_finite_names_its_step(digits, monkeypatch):
    calls = []

    def spoiled(data, images, labels, config, generator):
        calls.append(1)
        images, labels = prepare_batch(data, images, labels, config, generator)
        return (images * float("nan") if len(calls) == 5 else images), labels

    monkeypatch.setattr(sys.modules["vitmini.train"], "prepare_batch", spoiled)
    with pytest.raises(FloatingPointError, match=r"from step 2 of epoch 2 on: try a learning_rate"):
        vm.train(tiny(), few(digits), SHORT)  # 3 steps an epoch: 346 images in batches of 128


class SmallMemory(torch.nn.Module):
    """A model on a device that holds so many images at a time."""

    def __init__(self, model, holds):
        super().__init__()
        self.model, self.holds, self.config = model, holds, model.config

    def forward(self, images):
        if self.training and len(images) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images)


@pytest.mark.parametrize(
    ("holds", "words"),
    [
        (50, r"128 images at a time do not fit .*, 32 do: set accumulate=4 .*, or batch_size=32"),
        (1, r"1 do: set accumulate=128"),
        (0, r"not even one image of \(1, 8, 8\)"),
    ],
)
def test_too_little_memory_says_what_would_fit(digits, holds, words):
    with pytest.raises(MemoryError, match=words):
        vm.train(SmallMemory(tiny(), holds), few(digits), SHORT)


def test_an_arm_of_equal_images_has_the_precision_of_its_name(digits, monkeypatch):
    """Also on a GPU, where the recipe's own is another."""
    arms = {}
    monkeypatch.setattr(experiments, "load_data", lambda name: digits)
    monkeypatch.setattr(
        experiments,
        "_train_arms",
        lambda name, profile, seeds, given, recipe, *_: arms.update(
            {k: dataclasses.replace(recipe, **rates) for k, (_, rates) in given.items()}
        ),
    )
    experiments.equal_images_cifar10(vm.Profile("gpu", "cpu"))
    assert len(arms) == 5
    for name, config in arms.items():
        precision, batch, *_ = name.split("_")
        assert (config.precision, config.batch_size) == (precision, int(batch)), name


@pytest.mark.parametrize("where", ["forward", "backward", "update"])
def test_what_a_failed_step_held_is_free_when_a_size_is_tried(digits, where, monkeypatch):
    """Else the trials would find a device that is full of it."""
    held, tried = [], []

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            if len(gradient) == 128 and where == "backward":
                fail()
            return gradient

    class Holds(SmallMemory):
        def forward(self, images):
            if self.training and len(images) < 128:
                tried.append([alive() for alive in held])
            activations = images * 1.0
            if self.training and len(images) == 128:
                held.append(weakref.ref(activations))
                if where == "forward":
                    fail()
            return Fails.apply(self.model(activations.requires_grad_()))

    if where == "update":
        monkeypatch.setattr(Trainer, "update", fail)
    with pytest.raises(MemoryError, match="64 do: set accumulate=2"):
        vm.train(Holds(tiny(), 0), few(digits), SHORT)
    assert len(held) == 1 and tried == [[None]] * 2


def test_the_advice_on_memory_leaves_room_for_the_optimizer(digits, monkeypatch):
    """Its memory comes with the first step, after a trial has ended: here in its midst."""
    module, made, real = sys.modules["vitmini.train"], [], torch.empty_like
    zeros, steps = torch.zeros_like, []

    def count(like, **more):
        made.append(weakref.ref(room := real(like, **more)))
        return room

    def fail_at_the_fourth(like, **more):
        steps.append(like)
        if len(steps) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(like, **more)

    class Watched(SmallMemory):
        def forward(self, images):
            if self.training and len(images) < 128:
                rooms.append(sum(room().numel() for room in made if room() is not None))
            return super().forward(images)

    rooms = []
    monkeypatch.setattr(module.torch, "empty_like", count)
    monkeypatch.setattr(torch, "zeros_like", fail_at_the_fourth)
    model = Watched(tiny(), 128)
    with pytest.raises(MemoryError, match="64 do"):
        vm.train(model, few(digits), SHORT)
    weights = [p.numel() for p in model.parameters()]
    assert len(rooms) == 2  # forward and back with the gradients of a part before it
    assert min(rooms) >= 2 * (sum(weights) - sum(sorted(weights)[-2:]))


def test_the_command_line_says_how_often_a_checkpoint_is_written(tmp_path, capsys):
    words = ["train", "--recipe", "digits", "--epochs", "2", "--save-every"]
    assert main([*words, "0", "--out", str(tmp_path / "none")]) == 2
    assert "save_every must be" in capsys.readouterr().err and not any(tmp_path.iterdir())
    assert main([*words, "2", "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train"]["save_every"] == 2


@pytest.mark.parametrize(
    "lacks", ["Triton", "a newer card", "a C compiler", "Python.h, of the package python3-dev"]
)
def test_where_nothing_can_be_compiled_training_goes_on_with_a_warning(
    lacks, monkeypatch, tmp_path
):
    module = sys.modules["vitmini.optim"]
    (tmp_path / "Python.h").touch()
    include = {"Python.h, of the package python3-dev": tmp_path / "none"}.get(lacks, tmp_path)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: lacks != "Triton" or None)
    # Debian's own scheme leads elsewhere, and Triton does not follow it.
    places = {"posix_local": tmp_path / "local", "posix_prefix": include}
    monkeypatch.setattr(module.sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(module.sysconfig, "get_path", lambda name, scheme: str(places[scheme]))
    monkeypatch.setattr(
        module.shutil,
        "which",
        lambda name: None if lacks == "a C compiler" or name == "gcc" else name,
    )
    monkeypatch.setattr(module, "can_compile", functools.cache(module.can_compile.__wrapped__))
    monkeypatch.setattr(module, "compile_model", lambda *_: pytest.fail("it was compiled"))
    config = dataclasses.replace(SHORT, compile=True)
    with pretended_cuda((6, 0) if lacks == "a newer card" else (7, 5)):
        model = tiny().to("cuda")
        with pytest.warns(UserWarning, match=f"nothing is compiled, for lack of {lacks}:") as told:
            trainers = [build_trainer(model, config) for _ in range(3)]
    assert len(told) == 1 and all(trainer.forward is model for trainer in trainers)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: True)
    places["posix_prefix"] = tmp_path
    monkeypatch.setattr(module.shutil, "which", lambda name: name if name == "clang" else None)
    with pretended_cuda((7, 5)):
        assert module.can_compile.__wrapped__(torch.device("cuda"))
        monkeypatch.setenv("CC", "gcc")  # Triton takes it, and no other
        with pytest.warns(UserWarning, match="lack of a C compiler"):
            assert not module.can_compile.__wrapped__(torch.device("cuda"))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["blocks.0.mlp.fc1.weight", "head.weight"])
def test_with_loss_scaling_two_optimizers_skip_the_same_steps(name, bad):
    """Each sees its own gradients alone, but they are clipped together."""
    config = dataclasses.replace(SHORT, optimizer="muon", precision="float16")
    trainer = build_trainer(model := tiny(), config)
    trainer.scaler.scale(torch.zeros(()))  # as a loss is, before the first step
    before = deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    dict(model.named_parameters())[name].grad.flatten()[0] = bad
    trainer.set_learning_rate(0.1)
    trainer.update()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert trainer.scaler.get_scale() == 2**15  # half of it
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) * 2**15
    trainer.update()
    for key, parameter in model.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[key]), key


def test_the_advice_on_memory_is_right(digits):
    config = dataclasses.replace(SHORT, accumulate=4)
    assert vm.train(SmallMemory(tiny(), 50), few(digits), config)


def test_repeats_come_in_a_row_in_an_epoch_of_the_same_length():
    ids = torch.arange(100, 200)
    for repeats in (1, 3, 7, 200):
        config = dataclasses.replace(SHORT, repeats=repeats)
        order = epoch_order(ids, config, torch.Generator().manual_seed(0))
        assert len(order) == 100 and len(order.unique()) == -(-100 // repeats)
        assert set(order.tolist()) <= set(ids.tolist())
        for i in range(0, 100, repeats):
            assert len(order[i : i + repeats].unique()) == 1


def test_an_epoch_of_some_images_draws_a_part_anew_and_of_few_all_of_them_several_times():
    ids = torch.arange(100, 200)

    def drawn(count, seed=0, **more):
        config = dataclasses.replace(SHORT, epoch_images=count, **more)
        return epoch_order(ids, config, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(None), drawn(100)), "an epoch of all is what it was"
    part, other = drawn(30), drawn(30, seed=1)
    assert len(part) == len(part.unique()) == 30 and set(part.tolist()) <= set(ids.tolist())
    assert set(part.tolist()) != set(other.tolist()), "each epoch draws its own part"
    long = drawn(250)
    assert len(long) == 250 and set(long[:100].tolist()) == set(ids.tolist())
    assert sorted(long.bincount()[100:].tolist()) == [2] * 50 + [3] * 50
    assert not torch.equal(long[:100], long[100:200]), "the second time in another order"
    repeated = drawn(30, repeats=3)
    assert len(repeated) == 30 and len(repeated.unique()) == 10


def test_a_run_with_epochs_of_some_images_goes_on_where_it_was_cut_off(digits, tmp_path):
    config = dataclasses.replace(SHORT, epoch_images=70, batch_size=32)
    whole, parts = tiny(), tiny()
    history = vm.train(whole, few(digits), config)

    def stop(record):
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vm.train(parts, few(digits), config, tmp_path / "run", on_epoch=stop)
    again = tiny()
    resumed = vm.train(again, few(digits), config, tmp_path / "run", resume=True)
    for a, b in zip(history, resumed, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {
            k: v for k, v in b.items() if k != "seconds"
        }
    assert all(map(torch.equal, whole.state_dict().values(), again.state_dict().values()))


def test_compiled_recipes_drop_a_short_last_batch_on_any_device(digits, monkeypatch):
    shapes = []

    def record(data, images, labels, config, generator):
        shapes.append(len(images))
        return prepare_batch(data, images, labels, config, generator)

    monkeypatch.setattr(sys.modules["vitmini.train"], "prepare_batch", record)
    vm.train(tiny(), few(digits), dataclasses.replace(SHORT, epochs=1, compile=True))
    assert shapes == [128, 128]
    shapes.clear()
    vm.train(tiny(), few(digits), dataclasses.replace(SHORT, epochs=1))
    assert shapes == [128, 128, 90]


def test_images_are_changed_in_deits_order(digits, monkeypatch):
    order = []
    module = sys.modules["vitmini.train"]
    names = ["random_affine", "random_resized_crop", "random_crop", "random_flip", "rand_augment"]
    names += ["trivial_augment", "auto_augment", "color_jitter", "random_erasing", "mix"]
    for name in names:
        real = getattr(module, name)

        def wrapped(*a, real=real, name=name, **k):
            order.append(name)
            return real(*a, **k)

        monkeypatch.setattr(module, name, wrapped)
    config = dataclasses.replace(SHORT, degrees=5.0, resized_crop=0.5, crop=1, flip=True)
    config = dataclasses.replace(config, jitter=0.3, erasing=0.2, mixup=0.8, label_smoothing=0.1)
    batch, generator = (digits.train_images[:16], digits.train_labels[:16]), torch.Generator()
    policies = {"rand_augment": {"rand_ops": 2}, "trivial_augment": {"trivial": True}}
    policies["auto_augment"] = {"auto": True}
    for policy, more in policies.items():
        chosen = dataclasses.replace(config, **more)
        images, targets = prepare_batch(digits, *batch, chosen, generator)
        assert order == [n for n in names if n == policy or n not in policies]
        assert images.shape == (16, 1, 8, 8) and targets.shape == (16, 10)
        assert torch.allclose(targets.sum(1), torch.ones(16)) and images.isfinite().all()
        order.clear()
    images, labels = prepare_batch(digits, *batch, SHORT, generator)
    assert order == [] and torch.equal(labels, digits.train_labels[:16])
    assert torch.equal(images, digits.normalize(digits.train_images[:16]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adam"),
        ("precision", "int8"),
        ("ema", 1.0),
        ("accumulate", 0),
        ("accumulate", 65),
        ("repeats", 0),
        ("crop", -1),
        ("resized_crop", 1.5),
        ("erasing", -0.1),
        ("switch", 2.0),
        ("rand_magnitude", 31),
        ("mixup", -0.1),
        ("trivial", 1),
        ("auto", "yes"),
        ("compile", "yes"),
        ("compile", 1),
        ("model", "vit_giant"),
        ("model_options", {"width": 3}),
        ("model_options", {"dim": 3}),
        ("model_options", {"num_classes": 7}),
        ("model_options", {"image_size": 8}),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(field, value):
    words = {"model_options": "model_options|num_heads|dim|data"}.get(field, field)
    with pytest.raises(ValueError, match=words):
        vm.TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"rand_ops": 1, "trivial": True}, "rand_ops and trivial must not"),
        ({"trivial": True, "auto": True}, "trivial and auto must not"),
        ({"rand_ops": 2, "auto": True}, "rand_ops and auto must not"),
    ],
)
def test_two_policies_of_augmentation_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        vm.TrainConfig(**more)


# Images that stay where they are --------------------------------------------------------------


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """A folder of 60 small pictures, which `load_data` maps into memory."""
    from PIL import Image

    root, generator = tmp_path_factory.mktemp("mapped"), torch.Generator().manual_seed(0)
    for part, count in (("train", 25), ("test", 5)):
        for kind in ("a", "b"):
            (root / "own" / part / kind).mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator)
                picture = Image.fromarray(noise.numpy())
                picture.save(root / "own" / part / kind / f"{i}.png")
    return vm.load_data(root / "own", root)


STREAMED = {
    "plain": {"repeats": 1},
    "augmented": {"degrees": 9.0, "crop": 1, "flip": True, "rand_ops": 1, "erasing": 0.3},
    "mixed": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "repeats": 3},
    "dropped": {"model_options": {"dropout": 0.1, "drop_path": 0.1}, "accumulate": 2},
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("more", STREAMED.values(), ids=STREAMED)
def test_a_streamed_set_gives_the_same_bytes_as_a_resident_one(
    mapped, tmp_path, monkeypatch, more, workers
):
    monkeypatch.setattr("vitmini.data._count_workers", lambda _: workers)
    loaders = []
    real = vm.data.DataLoader
    monkeypatch.setattr(
        "vitmini.data.DataLoader", lambda *a, **k: loaders.append(k["num_workers"]) or real(*a, **k)
    )
    config = dataclasses.replace(SHORT, epochs=2, batch_size=16, **more)

    def run(stream, name):
        torch.manual_seed(0)
        model = vm.create_model(
            "vit_digits", **TINY | {"in_channels": 3, "num_classes": 2} | config.model_options
        )
        own = dataclasses.replace(config, stream=stream)
        history = vm.train(model, mapped, own, out=tmp_path / name)
        after = torch.rand(1)  # the caller's random state is touched by neither
        for record in history:
            record.pop("seconds")
        return (tmp_path / name / "model.safetensors").read_bytes(), history, after

    wanted = run(None, "resident")
    assert loaders == [], "on a CPU nothing streams by itself"
    assert run(True, "streamed") == wanted
    assert loaders == [workers] * 2


def test_a_set_that_does_not_fit_streams_by_itself_unless_it_is_told_not_to(mapped, monkeypatch):
    streamed = []
    real = vm.data.take_batches

    def record(data, batches, device, stream):
        streamed.append(stream)
        return real(data, batches, device, stream)

    monkeypatch.setattr(sys.modules["vitmini.train"], "take_batches", record)
    for fits, told, wanted in ((True, None, False), (False, None, True), (False, False, False)):
        monkeypatch.setattr(sys.modules["vitmini.train"], "fits_on", lambda *_, fits=fits: fits)
        config = dataclasses.replace(SHORT, epochs=1, stream=told)
        vm.train(tiny(in_channels=3, num_classes=2), mapped, config)
        assert streamed.pop() is wanted and not streamed


def test_images_that_are_forced_onto_a_full_device_are_refused_with_advice(digits, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(vm.ImageData, "to", full)
    with pytest.raises(MemoryError, match=r"images take .* GiB, .*: set stream=True"):
        vm.train(tiny(), digits, dataclasses.replace(SHORT, stream=False))


# A person's own pictures ----------------------------------------------------------------------


def photographs(folder, counts):
    from PIL import Image

    for k, (kind, count) in enumerate(counts.items()):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            size = (400, 300) if i % 2 else (225, 400)
            color = (200, 30 + i, 20) if k % 2 else (20, 30 + i, 200)
            Image.new("RGB", size, color).save(folder / kind / f"IMG_{i:04}.JPG")


def test_a_few_photographs_of_any_size_are_trained_on_and_predicted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", {"sea": 10, "fire": 10})
    own = ("--recipe", "cifar10-mini", "--data", "photos", "--device", "cpu", "--epochs")
    first, small, *_ = accepted("train", *own, "2", "--out", "run").splitlines()
    assert first == (
        "photos: 2 classes, 32 x 32 pixels; 14 pictures to train on (steps an epoch: 1), "
        "2 to validate, 4 to test"
    )
    assert small == "photos is small: one picture more or less is 25.0% of test accuracy"
    said = accepted("predict", "run", "photos/sea/IMG_0000.JPG")
    assert "sea " in said and "fire " in said
    last = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    assert f"{last['test_accuracy']:.2%}" in accepted("evaluate", "run")


def test_the_command_line_brings_pictures_to_the_size_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", {"sea": 4, "fire": 4})
    own = (*TRAIN, "--data", "photos", "--epochs", "1", "--out", "run", "--image-size")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*own, "12"]) == 0
        assert main(["evaluate", "run"]) == 0
        assert main(["predict", "run", "photos/sea/IMG_0000.JPG"]) == 0
    model, description = load_run("run")
    assert model.config.image_size == 12 and description["train"]["image_size"] == 12
    assert "its image_size is 12, not 16" in refused(*own, "16", "--resume")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--data", "photos", "--image-size", "13"), "13x13 does not divide"),
        (("--data", "photos", "--image-size", "0"), "image_size must be"),
        (("--data", "digits", "--image-size", "16"), "image_size is for folders"),
        (("--data", "photos/sea"), "for each of two classes or more, got none"),
        (("--data", "lone"), "fire holds one picture: a class needs two or more"),
        (("--data", "odd"), "1 of 4 pictures in "),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_refused_in_one_line(
    tmp_path, monkeypatch, more, words
):
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "photos", {"sea": 2, "fire": 2})
    photographs(tmp_path / "lone", {"sea": 2, "fire": 1})
    photographs(tmp_path / "odd", {"sea": 2, "fire": 2})
    (tmp_path / "odd/sea/IMG_0001.JPG").write_text("x")
    assert words in refused(*TRAIN, "--out", "run", *more)
    assert not (tmp_path / "run").exists()
