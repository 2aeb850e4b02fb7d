"""The command line: `python -m vitmini COMMAND`.

Chapter: 0 (train), 6 (info, benchmark), 7 (the rest).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import sys
from pathlib import Path
from typing import NoReturn

import torch

from vitmini.baselines import find_config
from vitmini.data import NAMES, ImageData, load_data, normalize
from vitmini.live import describe_epoch
from vitmini.model import get_config
from vitmini.optim import choose_precision
from vitmini.patches import as_pair
from vitmini.pictures import printable, read_image
from vitmini.profiles import choose_profile, device_name
from vitmini.recipes import RECIPES, TrainConfig
from vitmini.runs import check_run, data_digest, load_run, load_teacher
from vitmini.train import build_model, distilling, evaluate, split_validation, train

COMPARED = ("vit_cifar", "vit_small_patch16_224")


_COMPILE: dict[str, bool | str] = {"whole": True, "blocks": "blocks", "no": False}


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see '{self.prog} --help')")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(prog="python -m vitmini", description="Vision Transformers, small.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    p = commands.add_parser("train", help="train a recipe", description="Train a recipe.")
    p.add_argument("--recipe", required=True, help=f"one of: {', '.join(RECIPES)}")
    p.add_argument("--out", required=True, metavar="DIR", help="folder for the run")
    p.add_argument("--data", metavar="NAME|FOLDER", help="instead of the recipe's own data")
    p.add_argument(
        "--image-size",
        type=int,
        metavar="N",
        help="bring a folder's pictures to N x N pixels (default: the size of the recipe's model)",
    )
    p.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's own number")
    p.add_argument("--seed", type=int, metavar="N", help="default: 0")
    p.add_argument(
        "--save-every",
        type=int,
        metavar="N",
        help="a checkpoint every N epochs, instead of the recipe's own number",
    )
    p.add_argument(
        "--compile",
        choices=list(_COMPILE),
        help="what torch.compile compiles on a CUDA device, instead of the recipe's own way",
    )
    p.add_argument(
        "--teacher", metavar="DIR", help="a finished run to learn from, beside the labels"
    )
    p.add_argument("--resume", action="store_true", help="go on with the run in DIR, or start it")
    _add_device(p)
    p.set_defaults(run=_train)

    p = commands.add_parser(
        "evaluate", help="measure a run", description="Measure a finished run on its test images."
    )
    p.add_argument("dir", metavar="DIR", help="folder of the run")
    _add_device(p)
    p.set_defaults(run=_evaluate)

    p = commands.add_parser(
        "predict", help="classify pictures", description="Classify pictures with a finished run."
    )
    p.add_argument("dir", metavar="DIR", help="folder of the run")
    p.add_argument("images", metavar="IMAGE", nargs="+", help="picture files")
    p.add_argument("--top", type=int, default=3, metavar="K", help="classes to show (default: 3)")
    _add_device(p)
    p.set_defaults(run=_predict)

    p = commands.add_parser(
        "experiment",
        help="redo a recorded experiment",
        description="Run an experiment and store its result; $VITMINI_PROFILE sets the effort.",
    )
    p.add_argument("name", metavar="NAME", help="such as train-digits")
    p.add_argument("--out", metavar="DIR", help="folder for the result (default: book/results)")
    p.add_argument("--force", action="store_true", help="replace a better result, too")
    p.set_defaults(run=_experiment)

    p = commands.add_parser(
        "benchmark",
        help="compare speed and memory with other libraries",
        description="Time the forward pass and the training step beside timm, torchvision and "
        "Hugging Face, in turns, in one run.",
    )
    p.add_argument(
        "names", metavar="NAME", nargs="*", help=f"models (default: {', '.join(COMPARED)})"
    )
    p.add_argument("--batch", type=int, metavar="N", help="images a step (default: 8; GPU: 128)")
    p.add_argument("--repeats", type=int, default=15, metavar="N", help="turns (default: 15)")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="default: what the device computes fastest in (float32 on a CPU)",
    )
    _add_device(p)
    p.set_defaults(run=_benchmark)

    p = commands.add_parser(
        "info",
        help="a model's layers, parameters and FLOPs",
        description="Print the layers of a model: output shapes for one image, parameters, FLOPs.",
    )
    p.add_argument("name", metavar="NAME", help="such as vit_base_patch16_224")
    p.set_defaults(run=_info)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: auto"
    )


def _device(name: str) -> str:
    found = {"cpu": True, "cuda": torch.cuda.is_available()}
    found["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if found[d])
    if not found[name]:
        raise ValueError(f"device {name} is not available here: use --device auto")
    return name


def _train(args: argparse.Namespace) -> None:
    if args.recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {args.recipe!r}")
    options = ("data", "image_size", "epochs", "seed", "save_every")
    given = {k: getattr(args, k) for k in options if getattr(args, k) is not None}
    if args.compile is not None:
        given["compile"] = _COMPILE[args.compile]
    config = dataclasses.replace(RECIPES[args.recipe], **given)
    device = _device(args.device)
    if config.data not in NAMES:  # a name means the same beside a folder of that name
        if not (config.data and Path(config.data).is_dir()):
            load_data(config.data)  # says what it may be
        config = dataclasses.replace(config, data=str(Path(config.data).resolve()))
    if args.teacher is None and config.distill != "none":
        raise ValueError(f"recipe {args.recipe} needs a teacher: give --teacher DIR, a run")
    teacher = None
    if args.teacher is not None:
        teacher, config = load_teacher(args.teacher), distilling(config)
    check_run(args.out, config, args.resume, teacher)
    if config.data in NAMES and config.image_size is None:
        data = load_data(config.data)
    else:
        own = find_config(config.model, **config.model_options).image_size
        data = load_data(config.data, image_size=config.image_size or own)
        _tell(data, config)
    torch.manual_seed(config.seed)
    model = build_model(config, data).to(device)

    from tqdm import tqdm

    with tqdm(total=config.epochs, unit="epoch", disable=not sys.stderr.isatty()) as bar:

        def show(record: dict[str, float]) -> None:
            words = describe_epoch(record)
            if bar.disable:
                print(f"epoch {record['epoch']}/{config.epochs}: {words}", flush=True)
            else:
                bar.initial = bar.initial or int(record["epoch"]) - 1
                bar.set_postfix_str(words, refresh=False)
                bar.update(int(record["epoch"]) - bar.n)

        history = train(model, data, config, args.out, args.resume, teacher, on_epoch=show)
    last = history[-1]
    epochs = f"{len(history)} epoch{'s' if len(history) > 1 else ''}"
    print(f"{args.out}: {epochs}, test accuracy {last['test_accuracy']:.2%}")


def _tell(data: ImageData, config: TrainConfig) -> None:
    """Say what a folder holds, and what so few pictures can say."""
    (rows, columns), name = data.train_images.shape[2:], printable(data.name)
    train_ids, val_ids = split_validation(len(data.train_labels), config)
    steps, tested = -(-len(train_ids) // config.batch_size), len(data.test_labels)
    print(
        f"{name}: {len(data.classes)} classes, {rows} x {columns} pixels; {len(train_ids)} "
        f"pictures to train on (steps an epoch: {steps}), {len(val_ids)} to validate, {tested} "
        "to test",
        flush=True,
    )
    if tested < 100:
        print(
            f"{name} is small: one picture more or less is {1 / tested:.1%} of test accuracy",
            flush=True,
        )


def _evaluate(args: argparse.Namespace) -> None:
    device = _device(args.device)
    model, description = load_run(args.dir)
    name, size = description["train"]["data"], model.config.image_size
    data = load_data(name) if name in NAMES else load_data(name, image_size=size)
    if data_digest(data) != description["data"]["sha256"]:
        raise ValueError(f"data {data.name} changed since the run in {args.dir} was trained")
    result = evaluate(model.to(device), data)
    print(f"test accuracy {result['accuracy']:.2%}, loss {result['loss']:.4f}")


def _predict(args: argparse.Namespace) -> None:
    if args.top < 1:
        raise ValueError(f"top must be at least 1, got {args.top}")
    device = _device(args.device)
    model, description = load_run(args.dir)
    size = as_pair(model.config.image_size, "image_size")
    images = [read_image(path, model.config.in_channels, size) for path in args.images]
    x = normalize(torch.stack(images), description["data"]["mean"], description["data"]["std"])
    with torch.no_grad():
        probabilities = model.to(device)(x.to(device)).softmax(dim=1)
    top = probabilities.topk(min(args.top, probabilities.shape[1]))
    classes = description["data"]["classes"]
    for path, values, ids in zip(
        args.images, top.values.tolist(), top.indices.tolist(), strict=True
    ):
        print(
            f"{printable(path)}: "
            + ", ".join(f"{classes[i]} {p:.1%}" for p, i in zip(values, ids, strict=True))
        )


def _experiment(args: argparse.Namespace) -> None:
    from vitmini.experiments import EXPERIMENTS
    from vitmini.records import check_result, code_version, save_result

    if args.name not in EXPERIMENTS:
        raise ValueError(f"NAME must be one of {', '.join(EXPERIMENTS)}, got {args.name!r}")
    if args.out is not None:  # before the work, not after it
        Path(args.out).mkdir(parents=True, exist_ok=True)
    profile = choose_profile()
    check_result(args.name, profile.name, code_version(), args.out, args.force)
    print(save_result(EXPERIMENTS[args.name](profile), args.out, args.force))


def _benchmark(args: argparse.Namespace) -> None:
    from vitmini.benchmark import check_plain, compare_models

    configs = {name: get_config(name) for name in args.names or COMPARED}
    device = _device(args.device)
    gpu = device == "cuda"
    batch = args.batch if args.batch is not None else 128 if gpu else 8
    if batch < 1 or args.repeats < 1:
        raise ValueError("batch and repeats must be at least 1")
    dtype = choose_precision(args.dtype or "auto", device)
    for config in configs.values():  # before the first of them runs
        check_plain(config)
    print("vitmini's time divided by theirs: below 1 vitmini is the faster one")
    for name, config in configs.items():
        speeds = compare_models(config, batch, device, args.repeats, dtype)
        print(
            f"\n{name}: batch {batch}, {str(dtype).removeprefix('torch.')}, {device_name(device)}, "
            f"medians of {args.repeats} turns"
        )
        print(
            f"{'':14} {'step':>6} {'forward':>8}   {'step':>9} {'forward':>9} {'step memory':>12}"
        )
        for peer, speed in speeds.items():
            ratios = f"{speed.step_ratio:6.3f} {speed.forward_ratio:8.3f}"
            print(
                f"{peer:14} {ratios if peer != 'vitmini' else '':15}   {speed.step:6.1f} ms "
                f"{speed.forward:6.1f} ms {speed.memory / 2**20:8.1f} MiB"
            )


def _info(args: argparse.Namespace) -> None:
    from vitmini.summary import summary_table

    print(summary_table(args.name, get_config(args.name)))


def main(argv: list[str] | None = None) -> int:
    """Run a command; an error that a person can cause is one line on stderr and exit status 2."""
    try:
        args = _parser().parse_args(argv)
        args.run(args)
    except (ValueError, FloatingPointError, OSError) as error:
        print("vitmini: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        memory = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not memory and "can't allocate memory" not in str(error):
            raise
        told = " ".join(str(error).split()) if isinstance(error, MemoryError) else ""
        print(f"vitmini: {told or 'out of memory'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vitmini: interrupted; 'train' goes on with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):  # the name of a class may be Chinese
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main())
