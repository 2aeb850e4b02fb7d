"""What is measured is what was asked for."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

import vitmini as vm
from vitmini import experiments
from vitmini.__main__ import main
from vitmini.benchmark import build_all, measure_turns
from vitmini.profiles import Profile


def test_ways_take_turns_after_a_warm_up():
    calls = []
    times = vm.measure_time(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3
    )
    assert calls == list("abbaabba")  # the first turn warms up
    assert set(times) == {"a", "b"}


def test_a_longer_way_takes_longer():
    times = vm.measure_time(
        {"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.02)}, repeats=3
    )
    assert times["long"] > 5 * times["short"] and times["long"] >= 20  # milliseconds


def test_peak_memory_counts_what_lives_at_one_time():
    def one_after_the_other():
        for _ in range(3):
            torch.zeros(250_000)  # 1 MB, gone before the next one

    def together():
        return [torch.zeros(250_000) for _ in range(3)]

    assert vm.peak_memory(one_after_the_other) == pytest.approx(1e6, rel=0.01)
    assert vm.peak_memory(together) == pytest.approx(3e6, rel=0.01)


def test_attention_by_hand_needs_three_matrices_and_the_fused_kernel_none():
    T, heads = 256, 2
    q, k, v = torch.randn(3, 1, heads, T, 16)
    matrix = heads * T * T * 4
    with torch.no_grad():
        hand = vm.peak_memory(lambda: vm.attention_by_hand(q, k, v))
        fused = vm.peak_memory(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))
    assert 2 * matrix <= hand <= 4 * matrix
    assert fused < matrix


def test_the_profiler_is_silent():
    code = "import torch, vitmini as vm; print(vm.peak_memory(lambda: torch.zeros(1000)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "4000\n" and done.stderr == ""


def test_no_turn_at_all_is_refused():
    with pytest.raises(ValueError, match="repeats must be a positive int, got 0"):
        vm.measure_time({}, repeats=0)


def test_the_gpu_experiment_says_that_it_needs_one(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["experiment", "attention-cost-gpu", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "attention-cost-gpu needs a CUDA device" in said


def test_the_cost_of_attention_is_told_up_to_what_fits(monkeypatch, capsys):
    def row(device, dtype, batch, T, repeats):
        if T > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {f"{key}_{way}": T for key in ("milliseconds", "bytes") for way in WAYS}

    monkeypatch.setattr(experiments, "_attention_row", row)
    ask = functools.partial(
        experiments._attention_cost, "attention-cost-gpu", "cpu", torch.float32, 8
    )
    result = ask([32, 64, 128, 256], Profile("gpu", "cpu"))
    assert result["curves"]["tokens"] == [32, 64] == result["curves"]["bytes_fused"]
    assert "128 tokens need more memory than there is" in result["data"]
    assert not any(key.endswith("_128") for key in result["metrics"])
    assert "more memory" not in ask([32, 64], Profile("gpu", "cpu"))["data"]
    with pytest.raises(torch.OutOfMemoryError):
        ask([128], Profile("gpu", "cpu"))


WAYS = ("by_hand", "fused")
TINY = vm.ViTConfig(8, 4, num_classes=3, dim=16, depth=1, num_heads=2)


def test_turns_run_each_way_once_and_begin_with_another_one():
    order = []
    ways = {name: functools.partial(order.append, name) for name in "abc"}
    turns = measure_turns(ways, repeats=3)
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert all(len(times) == 3 and min(times) >= 0 for times in turns.values())


def test_a_comparison_has_vitmini_and_its_peers():
    speeds = vm.compare_models(TINY, batch_size=2, repeats=2)
    assert list(speeds) == ["vitmini", "timm", "torchvision", "Hugging Face"]
    assert speeds["vitmini"].step_ratio == speeds["vitmini"].forward_ratio == 1
    for speed in speeds.values():
        assert speed.forward > 0 and speed.step > 0 and speed.memory > 0


def test_peers_are_the_same_model():
    """The logits agree when they get vitmini's weights, so that the race is a fair one."""
    built = build_all(TINY)
    ours = built.pop("vitmini").eval()
    counts = {sum(p.numel() for p in m.parameters()) for m in (ours, *built.values())}
    assert len(counts) == 1
    convert = {"timm": vm.from_timm, "torchvision": vm.from_torchvision}
    convert["Hugging Face"] = lambda model: vm.from_huggingface(model.model)
    for name, model in built.items():
        assert convert[name](model).config == ours.config, name


def test_peers_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert list(build_all(TINY)) == ["vitmini", "torchvision"]


@pytest.mark.parametrize("change", [{"distilled": True}, {"pool": "mean"}, {"image_size": (8, 4)}])
def test_only_a_plain_vit_can_be_compared(change):
    with pytest.raises(ValueError, match="needs a plain ViT"):
        vm.compare_models(dataclasses.replace(TINY, **change))


def test_benchmark_prints_ratios_first(capsys, monkeypatch):
    monkeypatch.setattr("vitmini.__main__.COMPARED", ("vit_cifar",))
    monkeypatch.setattr("vitmini.__main__.get_config", lambda name: TINY)
    assert main(["benchmark", "--repeats", "1", "--batch", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "below 1 vitmini is the faster one" in lines[0]
    assert lines[2].startswith("vit_cifar: batch 2, float32, CPU")
    assert [line.split("  ")[0] for line in lines[4:]] == [
        "vitmini",
        "timm",
        "torchvision",
        "Hugging Face",
    ]
    assert all(" ms" in line and "MiB" in line for line in lines[4:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vit_digits"], "plain ViT"),
        (["vit_giant"], "name must be one of"),
        (["--repeats", "0"], "at least 1"),
        (["--batch", "-1"], "at least 1"),
        (["--dtype", "int8"], "int8"),
    ],
)
def test_a_wrong_benchmark_is_one_line(arguments, words, capsys):
    assert main(["benchmark", *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size must be"),
        ({"dtype": torch.float64}, "dtype must be"),
        ({"dtype": "bfloat16"}, "dtype must be"),
        ({"repeats": 1.5}, "repeats must be"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        vm.compare_models(TINY, **change)


def test_a_benchmark_refuses_before_the_first_model_runs(capsys):
    assert main(["benchmark", "vit_cifar", "vit_digits", "--repeats", "1"]) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory.\nTried"), MemoryError("64 do"), None]
)
def test_too_little_memory_is_one_line(error, monkeypatch, capsys):
    def full(*_):
        raise error or RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("vitmini.benchmark.compare_models", full)
    assert main(["benchmark", "vit_cifar"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("64 do" if "64" in str(error) else "out of memory") in err


def test_another_error_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("vitmini.benchmark.compare_models", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["benchmark", "vit_cifar"])
