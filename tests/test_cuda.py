"""What only a CUDA device can show: every preset, every option of training, in 16 bits, compiled.

`make gpu PART=correctness` runs these; without a device all of them are skipped.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util

import pytest
import torch

import vitmini as vm
from vitmini.optim import build_trainer, choose_precision
from vitmini.recipes import RECIPES
from vitmini.runs import load_run
from vitmini.train import (
    batch_maker,
    build_model,
    build_teach,
    prepare_batch,
    train_epoch,
    train_step,
)

CUDA = torch.cuda.is_available()
pytestmark = pytest.mark.skipif(not CUDA, reason="needs a CUDA device, PyTorch finds none")
DEVICE = "cuda"
SHORT = vm.TrainConfig(epochs=3, warmup=1, batch_size=128, learning_rate=3e-3)
TINY = {"depth": 2, "dim": 32, "num_heads": 2, "mlp_ratio": 2.0}


@pytest.fixture(autouse=True)
def clean():
    torch.compiler.reset()
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def few():
    return made(384)


def made(count: int) -> vm.ImageData:
    """Pictures that can be learned and need no package: a class is a place that is bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count + 100) % 10
    images = torch.randint(0, 60, (count + 100, 1, 8, 8), generator=generator)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, label // 4 * 2 : label // 4 * 2 + 3, label % 4 * 2 : label % 4 * 2 + 2] += 150
    images = images.clamp(0, 255).to(torch.uint8)
    parts = images[:count], labels[:count], images[count:], labels[count:]
    return vm.ImageData("made", *parts, tuple("abcdefghij"), (0.2,), (0.25,))


def tiny(**more):
    torch.manual_seed(0)
    return vm.create_model("vit_digits", **TINY | more).to(DEVICE)


def error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    ours, reference = (t.detach().double().cpu() for t in (ours, reference))
    return float((ours - reference).norm() / reference.norm())


COMPILED = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_cifar_tiny")


# Models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", vm.list_models())
def test_every_preset_goes_forward_and_back(name, dtype, compiled):
    """Logits near those in float32, and a finite gradient for every parameter."""
    config = vm.get_config(name)
    if compiled and (name not in COMPILED or dtype != choose_precision("auto", DEVICE)):
        pytest.skip("compiled alike: a smaller preset, or the device's own type, stands for it")
    torch.manual_seed(0)
    with torch.device(DEVICE):
        model = vm.ViT(config).eval()
    for head in (model.head, *([model.head_dist] if config.distilled else [])):
        torch.nn.init.normal_(head.weight, std=0.02)  # a zero head would hide everything
    size = config.image_size
    images = torch.randn(2, config.in_channels, size, size, device=DEVICE)
    forward = torch.compile(model, dynamic=False) if compiled else model
    with torch.no_grad():
        reference = model(images)
    with torch.autocast(DEVICE, dtype):
        logits = forward(images)
    assert error(logits, reference) < 3e-2
    loss = torch.nn.functional.cross_entropy(
        logits.float(), torch.zeros(2, dtype=torch.long, device=DEVICE)
    )
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("pos_embed", ["learned", "learned2d", "sincos2d", "relative", "none"])
def test_a_device_computes_what_the_cpu_computes(pos_embed):
    torch.manual_seed(0)
    model = vm.create_model("vit_cifar", depth=3, pos_embed=pos_embed).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        logits = model.to(DEVICE)(images.to(DEVICE))
    assert error(logits, expected) < 1e-4


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm is not installed")
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_224"])
def test_timm_gives_the_same_logits_and_gradients(name):
    import timm

    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False).to(DEVICE).eval()
    ours = vm.from_timm(theirs).to(DEVICE).eval()
    images = torch.randn(2, 3, 224, 224, device=DEVICE)
    a, b = ours(images), theirs(images)
    assert error(a, b) < 1e-4
    a.square().mean().backward()
    b.square().mean().backward()
    grads = dict(theirs.named_parameters())
    for key, parameter in ours.named_parameters():
        assert error(parameter.grad, grads[key].grad) < 1e-2, key
    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast(DEVICE, dtype):
            assert error(ours(images), theirs(images)) < 1e-2


# Training ----------------------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.05},
    "muon": {"optimizer": "muon"},
    "ema": {"ema": 0.9},
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "float16-muon": {"precision": "float16", "optimizer": "muon"},
    "accumulate": {"accumulate": 3},
    "affine": {"degrees": 5.0, "translate": 0.05, "scale": 0.05, "shear": 5.0},
    "images": {"crop": 1, "rand_ops": 1, "rand_magnitude": 3, "jitter": 0.2},
    "trivial": {"trivial": True},
    "mixing": {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
    "erasing": {"erasing": 0.25, "resized_crop": 0.8, "repeats": 2},
    "drop_path": {"model_options": {"drop_path": 0.1}},
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("more", OPTIONS.values(), ids=OPTIONS)
def test_every_option_learns(few, more, compiled):
    config = dataclasses.replace(SHORT, epochs=12, compile=compiled, **more)
    history = vm.train(tiny(**config.model_options), few, config)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["test_accuracy"] > (0.15 if compiled else 0.2)


@pytest.mark.parametrize("option", ["plain", "ema", "float16-muon", "drop_path", "accumulate"])
def test_a_model_that_is_compiled_by_blocks_learns(few, option):
    config = dataclasses.replace(SHORT, epochs=12, compile="blocks", **OPTIONS[option])
    model = tiny(**config.model_options)
    history = vm.train(model, few, config)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["test_accuracy"] > 0.15


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("option", ["plain", "muon", "ema", "float16", "float16-muon", "mixing"])
def test_a_run_that_was_cut_off_goes_on(few, tmp_path, option, compiled):
    """Its losses are those of an unbroken run up to what a device rounds from run to run."""
    config = dataclasses.replace(SHORT, compile=compiled, **OPTIONS[option])

    def cut_off(record):
        if record["epoch"] == 2:
            raise InterruptedError

    whole = vm.train(tiny(), few, config, tmp_path / "whole")
    with pytest.raises(InterruptedError):
        vm.train(tiny(), few, config, tmp_path / "parts", on_epoch=cut_off)
    parts = vm.train(tiny(depth=2), few, config, tmp_path / "parts", resume=True)
    assert [r["epoch"] for r in parts] == [1, 2, 3]
    for a, b in zip(whole, parts, strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.05)
    loaded, _ = load_run(tmp_path / "parts")
    assert vm.evaluate(loaded.to(DEVICE), few.to(DEVICE))["accuracy"] == pytest.approx(
        parts[-1]["test_accuracy"], abs=0.021
    )


def test_a_run_of_the_gpu_goes_on_on_the_cpu(few, tmp_path):
    config = dataclasses.replace(SHORT, optimizer="muon", ema=0.9, precision="float32")

    def cut_off(record):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        vm.train(tiny(), few, config, tmp_path, on_epoch=cut_off)
    history = vm.train(tiny().cpu(), few, config, tmp_path, resume=True)
    assert len(history) == 3 and history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=name + "-compiled" * bool(recipe.compile))
        for name, recipe in RECIPES.items()
        if recipe.data == "cifar10"
    ],
)
def test_cifar_recipes_take_a_step(name):
    config = dataclasses.replace(RECIPES[name], batch_size=64)
    if config.model in vm.list_baselines():
        pytest.importorskip("torchvision")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (256, 3, 32, 32), generator=generator).to(torch.uint8)
    labels = torch.randint(10, (256,), generator=generator)
    sizes = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    data = vm.ImageData("made", images, labels, images[:9], labels[:9], tuple("abcdefghij"), *sizes)
    trainer = build_trainer(build_model(config, data).to(DEVICE), config)
    own = torch.Generator(DEVICE).manual_seed(0)
    ids = torch.arange(256, device=DEVICE)
    teach = None
    if config.distill != "none":
        teacher = vm.Teacher(vm.create_model("vit_cifar_mini"), data.mean, data.std)
        teach = build_teach(teacher, data, trainer)
    record = train_epoch(trainer, data.to(DEVICE), ids, config, 1, own, teach=teach)
    assert 1.5 < record["train_loss"] < 4


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["resnet_mini", "hybrid_mini"])
def test_baselines_learn_and_teach(few, tmp_path, name, compiled):
    pytest.importorskip("torchvision")
    options = {"stages": (1,)} | ({} if name == "resnet_mini" else TINY)
    quick = dataclasses.replace(SHORT, batch_size=32, epochs=12, compile=compiled)
    config = dataclasses.replace(quick, model=name, model_options=options, ema=0.8)
    torch.manual_seed(0)
    own = build_model(config, few).to(DEVICE)
    history = vm.train(own, few, config, tmp_path / "run")
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert history[-1]["test_accuracy"] > 0.2
    teacher = vm.load_teacher(tmp_path / "run")
    before = teacher.identity()
    lots = torch.randint(10, few.train_labels.shape, generator=torch.Generator().manual_seed(0))
    blind = dataclasses.replace(few, train_labels=lots)  # only the teacher knows
    config = dataclasses.replace(quick, mixup=0.5, distill="soft", distill_weight=0.9)
    student = tiny(distilled=True)
    vm.train(student, blind, config, tmp_path / "student", teacher=teacher)
    assert vm.evaluate_heads(student, few)["distil"] > 0.2
    assert teacher.identity() == before and next(teacher.parameters()).device.type == "cpu"


def test_a_step_with_a_teacher_never_waits_for_the_device(few):
    teacher = vm.Teacher(tiny(), (0.3,), (0.4,))
    config = dataclasses.replace(SHORT, precision="bfloat16", distill="soft", label_smoothing=0.1)
    trainer, data = build_trainer(tiny(distilled=True), config), few.to(DEVICE)
    teach = build_teach(teacher, data, trainer)
    images, labels = data.normalize(data.train_images[:64]), data.train_labels[:64]
    for _ in range(3):
        train_step(trainer, images, labels, config, teach)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(trainer, images, labels, config, teach)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_never_waits_for_the_device(few):
    """PyTorch itself reports what would make the host wait."""
    config = dataclasses.replace(
        SHORT, precision="bfloat16", optimizer="muon", ema=0.9, accumulate=2, crop=1, flip=True,
        rand_ops=1, jitter=0.2, erasing=0.2, mixup=0.8, cutmix=1.0, label_smoothing=0.1,
    )  # fmt: skip
    trainer, data = build_trainer(tiny(), config), few.to(DEVICE)
    ids, generator = torch.arange(128, device=DEVICE), torch.Generator(DEVICE).manual_seed(0)
    for _ in range(3):  # the first steps make what later ones have
        train_step(
            trainer,
            *prepare_batch(data, data.train_images[ids], data.train_labels[ids], config, generator),
            config,
        )
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(
            trainer,
            *prepare_batch(data, data.train_images[ids], data.train_labels[ids], config, generator),
            config,
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_compiled_images_are_the_same_images(few):
    config = dataclasses.replace(SHORT, crop=1, flip=True, rand_ops=2, cutmix=1.0, compile=True)
    trainer, data = build_trainer(tiny(), config), few.to(DEVICE)
    make, ids = batch_maker(trainer), torch.arange(128, device=DEVICE)
    assert trainer.compiled and make is not prepare_batch
    batch = data.train_images[ids], data.train_labels[ids]
    for seed in range(3):
        a, b = (
            way(data, *batch, config, torch.Generator(DEVICE).manual_seed(seed))
            for way in (make, prepare_batch)
        )
        step = 1 / 255 / data.std[0]  # floor() may fall to the other side of a rounding error
        off = (a[0] - b[0]).abs()
        assert off.max() < 3 * step and (off > 1e-4).float().mean() < 0.01
        assert torch.allclose(a[1], b[1], atol=1e-6)


def test_the_same_draws_on_any_number_of_calls(few):
    data, ids = few.to(DEVICE), torch.arange(64, device=DEVICE)
    config = dataclasses.replace(SHORT, crop=1, flip=True, rand_ops=1, erasing=0.5, mixup=0.5)
    first, second = (
        prepare_batch(
            data,
            data.train_images[ids],
            data.train_labels[ids],
            config,
            torch.Generator(DEVICE).manual_seed(3),
        )
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


# What goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_loss_that_is_not_finite_stops_the_run(few, precision):
    config = dataclasses.replace(SHORT, precision=precision, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"is not finite from step \d+ of epoch 1"):
        vm.train(tiny(), few, config)


def test_too_little_memory_names_a_size_that_fits(few):
    """PyTorch is allowed 2 GiB, and the batch needs more."""
    model = vm.create_model("vit_base_patch16_224", image_size=8, patch_size=1, in_channels=1,
                            num_classes=10).to(DEVICE)  # fmt: skip
    _, total = torch.cuda.mem_get_info()
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + 3 * 2**30) / total))
    try:
        config = dataclasses.replace(SHORT, batch_size=320, epochs=1, precision="float32")
        with pytest.raises(MemoryError, match=r"(\d+) do: set accumulate=\d+"):
            vm.train(model, few, config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("how", ["float32", "bfloat16", "float16", "autocast", "compiled"])
def test_attention_maps_of_the_devices_kernels_are_those_of_the_cpu(how):
    torch.manual_seed(0)
    for options in ({}, {"pos_embed": "relative"}, {"distilled": True}):
        model = vm.create_model("vit_cifar_tiny", depth=3, **options).eval()
        images = torch.randn(4, 3, 32, 32)
        expected = vm.attention_maps(model, images)
        distance = vm.measure_attention_distance(model, images)
        model = model.to(DEVICE, {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(how))
        if how == "compiled":
            model = torch.compile(model)
            with torch.no_grad():
                model(images.to(DEVICE))
        with torch.autocast(DEVICE, torch.bfloat16, enabled=how == "autocast"):
            maps = vm.attention_maps(model, images)  # images are moved
            measured = vm.measure_attention_distance(model, images)
        assert maps.dtype == torch.float32 and maps.device.type == DEVICE
        assert (maps.cpu() - expected).abs().max() < (
            1e-4 if how in ("float32", "compiled") else 1e-2
        )
        assert (measured.cpu() - distance).abs().max() < 0.2


def test_one_layers_maps_need_the_memory_of_one_layer():
    model = vm.create_model("vit_tiny_patch16_224", image_size=384).to(DEVICE).eval()
    images = torch.randn(8, 3, 384, 384, device=DEVICE)
    vm.attention_maps(model, images[:1], 0)
    layer = 8 * 3 * 577 * 577 * 4
    for look, layers in (
        (lambda: vm.attention_maps(model, images, -1), 5),
        (lambda: vm.measure_attention_distance(model, images, batch_size=8), 6),
    ):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        look()
        assert torch.cuda.max_memory_allocated() - before < layers * layer, "12 layers were kept"


def test_a_model_on_the_device_is_resized_there():
    model = vm.create_model("vit_cifar_tiny", pos_embed="relative", depth=2).to(DEVICE).eval()
    other = model.resized((48, 32))
    assert all(t.device.type == DEVICE for t in other.state_dict().values())
    assert other(torch.randn(2, 3, 48, 32, device=DEVICE)).shape == (2, 10)
