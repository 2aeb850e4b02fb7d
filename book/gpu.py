"""Run what needs a GPU, in parts: tests, throughput, speed run, experiments, weights, chapters.

    python book/gpu.py                       all parts, in the order of their worth
    python book/gpu.py speedrun throughput   these parts
    python book/gpu.py --list                what there is, and what is done
    python book/gpu.py --out DIR             results, logs and weights are gathered in DIR

A part takes nine minutes at most and is then stopped; called again, it goes on (a chapter, tests
and a timed run begin anew: on a card that needs longer, --limit gives them more seconds). Work is
kept in runs/gpu.
Without --out, results go to book/results, where none replaces a better one; the embedded models
and their cards go to runs/gpu/weights, to be looked at before they replace those in
vitmini/weights. Needs no virtual environment: any Python with PyTorch and what vitmini imports.
Data: $VITMINI_DATA. VITMINI_PROFILE=ci rehearses on a CPU all that stores nothing in the checkout.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "gpu"
# Of what is compiled, models and whole trainings apart: PyTorch takes seconds for each.
TESTS = {
    "correctness": "not compiled",
    "correctness-compiled": "compiled and not (learn or goes_on)",
    "correctness-trained": "compiled and (learn or goes_on)",
}
EXPERIMENTS = (
    "throughput",
    "startup",
    "speedrun-1",
    "speedrun-2",
    "speedrun-3",
    "data-hunger-1",
    "distillation-teachers",
    "distillation-1",
    "siblings",
    "speedrun",
    "train-cifar10",
    "attention-cost-gpu",
    "model-speed-gpu",
    "data-hunger-2",
    "data-hunger-3",
    "distillation-2",
    "data-hunger-4",
    "distillation-3",
    "distillation",
    "data-hunger",
    "distillation-long",
    "data-hunger-compute",
    "position-growth",
    "resolution",
    # Some 170 runs together, hours on any card.
    "initialisation-cifar10",
    "positions-cifar10",
    "patch-size-cifar10",
    "augmentation-cifar10",
    "learning-rate-cifar10",
    "optimizer-cifar10",
    "ingredients-cifar10",
    "train-cifar10-mini",
)
CHAPTERS = tuple(
    path.stem
    for path in sorted((ROOT / "book" / "chapters").glob("[0-9][0-9]-*.md"))
    if re.search(r"^ *gpu: *true", path.read_text("utf-8"), re.M)
)
AFTER = EXPERIMENTS.index("siblings") + 1  # they are what is embedded
PARTS = (*TESTS, *EXPERIMENTS[:AFTER], "embedded", *EXPERIMENTS[AFTER:], *CHAPTERS)
# What a part cannot do without; what vitmini itself imports comes first.
NEEDS = {
    **dict.fromkeys(PARTS, ("torch", "torchvision", "numpy", "einops", "safetensors")),
    **dict.fromkeys(TESTS, ("torch", "einops", "safetensors", "pytest")),
    **dict.fromkeys(
        CHAPTERS,
        ("torch", "einops", "safetensors", "matplotlib", "jupytext", "nbclient", "ipykernel"),
    ),
}


def command(part: str, out: Path | None, force: bool) -> list[str]:
    """What runs a part, in the folder `WORK`.

    Nothing where a rehearsal would leave something behind: weights, or a chapter's outputs.
    """
    rehearsal = environment()["VITMINI_PROFILE"] != "gpu"
    if part in TESTS:
        pytest = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "test_cuda.py")]
        # The course's own settings want packages for notebooks, which are not needed here.
        bare = ["-c", os.devnull, "-p", "no:cacheprovider", "--noconftest"]
        bare += ["--rootdir", str(ROOT / "tests"), "--confcutdir", str(ROOT / "tests")]  # for -k
        return [*pytest, "-q", "-rs", *bare, "-k", TESTS[part]]
    if part in CHAPTERS:
        script = [sys.executable, str(ROOT / "book" / "generate.py"), part]
        return [] if rehearsal else script
    if part == "embedded":  # what the part siblings trained
        name = f"siblings-gpu-{version().replace(' ', '-')}"
        script = [sys.executable, str(ROOT / "book" / "embed.py"), "--siblings"]
        folder = WORK / "runs" / "experiments" / name
        return [] if rehearsal else [*script, str(folder), "--out", str(WORK / "weights")]
    where = [] if out is None else ["--out", str(out / "results")]
    forced = ["--force"] if force else []
    return [sys.executable, "-m", "vitmini", "experiment", part, *where, *forced]


def environment() -> dict[str, str]:
    """This process's, with the library and the data found from anywhere."""
    paths = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    own = {"PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in paths)}
    own["VITMINI_PROFILE"] = os.environ.get("VITMINI_PROFILE") or "gpu"
    if os.environ.get("VITMINI_DATA"):
        own["VITMINI_DATA"] = str(Path(os.environ["VITMINI_DATA"]).resolve())
    return os.environ | own


def missing(part: str) -> list[str]:
    return [name for name in NEEDS[part] if importlib.util.find_spec(name) is None]


@functools.cache
def version() -> str:
    """Which sources are run: what others did is not done."""
    if importlib.util.find_spec("torch") is None:
        return "unknown"
    sys.path.insert(0, str(ROOT))
    from vitmini.records import code_version

    return code_version()


def is_done(part: str) -> bool:
    path = WORK / f"{part}.done"
    return path.exists() and path.read_text(encoding="utf-8").startswith(f"{version()}, ")


def run(part: str, arguments: list[str], env: Mapping[str, str], limit: float) -> bool:
    """Run a part for at most `limit` seconds; its words go to the terminal and to a log."""
    (WORK / "logs").mkdir(parents=True, exist_ok=True)
    start, clock = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}", time.perf_counter()
    process = subprocess.Popen(
        arguments,
        cwd=WORK,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a session of its own: what the part starts is stopped with it
    )
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, stop)
    timer.start()
    try:
        assert process.stdout is not None
        with open(WORK / "logs" / f"{part}.log", "a", encoding="utf-8") as log:
            log.write(f"# {start} {part}\n")
            for line in process.stdout:
                print(line, end="", flush=True)
                log.write(line)
        code = process.wait()
    except BaseException:  # Ctrl-C, or this script is told to end
        stop()
        process.wait()
        raise
    finally:
        timer.cancel()
    seconds = round(time.perf_counter() - clock)
    if code == 0:
        word = f"{version()}, {start}, {seconds} s\n"
        (WORK / f"{part}.done").write_text(word, encoding="utf-8")
    failed = "stopped, it goes on when it is called again" if stopped.is_set() else "FAILED"
    print(f"== {part}: {failed if code else 'done'}, {seconds} s", flush=True)
    return code == 0


def gather(out: Path) -> None:
    """Copy logs, parts and weights to `out`; checkpoints are large, and only for going on."""
    for path in sorted(WORK.rglob("*")):
        own = path.relative_to(WORK)  # the checkout itself may lie in a cache
        kept = path.is_file() and path.name != "checkpoint.pt" and "cache" not in str(own)
        if kept and not path.name.startswith("."):
            target = out / own
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def show() -> None:
    for part in PARTS:
        path = WORK / f"{part}.done"
        lacks = missing(part)
        state = f"done: {path.read_text(encoding='utf-8').strip()}" if is_done(part) else "to do"
        print(f"{part:24} {state}{f', lacks {chr(32).join(lacks)}' if lacks else ''}")


def check(parts: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse in one line what cannot work, before anything runs."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"PART must be one of {', '.join(PARTS)}, got {unknown[0]!r}")
    if importlib.util.find_spec("torch") is None:
        raise ValueError(f"{sys.executable} has no PyTorch: run it with a Python that has it")
    if env["VITMINI_PROFILE"] != "ci":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("PyTorch finds no CUDA device; VITMINI_PROFILE=ci rehearses on a CPU")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run what needs a GPU, in parts.")
    parser.add_argument("part", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--list", action="store_true", help="show the parts and what is done")
    parser.add_argument("--out", type=Path, metavar="DIR", help="gather everything there")
    parser.add_argument("--limit", type=float, default=540, metavar="S", help="seconds a part")
    parser.add_argument("--again", action="store_true", help="also what is done")
    parser.add_argument("--force", action="store_true", help="replace better results, too")
    args = parser.parse_args(argv)
    if args.list:
        show()
        return 0
    out = args.out.resolve() if args.out else None
    env = environment()
    try:
        check(args.part, env)
    except ValueError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the part ends with us
    failed = []
    for part in args.part or PARTS:
        arguments = command(part, out, args.force)
        if is_done(part) and not args.again:
            print(f"== {part}: done before (--again repeats it)", flush=True)
        elif lacks := missing(part):
            print(f"== {part}: left out, this Python lacks {', '.join(lacks)}", flush=True)
            failed.append(part)
        elif not arguments:
            print(f"== {part}: nothing to do", flush=True)
        elif not run(part, arguments, env, args.limit):
            failed.append(part)
        if out is not None:
            gather(out)
    print(f"== not done: {', '.join(failed)}" if failed else "== all done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
