"""Throughput is measured on the loop that trains, and the speed run's clock hides nothing."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import subprocess
import sys
import time

import pytest
import torch

import vitmini as vm
from vitmini import speedrun, throughput
from vitmini.__main__ import main
from vitmini.optim import build_trainer
from vitmini.profiles import Profile
from vitmini.records import keep
from vitmini.throughput import (
    Pictures,
    compare_steps,
    ladder,
    matrix_rate,
    measure_loop,
    measure_pictures,
    measure_rate,
    measure_rung,
    model_share,
    picture_batches,
)

TINY = {"depth": 1, "dim": 16, "num_heads": 2}
PLAIN = vm.TrainConfig(
    batch_size=32, crop=1, flip=True, rand_ops=1, model_options=TINY, warmup=0, cpu_threads=1
)


@pytest.fixture
def few(digits):
    return dataclasses.replace(
        digits, train_images=digits.train_images[:96], train_labels=digits.train_labels[:96]
    )


class Clock:
    """Time that passes when it is told to, so that a busy machine changes nothing."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def takes(self, seconds, function):
        def slow(*arguments, **options):
            self.now += seconds
            return function(*arguments, **options)

        return slow


def test_a_rate_counts_images_over_seconds(monkeypatch):
    step = Clock(monkeypatch).takes(0.25, lambda: 7)
    assert measure_rate(step, "cpu", seconds=2) == 28
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        measure_rate(step, "cpu", seconds=0)


def test_the_matrix_rate_is_two_n_cubed_over_the_time(monkeypatch):
    monkeypatch.setattr(throughput, "measure_time", lambda ways, *_, **__: {"product": 4.0})
    assert matrix_rate("cpu", size=10) == 2 * 1000 / 0.004
    for size in (0, 1.5, "8", None):
        with pytest.raises(ValueError, match=f"size must be a positive int, got {size!r}"):
            matrix_rate("cpu", size=size)
    for dtype in (float, "float32", None, torch.int32):
        with pytest.raises(ValueError, match="dtype must be a floating-point type"):
            matrix_rate("cpu", dtype, size=8)


def test_a_models_share_is_its_training_flops_over_the_rate():
    config = vm.get_config("vit_base_patch16_224")
    assert model_share(config, 1000.0, 1e15) == pytest.approx(1000 * 3 * 35.1e9 / 1e15, rel=0.01)
    for value in (0, -1, math.nan, math.inf, "x", None):
        with pytest.raises(ValueError, match="rate must be a positive number"):
            model_share(config, 1000.0, value)
        with pytest.raises(ValueError, match="images_per_second must be a positive number"):
            model_share(config, value, 1e12)
    with pytest.raises(ValueError, match="model must be a ViT or a ViTConfig, got str"):
        model_share("vit", 1000.0, 1e12)
    with pytest.raises(ValueError, match=r"got Hybrid$"):  # not all of its layers
        model_share(vm.create_baseline("hybrid_mini"), 1000.0, 1e12)


def test_the_loop_that_is_measured_is_the_one_that_trains(few, monkeypatch):
    """Each turn is one call of `train_epoch`, and as many steps of `train_step` on one batch."""
    calls = {"train_epoch": 0, "train_step": 0, "prepare_batch": 0}

    def count(module, name):
        real = getattr(module, name)

        def counted(*a, **k):
            calls[name] += 1
            return real(*a, **k)

        monkeypatch.setattr(module, name, counted)

    count(throughput, "train_epoch")
    count(throughput, "train_step")
    count(sys.modules["vitmini.train"], "prepare_batch")
    speed = measure_loop(few, PLAIN, batches=3, repeats=2)
    assert calls["train_epoch"] == 3 and calls["train_step"] == 9  # with the turn to warm up
    assert calls["prepare_batch"] == 1 + 9 + 9
    assert min(dataclasses.astuple(speed)) > 0
    for batches in (4, 0, 1.5, "1", None):
        with pytest.raises(ValueError, match=f"batches must be from 1 to 3 .*, got {batches!r}"):
            measure_loop(few, PLAIN, batches=batches)
    for bad, words in ((("digits", PLAIN), "data must be"), ((few, "digits"), "config must be")):
        with pytest.raises(ValueError, match=words):
            measure_loop(*bad)


def test_slow_images_show_in_the_loops_share(few, monkeypatch):
    clock, module = Clock(monkeypatch), sys.modules["vitmini.train"]
    monkeypatch.setattr(module, "prepare_batch", clock.takes(0.75, module.prepare_batch))
    step = clock.takes(0.25, module.train_step)
    for used in (module, throughput):
        monkeypatch.setattr(used, "train_step", step)
    speed = measure_loop(few, PLAIN, batches=2, repeats=3)
    assert (speed.loop, speed.fixed, speed.images) == (32, 32 / 0.25, 32 / 0.75)
    assert speed.share == 0.25


@pytest.mark.parametrize("workers", [0, 1])
def test_pictures_are_those_of_the_data(few, workers):
    """Without a change, the loader gives what `prepare_batch` gives, and never ends."""
    bare = dataclasses.replace(PLAIN, crop=0, flip=False, rand_ops=0, batch_size=96)
    batches = picture_batches(few, bare, "cpu", workers)
    images, labels = next(batches)
    next(batches)
    known = few.normalize(few.train_images).flatten(1)
    nearest = torch.cdist(images.flatten(1), known).min(dim=1)
    assert nearest.values.max() < 1e-2 and images.shape == (96, 1, 8, 8)
    found = few.train_labels[nearest.indices]
    assert (labels == found).float().mean() > 0.95  # two digits may look alike


def test_pictures_change_as_the_recipe_says_and_refuse_what_they_cannot(few):
    assert len(Pictures(few, PLAIN).transform.transforms) == 5
    for name in throughput.NO_COUNTERPART:
        value = True if name in ("trivial", "auto") else 0.5
        with pytest.raises(ValueError, match=f"{name} has no counterpart"):
            Pictures(few, dataclasses.replace(PLAIN, rand_ops=0, **{name: value}))


def test_pictures_are_trained_on_where_a_trainer_is_given(few):
    trainer = build_trainer(vm.create_model("vit_digits"), PLAIN)
    before = trainer.model.head.weight.clone()
    assert measure_pictures(few, PLAIN, seconds=0.1) > 0
    assert torch.equal(trainer.model.head.weight, before)
    assert measure_pictures(few, PLAIN, seconds=0.1, trainer=trainer) > 0
    assert not torch.equal(trainer.model.head.weight, before)


def test_steps_are_compared_with_timms_model():
    pytest.importorskip("timm")
    config = vm.ViTConfig(8, 4, num_classes=3, dim=16, depth=1, num_heads=2)
    rates = compare_steps(config, dataclasses.replace(PLAIN, batch_size=4), steps=2, repeats=3)
    assert list(rates) == ["vitmini", "timm"] and all(len(v) == 3 for v in rates.values())
    assert throughput.median_ratio(rates, "vitmini", "timm") > 0
    assert throughput.median_ratio({"a": [1, 8, 3], "b": [2, 2, 2]}, "a", "b") == 1.5


def test_each_rung_changes_one_thing():
    for device, names in (("cpu", 5), ("cuda", 8)):
        rungs = ladder(device, workers=16)
        assert len(rungs) == names and rungs[0].workers == 0 and rungs[2].workers is None
        for before, after in itertools.pairwise(rungs):
            a, b = dataclasses.asdict(before), dataclasses.asdict(after)
            assert sum(a[k] != b[k] for k in a if k != "name") == 1, after.name


def test_every_rung_can_be_climbed_and_leaves_the_settings_alone(few):
    """The rungs for a GPU, too: what a CPU does not know stays without effect there."""
    before = torch.get_float32_matmul_precision()
    for rung in ladder("cuda", workers=1, batch_size=16, larger=32):
        assert measure_rung(rung, few, PLAIN, "cpu", seconds=0.02) > 0, rung.name
        assert torch.get_float32_matmul_precision() == before


def test_convolutions_have_tf32_where_products_have_it(few, monkeypatch):
    seen = []

    def look(*_, **__):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        return 1.0

    monkeypatch.setattr(throughput, "measure_rate", look)
    before = torch.backends.cudnn.allow_tf32
    for rung in ladder("cuda", workers=1, batch_size=16, larger=32)[2:]:
        measure_rung(rung, few, PLAIN, "cpu", seconds=0.02)
        assert torch.backends.cudnn.allow_tf32 == before
    assert seen[0] == ("highest", False) and set(seen[1:]) == {("high", True)}


def test_adamw_is_fused_on_its_own_rung_alone(few, monkeypatch):
    seen = []
    monkeypatch.setattr(throughput, "measure_rate", lambda step, *_, **__: step())
    real = throughput.train_epoch

    def look(trainer, *rest):
        seen.append(trainer.optimizers[0].defaults["fused"])
        return real(trainer, *rest)

    monkeypatch.setattr(throughput, "train_epoch", look)
    for rung in ladder("cpu", workers=1, batch_size=16, larger=32)[2:]:
        measure_rung(rung, few, PLAIN)
    assert seen == [None, True, True]


# The speed run -----------------------------------------------------------------------------------


def test_the_speed_run_names_recipes_that_exist_and_hold_images_back():
    for name, target in speedrun.SPEEDRUN.items():
        recipe = vm.RECIPES[name]
        assert recipe.data == "cifar10" and recipe.val_share > 0 and 0.9 <= target < 1
        assert "Not measured yet" in (type(recipe).__doc__ or "")


def test_a_timed_run_counts_the_whole_process_and_keeps_its_weights(tmp_path):
    out = tmp_path / "digits-0"
    out.mkdir()
    (out / "config.json").write_text("half a run")  # cut off: begins anew
    start = time.perf_counter()
    run = speedrun.timed_run("digits", 0, out, "cpu", ("--epochs", "2"))
    whole = time.perf_counter() - start
    assert (
        sum(r["seconds"] for r in run["history"])
        < run["elapsed"][-1]
        <= run["seconds"]
        < whole + 0.01
    )
    assert len(run["elapsed"]) == len(run["history"]) == 2
    assert run["elapsed"] == sorted(run["elapsed"])
    assert run["elapsed"][0] > run["history"][0]["seconds"]  # Python's start counts
    assert {p.name for p in out.iterdir()} == {"config.json", "metrics.jsonl", "model.safetensors"}


def test_a_timed_run_that_fails_says_why(tmp_path):
    with pytest.raises(ValueError, match="nothing-0 failed: vitmini: recipe must be one of"):
        speedrun.timed_run("nothing", 0, tmp_path / "nothing-0", "cpu")


def test_the_pace_after_the_start_is_that_of_the_middle_epochs(monkeypatch):
    """The first epoch compiles, the last one saves and looks at the test images."""
    asked = []

    def timed_run(recipe, seed, out, device, more):
        asked.append(more)
        return {"seconds": 26.0, "elapsed": [10.0, 12.0, 25.0], "history": []}

    monkeypatch.setattr(speedrun, "timed_run", timed_run)
    metrics = speedrun.startup(Profile("ci", "cpu"))["metrics"]
    assert [more[:2] for more in asked] == [("--compile", how) for how in ("no", "blocks", "whole")]
    assert all(more[2:] == ("--epochs", "3") for more in asked)
    missing = vm.RECIPES["digits"].epochs - 3
    for how in ("no", "blocks", "whole"):
        assert metrics[f"seconds_to_first_epoch_{how}"]["values"] == [10.0]
        assert metrics[f"seconds_an_epoch_{how}"]["values"] == [2.0]
        assert metrics[f"seconds_of_all_{how}"]["values"] == [26.0 + 2.0 * missing]


def test_a_round_of_the_speed_run_is_a_recipe_with_a_seed(monkeypatch, tmp_path):
    """Every recipe comes before a second seed; the first run of all does not count."""
    monkeypatch.chdir(tmp_path)
    done = []

    def timed_run(recipe, seed, out, device, more):
        done.append((recipe, seed, more))
        record = {"seconds": 1.0, "test_accuracy": 0.9, "val_accuracy": 0.9, "train_loss": 1.0}
        return {"seconds": 26.0, "elapsed": [10.0], "history": [record]}

    monkeypatch.setattr(speedrun, "timed_run", timed_run)
    monkeypatch.setattr(speedrun, "describe_data", lambda name: name)
    speedrun._warm_up.cache_clear()
    profile = Profile("gpu", "cpu")
    for n, recipes in enumerate(itertools.accumulate([name] for name in speedrun.SPEEDRUN), 1):
        result = speedrun.speedrun(profile, rounds=n)
        assert result["name"] == f"speedrun-{n}" and result["seeds"] == [0]
        assert f"the first {n} of 9 rounds" in result["data"]
        keys = {key for key in result["metrics"] if key.startswith("test_accuracy")}
        assert keys == {f"test_accuracy_{recipe}" for recipe in recipes}
    whole = speedrun.speedrun(profile)
    assert whole["seeds"] == [0, 1, 2] and "a checkpoint every 20" in whole["data"]
    assert len(whole["metrics"]["seconds_cifar10"]["values"]) == 3
    order = [(recipe, seed) for seed in (0, 1, 2) for recipe in speedrun.SPEEDRUN]
    assert done[0][0] == "cifar10-mini" and [run[:2] for run in done[1:]] == order
    assert all(run[2] == ("--save-every", "20") for run in done[1:])
    speedrun._warm_up.cache_clear()


def test_parts_that_were_measured_are_not_measured_again(tmp_path):
    calls = []

    def measure():
        calls.append(1)
        return {"rate": len(calls)}

    for _ in range(3):
        assert keep(tmp_path / "a" / "part.json", measure) == {"rate": 1}
    with pytest.raises(ZeroDivisionError):
        keep(tmp_path / "b.json", lambda: 1 / 0)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["part.json"]


@pytest.mark.parametrize("name", ["throughput", "train-cifar10", "speedrun", "startup"])
def test_what_needs_a_gpu_says_so_before_it_reads_data(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VITMINI_PROFILE", "cpu")
    monkeypatch.setattr(speedrun, "load_data", lambda *_: pytest.fail("data were read"))
    assert main(["experiment", name, "--out", str(tmp_path)]) == 2
    assert f"{name} needs a CUDA device" in capsys.readouterr().err


@pytest.fixture(scope="module")
def once():
    """Three experiments time the same run, and one of them is enough to rehearse it."""
    return functools.cache(speedrun.timed_run)


@pytest.mark.parametrize(
    ("name", "key", "curve"),
    [
        ("throughput", "share_recipe", "share"),
        ("throughput-cpu", "loop_over_workers", "images_per_second"),
        ("train-cifar10", "test_accuracy_digits", "val_accuracy_digits"),
        ("speedrun", "seconds_digits", "elapsed_digits"),
        ("speedrun-1", "seconds_digits", "elapsed_digits"),
        ("startup", "seconds_of_all_blocks", "elapsed_whole"),
    ],
)
def test_each_speed_experiment_is_rehearsed_in_seconds(
    name, key, curve, monkeypatch, tmp_path, tmp_path_factory, once
):
    def timed_run(recipe, seed, out, device, more):
        kept = tmp_path_factory.getbasetemp() / f"timed-{recipe}-{'-'.join(more)}-{seed}"
        return once(recipe, seed, kept, device, more)

    monkeypatch.setattr(speedrun, "timed_run", timed_run)
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    assert main(["experiment", name, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result["name"] == name and result["profile"] == "ci"
    assert result["metrics"][key]["mean"] > 0 and result["curves"][curve]
    assert ("the first 1 of 1 rounds" in result["data"]) == name.endswith("-1")


# A better result is not lost ---------------------------------------------------------------------


def result(profile, commit, mean=0.0):
    return {"name": "x", "profile": profile, "commit": commit, "metrics": {"m": {"mean": mean}}}


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        (("cpu", "abc"), ("gpu", "def"), True),
        (("gpu", "abc"), ("gpu", "def"), True),
        (("gpu", "abc"), ("cpu", "def"), False),
        (("cpu", "abc"), ("ci", "def"), False),
        (("cpu", "abc"), ("cpu", "sources 12"), False),
        (("cpu", "abc"), ("gpu", "sources 12"), False),
        (("cpu", "sources 9"), ("cpu", "sources 12"), True),
        (("cpu", "sources 9"), ("cpu", "abc"), True),
        (("gpu", "sources 9"), ("cpu", "abc"), False),
    ],
)
def test_a_better_result_is_replaced_by_force_alone(old, new, allowed, tmp_path):
    from vitmini.records import save_result

    path = save_result(result(*old), tmp_path)
    before = path.read_bytes()
    if allowed:
        save_result(result(*new, 1.0), tmp_path)
    else:
        with pytest.raises(ValueError, match=r"holds a better result .* --force"):
            save_result(result(*new, 1.0), tmp_path)
        assert path.read_bytes() == before
        save_result(result(*new, 1.0), tmp_path, force=True)
    assert json.loads(path.read_text())["commit"] == new[1]


def test_a_better_result_is_found_before_the_work_is_done(tmp_path, monkeypatch, capsys):
    from vitmini import experiments
    from vitmini.records import save_result

    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    save_result(result("cpu", "abc") | {"name": "train-digits"}, tmp_path)
    done = []

    def work(profile):
        done.append(profile)
        return result("ci", "def") | {"name": "train-digits"}

    monkeypatch.setitem(experiments.EXPERIMENTS, "train-digits", work)
    assert main(["experiment", "train-digits", "--out", str(tmp_path)]) == 2 and not done
    assert "better result" in capsys.readouterr().err
    assert main(["experiment", "train-digits", "--out", str(tmp_path), "--force"]) == 0 and done


def test_a_result_names_the_commit_that_last_changed_the_library(tmp_path, monkeypatch):
    """So that what was trained before a commit of texts or of results is not trained again."""
    from vitmini import records

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    library = tmp_path / "vitmini"
    library.mkdir()
    (library / "a.py").write_text("1")
    (tmp_path / "text.md").write_text("1")
    monkeypatch.setattr(records, "_HERE", library)
    unknown = records.code_version()
    assert unknown.startswith("sources ")
    git("init", "-q")
    assert records.code_version() == unknown  # nothing is committed
    git("add", "."), git("commit", "-qm", "both")
    first = records.code_version()
    assert git("rev-parse", "HEAD").startswith(first) and len(first) == 12
    (tmp_path / "text.md").write_text("2")
    git("commit", "-qam", "text")
    assert records.code_version() == first
    (library / "a.py").write_text("2")
    assert records.code_version().startswith("sources ") and records.code_version() != unknown
    git("commit", "-qam", "library")
    assert git("rev-parse", "HEAD").startswith(records.code_version()) != first


def test_what_is_no_result_is_no_loss(tmp_path):
    from vitmini.records import save_result

    for junk in ("", "[]", "{}"):
        (tmp_path / "x.json").write_text(junk)
        save_result(result("ci", "sources 1"), tmp_path)
