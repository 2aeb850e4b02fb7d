"""`make gpu` before there is a GPU: its parts, their limits, what is kept and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gpu
import pytest
import torch
from conftest import ROOT

import vitmini as vm
from vitmini.experiments import EXPERIMENTS


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WORK", tmp_path / "work")
    return tmp_path / "work"


def script(*arguments, **env):
    command = [sys.executable, str(ROOT / "book" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(
        command, cwd="/", env=os.environ | env, capture_output=True, text=True, timeout=120
    )


def test_make_gpu_runs_the_script_with_its_part():
    done = subprocess.run(
        ["make", "-n", "gpu", "PART=speedrun"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "book/gpu.py speedrun" in done.stdout
    told = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "make gpu [PART=speedrun]" in told


def test_every_part_is_listed_from_anywhere():
    done = script("--list")
    assert done.returncode == 0 and done.stderr == ""
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(gpu.PARTS)


def test_every_recorded_experiment_of_a_part_exists():
    assert set(gpu.EXPERIMENTS) <= set(EXPERIMENTS) and set(gpu.NEEDS) == set(gpu.PARTS)
    assert set(gpu.EXPERIMENTS) | {"embedded"} <= set(gpu.PARTS)
    assert gpu.PARTS.index("embedded") == gpu.PARTS.index("siblings") + 1  # they are embedded


def test_what_cannot_work_is_one_line(tmp_path):
    done = script("fly", VITMINI_PROFILE="ci")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "PART must be one of correctness," in done.stderr
    if not torch.cuda.is_available():
        done = script("throughput", VITMINI_PROFILE="gpu")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "no CUDA device" in done.stderr


def test_a_part_without_its_packages_is_left_out_by_name(work, monkeypatch, capsys):
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    monkeypatch.setattr(gpu, "missing", lambda part: ["nbclient"])
    assert gpu.main(["07-training"]) == 1
    out = capsys.readouterr().out
    assert "07-training: left out, this Python lacks nbclient" in out
    assert "not done: 07-training" in out


def test_each_chapter_that_wants_a_gpu_is_a_part_of_its_own(monkeypatch):
    """One that is done is not executed again when the next one is stopped."""
    assert {"07-training", "08-data-hunger", "10-distillation"} <= set(gpu.CHAPTERS)
    assert "01-patches" not in gpu.CHAPTERS and gpu.PARTS[-len(gpu.CHAPTERS) :] == gpu.CHAPTERS
    for part in gpu.CHAPTERS:
        monkeypatch.setenv("VITMINI_PROFILE", "ci")
        assert gpu.command(part, None, False) == []  # the stored outputs stay
        monkeypatch.setenv("VITMINI_PROFILE", "gpu")
        assert gpu.command(part, None, False)[-2:] == [str(ROOT / "book" / "generate.py"), part]


def test_a_part_that_is_stopped_goes_on(work, monkeypatch, capsys):
    """Half of its work is kept; what it started ends with it; the third call finds it done."""
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    code = """
import pathlib, subprocess, sys, time
kept = pathlib.Path("kept")
print("from", kept.exists(), flush=True)
if not kept.exists():
    kept.touch()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path("child").write_text(str(child.pid))
    time.sleep(60)
"""
    monkeypatch.setattr(gpu, "command", lambda *_: [sys.executable, "-c", code])
    assert gpu.main(["speedrun", "--limit", "3"]) == 1
    assert "stopped, it goes on" in capsys.readouterr().out and not gpu.is_done("speedrun")
    child = int((work / "child").read_text())
    for _ in range(100):  # until the system has buried it
        try:
            state = Path(f"/proc/{child}/stat").read_text().split(") ")[1][0]
        except OSError:
            break
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the part had started lives on")
    assert gpu.main(["speedrun"]) == 0 and gpu.is_done("speedrun")
    assert "from True" in capsys.readouterr().out
    assert gpu.main(["speedrun"]) == 0 and "done before" in capsys.readouterr().out
    monkeypatch.setattr(gpu, "version", lambda: "other sources")
    assert not gpu.is_done("speedrun")
    log = (work / "logs" / "speedrun.log").read_text()
    assert log.count("# 20") == 2 and "from False" in log and "from True" in log


def test_a_part_that_fails_does_not_keep_others_from_running(work, monkeypatch, capsys):
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    monkeypatch.setattr(
        gpu, "command", lambda part, *_: ["false"] if part == "speedrun" else ["true"]
    )
    assert gpu.main(["speedrun", "throughput"]) == 1
    out = capsys.readouterr().out
    assert "speedrun: FAILED" in out and "throughput: done" in out
    assert "not done: speedrun" in out


def test_everything_is_gathered_in_one_place(work, tmp_path, monkeypatch):
    """A rehearsal of a real part: result, parts, log and weights, and no checkpoint."""
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    run = work / "runs" / "experiments" / "speedrun-1" / "cifar10-0"
    run.mkdir(parents=True)
    for name in ("model.safetensors", "checkpoint.pt", "metrics.jsonl", ".x.part"):
        (run / name).write_text("x")
    out = tmp_path / "out"
    assert gpu.main(["throughput", "--out", str(out)]) == 0
    assert (out / "results" / "throughput.json").exists()
    names = {p.name for p in out.rglob("*") if p.is_file()}
    assert names == {
        *("throughput.json", "throughput.log", "throughput.done"),
        *("model.safetensors", "metrics.jsonl"),
    }


def test_embedded_models_come_from_the_experiment_and_replace_nothing(work, monkeypatch):
    monkeypatch.setenv("VITMINI_PROFILE", "gpu")
    monkeypatch.setattr(gpu, "version", lambda: "0123456789ab")
    arguments = gpu.command("embedded", None, False)
    folder = str(work / "runs" / "experiments" / "siblings-gpu-0123456789ab")
    assert arguments[2:] == ["--siblings", folder, "--out", str(work / "weights")]
    assert gpu.PARTS.index("siblings") < gpu.PARTS.index("embedded")
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    assert gpu.command("embedded", None, False) == []


def test_a_checkout_in_a_cache_is_gathered_too(tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "runs"
    (folder / "torch-cache").mkdir(parents=True)
    for path in (folder / "kept.json", folder / "torch-cache" / "left"):
        path.write_text("x")
    monkeypatch.setattr(gpu, "WORK", folder)
    gpu.gather(tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["kept.json"]


def test_the_tests_of_the_device_need_no_package_of_the_book(work, monkeypatch):
    """They run without the course's own settings, in an empty folder."""
    work.mkdir()
    arguments = gpu.command("correctness", None, False)
    env = gpu.environment() | {"VITMINI_PROFILE": "ci"}
    done = subprocess.run(arguments, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if not torch.cuda.is_available():
        assert "needs a CUDA device" in done.stdout and "passed" not in done.stdout
    collect = [*arguments[:-2], "--collect-only"]
    found = subprocess.run(collect, cwd=work, env=env, capture_output=True, text=True).stdout
    names = [line for line in found.splitlines() if "::" in line]
    parts = [gpu.command(part, None, False)[-1] for part in gpu.TESTS]
    shares = [0] * len(parts)
    for name in names:
        words = {word: word in name for word in ("compiled", "learn", "goes_on")}
        chosen = [eval(part, words) for part in parts]
        assert sum(chosen) == 1, name
        shares[chosen.index(True)] += 1
    assert len(names) > 100 and min(shares) > 20


def test_no_folder_above_the_checkout_chooses_tests(work, tmp_path, monkeypatch):
    """pytest's -k looks at the names of folders, too."""
    work.mkdir()
    root = tmp_path / "learn-compiled"
    shutil.copytree(ROOT / "tests", root / "tests")
    monkeypatch.setattr(gpu, "ROOT", root)
    arguments = [*gpu.command("correctness", None, False), "--collect-only"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(arguments, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "test_every_preset" in done.stdout, done.stdout


def test_make_results_redoes_what_a_cpu_recorded():
    """And names nothing that does not exist."""
    listed = re.search(r"^RESULTS := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.M)[
        1
    ].split()
    recorded = {name for name in vm.list_results() if vm.load_result(name)["profile"] == "cpu"}
    assert recorded <= set(listed) <= set(EXPERIMENTS) and len(listed) == len(set(listed))
