"""Results that were measured, each with what it was measured on.

Chapter: 0 reads the first of them.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import platform
import re
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from vitmini.profiles import PROFILES, Profile, device_name
from vitmini.runs import write_whole

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parent / "book" / "results"


def load_result(name: str) -> dict[str, Any]:
    """Read a stored result of the course, in a checkout or in an installed package.

    Shapes: returns a dictionary with `name`, `device`, `versions`, `commit`, `date`, `data`,
        `profile`, `seconds`, `seeds`, `metrics` (each with `values`, `mean`, `stderr`), `curves`.
    Raises: `ValueError` for a name that has no result, with those that have.
    Chapter: 0
    """
    if name not in list_results():
        raise ValueError(f"name must be one of {', '.join(list_results())}; got {name!r}")
    return json.loads((_stored() / f"{name}.json").read_text(encoding="utf-8"))


def list_results(prefix: str = "") -> list[str]:
    """Name the stored results that begin with `prefix`.

    Chapter: 3
    """
    names = [p.name[:-5] for p in _stored().iterdir() if p.name.endswith(".json")]
    return sorted(name for name in names if name.startswith(prefix))


def _stored():
    return _CHECKOUT if _CHECKOUT.is_dir() else resources.files("vitmini.results")


def save_result(
    result: dict[str, Any], folder: str | Path | None = None, force: bool = False
) -> Path:
    """Write a result to `folder` (default: `book/results/` of the checkout); return its path.

    Raises: `ValueError` as `check_result` does, unless `force` is set.
    Chapter: 0
    """
    path = check_result(
        result["name"], str(result.get("profile")), str(result.get("commit")), folder, force
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write_json(result))
    return path


def write_json(values: Any) -> str:
    """Write JSON that a person can read: a line for each entry, innermost lists in one line.

    Chapter: 0
    """
    innermost = r"\[\n([^\[\]{}]*?)\n\s*\]"  # no string of JSON holds a line break

    def join(found: re.Match[str]) -> str:
        return "[" + " ".join(line.strip() for line in found[1].splitlines()) + "]"

    return re.sub(innermost, join, json.dumps(values, indent=1)) + "\n"


def check_result(
    name: str, profile: str, commit: str, folder: str | Path | None = None, force: bool = False
) -> Path:
    """Say where a result will be written, before it is measured; refuse to lose a better one.

    A result of a larger profile (ci, cpu, gpu) is better than one of a smaller, and one of
    committed sources better than one of sources that nobody else has.
    Raises: `ValueError` when there is no checkout and no folder is given; when a better result
        lies there, unless `force` is set.
    Chapter: 7
    """
    if folder is None and not _CHECKOUT.is_dir():
        raise ValueError("no checkout of the course around vitmini: give a folder for the result")
    path = Path(folder or _CHECKOUT) / f"{name}.json"
    if force or not path.exists():
        return path
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        before, code = old["profile"], str(old["commit"])
    except (ValueError, KeyError, TypeError):  # no result that one could lose
        return path
    smaller = before in PROFILES and profile in PROFILES[: PROFILES.index(before)]
    if smaller or (commit.startswith("sources") and not code.startswith("sources")):
        raise ValueError(
            f"{path} holds a better result (profile {before}, commit {code}) than this one "
            f"(profile {profile}, commit {commit}): choose another folder with --out, or --force"
        )
    return path


def summarize(values: Sequence[float]) -> dict[str, Any]:
    """Give `values`, their `mean` and the standard error of it (0 for a single value).

    Chapter: 0
    """
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"values": list(values), "mean": statistics.fmean(values), "stderr": spread}


def provenance() -> dict[str, Any]:
    """Say what runs here: versions of the software, the code's commit, the date.

    Chapter: 0
    """
    from vitmini import __version__

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "versions": versions | {"vitmini": __version__},
        "commit": code_version(),
        "date": datetime.date.today().isoformat(),
    }


def code_version() -> str:
    """Identify the library's code: the commit that last changed it, else a hash of what is there.

    A commit of texts or results leaves it as it is, so that a long experiment goes on after one.
    Chapter: 0
    """
    try:
        git = ["git", "-C", str(_HERE)]
        quiet: dict[str, Any] = {"capture_output": True, "text": True, "check": True}
        changed = subprocess.run([*git, "status", "--porcelain", "--", "."], **quiet).stdout
        known = subprocess.run([*git, "ls-files", "--", "."], **quiet).stdout
        if known and not changed:
            last = [*git, "log", "-1", "--format=%h", "--abbrev=12", "--", "."]
            return subprocess.run(last, **quiet).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    digest = hashlib.sha256()
    for path in sorted(_HERE.glob("*.py")):
        digest.update(path.read_bytes())
    return f"sources {digest.hexdigest()[:12]}"


# Experiments of several parts -------------------------------------------------------------------


@contextmanager
def experiment_folder(name: str, profile: Profile) -> Iterator[Path]:
    """Where parts are kept, so that a second call goes on: one for each profile and version.

    Chapter: 7
    """
    if profile.name == "ci":
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        version = code_version().replace(" ", "-")
        yield Path("runs", "experiments", f"{name}-{profile.name}-{version}")


def first_rounds(
    name: str, whole: Sequence[Any], rounds: int | None, none: str = "0"
) -> tuple[str, str, Sequence[Any]]:
    """Choose the first `rounds` of an experiment (None: all), which is a part with its own name.

    A part must not lie where the whole is. `none` ends the name of the part with no round at all.
    Shapes: returns the name, what ends the words about the data, and the chosen rounds.
    Chapter: 8
    """
    if rounds is None:
        return name, "", whole
    chosen = whole[:rounds]
    words = f"; the first {len(chosen)} of {len(whole)} rounds"
    return f"{name}-{rounds or none}", words, chosen


def keep(path: Path, measure: Callable[[], Any]) -> Any:
    """Measure, unless an earlier call did; what it found is written whole or not at all.

    Chapter: 7
    """
    if not path.exists():
        found = measure()
        found = dataclasses.asdict(found) if dataclasses.is_dataclass(found) else found  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(found))
    return json.loads(path.read_text(encoding="utf-8"))


def new_result(
    name: str,
    profile: Profile,
    device: str,
    words: str,
    seconds: float,
    seeds: list[int],
    metrics: dict[str, Any],
    curves: dict[str, Any],
    threads: int | None = None,
) -> dict[str, Any]:
    """Put together what `save_result` writes; `words` say which data were used, and how.

    `threads` is how many a CPU was given, where the recipe says so.
    Chapter: 7
    """
    return {
        "name": name,
        "device": device_name(device, threads),
        **provenance(),
        "data": words,
        "profile": profile.name,
        "seconds": round(seconds, 1),
        "seeds": seeds,
        "metrics": metrics,
        "curves": curves,
    }
