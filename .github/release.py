"""What a release needs, as release.yml and `make dist` call it:

python .github/release.py check TAG     everything that states a version states the tag's
python .github/release.py notes TAG     print that section of CHANGELOG.md
python .github/release.py dist          write sdist and wheel to dist/, prove that they are whole
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATED = {  # where a version is stated, and how
    "pyproject.toml": r'^version = "(.+)"$',
    "vitmini/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}


def versions() -> dict[str, str]:
    found = {}
    for name, pattern in STATED.items():
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.M)
        found[name] = match[1] if match else "none"
    return found


def sections() -> dict[str, str]:
    """The sections of CHANGELOG.md, newest first: heading ("0.1.0 - 2026-11-20") and text."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = re.split(r"^## \[(.+?)\](.*)\n", text, flags=re.M)[1:]
    return {
        f"{name}{rest}": body.strip()
        for name, rest, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }


def released() -> list[str]:
    """The headings of the sections that have been released, newest first."""
    return [heading for heading in sections() if heading != "Unreleased"]


def check(tag: str) -> None:
    """Raises: `ValueError` that says what disagrees with the tag."""
    wrong = {name: found for name, found in versions().items() if f"v{found}" != tag}
    newest = released()[0] if released() else "none"
    if f"v{newest.split(' - ')[0]}" != tag:
        wrong["CHANGELOG.md"] = newest
    if wrong:
        raise ValueError(
            f"the tag is {tag}, but " + ", ".join(f"{k} has {v}" for k, v in wrong.items())
        )
    date = re.search(r"^date-released: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    if not date or newest.split(" - ")[-1] != date[1]:
        raise ValueError(f"CHANGELOG.md has {newest}, CITATION.cff another date-released")
    if sections().get("Unreleased"):
        raise ValueError("CHANGELOG.md still lists changes as unreleased")


def notes(tag: str) -> str:
    for heading, text in sections().items():
        if f"v{heading.split(' - ')[0]}" == tag:
            return text
    raise ValueError(f"CHANGELOG.md has no section for {tag}")


def package() -> dict[str, bytes]:
    """What the wheel must hold, by name: all of vitmini/, and the measured results in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "vitmini", "book/results"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return {
        re.sub("^book/results/", "vitmini/results/", name): (ROOT / name).read_bytes()
        for name in listed
        if (ROOT / name).is_file()
    }


def build(source: Path, kind: str, target: Path) -> Path:
    """Let setuptools, which pyproject.toml names, build `kind` of the tree at `source`."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"building the {kind} failed:\n{done.stderr}")
    return target / done.stdout.split()[-1]


def dist(target: Path) -> list[Path]:
    """Build the sdist from a clean copy of the repository, the wheel from the sdist; compare.

    Raises: `ValueError` when the wheel lacks a file of the package or holds another.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        files = ["git", "ls-files", "-co", "--exclude-standard"]
        listed = subprocess.run(files, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in listed.splitlines():
            if (ROOT / name).is_file():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
        sdist = build(copy, "sdist", target)
        shutil.unpack_archive(sdist, folder)
        wheel = build(Path(folder) / sdist.name.removesuffix(".tar.gz"), "wheel", target)
    with zipfile.ZipFile(wheel) as archive:
        held = {n: archive.read(n) for n in archive.namelist() if ".dist-info/" not in n}
    wanted = package()
    wrong = {name for name in held.keys() | wanted.keys() if held.get(name) != wanted.get(name)}
    if wrong:
        raise ValueError(f"{wheel.name} and the repository differ in {', '.join(sorted(wrong))}")
    return [sdist, wheel]


def main(command: str, *arguments: str) -> int:
    try:
        if command == "check":
            check(*arguments)
        elif command == "notes":
            print(notes(*arguments))
        elif command == "dist":
            print(*dist(ROOT / "dist"), sep="\n")
        else:
            raise ValueError(f"no command {command!r}: choose check, notes or dist")
    except ValueError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
