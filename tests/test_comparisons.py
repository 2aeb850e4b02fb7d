"""The recorded experiments of chapters 8 and 10: equal terms, parts that are cut off and go on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import vitmini as vm
from vitmini import hunger, students
from vitmini.__main__ import main
from vitmini.baselines import find_config
from vitmini.data import first_images
from vitmini.experiments import EXPERIMENTS
from vitmini.profiles import Profile
from vitmini.recipes import RECIPES

CI = Profile("ci", "cpu")
PROFILES = [CI, Profile("cpu", "cpu"), Profile("gpu", "cuda")]
each_profile = pytest.mark.parametrize("profile", PROFILES, ids=lambda p: p.name)


def rehearse(name, tmp_path, monkeypatch):
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    assert main(["experiment", name, "--out", str(tmp_path)]) == 0
    return json.loads((tmp_path / f"{name}.json").read_text())


# Data hunger ----------------------------------------------------------------------------------


def test_data_hunger_runs_in_seconds(tmp_path, monkeypatch):
    result = rehearse("data-hunger", tmp_path, monkeypatch)
    metrics = result["metrics"]
    for model in ("vit", "hybrid", "resnet"):
        assert metrics[f"parameters_{model}"]["mean"] > 0
        for key in ("strong_{}_40_2", "strong_{}_120_1", "weak_{}_120_2"):
            assert 0 <= metrics[f"test_accuracy_{key.format(model)}"]["mean"] <= 1
    one, two = (metrics[f"training_flops_strong_vit_120_{n}"]["mean"] for n in (1, 2))
    assert two == 2 * one == 240 * vm.training_flops(find_config("vit_digits", **SMALL))
    assert result["seeds"] == [0] and result["curves"]["sizes"] == [40, 120]


@pytest.mark.parametrize("name", ["data-hunger-1", "distillation-teachers", "distillation-1"])
def test_a_part_does_not_lie_where_the_whole_is(name, tmp_path, monkeypatch):
    """A better or later whole would be lost, and nobody would see that it is a part."""
    result = rehearse(name, tmp_path, monkeypatch)
    assert result["name"] == name and [p.stem for p in tmp_path.iterdir()] == [name]
    assert f"; the first {'0' if 'teachers' in name else '1'} of " in result["data"]


SMALL = {"dim": 48, "depth": 1, "num_heads": 2}


def test_first_images_are_nested_and_shown_in_turn(digits):
    few, more = first_images(digits, 10), first_images(digits, 30)
    assert torch.equal(more.train_images[:10], few.train_images)
    shown = first_images(digits, 10, 25)
    assert len(shown.train_labels) == 25
    assert torch.equal(shown.train_images[20:], few.train_images[:5])
    assert torch.equal(shown.train_labels[10:20], few.train_labels)
    assert shown.test_images is digits.test_images
    for count, given, words in (
        (0, None, "count must be from 1 to 1437, got 0"),
        (1438, None, "count must be"),
        (10, 9, "shown must be at least count = 10, got 9"),
    ):
        with pytest.raises(ValueError, match=words):
            first_images(digits, count, given)


@each_profile
def test_all_models_see_equally_many_images_whatever_the_size(profile):
    plan = hunger.plan_hunger(profile)
    assert plan.sizes[-1] % plan.recipe.batch_size == 0  # nothing is dropped
    assert plan.recipe.val_share == 0 and plan.recipe.epochs not in plan.lengths
    for part in hunger.rounds_of(plan, profile):
        (lengths,) = set(part.lengths.values())
        assert set(part.lengths) == set(plan.models)
        for model in plan.models:
            config = hunger.configure(plan, model, part.augmentation, part.seed, lengths[0])
            other = hunger.configure(plan, "vit", part.augmentation, part.seed, lengths[0])
            same = {"model": other.model, "model_options": other.model_options}
            same |= {name: getattr(other, name) for name in ("optimizer", "learning_rate")}
            same |= {"weight_decay": other.weight_decay}
            assert dataclasses.replace(config, **same) == other
            optimizer = {"resnet": "sgd"}.get(model, "muon") if profile.name == "gpu" else "adamw"
            assert config.optimizer == optimizer  # a CPU's plan has one for all


def test_on_a_gpu_each_model_has_the_optimizer_of_its_recipe():
    plan = hunger.plan_hunger(PROFILES[2])
    for name, recipe in (("vit", "cifar10"), ("hybrid", "cifar10"), ("resnet", "cifar10-resnet")):
        config = hunger.configure(plan, name, "strong", 0, 25)
        for what in ("optimizer", "learning_rate", "weight_decay"):
            assert getattr(config, what) == getattr(RECIPES[recipe], what)
        options = RECIPES[recipe].model_options
        for what in ("pool", "pos_embed", "init"):
            assert config.model_options.get(what) == options.get(what)
        find_config(config.model, **config.model_options)  # the model takes them
        quick = hunger.configure(plan, name, "weak", 0, 1)
        assert quick.warmup == 0 and quick.optimizer == config.optimizer


def test_the_gpus_models_cost_alike():
    plan = hunger.plan_hunger(PROFILES[2])
    flops = {m: vm.training_flops(find_config(n, **o)) for m, (n, o) in plan.models.items()}
    assert max(flops.values()) < 1.35 * min(flops.values())
    rounds = hunger.rounds_of(plan, PROFILES[2])
    assert plan.sizes == (1_000, 5_000, 20_000, 50_000)
    strong = [r.seed for r in rounds if r.augmentation == "strong" and r.sizes == plan.sizes]
    assert strong == [0, 1, 2] and [r.augmentation for r in rounds].count("weak") == 1
    epochs = sum(sum(r.lengths["vit"]) * len(r.sizes) for r in rounds)  # the same for each model
    images = plan.sizes[-1] * epochs
    assert sum(flops.values()) * images / 100e12 < 90 * 60  # at half of what a ViT reaches


@each_profile
def test_at_equal_computing_every_model_gets_the_resnets_flops(profile):
    plan = hunger.plan_hunger(profile)
    # Of pictures of 32 pixels; the digits' are smaller, which does not matter here.
    flops = {m: vm.training_flops(find_config(n, **o)) for m, (n, o) in plan.models.items()}
    rounds = hunger.equal_rounds(plan, profile, flops)
    budget = plan.recipe.epochs * flops["resnet"]
    for part in rounds:
        assert part.sizes == plan.sizes
        for model, (epochs,) in part.lengths.items():
            assert epochs >= 1 and abs(epochs * flops[model] - budget) <= 0.5 * flops[model] + 1
            assert model != "resnet" or part.augmentation != plan.main  # `data_hunger` has it
    weak, strong = ([r.seed for r in rounds if r.augmentation == a] for a in ("weak", "strong"))
    assert weak == strong == sorted({r.seed for r in rounds})


def test_the_experiment_at_equal_computing_has_the_keys_of_the_one_beside_it(capsys):
    result, beside = hunger.data_hunger_compute(CI), hunger.data_hunger(CI)
    assert result["name"] == "data-hunger-compute" and "as many FLOPs" in result["data"]
    assert result["curves"]["sizes"] == beside["curves"]["sizes"]
    scores = [key for key in result["metrics"] if key.startswith("test_accuracy_")]
    for key in scores:
        *_, model, size, epochs = key.split("_")
        assert {model, int(size)} <= {"vit", "hybrid", "resnet", *result["curves"]["sizes"]}
        flops = result["metrics"][key.replace("test_accuracy", "training_flops")]["mean"]
        same = f"training_flops_strong_resnet_{size}_2"
        assert flops == pytest.approx(beside["metrics"][same]["mean"], rel=0.5)
        assert len(result["curves"][key.replace("test_accuracy", "train_loss")][0]) == int(epochs)
    assert len(scores) == 8 and result["metrics"]["parameters_vit"]["mean"] > 0


def test_more_images_than_an_epoch_shows_cost_no_more_computing(capsys):
    result = hunger.data_hunger_whole(CI)
    largest = hunger.plan_hunger(CI).sizes[-1]
    assert result["curves"]["sizes"] == [180, 240] and largest == 120
    assert f"an epoch shows {largest} images" in result["data"]
    flops = {k: v["mean"] for k, v in result["metrics"].items() if k.startswith("training_flops")}
    assert len(flops) == 6 and max(flops.values()) < 1.1 * min(flops.values())
    assert "hybrid" not in result["data"] and "parameters_hybrid" not in result["metrics"]
    losses = [v["mean"] for k, v in result["metrics"].items() if k.startswith("test_loss")]
    assert len(losses) == 6 and all(0 < loss < 5 for loss in losses)
    beside = hunger.data_hunger_compute(CI)["metrics"]
    epochs = next(k for k in flops if "strong_vit_180" in k).rsplit("_", 1)[1]
    assert (
        flops[f"training_flops_strong_vit_180_{epochs}"]
        == (beside[f"training_flops_strong_vit_120_{epochs}"]["mean"])
    )


def test_held_out_images_choose_each_models_setting(capsys, monkeypatch, digits):
    """What trains never meets what chooses, and the test images have no say."""
    good = {"vit": "muon_0.012", "resnet": "sgd_0.1"}
    none = {"learning_rate": 1e-9}
    settings = {m: {"none": none, name: hunger.SETTINGS[m][name]} for m, name in good.items()}
    monkeypatch.setattr(hunger, "SETTINGS", settings)
    trained, asked, train, evaluate = [], [], hunger.train, hunger.evaluate

    def watch(model, data, config, *rest, **more):
        trained.append((config, data.train_images))
        return train(model, data, config, *rest, **more)

    def ask(model, data):
        asked.append(data.test_images)
        accuracy = evaluate(model, data)["accuracy"]
        return {"accuracy": 1 - accuracy if len(asked) <= 2 else accuracy}  # 40 images: the worse

    monkeypatch.setattr(hunger, "train", watch)
    monkeypatch.setattr(hunger, "evaluate", ask)
    result = hunger.data_hunger_tuned(CI)
    metrics, curves = result["metrics"], result["curves"]
    assert curves["sizes"] == [40, 120, 240]
    assert curves["chosen"]["vit"] == ["none", "muon_0.012", "muon_0.012"]
    assert len(curves["chosen"]["resnet"]) == 3
    held = [key for key in metrics if key.startswith("held_out_accuracy_")]
    assert len(held) == 8 and not any("240" in key for key in held)
    low, high = (metrics[f"test_accuracy_vit_{size}"]["mean"] for size in (40, 120))
    assert low < 0.3 and high > low + 0.2
    flops = [metrics[f"training_flops_{m}_{n}"]["mean"] for m in good for n in curves["sizes"]]
    assert max(flops) < 1.3 * min(flops)  # without a class token, one of five, the ViT costs less
    ordered = first_images(digits, len(digits.train_labels)).train_images
    assert len(trained) == len(asked) == 10  # each setting once, and at 240 what was chosen
    assert all(torch.equal(images, ordered[-100:]) for images in asked)
    for (config, images), size in zip(trained, 2 * (40, 40, 120, 120, 240), strict=True):
        assert torch.equal(images[:size], ordered[:size]) and size < len(ordered) - 100
        assert len(images) == max(size, 120) and not config.val_share
    vit, resnet = trained[3][0], trained[8][0]
    assert (vit.optimizer, vit.learning_rate, vit.model_options["init"]) == (
        "muon",
        0.012,
        "mimetic",
    )
    assert (resnet.optimizer, resnet.weight_decay) == ("sgd", 5e-4)
    assert "init" not in resnet.model_options


def test_the_hybrid_chooses_among_the_vits_settings(monkeypatch):
    """With its positions, start and pooling, and with its share of the epochs."""
    two = {name: hunger.SETTINGS["hybrid"][name] for name in ("adamw_0.002", "muon_0.003")}
    assert hunger.SETTINGS["hybrid"] == hunger.SETTINGS["vit"]
    monkeypatch.setattr(hunger, "SETTINGS", {"hybrid": two})
    trained, train = [], hunger.train

    def watch(model, data, config, *rest, **more):
        trained.append(config)
        return train(model, data, config, *rest, **more)

    monkeypatch.setattr(hunger, "train", watch)
    result = EXPERIMENTS["data-hunger-tuned-hybrid"](CI)
    assert result["name"] == "data-hunger-tuned-hybrid"
    assert list(result["curves"]["chosen"]) == ["hybrid"] and len(trained) == 5
    plan = hunger.plan_hunger(CI)
    (epochs,) = hunger._equal_epochs(plan, hunger._flops_of(plan), "hybrid")
    for config in trained:
        assert (config.model, config.epochs) == ("hybrid_mini", epochs)
        assert hunger.VIT_OPTIONS.items() <= config.model_options.items()
    assert [config.optimizer for config in trained[:2]] == ["adamw", "muon"]
    assert {key for key in result["metrics"] if key.startswith("test_accuracy")} == {
        f"test_accuracy_hybrid_{size}" for size in (40, 120, 240)
    }


def kept(monkeypatch, tmp_path, module, plan):
    """A profile whose parts are kept, with the settings of the smallest one."""
    monkeypatch.chdir(tmp_path)
    small = getattr(module, plan)(CI)
    monkeypatch.setattr(module, plan, lambda _: small)
    return Profile("cpu", "cpu")


def test_data_hunger_goes_on_where_it_was_cut_off(tmp_path, monkeypatch):
    profile = kept(monkeypatch, tmp_path, hunger, "plan_hunger")
    trained, real = [], hunger.train

    def train(model, data, config, out, resume):
        def cut_off(record):
            if len(trained) == 3:
                raise KeyboardInterrupt

        trained.append(out.name)
        return real(model, data, config, out, resume, on_epoch=cut_off)

    monkeypatch.setattr(hunger, "train", train)
    with pytest.raises(KeyboardInterrupt):
        hunger.data_hunger(profile, rounds=1)
    assert len(trained) == 3
    (left,) = [p for p in tmp_path.glob("runs/experiments/*/*") if p.is_dir()]
    assert left.name == trained[-1]
    first = hunger.data_hunger(profile, rounds=1)
    assert trained[3] == trained[2] and len(trained) == 7  # six runs, one of them twice
    assert not [p for p in tmp_path.glob("runs/experiments/*/*") if p.is_dir()]
    again = hunger.data_hunger(profile, rounds=1)
    assert len(trained) == 7 and again["metrics"] == first["metrics"]
    every = hunger.data_hunger(profile)
    key = "test_accuracy_strong_resnet_40_2"
    assert every["seeds"] == [0, 1, 2] and first["seeds"] == [0]
    assert every["metrics"][key]["values"][:1] == first["metrics"][key]["values"]
    assert len(every["metrics"][key]["values"]) == 3
    assert len(every["metrics"]["test_accuracy_weak_resnet_40_2"]["values"]) == 1
    monkeypatch.setattr(hunger, "train", real)  # an unbroken run of what was cut off
    monkeypatch.chdir(tmp_path / "runs")
    whole = hunger.data_hunger(profile, rounds=1)
    for key, value in first["metrics"].items():
        assert key.startswith("seconds") or whole["metrics"][key] == value


def test_what_one_profile_trained_is_not_taken_for_anothers(tmp_path, monkeypatch):
    """Both have a teacher called resnet, and a student none-0."""
    monkeypatch.chdir(tmp_path)
    small = students.plan_students(CI)
    monkeypatch.setattr(students, "plan_students", lambda _: small)
    students.distillation(Profile("cpu", "cpu"), rounds=0)
    monkeypatch.setattr(students, "train", lambda *_, **__: pytest.fail("trained again"))
    students.distillation(Profile("cpu", "cpu"), rounds=0)
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        students.distillation(Profile("gpu", "cpu"), rounds=0)


# Distillation ---------------------------------------------------------------------------------


def test_distillation_runs_in_seconds(tmp_path, monkeypatch):
    result = rehearse("distillation", tmp_path, monkeypatch)
    metrics, curves = result["metrics"], result["curves"]
    for arm in ("none", "soft", "soft_of_deits_code", "hard", "none_long"):
        assert 0 <= metrics[f"test_accuracy_{arm}"]["mean"] <= 1
    for arm in ("token", "token_of_vit", "token_long"):
        for head in ("class", "distil", "both"):
            assert 0 <= metrics[f"test_accuracy_{arm}_{head}"]["mean"] <= 1
        assert len(curves[f"token_similarity_{arm}"][0]) == 2  # one layer
    names = curves["disagreement_names"]
    table = torch.tensor(curves["disagreement"][0])
    assert names[:4] == ["labels", "teacher_resnet", "teacher_vit", "none"]
    assert torch.equal(table, table.T) and (table.diagonal() == 0).all()
    for name, key in (("teacher_vit", "teacher_vit"), ("none", "none"), ("token_class",) * 2):
        error = 1 - metrics[f"test_accuracy_{key}"]["mean"]
        assert table[0, names.index(name)].item() == pytest.approx(error)


def test_teachers_alone_have_a_result_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(students, "_seconds", lambda _: 1.5)
    result = rehearse("distillation-teachers", tmp_path, monkeypatch)
    told = {"test_accuracy_teacher", "train_accuracy_teacher"}
    assert set(result["metrics"]) == {f"{k}_{name}" for k in told for name in ("resnet", "vit")}
    assert result["seconds"] == 3 and result["seeds"] == [0]
    for name in ("resnet", "vit"):  # by which one may choose, unlike the test images
        ((value,),) = result["curves"][f"val_accuracy_teacher_{name}"]
        assert 0 <= value <= 1


def test_teachers_are_trained_once_for_all_students(tmp_path, monkeypatch):
    profile = kept(monkeypatch, tmp_path, students, "plan_students")
    trained, real = [], students.train

    def train(model, data, config, out, resume, teacher=None):
        trained.append((out.name, teacher))
        return real(model, data, config, out, resume, teacher)

    monkeypatch.setattr(students, "train", train)
    students.distillation(profile, rounds=0)
    assert [name for name, _ in trained] == ["resnet", "vit"]
    first = students.distillation(profile, rounds=1)
    every = students.distillation(profile)
    names = [name for name, _ in trained]
    assert len(names) == len(set(names)) == 2 + 3 * 6 + 2
    teachers = {n: t.identity()["model"] for n, t in trained if t is not None}
    assert teachers["token_of_vit-0"] == "ViT"
    assert {v for k, v in teachers.items() if "vit" not in k} == {"ResNet"}
    assert not any(name.startswith(("none", "resnet")) for name in teachers)
    assert first["seeds"] == [0] and every["seeds"] == [0, 1, 2]
    assert len(every["curves"]["disagreement"]) == 3
    for key, value in first["metrics"].items():
        assert every["metrics"][key]["values"][: len(value["values"])] == value["values"]
    folders = {p.name for p in tmp_path.glob("runs/experiments/*/*") if p.is_dir()}
    assert folders == {"resnet", "vit"}


@each_profile
def test_a_gpu_gives_the_token_soft_answers_too(profile, monkeypatch):
    """On the long schedule as well: it may be what comes nearest to the teacher."""
    asked = []
    monkeypatch.setattr(students, "_record", lambda *given: asked.append(given[4]))
    students.distillation(profile)
    students.distillation_long(profile)
    (*each, last), long = asked
    more = ("soft_token",) if profile.name == "gpu" else ()
    assert {r.names for r in each} == {students.EACH + more}
    assert {last.names, *(r.names for r in long)} == {students.LONG + more}
    assert set(students.EACH + students.LONG + more) <= set(students.arms(10))


def test_an_arm_weighs_the_soft_term_as_deits_code_does():
    K, w = 10, 0.5
    ours = students.arms(K)["soft_of_deits_code"]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):  # a constant factor, which Adam does not see
        a, b = torch.randn(2, 8, K, generator=generator, dtype=torch.float64)
        labels = torch.randint(K, (8,), generator=generator)
        own = vm.distillation_loss(a, b, labels, ours.distill, 3.0, ours.weight)
        theirs = (1 - w) * torch.nn.functional.cross_entropy(a, labels)
        theirs = theirs + w * vm.soft_term_of_deits_code(a, b, 3.0)
        assert (theirs / own).item() == pytest.approx((1 - w) / (1 - ours.weight))


@pytest.mark.parametrize("plans", [students.plan_students, students.plan_tuned])
@each_profile
def test_students_differ_in_nothing_but_their_teaching(profile, plans):
    plan = plans(profile)
    for arm in students.arms(10).values():
        config = students.configure(plan, arm, 1, epochs := plan.long or 5)
        options = {k: v for k, v in config.model_options.items() if k not in ("distilled", "pool")}
        model = find_config(config.model, **config.model_options)
        assert model.distilled == arm.token and model.pool == (arm.pool or "cls")
        same = {"distill": "none", "distill_weight": 0.5, "seed": 0}
        assert config.label_smoothing == plan.student.label_smoothing + arm.smoothing
        same["label_smoothing"] = plan.student.label_smoothing
        student = dataclasses.replace(plan.student, epochs=epochs)
        theirs = {k: v for k, v in student.model_options.items() if k != "pool"}
        assert options == theirs
        changed = dataclasses.replace(config, **same, model_options=student.model_options)
        assert changed == student
    assert plan.teachers["resnet"].model.startswith("resnet")
    assert plan.teachers["vit"].model.startswith("vit")
    assert plan.long > plan.student.epochs or plans is students.plan_tuned


def test_tuned_students_have_what_chapter_8_found_for_their_kind():
    """The student but for its class token, its teacher but for three times its epochs."""
    plan, stored = students.plan_tuned(PROFILES[1]), vm.load_result("data-hunger-tuned")
    size = stored["curves"]["sizes"].index(plan.count)
    chosen = {model: names[size] for model, names in stored["curves"]["chosen"].items()}
    assert chosen == students.CHOSEN
    third = dataclasses.replace(resnet := plan.teachers["resnet"], epochs=resnet.epochs // 3)
    assert resnet.epochs == 3 * third.epochs
    found = {"vit": plan.student, "resnet": third}
    for model, config in found.items():
        for name, value in hunger.SETTINGS[model][chosen[model]].items():
            assert getattr(config, name) == value
        assert config.flip and not (config.cutmix or config.label_smoothing or config.val_share)
        options = config.model_options | ({"pool": "mean"} if model == "vit" else {})
        flops = vm.training_flops(find_config(config.model, **options))
        spent = stored["metrics"][f"training_flops_{model}_{plan.count}"]["mean"]
        assert flops * config.epochs * plan.count == spent
    options = plan.student.model_options
    assert {**hunger.VIT_OPTIONS, "pool": "cls"}.items() <= options.items()
    mean = students.configure(plan, students.arms(10)["soft_mean"], 0, plan.student.epochs)
    assert mean.model_options == options | {"pool": "mean"} and mean.distill == "soft"
    control = plan.teachers["vit"]
    assert control.seed not in stored["seeds"]
    assert dataclasses.replace(control, seed=0) == plan.student


def test_a_teacher_is_asked_about_the_pictures_that_students_see(digits):
    """The label's decision on the originals, and, where crops move all away, a guess."""
    few = first_images(digits, 100)

    class Known(torch.nn.Module):
        def forward(self, images):
            known = few.normalize(few.train_images).flatten(1)
            return torch.eye(10)[few.train_labels[torch.cdist(images.flatten(1), known).argmin(1)]]

    teacher = vm.Teacher(Known(), few.mean, few.std)
    still = dataclasses.replace(students.plan_tuned(CI).student, crop=0, flip=False)
    assert students._repeat_labels(teacher, few, still) == 1
    mixed = dataclasses.replace(still, cutmix=1.0)
    assert students._repeat_labels(teacher, few, mixed) == 1
    assert students._repeat_labels(teacher, few, dataclasses.replace(still, crop=3)) < 0.8


def test_tuned_students_of_one_teacher(tmp_path, monkeypatch):
    """In a folder of their own; the ViT beside the teacher teaches nobody."""
    monkeypatch.chdir(tmp_path)
    small = students.plan_tuned(CI)
    monkeypatch.setattr(students, "plan_tuned", lambda _: small)
    trained, real = {}, students.train

    def train(model, data, config, out, resume, teacher=None):
        taught = None if teacher is None else teacher.identity()
        trained[out.name] = (taught, data.train_images.shape[0])
        return real(model, data, config, out, resume, teacher)

    monkeypatch.setattr(students, "train", train)
    result = students.distillation_tuned(Profile("cpu", "cpu"))
    ways = [f"{way}-{seed}" for seed in (0, 1, 2) for way in students.TUNED]
    assert list(trained) == ["resnet", "vit", *ways]
    (folder,) = tmp_path.glob("runs/experiments/*")
    assert folder.name.startswith("distillation-tuned-cpu-")
    resnet = students.load_teacher(folder / "resnet").identity()
    for name, (teacher, images) in trained.items():
        alone = name in ("resnet", "vit") or name.startswith("none")
        assert teacher == (None if alone else resnet) and images == small.count
    metrics, curves = result["metrics"], result["curves"]
    assert len(metrics["test_accuracy_token_both"]["values"]) == 3
    told = metrics["train_accuracy_teacher_resnet"]["mean"]
    assert told > metrics["train_accuracy_teacher_vit"]["mean"]
    assert not any(key.startswith("val_accuracy") for key in curves)  # nothing is held out
    assert len(curves["train_loss_soft"]) == len(curves["disagreement"]) == 3
    assert "2 epochs; teachers" in result["data"] and " or " not in result["data"]


@pytest.mark.parametrize("better", ["teacher", "student"])
@each_profile
def test_a_crossed_pair_is_one_of_each_kind(profile, better):
    """Nothing else is new: its twins are those that were measured before."""
    plan = students.plan_crossed(profile, better)
    profile = profile if profile.name == "ci" else Profile("cpu", profile.device)
    first, tuned = students.plan_students(profile), students.plan_tuned(profile)
    teacher, student = (tuned, first) if better == "teacher" else (first, tuned)
    assert teacher.teachers["resnet"] != student.teachers["resnet"]
    assert plan.teachers == {"resnet": teacher.teachers["resnet"]}
    assert plan.student == student.student and plan.count == student.count
    assert bool(plan.long) == (better == "student")
    assert profile.name == "ci" or teacher.count == plan.count


def test_the_better_student_is_trained_alone_for_a_taught_ones_time():
    plan, stored = (
        students.plan_crossed(PROFILES[1], "student"),
        vm.load_result("distillation-tuned"),
    )
    taught, alone = (stored["metrics"][f"seconds_{way}"]["mean"] for way in ("soft", "none"))
    assert plan.long == round(plan.student.epochs * taught / alone)


def test_better_is_one_of_two():
    with pytest.raises(ValueError, match=r"^better must be teacher or student; got 'both'$"):
        students.plan_crossed(CI, "both")


@pytest.mark.parametrize("better", ["teacher", "student"])
def test_crossed_pairs(better, tmp_path, monkeypatch):
    """Both ways with the one teacher, over all seeds; only the student alone is long."""
    monkeypatch.chdir(tmp_path)
    small = students.plan_crossed(CI, better)
    monkeypatch.setattr(students, "plan_crossed", lambda *_: small)
    trained, real = {}, students.train

    def train(model, data, config, out, resume, teacher=None):
        trained[out.name] = (config.epochs, None if teacher is None else teacher.identity())
        return real(model, data, config, out, resume, teacher)

    monkeypatch.setattr(students, "train", train)
    result = EXPERIMENTS[f"distillation-better-{better}"](Profile("cpu", "cpu"))
    (folder,) = tmp_path.glob("runs/experiments/*")
    assert folder.name.startswith(f"distillation-better-{better}-cpu-")
    resnet, epochs = students.load_teacher(folder / "resnet").identity(), small.student.epochs
    expected = {f"{way}-{s}": (epochs, resnet) for s in (0, 1, 2) for way in ("soft", "token")}
    if better == "student":
        expected |= {f"smoothed-{s}": (epochs, None) for s in (0, 1, 2)}
        expected |= {f"none_long-{s}": (small.long, None) for s in (0, 1, 2)}
    assert trained.pop("resnet") == (small.teachers["resnet"].epochs, None)
    assert trained == expected
    metrics = result["metrics"]
    heads = ["soft", "token_class", "token_distil", "token_both"]
    heads += ["smoothed", "none_long"] * (better == "student")
    keys = {k for k in metrics if k.startswith("test_accuracy") and "teacher" not in k}
    assert keys == {f"test_accuracy_{head}" for head in heads}
    assert all(len(metrics[key]["values"]) == 3 for key in keys)
    assert result["name"] == f"distillation-better-{better}"
    assert not any(key.startswith("disagreement") for key in result["curves"])  # no twin here
    assert (" or 3 epochs" in result["data"]) == (better == "student")


@pytest.mark.parametrize(
    ("name", "plan", "ways"),
    [
        ("distillation-softer", "plan_tuned", ("soft_token", "soft_alone")),
        ("distillation-softer-first", "plan_students", ("soft_token",)),
    ],
)
def test_softer_answers(name, plan, ways, tmp_path, monkeypatch):
    """From the pair's own ResNet, over all seeds: with a token, or without labels."""
    monkeypatch.chdir(tmp_path)
    small = getattr(students, plan)(CI)
    monkeypatch.setattr(students, plan, lambda *_: small)
    trained, real = {}, students.train

    def train(model, data, config, out, resume, teacher=None):
        how = (config.distill, config.distill_weight, model.config.distilled) if teacher else None
        trained[out.name] = how, None if teacher is None else teacher.identity()
        return real(model, data, config, out, resume, teacher)

    monkeypatch.setattr(students, "train", train)
    result = EXPERIMENTS[name](Profile("cpu", "cpu"))
    (folder,) = tmp_path.glob("runs/experiments/*")
    assert folder.name.startswith(f"{name}-cpu-")
    resnet = students.load_teacher(folder / "resnet").identity()
    assert trained.pop("resnet") == (None, None)
    expected = {"soft_token": ("soft", 0.5, True), "soft_alone": ("soft", 1.0, False)}
    assert trained == {f"{w}-{s}": (expected[w], resnet) for s in (0, 1, 2) for w in ways}
    heads = ["soft_token_class", "soft_token_distil", "soft_token_both"]
    heads += ["soft_alone"] * ("soft_alone" in ways)
    keys = {k for k in result["metrics"] if k.startswith("test_accuracy") and "teacher" not in k}
    assert keys == {f"test_accuracy_{head}" for head in heads}
    assert all(len(result["metrics"][key]["values"]) == 3 for key in keys)
    assert result["name"] == name and " or " not in result["data"]
    assert len(result["curves"]["token_similarity_soft_token"]) == 3


def test_a_student_without_labels_learns_from_the_teacher_alone():
    """Whatever the labels say, its loss is the soft term."""
    arm = students.arms(10)["soft_alone"]
    a, b = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0))
    for labels in (torch.zeros(8, dtype=torch.int64), torch.arange(8)):
        loss = vm.distillation_loss(a, b, labels, arm.distill, 3.0, arm.weight)
        assert torch.equal(loss, vm.soft_term(a, b, 3.0))


def test_long_experiments_come_in_parts_that_lead_to_the_whole():
    import gpu

    for whole, parts in (
        ("data-hunger", [f"data-hunger-{n}" for n in (1, 2, 3, 4)]),
        ("distillation", ["distillation-teachers", *(f"distillation-{n}" for n in (1, 2, 3))]),
    ):
        places = [gpu.EXPERIMENTS.index(name) for name in (*parts, whole)]
        assert places == sorted(places) and set(parts) <= set(EXPERIMENTS)
    plan = hunger.plan_hunger(PROFILES[2])
    assert len(hunger.rounds_of(plan, PROFILES[2])) == 5  # the last part does the fifth


def test_the_book_says_of_each_part_what_the_whole_is_for():
    course = pytest.importorskip("course")
    for name in EXPERIMENTS:
        assert "partial" not in course._purpose(name), name
    assert course._purpose("data-hunger-1") == course._purpose("data-hunger")
