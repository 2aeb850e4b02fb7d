"""Distillation: the losses by independent formulas, a teacher that never changes, two heads."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vitmini as vm
from vitmini.__main__ import main
from vitmini.distill import Teacher
from vitmini.optim import build_trainer
from vitmini.train import build_model, build_teach, train_step

B, K = 6, 5
SHORT = vm.TrainConfig(epochs=3, batch_size=32, warmup=1, distill="hard")


def logits(*seeds):
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [torch.randn(B, K, generator=g, dtype=torch.float64) * 3 for g in made]


# The losses --------------------------------------------------------------------------------------


def by_hand(student, teacher, labels, kind, temperature, weight):
    """Sums over images and classes, in plain Python."""
    first, second = student if isinstance(student, tuple) else (student, student)

    def probabilities(row, t):
        exps = [math.exp(v / t) for v in row]
        return [e / sum(exps) for e in exps]

    total = 0.0
    for i in range(B):
        p = probabilities(first[i].tolist(), 1.0)
        hot = labels[i].tolist() if labels.ndim == 2 else [float(k == labels[i]) for k in range(K)]
        own = -sum(h * math.log(q) for h, q in zip(hot, p, strict=True))
        taught = teacher[i].tolist()
        if kind == "hard":
            q = probabilities(second[i].tolist(), 1.0)
            term = -math.log(q[taught.index(max(taught))])
        else:
            q, t = (probabilities(r, temperature) for r in (second[i].tolist(), taught))
            term = sum(a * math.log(a / b) for a, b in zip(t, q, strict=True)) * temperature**2
        total += (1 - weight) * own + weight * term
    return total / B


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_loss_is_that_of_the_paper(kind, temperature, weight, two, mixed):
    a, b, teacher, c = logits(1, 2, 3, 4)
    labels = c.softmax(1) if mixed else torch.arange(B) % K
    student = (a, b) if two else a
    ours = vm.distillation_loss(student, teacher, labels, kind, temperature, weight)
    wanted = by_hand(student, teacher, labels, kind, temperature, weight)
    assert ours.item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_losss_gradient_is_that_of_finite_differences(kind):
    a, b, teacher = (x.requires_grad_() for x in logits(1, 2, 3))
    labels = torch.arange(B) % K
    loss = lambda x, y: vm.distillation_loss((x, y), teacher, labels, kind, 3.0, 0.3)  # noqa: E731
    assert torch.autograd.gradcheck(loss, (a, b))
    loss(a, b).backward()
    assert teacher.grad is None


def test_each_head_hears_its_own_teacher_alone():
    for kind in ("soft", "hard"):
        a, b, teacher = logits(1, 2, 3)
        a.requires_grad_()
        b.requires_grad_()
        vm.distillation_loss((a, b), teacher, torch.arange(B) % K, kind, 2.0, 0.25).backward()
        by_labels = (a.softmax(1) - F.one_hot(torch.arange(B) % K, K)).detach() / B
        assert torch.allclose(a.grad, 0.75 * by_labels, atol=1e-12)
        if kind == "soft":
            by_teacher = 2.0 * ((b / 2).softmax(1) - (teacher / 2).softmax(1)).detach() / B
        else:
            by_teacher = (b.softmax(1) - F.one_hot(teacher.argmax(1), K)).detach() / B
        assert torch.allclose(b.grad, 0.25 * by_teacher, atol=1e-12)


def test_the_square_of_the_temperature_keeps_the_gradients_size():
    sizes = {}
    for temperature in (1.0, 10.0, 100.0):
        a, teacher = (x / 3 for x in logits(1, 2))
        a.requires_grad_()
        vm.soft_term(a, teacher, temperature).backward()
        sizes[temperature] = a.grad.norm().item()
    assert sizes[100.0] == pytest.approx(sizes[10.0], rel=0.1) and sizes[100.0] > 0.3 * sizes[1.0]


def test_a_student_that_agrees_has_no_soft_loss():
    (a,) = logits(1)
    shifted = a + torch.arange(B, dtype=torch.float64)[:, None]  # the same probabilities
    assert vm.soft_term(shifted, a, 3.0).item() == pytest.approx(0, abs=1e-12)
    assert vm.soft_term(a, -a, 3.0) > 0.1


def test_deits_code_divides_by_the_classes_too():
    a, teacher = logits(1, 2)
    t = 3.0
    theirs = (  # losses.py, line by line
        F.kl_div(
            F.log_softmax(a / t, dim=1),
            F.log_softmax(teacher / t, dim=1),
            reduction="sum",
            log_target=True,
        )
        * (t * t)
        / a.numel()
    )
    ours = vm.soft_term_of_deits_code(a, teacher, t)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    assert torch.allclose(ours * K, vm.soft_term(a, teacher, t), rtol=1e-12)


def test_the_default_is_soft_at_temperature_three():
    a, teacher = logits(1, 2)
    labels = torch.zeros(B, dtype=torch.int64)
    ours = vm.distillation_loss(a, teacher, labels)
    assert ours == vm.distillation_loss(a, teacher, labels, "soft", 3.0, 0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "both"}, "kind must be one of soft, hard, got 'both'"),
        ({"weight": 1.5}, r"weight must be in \[0, 1\], got 1.5"),
        ({"weight": math.nan}, "weight must be"),
        ({"temperature": 0.0}, "temperature must be positive and finite, got 0.0"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"student_logits": torch.zeros(B, K + 1)}, "student_logits must be"),
        ({"student_logits": (torch.zeros(B, K), torch.zeros(B))}, "student_logits must be"),
        ({"student_logits": (torch.zeros(B, K),)}, "student_logits must be one tensor or two"),
        ({"labels": torch.zeros(B - 1, dtype=torch.int64)}, "labels must be"),
        ({"labels": torch.zeros(B, K + 1)}, "labels must be"),
        ({"weight": "0.5"}, r"weight must be in \[0, 1\], got '0.5'"),
        ({"temperature": None}, "temperature must be positive and finite, got None"),
        ({"kind": "hard", "temperature": math.nan}, "temperature must be"),
        ({"student_logits": None}, "student_logits must be"),
        ({"teacher_logits": [0.0]}, "student_logits must be .* and a list"),
        ({"labels": [0] * B}, r"labels must be \(B,\) or \(B, K\), got a list"),
        ({"labels": torch.zeros(B)}, "labels must be int64"),
        ({"labels": torch.zeros(B, K, dtype=torch.int64)}, "labels must be .*float"),
    ],
)
def test_what_the_loss_cannot_mean_is_refused(change, words):
    given = {"student_logits": torch.zeros(B, K), "teacher_logits": torch.zeros(B, K)}
    given["labels"] = torch.zeros(B, dtype=torch.int64)
    with pytest.raises(ValueError, match=words):
        vm.distillation_loss(**(given | change))


def test_the_soft_term_compares_no_other_shapes():
    """(B, 1) would be spread over the classes without a word."""
    for shape in ((B, 1), (1, K), (B, K, 1), (0, K)):
        with pytest.raises(ValueError, match="student_logits must be"):
            vm.soft_term(torch.zeros(B, K), torch.zeros(shape))
    with pytest.raises(ValueError, match="student_logits must be"):
        vm.soft_term(torch.zeros(0, K), torch.zeros(0, K))


@pytest.mark.parametrize("kind", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_16_bit_logits_is_computed_in_32(kind, dtype):
    a, b, teacher = (x.to(dtype) for x in logits(1, 2, 3))
    labels = torch.arange(B) % K
    ours = vm.distillation_loss((a, b), teacher, labels, kind)
    wanted = by_hand((a, b), teacher, labels, kind, 3.0, 0.5)
    assert ours.dtype == torch.float32 and ours.item() == pytest.approx(wanted, rel=1e-5)
    far = torch.tensor([[6e4, -6e4]]).to(dtype)  # their difference is no number of float16
    assert vm.distillation_loss(far, -far, labels[:1], kind).isfinite()


def test_a_class_that_the_teacher_rules_out_costs_nothing():
    a, teacher = logits(1, 2)
    ruled_out = torch.cat([teacher, torch.full((B, 1), -math.inf, dtype=torch.float64)], dim=1)
    wider = torch.cat([a, a[:, :1]], dim=1).requires_grad_()
    found = vm.soft_term(wider, ruled_out, 2.0)
    p, q = (teacher / 2).softmax(1), (wider / 2).log_softmax(1)[:, :K]
    assert found.item() == pytest.approx(4 * (p * (p.log() - q)).sum().item() / B, rel=1e-12)
    found.backward()
    assert wider.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_teacher_that_gives_no_numbers_teaches_nothing(kind):
    """In 16 bits a large activation can overflow; argmax takes NaN for the most probable class."""
    a, teacher = logits(1, 2)
    teacher[2, 3] = math.nan
    assert vm.distillation_loss(a, teacher, torch.arange(B) % K, kind).isnan()


# The teacher -------------------------------------------------------------------------------------


class MeanPixel(nn.Module):
    """Reads the mean of each channel, and nothing else."""

    def forward(self, images):
        self.size = tuple(images.shape[2:])
        return images.mean(dim=(2, 3))


def test_a_teacher_sees_raw_pixels_through_its_own_normalisation():
    raw = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.3, 0.2)
    images = vm.data.normalize(raw, mean, std)
    plain = Teacher(MeanPixel(), (0.0,) * 3, (1.0,) * 3)
    assert torch.allclose(plain(images, mean, std), raw.float().mean(dim=(2, 3)) / 255, atol=1e-6)
    own = Teacher(MeanPixel(), (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))
    wanted = vm.data.normalize(raw, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)).mean(dim=(2, 3))
    assert torch.allclose(own(images, mean, std), wanted, atol=1e-5)


def test_a_teacher_of_the_same_normalisation_sees_the_same_bytes():
    images = torch.randn(4, 3, 8, 8)
    mean, std = (0.2, 0.5, 0.7), (0.1, 0.3, 0.2)
    teacher = Teacher(nn.Flatten(), mean, std)
    assert torch.equal(teacher(images, mean, std), images.flatten(1))


def test_a_grey_picture_is_shown_to_a_teacher_of_colours():
    raw = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    images = vm.data.normalize(raw, (0.3,), (0.2,))
    seen = Teacher(MeanPixel(), (0.0, 0.1, 0.2), (1.0, 1.0, 1.0))(images, (0.3,), (0.2,))
    grey = raw.float().mean(dim=(2, 3)) / 255
    assert torch.allclose(seen, grey - torch.tensor([0.0, 0.1, 0.2]), atol=1e-6)
    with pytest.raises(ValueError, match="images must have 1 channels, as the teacher's"):
        Teacher(MeanPixel(), (0.0,), (1.0,))(torch.zeros(1, 3, 4, 4), (0.0,) * 3, (1.0,) * 3)


def test_a_teacher_sees_pictures_in_its_own_size():
    teacher = Teacher(MeanPixel(), (0.0,), (1.0,), image_size=(12, 16))
    flat = torch.full((2, 1, 8, 8), 0.25)
    assert torch.allclose(teacher(flat, (0.0,), (1.0,)), torch.full((2, 1), 0.25))
    assert teacher.model.size == (12, 16)
    listed = Teacher(MeanPixel(), (0.0,), (1.0,), image_size=[12, 16])  # as JSON has it
    assert listed.identity() == teacher.identity()
    assert torch.equal(
        Teacher(nn.Flatten(), (0.0,), (1.0,), 8)(flat, (0.0,), (1.0,)), flat[:, 0].flatten(1)
    )


def test_a_teacher_is_a_frozen_copy_in_evaluation_mode():
    given = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten()).train()
    teacher = Teacher(given, (0.0,), (1.0,))
    images = torch.randn(4, 1, 5, 5)
    before = teacher(images, (0.0,), (1.0,))
    given(torch.randn(8, 1, 5, 5) + 3)  # the given model goes on learning
    given[0].weight.data.zero_()
    teacher.train()
    nn.Sequential(teacher).train()
    assert torch.equal(teacher(images, (0.0,), (1.0,)), before) and not before.requires_grad
    assert given.training and all(p.requires_grad for p in given.parameters())
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((lambda x: x, (0.0,), (1.0,)), "model must be a torch.nn.Module, got function"),
        ((nn.Identity(), (0.0, 0.0), (1.0,)), "mean and std must be"),
        ((nn.Identity(), (0.0,), (0.0,)), "mean and std must be"),
        ((nn.Identity(), (), ()), "mean and std must be"),
        ((nn.Identity(), 0.5, 0.5), "mean and std must be a number a channel.*got 0.5 and 0.5"),
        ((nn.Identity(), ("a",), (1.0,)), "mean and std must be"),
        ((nn.Identity(), (math.nan,), (1.0,)), "mean and std must be"),
        ((nn.Identity(), (0.0,), (math.inf,)), "mean and std must be"),
        ((nn.Identity(), (0.0,), (1.0,), 0), "image_size must be a positive int or a pair"),
        ((nn.Identity(), (0.0,), (1.0,), "8"), "image_size must be"),
        ((nn.Identity(), (0.0,), (1.0,), (8,)), "image_size must be"),
    ],
)
def test_what_cannot_teach_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Teacher(*arguments)


def test_a_teacher_that_gives_no_logits_is_refused():
    with pytest.raises(ValueError, match="one tensor of logits"):
        Teacher(nn.Identity(), (0.0,), (1.0,))(torch.zeros(1, 1, 2, 2), (0.0,), (1.0,))


def test_a_teachers_identity_is_that_of_what_it_teaches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    same = Teacher(copy.deepcopy(model), (0.5,), (1.0,)).identity()
    assert Teacher(model, (0.5,), (1.0,)).identity() == same and same["model"] == "Sequential"
    assert len(same["sha256"]) == 64 and json.loads(json.dumps(same)) == same
    others = [Teacher(model, (0.4,), (1.0,)), Teacher(model, (0.5,), (1.0,), 8)]
    model[2].running_mean += 1
    others.append(Teacher(model, (0.5,), (1.0,)))
    assert len({t.identity()["sha256"] for t in others} | {same["sha256"]}) == 4


@pytest.mark.parametrize(
    ("build", "one", "other"),
    [
        (vm.create_model, {"name": "vit_digits"}, {"num_heads": 2}),
        (vm.create_baseline, {"name": "resnet_mini"}, {"stem_stride": 1}),
    ],
)
def test_teachers_of_equal_weights_that_compute_something_else_are_two(build, one, other):
    model, twin = build(**one), build(**one, **other)
    twin.load_state_dict(model.state_dict())
    first, second = (Teacher(m, (0.5,), (1.0,)).identity() for m in (model, twin))
    assert first != second and Teacher(build(**one), (0.5,), (1.0,)).identity() != first
    assert Teacher(copy.deepcopy(model), (0.5,), (1.0,)).identity() == first
    model.config = object()  # a foreign one is written as its address
    again = Teacher(model, (0.5,), (1.0,)).identity()
    model.config = object()
    assert Teacher(model, (0.5,), (1.0,)).identity() == again


# Training ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(digits):
    part = {"train_images": digits.train_images[:80], "train_labels": digits.train_labels[:80]}
    test = {"test_images": digits.test_images[:40], "test_labels": digits.test_labels[:40]}
    return dataclasses.replace(digits, **part, **test)


@pytest.fixture(scope="module")
def resnet(few):
    """A ResNet that has seen a little, so that its batch norm has statistics of its own."""
    config = vm.TrainConfig(
        model="resnet_mini", model_options={"stages": (1,)}, epochs=2, batch_size=32
    )
    torch.manual_seed(1)
    model = build_model(config, few)
    vm.train(model, few, config)
    return model


def student(distilled=False, seed=0):
    torch.manual_seed(seed)
    return vm.create_model("vit_digits", dim=32, depth=2, num_heads=2, distilled=distilled)


def fingerprint(model):
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_training_changes_nothing_about_the_teacher(distilled, kind, resnet, few, tmp_path):
    teacher = Teacher(resnet, few.mean, few.std)
    before = fingerprint(teacher), fingerprint(resnet), teacher.identity()
    config = dataclasses.replace(SHORT, distill=kind, ema=0.9)
    own = student(distilled)
    history = vm.train(own, few, config, tmp_path / "run", teacher=teacher)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert (fingerprint(teacher), fingerprint(resnet), teacher.identity()) == before
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    # It is no part of the student's run but by its name.
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert set(checkpoint["model"]) == set(own.state_dict())
    description = json.loads((tmp_path / "run" / "config.json").read_text())
    assert description["teacher"] == teacher.identity()
    loaded, _ = vm.load_run(tmp_path / "run")
    assert vm.evaluate(loaded, few)["accuracy"] == history[-1]["test_accuracy"]


def test_the_heads_of_a_step_learn_by_the_formula(resnet, few):
    """One step's loss, from outside: the class head by labels, the other by the teacher."""
    config = dataclasses.replace(SHORT, label_smoothing=0.1, distill_weight=0.3)
    own = student(distilled=True)
    for parameter in own.parameters():  # a fresh head is zero: all losses would be alike
        nn.init.normal_(parameter, std=0.3)
    trainer = build_trainer(own, config)
    teacher = Teacher(resnet, few.mean, few.std)
    images, labels = few.normalize(few.train_images[:16]), few.train_labels[:16]
    own.train()
    with torch.no_grad():
        a, b = own(images)
    taught = resnet.eval()(images).argmax(1)
    wanted = 0.7 * F.cross_entropy(a, labels, label_smoothing=0.1) + 0.3 * F.cross_entropy(
        b, taught
    )
    teach = build_teach(teacher, few, trainer)
    loss = train_step(trainer, images, labels, config, teach)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_teacher_sees_the_mixed_pictures_of_the_student(accumulate, few):
    """A student and a teacher that write down what they see."""
    seen: dict[str, list] = {"student": [], "teacher": []}

    class Watching(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.net = name, nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, images):
            if self.training or self.name == "teacher":
                seen[self.name].append(images.clone())
            return self.net(images)

        def __deepcopy__(self, memo):  # else the copy would write into nothing of ours
            twin = Watching(self.name)
            twin.load_state_dict(self.state_dict())
            return twin

    config = dataclasses.replace(
        SHORT, epochs=1, cutmix=1.0, mixup=0.8, crop=1, erasing=0.5, accumulate=accumulate
    )
    vm.train(Watching("student"), few, config, teacher=Watching("teacher"))
    looks = seen["teacher"][1:]  # the first was a blank one, to see whether it can teach
    assert len(looks) == len(seen["student"]) == 3 * accumulate
    assert all(torch.equal(a, b) for a, b in zip(looks, seen["student"], strict=True))
    flat = few.normalize(few.train_images).flatten(1)
    assert all((look.flatten(1)[0] != flat).any(1).all() for look in looks)


@pytest.mark.parametrize("distilled", [False, True])
def test_a_distilled_run_resumes_to_the_same_bytes(distilled, resnet, few, tmp_path):
    teacher = Teacher(resnet, few.mean, few.std)
    config = dataclasses.replace(SHORT, distill="soft", cutmix=1.0, ema=0.9)
    vm.train(student(distilled), few, config, tmp_path / "whole", teacher=teacher)

    def cut_off(record):
        if record["epoch"] < config.epochs:
            raise KeyboardInterrupt

    go_on = {"out": tmp_path / "parts", "resume": True, "teacher": teacher}
    for _ in range(config.epochs - 1):
        with pytest.raises(KeyboardInterrupt):
            vm.train(student(distilled), few, config, **go_on, on_epoch=cut_off)
    vm.train(student(distilled), few, config, **go_on)
    whole, parts = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "parts"))
    assert whole == parts


def test_a_teacher_class_that_a_notebook_defines_teaches_like_the_librarys(resnet, few):
    """Chapter 10 shows the class, so that a reader's `Teacher` is not the library's."""
    own = type("Teacher", (nn.Module,), dict(vars(Teacher)) | {"train": nn.Module.train})
    one = Teacher(resnet, (0.5,), (0.25,))
    twin = own.__new__(own)
    twin.__dict__.update(copy.deepcopy(one.__dict__))
    assert not isinstance(twin, Teacher)
    models = [student(), student()]
    for model, teacher in zip(models, (one, twin), strict=True):
        vm.train(model, few, dataclasses.replace(SHORT, epochs=1), teacher=teacher)
    assert fingerprint(models[0]) == fingerprint(models[1])


def test_a_run_goes_on_with_its_own_teacher_alone(resnet, few, tmp_path):
    config, folder = dataclasses.replace(SHORT, epochs=1), tmp_path / "run"
    vm.train(student(), few, config, folder, teacher=resnet)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    other = copy.deepcopy(resnet)
    other.bn1.running_mean += 1e-3
    for teacher in (other, Teacher(resnet, (0.0,), (1.0,))):
        with pytest.raises(ValueError, match="its teacher is not the one given"):
            vm.train(student(), few, config, folder, resume=True, teacher=teacher)
    with pytest.raises(ValueError, match="another run: its distill is 'hard', not 'none'"):
        plain = dataclasses.replace(config, distill="none")
        vm.train(student(), few, plain, folder, resume=True)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    vm.train(student(), few, config, folder, resume=True, teacher=resnet)
    plain = dataclasses.replace(config, distill="none")
    vm.train(student(), few, plain, tmp_path / "plain")
    assert "teacher" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_a_recipe_that_says_nothing_of_a_teacher_distils_hard(resnet, few):
    plain = dataclasses.replace(SHORT, distill="none")
    models = [student(), student(), student()]
    vm.train(models[0], few, plain, teacher=resnet)
    vm.train(models[1], few, SHORT, teacher=resnet)
    vm.train(models[2], few, plain)
    prints = [fingerprint(m) for m in models]
    assert prints[0] == prints[1] != prints[2]


def test_a_weight_of_zero_is_training_without_a_teacher(resnet, few):
    models = [student(), student()]
    vm.train(models[0], few, dataclasses.replace(SHORT, distill_weight=0.0), teacher=resnet)
    vm.train(models[1], few, dataclasses.replace(SHORT, distill="none"))
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), "teacher must know 10 classes, not 7"),
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), "teacher must take images of 1x8x8"),
        (nn.Identity(), "one tensor of logits"),
        (nn.Bilinear(2, 2, 2), "teacher must take images of 1x8x8.*: .*argument"),
        ("runs/teacher", "model must be a torch.nn.Module, got str"),
        (None, "teacher must be given: the recipe's distill is 'hard'"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_written(
    teacher, words, few, tmp_path
):
    with pytest.raises(ValueError, match=words):
        vm.train(student(), few, SHORT, tmp_path / "run", teacher=teacher)
    assert not (tmp_path / "run" / "config.json").exists()


def test_others_vits_say_which_size_they_take(few):
    """timm and torchvision assert it, which is no RuntimeError."""
    timm = pytest.importorskip("timm")
    theirs = timm.models.VisionTransformer(
        img_size=16, patch_size=8, num_classes=10, embed_dim=32, depth=1, num_heads=2
    )
    words = r"teacher must take images of 1x8x8, or be a Teacher\(.*image_size\).*: .*height"
    with pytest.raises(ValueError, match=words):
        vm.train(student(), few, SHORT, teacher=Teacher(theirs, (0.5,) * 3, (0.5,) * 3))
    own, config = student(), dataclasses.replace(SHORT, epochs=1)
    vm.train(own, few, config, teacher=Teacher(theirs, (0.5,) * 3, (0.5,) * 3, 16))


def test_two_heads_of_any_module_need_a_teacher(few):
    class TwoHeads(nn.Linear):
        def forward(self, images):
            logits = super().forward(images.flatten(1))
            return (logits, logits) if self.training else logits

    plain = dataclasses.replace(SHORT, distill="none")
    with pytest.raises(ValueError, match="model must give one tensor of logits"):
        vm.train(TwoHeads(64, 10), few, plain)
    vm.train(TwoHeads(64, 10), few, SHORT, teacher=student())


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_training_stops_where_the_teacher_gives_no_numbers(kind, few):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.constant_(teacher[1].weight, math.inf)
    with pytest.raises(FloatingPointError, match="the loss is not finite from step 1"):
        vm.train(student(), few, dataclasses.replace(SHORT, distill=kind), teacher=teacher)


def test_a_student_learns_from_its_teacher_what_its_labels_do_not_say(digits):
    """Labels that were drawn by lot: all that can be known is known by the teacher."""
    recipe = dataclasses.replace(vm.RECIPES["digits"], epochs=12, seed=1)
    torch.manual_seed(1)
    teacher = vm.create_model("vit_digits")
    vm.train(teacher, digits, recipe)
    lots = torch.randint(0, 10, (len(digits.train_labels),), generator=torch.Generator())
    blind = dataclasses.replace(digits, train_labels=lots)
    config = dataclasses.replace(recipe, distill="soft", distill_weight=0.9, val_share=0.0)
    found = {}
    for name, one in (("taught", teacher), ("alone", None)):
        torch.manual_seed(2)
        own = vm.create_model("vit_digits")
        kind = config if one else dataclasses.replace(config, distill="none")
        found[name] = vm.train(own, blind, kind, teacher=one)[-1]["test_accuracy"]
    assert found["taught"] > 0.85 and found["alone"] < 0.3


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("distill", "gentle", "distill must be one of none, soft, hard"),
        ("distill_temperature", 0.0, "distill_temperature must be above 0"),
        ("distill_weight", 1.1, "distill_weight must be .*1"),
    ],
)
def test_a_recipe_checks_what_it_says_of_teaching(field, value, words):
    with pytest.raises(ValueError, match=words):
        vm.TrainConfig(**{field: value})


def test_the_command_line_trains_with_a_teacher(tmp_path, monkeypatch):
    small = {"dim": 16, "depth": 1, "num_heads": 2}
    recipe = dataclasses.replace(vm.RECIPES["digits"], epochs=1, model_options=small)
    monkeypatch.setitem(vm.RECIPES, "own", recipe)
    two = dataclasses.replace(recipe, model_options=small | {"distilled": True}, distill="hard")
    monkeypatch.setitem(vm.RECIPES, "two", two)
    own, first, second, taught = (str(tmp_path / n) for n in ("own", "a", "b", "taught"))

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(["train", "--device", "cpu", *arguments])
        return code, out.getvalue(), err.getvalue()

    assert run("--recipe", "own", "--out", first)[0] == 0
    assert run("--recipe", "own", "--seed", "1", "--out", second)[0] == 0
    assert run("--recipe", "own", "--teacher", first, "--out", own)[0] == 0
    assert run("--recipe", "two", "--teacher", first, "--out", taught)[0] == 0
    for folder in (own, taught):
        train = json.loads((tmp_path / folder / "config.json").read_text())["train"]
        assert train["distill"] == "hard"
    monkeypatch.setattr("vitmini.__main__.load_data", lambda *_: pytest.fail("data were read"))
    code, out, err = run("--recipe", "own", "--teacher", second, "--out", own, "--resume")
    assert code == 2 and out == "" and "its teacher is not the one given" in err
    code, _, err = run("--recipe", "two", "--out", str(tmp_path / "x"))
    assert code == 2 and "recipe two needs a teacher: give --teacher DIR" in err
    code, _, err = run("--recipe", "own", "--teacher", str(tmp_path), "--out", str(tmp_path / "x"))
    assert code == 2 and "holds no run" in err and err.count("\n") == 1


def test_a_runs_folder_teaches_as_it_was_trained(resnet, few, tmp_path):
    vm.train(student(), few, dataclasses.replace(SHORT, distill="none"), tmp_path / "run")
    teacher = vm.load_teacher(tmp_path / "run")
    model, description = vm.load_run(tmp_path / "run")
    assert teacher.mean == few.mean == tuple(description["data"]["mean"])
    assert teacher.image_size == (8, 8)
    images = few.normalize(few.test_images)
    with torch.no_grad():
        assert torch.equal(teacher(images, few.mean, few.std), model(images))


def test_a_runs_folder_teaches_no_other_classes(few, tmp_path):
    """Ten kinds of animals are as many as ten digits."""
    names = tuple("abcdefghij")
    other = dataclasses.replace(few, classes=names)
    plain = dataclasses.replace(SHORT, epochs=1, distill="none")
    vm.train(student(), other, plain, tmp_path / "run")
    teacher = vm.load_teacher(tmp_path / "run")
    assert teacher.classes == names
    with pytest.raises(ValueError, match="teacher must know the data's classes: '0' is its 'a'"):
        vm.train(student(), few, SHORT, tmp_path / "taught", teacher=teacher)
    assert not (tmp_path / "taught" / "config.json").exists()
    vm.train(student(), other, dataclasses.replace(SHORT, epochs=1), teacher=teacher)


# The two heads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hybrid", [False, True])
def test_the_heads_are_measured_one_by_one_and_together(hybrid, few):
    torch.manual_seed(0)
    small = {"dim": 32, "depth": 2, "num_heads": 2, "distilled": True}
    model = student(distilled=True)
    if hybrid:
        model = vm.create_baseline("hybrid_mini", image_size=8, in_channels=1, **small)
    seen = []
    model.register_forward_hook(lambda m, _, out: seen.append(out) if m.training else None)
    model.train()
    images = few.normalize(few.test_images)
    with torch.no_grad():
        model(images)  # statistics of its own for batch norm
        model.eval()
        for m in model.modules():
            m.training = m is model or m is getattr(model, "vit", None)  # both heads, else fixed
        a, b = model(images)
        model.eval()
        both = model(images).argmax(1)
    model.train()
    found = vm.predict_heads(model, few, batch_size=7)
    assert torch.equal(found["class"], a.argmax(1)) and torch.equal(found["distil"], b.argmax(1))
    assert torch.equal(found["both"], both) and model.training
    wanted = {k: (v == few.test_labels).float().mean().item() for k, v in found.items()}
    assert vm.evaluate_heads(model, few) == pytest.approx(wanted)
    assert vm.evaluate_heads(model, few)["both"] == pytest.approx(
        vm.evaluate(model, few)["accuracy"]
    )


def test_one_head_is_not_measured_as_two(few):
    for measure in (vm.evaluate_heads, vm.predict_heads):
        with pytest.raises(ValueError, match="model must be distilled"):
            measure(student(), few)
    with pytest.raises(ValueError, match="model must be a distilled ViT"):
        vm.token_similarity(student(), few.normalize(few.test_images))


def test_timms_distilled_model_is_measured_too(few):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.models.deit.VisionTransformerDistilled(
        img_size=8, patch_size=4, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2
    )
    ours = student(distilled=True)
    own = vm.ViT(dataclasses.replace(ours.config, mlp_ratio=4.0))
    own.load_state_dict(theirs.state_dict())
    for name, classes in vm.predict_heads(theirs, few).items():
        assert torch.equal(classes, vm.predict_heads(own, few)[name])
    theirs.train()
    with pytest.raises(ValueError, match="model must be a distilled ViT: it has no embed"):
        vm.token_similarity(theirs, few.normalize(few.test_images))
    assert theirs.training


def test_the_tokens_are_compared_layer_by_layer(few):
    model = student(distilled=True)
    images = few.normalize(few.test_images)
    found = vm.token_similarity(model, images)
    assert found.shape == (3,) and model.training and (found.abs() <= 1).all()
    with torch.no_grad():
        first = (model.cls_token + model.pos_embed[:, :1]).flatten()
        second = (model.dist_token + model.pos_embed[:, 1:2]).flatten()
        assert found[0].item() == pytest.approx(F.cosine_similarity(first, second, dim=0).item())
        last = model.eval().blocks(model.embed(images))
        wanted = F.cosine_similarity(last[:, 0], last[:, 1]).mean()
    assert found[2].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_disagreement_counts_pairs_that_differ():
    labels = torch.tensor([0, 1, 2, 3])
    found = vm.disagreement(
        {"labels": labels, "a": torch.tensor([0, 1, 2, 0]), "b": torch.tensor([1, 1, 2, 0])}
    )
    wanted = [[0, 0.25, 0.5], [0.25, 0, 0.25], [0.5, 0.25, 0]]
    assert torch.equal(found, torch.tensor(wanted, dtype=torch.float64))
    for bad in ({}, {"a": labels, "b": labels[:3]}, {"a": torch.zeros(4, 2)}, {"a": [0, 1]}):
        with pytest.raises(ValueError, match="predictions must"):
            vm.disagreement(bad)
