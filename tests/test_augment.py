"""Augmentations: each against torchvision's of the same name, on the same parameters."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torchvision.transforms.functional as TF
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import (
    AutoAugment,
    AutoAugmentPolicy,
    RandAugment,
    TrivialAugmentWide,
    _apply_op,
)

import vitmini as vm
from vitmini import augment
from vitmini.augment import OPERATIONS

PHOTO = vm.load_photo("flower", 48)


def batch(count=6, channels=3, height=32, width=32, seed=0):
    """Patches of a photograph, and noise: smooth parts, flat parts, edges."""
    generator = torch.Generator().manual_seed(seed)
    tops = torch.randint(48 - height + 1, (count,), generator=generator) if height <= 48 else None
    images = torch.stack([PHOTO[:, t : t + height, :width] for t in tops])
    images[0] = torch.randint(256, images[0].shape, generator=generator, dtype=torch.uint8)
    images[1] = 77  # nothing to stretch or equalise
    return images if channels == 3 else images[:, :1]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Operations ----------------------------------------------------------------------------------

STRENGTHS = {
    "ShearX": (0.3, -0.17, 0.99),
    "ShearY": (0.3, -0.17, -0.99),
    "TranslateX": (3.0, -7.9, 31.0),
    "TranslateY": (3.0, -7.9, 31.0),
    "Rotate": (30.0, -12.5, 135.0),
    "Brightness": (0.9, -0.3, -0.99),
    "Color": (0.9, -0.3, -0.99),
    "Contrast": (0.9, -0.3, -0.99),
    "Sharpness": (0.9, -0.3, -0.99),
    "Posterize": (8.0, 4.0, 2.0),
    "Solarize": (255.0, 128.0, 0.0),
}


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_torchvisions(name, size, channels, bilinear):
    images = batch(6, channels, *size)
    for strength in STRENGTHS.get(name, (0.0,)):
        ops = torch.full((6,), OPERATIONS.index(name))
        ours = augment.apply_operations(
            images.float(), ops, torch.full((6,), strength), bilinear=bilinear
        )
        mode = InterpolationMode.BILINEAR if bilinear else InterpolationMode.NEAREST
        theirs = _apply_op(images, name, strength, mode, None).float()
        assert torch.equal(ours, ours.round()) and ours.min() >= 0 and ours.max() <= 255
        moved, blended = name in OPERATIONS[1:6], name in OPERATIONS[6:10]
        difference = (ours - theirs).abs()
        wrong = (difference > (1 if moved and bilinear else 0)).float().mean()
        assert wrong <= (0.05 if blended else 0.01 if moved else 0), (strength, wrong)
        assert moved or difference.max() <= 1  # a value that lies between two whole numbers


def degenerate(channels, height, width):
    """What a stretch, a histogram or a mean may stumble over."""
    shape = (channels, height, width)
    two = torch.rand(shape, generator=generator()) < 0.5
    near = torch.randint(100, 103, shape, generator=generator())
    flat = [torch.full(shape, value) for value in (0, 77, 255)]
    return torch.stack([*flat, two * 255, near]).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (8, 8), (40, 24), (224, 224)])
def test_operations_on_flat_and_tiny_images_are_torchvisions(size, channels):
    images = degenerate(channels, *size)
    for name in OPERATIONS:
        strength = STRENGTHS.get(name, (0.0,))[-1]
        ops = torch.full((len(images),), OPERATIONS.index(name))
        ours = augment.apply_operations(images.float(), ops, torch.full((len(ops),), strength))
        theirs = _apply_op(images, name, strength, InterpolationMode.NEAREST, None)
        assert torch.equal(ours, theirs.float()), name
        alone = augment.apply_operations(images[:1].float(), ops[:1], torch.tensor([strength]))
        assert torch.equal(alone, ours[:1]), name  # a batch of one


def test_every_image_of_a_batch_gets_its_own_operation():
    images = batch(len(OPERATIONS))
    ops = torch.arange(len(OPERATIONS))
    strengths = torch.tensor([STRENGTHS.get(name, (0.0,))[0] for name in OPERATIONS])
    ours = augment.apply_operations(images.float(), ops, strengths)
    for i, (name, strength) in enumerate(zip(OPERATIONS, strengths.tolist(), strict=True)):
        theirs = _apply_op(images[i], name, strength, InterpolationMode.NEAREST, None).float()
        assert (ours[i] != theirs).float().mean() <= 0.08, name


class Recorder:
    """Stands in for `apply_operations` and keeps what it was asked for."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(augment, "apply_operations", self)

    def __call__(self, images, ops, strengths, bilinear):
        self.calls.append((ops, strengths))
        return images


@pytest.mark.parametrize("magnitude", [0, 9, 14, 30])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_rand_augment_has_torchvisions_operations_and_strengths(monkeypatch, magnitude, size):
    recorder = Recorder(monkeypatch)
    images = torch.zeros(4000, 1, *size)
    augment.rand_augment(images, num_ops=2, magnitude=magnitude, generator=generator())
    assert len(recorder.calls) == 2 and not torch.equal(*(ops for ops, _ in recorder.calls))
    space = RandAugment()._augmentation_space(31, size)
    assert tuple(space) == OPERATIONS[:14]
    for ops, strengths in recorder.calls:
        counts = ops.bincount(minlength=14)
        assert counts.min() > 4000 / 14 * 0.7 and counts.max() < 4000 / 14 * 1.3
        for i, (values, signed) in enumerate(space.values()):
            wanted = values[magnitude].item() if values.ndim else 0.0
            seen = strengths[ops == i]
            assert torch.allclose(seen.abs(), torch.tensor(float(abs(wanted))), atol=1e-4), (
                OPERATIONS[i]
            )
            if signed and wanted:
                assert 0.35 < (seen < 0).float().mean() < 0.65
            else:
                assert (seen >= 0).all()


def test_trivial_augment_has_torchvisions_operations_and_strengths(monkeypatch):
    recorder = Recorder(monkeypatch)
    augment.trivial_augment(torch.zeros(20000, 1, 8, 8), generator=generator())
    [(ops, strengths)] = recorder.calls
    for i, (values, signed) in enumerate(TrivialAugmentWide()._augmentation_space(31).values()):
        wanted = set((values.abs() if values.ndim else torch.zeros(1)).float().tolist())
        seen = strengths[ops == i]
        found = {min(wanted, key=lambda w, v=v: abs(w - v)) for v in seen.abs().tolist()}
        assert all(min(abs(v - w) for w in wanted) < 1e-3 for v in seen.abs().tolist())
        assert len(found) > 0.9 * len(wanted), OPERATIONS[i]
        assert signed == bool((seen < 0).any()), OPERATIONS[i]


def test_rand_and_trivial_augment_draw_from_fourteen_operations_and_never_invert(monkeypatch):
    """The draws themselves, in their order: a run of before AutoAugment came repeats."""
    recorder = Recorder(monkeypatch)
    images = torch.zeros(500, 1, 8, 8)
    augment.rand_augment(images, 2, generator=generator(3))
    augment.trivial_augment(images, generator=generator(3))
    draws = generator(3)
    for ops, strengths in recorder.calls[:2]:
        assert torch.equal(ops, torch.randint(14, (500,), generator=draws))
        sign = torch.randint(2, (500,), generator=draws) * 2 - 1
        signed = (ops >= 1) & (ops <= 9)
        assert torch.equal(strengths[signed].sign().long(), sign[signed])
    ops, _ = recorder.calls[2]
    assert torch.equal(ops, torch.randint(14, (500,), generator=generator(3)))
    assert OPERATIONS[14:] == ("Invert",)


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_auto_augment_is_torchvisions_on_the_same_draws(monkeypatch, size, bilinear):
    count = 300
    images = batch(6, 3, *size)[[0, 2, 3, 4, 5]].repeat(count // 5, 1, 1, 1)
    ours = augment.auto_augment(images, bilinear, generator())
    draws = generator()
    pair = torch.randint(25, (count,), generator=draws)
    u = torch.rand(count, 2, generator=draws)
    signs = torch.stack([torch.randint(2, (count,), generator=draws) for _ in range(2)], dim=1)
    assert set(pair.tolist()) == set(range(25))
    mode = InterpolationMode.BILINEAR if bilinear else InterpolationMode.NEAREST
    theirs = AutoAugment(AutoAugmentPolicy.CIFAR10, mode)
    drawn = iter(zip(pair.tolist(), u, signs, strict=True))
    monkeypatch.setattr(theirs, "get_params", lambda _: next(drawn))
    different = []
    for i, image in enumerate(images):
        difference = (ours[i] - theirs(image).float()).abs()
        different.append((difference > 0).float().mean().item())
        # a last digit that was rounded otherwise may be stretched by Equalize or AutoContrast
        assert (difference > 1).float().mean() < 0.1, (int(pair[i]), u[i])
    exact = sum(d == 0 for d in different) / count
    assert exact > (0.5 if bilinear else 0.7) and sum(different) / count < 0.03


def test_auto_augment_draws_pairs_chances_and_signs_for_each_image(monkeypatch):
    recorder = Recorder(monkeypatch)
    augment.auto_augment(torch.zeros(50_000, 1, 32, 32), generator=generator())
    policies = AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    space = AutoAugment()._augmentation_space(10, (32, 32))
    assert set(space) == set(OPERATIONS[1:])
    for step, (ops, strengths) in enumerate(recorder.calls):
        for name, (values, signed) in space.items():
            chance = sum(pair[step][1] for pair in policies if pair[step][0] == name) / 25
            seen = strengths[ops == OPERATIONS.index(name)]
            assert abs(len(seen) / 50_000 - chance) < 0.005, name
            used = {
                float(values[p[step][2]]) for p in policies if p[step][0] == name and values.ndim
            }
            for value in seen.abs().unique().tolist():
                assert min(abs(value - u) for u in used or {0.0}) < 1e-4, name
            if signed and max(used, default=0) > 0:
                assert 0.4 < (seen[seen != 0] < 0).float().mean() < 0.6, name
    first, second = (ops for ops, _ in recorder.calls)
    assert ((first == 0) & (second == 0)).any() and ((first > 0) & (second > 0)).any()


def test_no_operation_leaves_images_alone():
    images = batch()
    assert torch.equal(augment.rand_augment(images, 0), images.float())


# Crops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_padded_crops_are_torchvisions(mode, dtype):
    images = batch(6, 3, 24, 32).to(dtype)
    top, left = torch.tensor([0, 8, 4, 1, 7, 3]), torch.tensor([8, 0, 4, 2, 2, 5])
    ours = augment.crop_at(images, top, left, 4, mode)
    padded = TF.pad(images, [4, 4, 4, 4], padding_mode=mode)
    for i in range(6):
        assert torch.equal(ours[i], TF.crop(padded[i], int(top[i]), int(left[i]), 24, 32))
    assert ours.dtype == dtype


def test_random_crops_reach_every_place_equally():
    """An image whose pixels say where they are tells where the window was."""
    H = W = 6
    places = torch.arange(1, H * W + 1).view(1, 1, H, W).expand(8100, -1, -1, -1).float()
    out = augment.random_crop(places, 2, generator=generator())
    corner = out[:, 0, 2, 2]  # always inside of the picture
    counts = corner.long().bincount(minlength=H * W + 1)
    assert (counts > 0).sum() == 25 and counts[counts > 0].min() > 8100 / 25 * 0.7


def test_resized_crops_are_torchvisions():
    images = batch(5, 3, 32, 40).float()
    boxes = [(0, 0, 32, 40), (3, 5, 10, 20), (31, 39, 1, 1), (7, 0, 25, 3), (0, 11, 16, 16)]
    for size in ((32, 40), (48, 20)):
        top, left, height, width = torch.tensor(boxes).T.float()
        ours = augment.resized_crop(images, top, left, height, width, size)
        for i, box in enumerate(boxes):
            theirs = TF.resized_crop(images[i], *box, list(size), antialias=False)
            assert torch.allclose(ours[i], theirs, atol=2e-3), (box, size)


def test_random_resized_crops_stay_inside_and_have_the_right_areas(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        augment, "resized_crop", lambda images, *box: seen.update(box=box) or images
    )
    augment.random_resized_crop(
        torch.zeros(20000, 1, 64, 64), 32, (0.2, 0.6), (0.5, 2.0), generator()
    )
    top, left, height, width, size = seen["box"]
    assert size == (32, 32) and (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 64).all() and (left + width <= 64).all()
    area = height * width / 64**2
    assert area.min() > 0.17 and area.max() < 0.64 and abs(area.mean() - 0.4) < 0.01
    log_ratio = (width / height).log()
    assert log_ratio.abs().max() < math.log(2) + 0.06 and abs(log_ratio.mean()) < 0.02
    room = (left / (64 - width).clamp(min=1))[width < 50]
    assert abs(room.mean() - 0.5) < 0.02


# Colour and erasing -----------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_adjusted_as_torchvision_does(channels):
    images = batch(4, channels).float() / 255
    factors = torch.tensor([[0.5, 1.7, 1.0, 0.0], [1.2, 0.1, 1.0, 1.9], [0.0, 1.5, 1.0, 0.3]])
    ours = augment.adjust_color(images * 255, *factors) / 255
    for i in range(4):
        theirs = TF.adjust_brightness(images[i], factors[0, i].item())
        theirs = TF.adjust_contrast(theirs, factors[1, i].item())
        theirs = TF.adjust_saturation(theirs, factors[2, i].item())
        assert torch.allclose(ours[i], theirs, atol=2e-4), i


def test_jitter_draws_each_factor_evenly_within_its_bound():
    images = torch.full((4000, 1, 2, 2), 100.0)
    out = augment.color_jitter(images, brightness=0.5, generator=generator())
    factors = out[:, 0, 0, 0] / 100
    assert 0.5 <= factors.min() < 0.51 and 1.49 < factors.max() <= 1.5
    assert abs(factors.mean() - 1) < 0.02
    assert torch.equal(augment.color_jitter(images), images)


@pytest.mark.parametrize("noise", [False, True])
def test_erasing_overwrites_one_rectangle_of_some_images(noise):
    images = torch.full((4000, 2, 24, 32), 7.0)
    out = augment.random_erasing(images, 0.25, (0.1, 0.3), (0.5, 2), noise, generator())
    changed = (out != 7).all(dim=1)  # (B, H, W), in both channels alike
    assert torch.equal(changed, (out != 7).any(dim=1))
    touched = changed.flatten(1).any(1)
    assert abs(touched.float().mean() - 0.25) < 0.03
    for mask in changed[touched][:50]:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all()
        assert 0.08 < box.numel() / (24 * 32) < 0.33
    values = out[out != 7]
    assert (abs(values.std() - 1) < 0.05) if noise else not values.any()


# Mixing -----------------------------------------------------------------------------------------


def mixed(count=8, **more):
    images = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 3, 16, 24)
    return images, augment.mix(images, torch.arange(count), count, **more)


def test_mixup_blends_images_and_targets_by_the_same_share():
    for seed in range(5):
        images, out = mixed(cutmix=0, generator=generator(seed))
        s = out.share
        assert 0 < s < 1
        assert torch.allclose(out.images, images * s + images.flip(0) * (1 - s))
        eye = torch.eye(8)
        assert torch.allclose(out.targets, eye * s + eye.flip(0) * (1 - s))


def test_cutmix_pastes_one_rectangle_and_counts_its_area():
    seen = []
    for seed in range(20):
        images, out = mixed(mixup=0, generator=generator(seed))
        pasted = (out.images != images)[:, 0]
        assert (pasted == pasted[0]).all()
        kept = 1 - pasted[0].float().mean()
        assert torch.allclose(out.share, kept)
        assert torch.allclose(out.targets.diagonal(), kept.expand(8))
        inside = out.images[pasted[:, None].expand_as(images)]
        assert not pasted.any() or torch.equal(inside.unique(), torch.arange(8.0))
        seen.append(kept.item())
    assert min(seen) < 0.5 and max(seen) > 0.85


def test_the_switch_chooses_for_the_whole_batch():
    kinds = []
    for seed in range(200):
        _, out = mixed(switch=0.3, generator=generator(seed))
        kinds.append(torch.equal(out.images, out.images.round()))  # CutMix makes no new values
    assert 0.2 < sum(kinds) / 200 < 0.42


def test_beta_has_the_right_mean_and_spread():
    for alpha in (0.2, 0.8, 1.0):
        draws = torch.stack(
            [augment._beta(alpha, generator(s), torch.device("cpu")) for s in range(2000)]
        )
        assert abs(draws.mean() - 0.5) < 0.03
        assert abs(draws.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_smoothed_targets_are_pytorchs():
    labels = torch.tensor([0, 3, 2])
    logits = torch.randn(3, 5, generator=generator())
    ours = torch.nn.functional.cross_entropy(logits, augment.one_hot(labels, 5, 0.1))
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert torch.allclose(ours, theirs)
    out = augment.mix(torch.zeros(3, 1, 2, 2), labels, 5, smoothing=0.1, generator=generator())
    assert torch.allclose(out.targets.sum(1), torch.ones(3)) and out.targets.min() > 0.019


def test_nothing_to_mix_is_the_batch_itself():
    images, out = mixed(mixup=0, cutmix=0)
    assert out.images is images and torch.equal(out.targets, torch.eye(8))


# Seeds, refusals -------- -----------------------------------------------------------------------


RANDOM = {
    "flip": lambda x, g: augment.random_flip(x, g),
    "affine": lambda x, g: augment.random_affine(x, 10, 0.1, 0.1, 5, g),
    "crop": lambda x, g: augment.random_crop(x, 3, generator=g),
    "resized crop": lambda x, g: augment.random_resized_crop(x, generator=g),
    "rand_augment": lambda x, g: augment.rand_augment(x.round(), generator=g),
    "trivial_augment": lambda x, g: augment.trivial_augment(x.round(), generator=g),
    "auto_augment": lambda x, g: augment.auto_augment(x.round(), generator=g),
    "jitter": lambda x, g: augment.color_jitter(x, 0.3, 0.3, 0.3, g),
    "erasing": lambda x, g: augment.random_erasing(x, generator=g),
}


@pytest.mark.parametrize("name", RANDOM)
def test_a_seed_repeats_what_it_did_and_images_differ(name):
    x = PHOTO[None, :, :32, :32].float().expand(16, -1, -1, -1).contiguous()
    before = x.clone()
    a, b = (RANDOM[name](x, generator(3)) for _ in range(2))
    other = RANDOM[name](x, generator(4))
    assert torch.equal(a, b) and not torch.equal(a, other)
    assert a.shape == x.shape and torch.equal(x, before)
    assert len(torch.unique(a.flatten(1), dim=0)) > (1 if name in ("flip", "erasing") else 6)


@pytest.mark.parametrize("name", RANDOM)
def test_the_layout_in_memory_does_not_matter(name):
    x = PHOTO[None, :, :32, :32].float().expand(4, -1, -1, -1)
    last = x.contiguous(memory_format=torch.channels_last)
    ours, theirs = (RANDOM[name](t, generator(3)) for t in (x.contiguous(), last))
    assert torch.allclose(ours, theirs, atol=1e-3) and ours.is_contiguous()


@pytest.mark.parametrize("name", RANDOM)
def test_the_type_of_the_pixels_does_not_matter(name):
    x = batch(4)[:, :, :24]
    if name == "erasing":
        with pytest.raises(ValueError, match="images must be float and normalised"):
            RANDOM[name](x, generator(3))
    ours = RANDOM[name](x.float(), generator(3))
    for dtype in (torch.uint8, torch.float64, torch.bfloat16):
        if name == "erasing" and dtype != torch.float64:
            continue  # noise of another type is other noise
        other = RANDOM[name](x.to(dtype), generator(3))
        wrong = (other.float() - ours).abs() > 1e-3
        assert wrong.float().mean() < (0.2 if name == "erasing" else 0.002), dtype
    alone = RANDOM[name](x[:1, :1].float(), generator(3))
    assert alone.shape == (1, 1, 24, 32) and alone.isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: augment.random_crop(x, 8, "reflect"), "padding must be below both sides"),
        (lambda x: augment.random_crop(x, -1), "padding must be an int of 0 or more, got -1"),
        (lambda x: augment.random_crop(x, 1, "wrap"), "mode must be"),
        (lambda x: augment.random_resized_crop(x, scale=(0.5, 0.1)), "scale must be"),
        (
            lambda x: augment.rand_augment(x, magnitude=31),
            "must be a number from 0 to 30",
        ),
        (lambda x: augment.rand_augment(x, num_ops=-1), "num_ops"),
        (lambda x: augment.color_jitter(x, contrast=-1), "contrast must be a number of 0 or more"),
        (lambda x: augment.random_erasing(x, 1.5), "probability must be"),
        (lambda x: augment.random_erasing(x, ratio=(0, 1)), "ratio must be"),
        (lambda x: augment.mix(x, torch.zeros(2).long(), 3, mixup=-1), "mixup must be"),
        (lambda x: augment.mix(x, torch.zeros(2).long(), 3, switch=2), "switch must be"),
        (lambda x: augment.mix(x, torch.zeros(2).long(), 3, smoothing=1), "smoothing must be"),
        (lambda x: augment.mix(x, torch.zeros(2).long(), 0), "num_classes must be"),
        (lambda x: augment.mix(x, torch.zeros(3).long(), 3), "labels must be one for each of 2"),
        (lambda x: augment.mix(x, torch.eye(2), 2), "labels must be int64"),
        (lambda x: augment.random_resized_crop(x, 1.5), "size must be"),
        (lambda x: augment.random_resized_crop(x, ratio=1), "ratio must be"),
        (lambda x: augment.random_erasing(x, scale=(0.1, math.inf)), "scale must be"),
    ],
)
def test_bad_settings_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize("value", ["1", None, math.nan, math.inf, -1, [1]])
def test_settings_that_are_no_numbers_are_named(value):
    x, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2).long()
    calls = {
        augment.random_affine: ("degrees", "translate", "scale", "shear"),
        augment.color_jitter: ("brightness", "contrast", "saturation"),
        augment.rand_augment: ("num_ops", "magnitude"),
        augment.random_erasing: ("probability", "scale", "ratio"),
        augment.random_resized_crop: ("scale", "ratio"),
        functools.partial(augment.random_crop, padding=1): ("padding",),
        functools.partial(augment.mix, labels=labels, num_classes=3): ("mixup", "cutmix", "switch"),
    }
    for call, names in calls.items():
        for name in names:
            with pytest.raises(ValueError, match=f"{name} must be"):
                call(x, **{name: value})


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_no_batch_of_images_is_refused(name):
    """One image would be taken for a batch of its channels, and each of them be changed alone."""
    for images in (torch.zeros(3, 24, 32), torch.zeros(24, 32)):
        with pytest.raises(ValueError, match="images must be a batch"):
            RANDOM[name](images, generator(0))
