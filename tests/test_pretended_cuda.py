"""Where tensors lie, without a card: the library on a device that is a CPU underneath.

Numbers must be those of the CPU, and nothing may meet a tensor of the other device.
"""

from __future__ import annotations

import dataclasses
import re

import gpu
import pytest
import torch
from pretended_cuda import CUDA, RAN, WAITS, OnCuda, pretended_cuda
from test_cuda import OPTIONS, made

import vitmini as vm
from vitmini import throughput
from vitmini.__main__ import main
from vitmini.experiments import EXPERIMENTS
from vitmini.initialisation import SCHEMES
from vitmini.optim import build_trainer
from vitmini.profiles import Profile
from vitmini.train import build_model, train_epoch

TINY = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_ratio": 2.0}
SHORT = vm.TrainConfig(epochs=2, warmup=1, batch_size=64, precision="float32", model_options=TINY)


@pytest.fixture
def few():
    return made(200)


def numbers(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]


def assert_same(expected, found):
    """Kernels may group their sums otherwise, and an image may fall to the other side of it."""
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys()
        for key, value in a.items():
            accuracy = key.endswith("accuracy")
            assert value == pytest.approx(b[key], rel=1e-3, abs=0.03 if accuracy else 0), key


def run(config, data, device, **more):
    torch.manual_seed(0)
    model = build_model(config, data).to(device)
    return model, numbers(vm.train(model, data, config, **more))


# The pretence ------------------------------------------------------------------------------------


def test_what_an_operation_gives_keeps_its_form_and_lies_on_the_device():
    with pretended_cuda():
        x = torch.arange(6.0, device="cuda").reshape(2, 3)
        largest, (q, r), parts = x.max(dim=1), torch.linalg.qr(x), x.split(1)
        assert type(largest) is torch.return_types.max and type(parts) is tuple
        assert {t.device for t in (*largest, q, r, *parts, torch.stack(list(parts)))} == {CUDA}
        with pytest.raises(RuntimeError, match="expected all tensors on cuda:0"):
            torch.stack([parts[0], torch.ones(1, 3)])  # in a list, too


def test_the_pretence_refuses_what_cuda_refuses():
    with pretended_cuda():
        on, off = torch.arange(6.0, device="cuda"), torch.arange(6.0)
        assert on.device == CUDA and on.is_cuda and off.device.type == "cpu"
        for wrong in (
            lambda: on + off,
            lambda: torch.stack([on, off]),
            lambda: torch.stack([on[0], off[0]]),
            lambda: torch.zeros(()).add_(on[0]),
            lambda: torch.where(off[0] > 0, on, on),
            lambda: torch.nn.Linear(6, 2)(on),
            lambda: torch.nn.Linear(6, 2).cuda()(off),
            lambda: off[on.long()],
            lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
            lambda: torch.rand(3, generator=torch.Generator("cuda")),
            lambda: on.normal_(generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match=r"expected|should be"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            on.numpy()
        assert torch.equal((on * off[2] + torch.tensor(1)).cpu(), off * 2 + 1)
        made_here = torch.zeros_like(on), on.new_ones(2), on.cpu().to(on), torch.tensor(1.0).cuda()
        assert all(isinstance(x, OnCuda) for x in made_here)
        assert not isinstance(torch.zeros_like(on, device="cpu"), OnCuda)


def test_the_pretence_computes_what_the_cpu_computes_and_counts_what_waits():
    x, w = torch.randn(5, 3), torch.randn(3, 3, requires_grad=True)
    (x @ w).square().sum().backward()
    with pretended_cuda():
        on = w.detach().cuda().requires_grad_()
        (x.cuda() @ on).square().sum().backward()
        moved = w.detach().requires_grad_()
        (x.cuda() @ moved.cuda()).square().sum().backward()
        assert isinstance(on.grad, OnCuda) and not isinstance(moved.grad, OnCuda)
        WAITS.clear()
        assert on[torch.tensor([1])].shape == (1, 3) and (on * 2 + 1).isfinite().all().item()
        assert dict(WAITS) == {"aten.index.Tensor": 1, "aten._local_scalar_dense.default": 1}
        assert torch.equal(on.grad.cpu(), w.grad) and torch.equal(moved.grad, w.grad)
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "Pretended GPU"


# Training ----------------------------------------------------------------------------------------

MORE = {
    "stream": {"stream": True},
    "images of another policy": {"auto": True, "flip": True, "jitter": 0.3},
    "some images": {"epoch_images": 90},
    "positions": {"model_options": TINY | {"pos_embed": "sincos2d", "pool": "mean"}},
    "relative": {"model_options": TINY | {"pos_embed": "relative", "dropout": 0.1}},
    "mimetic": {"model_options": TINY | {"init": "mimetic", "layer_scale": 0.1}},
    "resnet": {"model": "resnet_mini", "model_options": {"stages": (1,)}},
    "blocks": {"compile": "blocks", "ema": 0.9, "model_options": TINY | {"drop_path": 0.5}},
    "hybrid": {"model": "hybrid_mini", "model_options": {"stages": (1,)} | TINY},
}


@pytest.mark.parametrize("more", (OPTIONS | MORE).values(), ids=OPTIONS | MORE)
def test_training_on_the_device_gives_the_cpus_numbers(few, more):
    own = dict(more)
    own["model_options"] = TINY | own.get("model_options", {})
    if own.get("model") == "resnet_mini":
        own["model_options"] = {"stages": (1,)}
    config = dataclasses.replace(SHORT, **own)
    _, expected = run(config, few, "cpu")
    with pretended_cuda():
        model, found = run(config, few, "cuda")
    assert all(isinstance(p, OnCuda) for p in model.parameters())
    assert_same(expected, found)


def test_a_twin_of_blocks_trains_whatever_mode_the_model_came_in(few):
    config = dataclasses.replace(SHORT, **MORE["blocks"])
    histories = []
    for prepared in ("train", "eval"):
        with pretended_cuda():
            torch.manual_seed(0)
            model = build_model(config, few).to("cuda")
            history = vm.train(getattr(model, prepared)(), few, config)
        histories.append(numbers(history))
    assert_same(*histories)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weights_are_drawn_anew_where_a_model_lies(scheme):
    for options in ({}, {"pos_embed": "sincos2d", "pool": "mean"}, {"pos_embed": "relative"}):
        model = vm.create_model("vit_digits", **TINY | options)
        with pretended_cuda():
            model.to("cuda")
            torch.manual_seed(1)
            vm.init_weights(model, scheme)
            found = {name: t.cpu() for name, t in model.state_dict().items()}
        torch.manual_seed(1)
        other = vm.create_model("vit_digits", **TINY | options)
        torch.manual_seed(1)
        vm.init_weights(other, scheme)
        for name, t in other.state_dict().items():
            assert torch.allclose(found[name], t, atol=1e-6), name


@pytest.mark.parametrize("stream", [False, True])
def test_only_the_end_of_an_epoch_waits_for_the_device(few, stream):
    config = dataclasses.replace(
        SHORT, optimizer="muon", ema=0.9, crop=1, flip=True, rand_ops=1, erasing=0.2, mixup=0.8,
        cutmix=1.0, label_smoothing=0.1, accumulate=2, precision="bfloat16",
    )  # fmt: skip
    waited = []
    with pretended_cuda():
        for batch_size in (100, 10):
            config = dataclasses.replace(config, batch_size=batch_size)
            trainer = build_trainer(build_model(config, few).to("cuda"), config)
            data, generator = few if stream else few.to("cuda"), torch.Generator("cuda")
            ids = torch.arange(200, device="cuda")
            WAITS.clear()
            train_epoch(trainer, data, ids, config, 1, generator.manual_seed(0), stream)
            waited.append(dict(WAITS))
    assert waited[0] == waited[1], "20 steps wait as often as 2"
    assert sum(waited[0].values()) < 6


def test_a_t4_trains_in_float16_with_a_scaler(few):
    config = dataclasses.replace(SHORT, precision="auto")
    for capability, dtype in (((7, 5), torch.float16), ((9, 0), torch.bfloat16)):
        with pretended_cuda(capability):
            assert torch.cuda.is_bf16_supported(), "emulated, on a T4"
            trainer = build_trainer(build_model(config, few).to("cuda"), config)
            assert trainer.dtype == dtype and trainer.scaler.is_enabled() == (capability < (8, 0))
            _, history = run(config, few, "cuda")
        assert history[-1]["train_loss"] < 2.4


def test_images_that_do_not_fit_are_streamed(few, monkeypatch):
    seen = []
    take = vm.train.__globals__["take_batches"]

    def watched(data, batches, device, stream):
        seen.append((stream, data.train_images.device.type))
        return take(data, batches, device, stream)

    monkeypatch.setitem(vm.train.__globals__, "take_batches", watched)
    for memory in (8, 1e-6):
        with pretended_cuda(memory=memory):
            run(dataclasses.replace(SHORT, epochs=1), few, "cuda")
    assert seen == [(False, "cuda"), (True, "cpu")]


def test_a_run_of_the_device_goes_on_there_and_on_the_cpu(few, tmp_path):
    config = dataclasses.replace(SHORT, epochs=3, optimizer="muon", ema=0.9)
    _, whole = run(config, few, "cpu")

    def cut_off(record):
        raise InterruptedError

    for device in ("cuda", "cpu"):
        out = tmp_path / device
        with pretended_cuda():
            with pytest.raises(InterruptedError):
                run(config, few, "cuda", out=out, on_epoch=cut_off)
            if device == "cuda":
                _, found = run(config, few, "cuda", out=out, resume=True)
        if device == "cpu":
            _, found = run(config, few, "cpu", out=out, resume=True)
        assert_same(whole, found)
        loaded, _ = vm.load_run(out)
        assert all(p.device.type == "cpu" for p in loaded.parameters())


def torchvisions():
    return pytest.importorskip("torchvision").models.resnet18(num_classes=10)


def timms():
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=16, num_classes=10, depth=1)


TEACHERS = {
    "vitmini": (8, lambda: vm.create_model("vit_digits", in_channels=3, **TINY)),
    "baseline": (8, lambda: vm.create_baseline("resnet_mini", stages=(1,), image_size=8)),
    "torchvision": (8, torchvisions),
    "timm": (16, timms),
}


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_comes_to_the_students_device(few, name, kind):
    few = dataclasses.replace(
        few,
        train_images=few.train_images.expand(-1, 3, -1, -1),
        test_images=few.test_images.expand(-1, 3, -1, -1),
        mean=few.mean * 3,
        std=few.std * 3,
    )
    torch.manual_seed(1)
    size, build = TEACHERS[name]
    network = build()
    teacher = vm.Teacher(network.eval(), (0.4,) * 3, (0.2,) * 3, image_size=size)
    config = dataclasses.replace(
        SHORT, distill=kind, mixup=0.5, label_smoothing=0.1, epochs=1,
        model_options=TINY | {"distilled": True},
    )  # fmt: skip
    _, expected = run(config, few, "cpu", teacher=teacher)
    with pretended_cuda():
        student, found = run(config, few, "cuda", teacher=teacher)
        heads = vm.evaluate_heads(student, few)
    assert_same(expected, found)
    assert set(heads) >= {"class", "distil"}
    assert all(p.device.type == "cpu" for p in teacher.parameters()), "it stays where it was"


def test_what_is_timed_runs_on_the_device(monkeypatch):
    ran, step = [], throughput.train_step

    def turn(ways, *args, **kwargs):
        ran.extend(way() for way in ways.values())
        return {name: 1.0 for name in ways}

    def turns(ways, *args):
        return {name: [time] for name, time in turn(ways).items()}

    def watched(trainer, *args):
        ran.append(step(trainer, *args))
        assert trainer.device == CUDA

    monkeypatch.setattr(throughput, "measure_time", turn)
    monkeypatch.setattr(throughput, "measure_turns", turns)
    monkeypatch.setattr(throughput, "train_step", watched)
    with pretended_cuda():
        rate = throughput.matrix_rate("cuda", torch.bfloat16, 32)
        config = vm.get_config("vit_tiny_patch16_224", image_size=32, depth=1)
        throughput.compare_steps(config, SHORT, "cuda", steps=1, names=("vitmini",))
    product, many, loss, nothing = ran  # a product, and as many as take a tenth of a second
    assert isinstance(product, OnCuda) and isinstance(loss, OnCuda) and many is nothing is None
    assert rate == pytest.approx(100 * 2 * 32**3 / 0.001)  # a hundred in what a turn says, 1 ms


# What looks into a model, and what a person calls ------------------------------------------------


def test_what_looks_into_a_model_works_where_it_lies():
    torch.manual_seed(0)
    for options in ({}, {"pos_embed": "relative"}, {"distilled": True, "pos_embed": "learned2d"}):
        model = vm.create_model("vit_cifar_tiny", depth=2, **options).eval()
        images = torch.randn(3, 3, 32, 32)
        looks = {
            "maps": lambda m, x: vm.attention_maps(m, x),
            "distance": lambda m, x: vm.measure_attention_distance(m, x),
            "distances": lambda m, x: vm.attention_distance(
                vm.attention_maps(m, x), (8, 8), 4, m.num_prefix_tokens
            ),
            "rollout": lambda m, x: vm.attention_rollout(vm.attention_maps(m, x)),
            "tokens": lambda m, x: vm.layer_tokens(m, x),
            "resized": lambda m, x: m.resized((48, 32))(torch.nn.functional.pad(x, (0, 0, 8, 8))),
        }
        expected = {name: look(model, images) for name, look in looks.items()}
        with pretended_cuda():
            moved = model.to("cuda")
            for name, look in looks.items():
                found = look(moved, images.to("cuda"))
                assert found.device == CUDA, name
                assert torch.allclose(found.cpu(), expected[name], atol=1e-5), name


def test_a_person_trains_evaluates_and_predicts_on_the_device(tmp_path, capsys):
    from PIL import Image

    run_folder, picture = str(tmp_path / "run"), str(tmp_path / "a.png")
    Image.new("L", (8, 8), 90).save(picture)
    commands = (
        ["train", "--recipe", "digits", "--epochs", "2", "--out", run_folder],
        ["evaluate", run_folder],
        ["predict", run_folder, picture],
    )
    for command in commands:
        with pretended_cuda():
            assert main([*command, "--device", "cuda"]) == 0
        on_device = capsys.readouterr().out
        if command[0] != "train":
            assert main([*command, "--device", "cpu"]) == 0
            seconds = r" in [\d.]+ s"
            on_cpu = capsys.readouterr().out
            assert re.sub(seconds, "", on_cpu) == re.sub(seconds, "", on_device)


# The speed run and its start are processes of their own, and equal FLOPs on digits are many epochs.
# A part of an experiment is in the whole.
ELSEWHERE = {"startup", "speedrun", "train-cifar10", "data-hunger-compute"}
HERE = [n for n in gpu.EXPERIMENTS if n not in ELSEWHERE and not re.search(r"-(\d|teachers)$", n)]


@pytest.mark.parametrize("name", HERE)
def test_an_experiment_runs_on_the_device(name):
    with pretended_cuda():
        result = EXPERIMENTS[name](Profile("ci", "cuda"))
    assert result["device"] == "Pretended GPU" and result["metrics"]
    assert RAN.total() > 20, "measured on the CPU"
