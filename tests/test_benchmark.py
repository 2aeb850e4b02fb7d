"""What is measured is what was asked for."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, vitmini

import vitmini as vm


def test_ways_take_turns_after_a_warm_up():
    calls = []
    times = vm.measure_time(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3
    )
    assert calls == ["a", "b"] * 4
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
    with pytest.raises(ValueError, match="repeats must be positive, got 0"):
        vm.measure_time({}, repeats=0)


def test_the_gpu_experiment_says_that_it_needs_one(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    done = vitmini("experiment", "attention-cost-gpu", "--out", tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "attention-cost-gpu needs a CUDA device" in done.stderr
