"""What only GitHub runs, as far as it can be tried elsewhere: releases, reports, workflows.

The checks of the workflows know what actionlint does not: the targets of the Makefile, the files
that a step starts, and the rules of this repository. actionlint itself runs where it is installed,
and always in CI. Each check is tried on planted faults.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml
from conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.M))


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".github" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Releases --------------------------------------------------------------------------------------


@pytest.fixture
def release():
    return script("release")


def test_every_place_states_the_same_version(release):
    import vitmini

    assert set(release.versions().values()) == {vitmini.__version__}
    for newest in release.released()[:1]:  # the first release is still to come
        assert newest.split(" - ")[0] == vitmini.__version__


def test_the_changelog_has_the_form_that_a_release_reads(release):
    sections = release.sections()
    assert next(iter(sections)) == "Unreleased"
    found = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - \d{4}-\d\d-\d\d", h) for h in release.released()]
    assert all(found), release.released()
    order = [tuple(map(int, match.groups())) for match in found]
    assert order == sorted(order, reverse=True) and len(set(order)) == len(order)
    kinds = re.findall(r"^### (.+)$", "\n".join(sections.values()), re.M)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.fixture
def released(release, tmp_path, monkeypatch):
    """The repository right after the commit that prepares release 7.8.9."""
    for name, pattern in release.STATED.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        stated = re.search(pattern, text, re.M)
        text = text[: stated.start(1)] + "7.8.9" + text[stated.end(1) :]
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(re.sub("(date-released: ).+", r"\g<1>2030-01-02", text))
    log = "# Changelog\n\n## [Unreleased]\n\n## [7.8.9] - 2030-01-02\n\n### Added\n\n* More.\n\n"
    (tmp_path / "CHANGELOG.md").write_text(log + "## [0.0.1] - 2029-01-02\n\n* First.\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    return tmp_path


def test_a_prepared_release_passes_and_has_its_notes(release, released, capsys):
    assert release.main("check", "v7.8.9") == 0
    assert release.main("notes", "v7.8.9") == 0
    assert capsys.readouterr().out == "### Added\n\n* More.\n"
    assert release.main("notes", "v0.0.1") == 0 and release.main("notes", "v0.0.2") == 1


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("pyproject.toml", "7.8.9", "7.8.8", "pyproject.toml has 7.8.8"),
        ("vitmini/__init__.py", "7.8.9", "7.9", "vitmini/__init__.py has 7.9"),
        ("CITATION.cff", "version: 7.8.9", "release: 7.8.9", "CITATION.cff has none"),
        ("CITATION.cff", "2030-01-02", "2030-01-03", "another date-released"),
        ("CHANGELOG.md", "## [7.8.9]", "## [7.8.10]", "CHANGELOG.md has 7.8.10"),
        ("CHANGELOG.md", "[Unreleased]\n", "[Unreleased]\n\n* Not in it.\n", "as unreleased"),
    ],
)
def test_a_release_that_disagrees_is_refused(release, released, capsys, name, old, new, said):
    text = (released / name).read_text()
    assert old in text
    (released / name).write_text(text.replace(old, new))
    assert release.main("check", "v7.8.9") == 1
    error = capsys.readouterr().err
    assert said in error and error.startswith("release: ")
    assert release.main("check", "7.8.9") == 1, "a tag begins with v"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    return script("release").dist(tmp_path_factory.mktemp("dist"))[1]


def test_the_wheel_works_where_there_is_no_checkout(wheel, tmp_path):
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")  # an environment that uv made
    else:
        options = ["-qq", "--no-deps", "--no-index", "--target", tmp_path / "site"]
        subprocess.run([*pip, "install", *options, wheel], check=True)
    code = (
        "import vitmini as vm; print(vm.__file__); vm.load_result('train-digits'); vm.checks.ch00"
    )
    for command in (["-c", code], ["-m", "vitmini", "--help"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / "site" / "vitmini") in done.stdout or "train" in done.stdout


def test_a_file_that_the_wheel_lacks_or_changes_is_named(release, wheel, tmp_path, monkeypatch):
    held = release.package() | {"vitmini/weights/x.safetensors": b"", "vitmini/model.py": b""}
    monkeypatch.setattr(release, "package", lambda: held)
    with pytest.raises(ValueError, match=r"differ in vitmini/model.py, vitmini/weights/x"):
        release.dist(tmp_path)


# Reports of the weekly runs ----------------------------------------------------------------------


def pretend(folder, name, answer="", fails_at="nothing"):
    """A program that only writes down what it is asked and given; where its words are."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    (folder / f"{name}.answer").write_text(answer)
    path.write_text(
        f'#!/bin/sh\necho "$@" >> {folder}/{name}.asked\n'
        f'case "$*" in *" list "*) cat {folder}/{name}.answer ;; esac\n'
        f'case "$*" in *-file*) cat > {folder}/body ;; esac\n'
        f'case "$*" in *{fails_at}*) exit 1 ;; esac\n'
    )
    path.chmod(0o755)
    return folder / f"{name}.asked"


def environment(folder):
    env = {"GITHUB_SERVER_URL": "https://example.org", "GITHUB_REPOSITORY": "a/b"}
    env |= {"GITHUB_RUN_ID": "77", "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}"}
    return os.environ | env


@pytest.fixture
def report(tmp_path):
    """Run report.py where these issues are open: the process, gh's arguments, the text."""

    def run(issues, log="log", fails_at="nothing"):
        asked = pretend(tmp_path, "gh", json.dumps(issues), fails_at)
        done = subprocess.run(
            [sys.executable, ROOT / ".github" / "report.py", "It failed", log],
            cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True,
        )  # fmt: skip
        return done, asked.read_text().splitlines()[-1], (tmp_path / "body").read_text()

    return run


def test_a_failure_opens_an_issue_with_the_end_of_the_log(report, tmp_path):
    (tmp_path / "log").write_text("x" * 90_000 + "\n~~~~\n\x1b[91mthe cause\x1b[0m\n")
    done, asked, body = report([{"number": 3, "title": "It failed again"}])
    assert done.returncode == 0, done.stderr
    assert asked == "issue create --title It failed --body-file -"
    assert "https://example.org/a/b/actions/runs/77" in body
    assert "the cause" in body and "\x1b" not in body and len(body) < 65_536
    assert body.count("~~~~") == 2, "the log must not end its own block"


def test_a_second_failure_comments_on_the_open_issue(report, tmp_path):
    (tmp_path / "log").write_text("once more")
    issues = [{"number": 3, "title": "Another"}, {"number": 8, "title": "It failed"}]
    done, asked, body = report(issues)
    assert done.returncode == 0 and asked == "issue comment 8 --body-file -"
    assert "once more" in body


def test_a_failure_before_there_is_a_log_is_reported_too(report):
    assert "It left no log." in report([], log="nothing")[2]


def test_a_report_that_does_not_arrive_fails(report):
    done, _, _ = report([], fails_at="create")
    assert done.returncode == 1 and "report: gh issue create" in done.stderr


def test_a_notebook_that_fails_on_colab_ends_in_an_issue(tmp_path):
    """The steps of the weekly run as GitHub takes them, with a docker and a gh that pretend."""
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "notebooks").mkdir()
    for name in ("00-a", "01-b"):
        (tmp_path / "notebooks" / f"{name}.ipynb").touch()
    docker = pretend(tmp_path, "docker", fails_at="00-a")
    gh = pretend(tmp_path, "gh", "[]")
    failed = False
    workflow = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())
    for step in workflow["jobs"]["colab"]["steps"]:
        if "run" in step and "sudo" not in step["run"] and failed == ("if" in step):
            shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
            done = subprocess.run(
                shell, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.DEVNULL
            )
            failed = failed or done.returncode != 0
    assert failed
    asked = docker.read_text().splitlines()
    assert asked[0].startswith("pull") and "colab-images/public" in asked[0]
    assert [line.split("/")[-1] for line in asked[1:]] == ["00-a.ipynb", "01-b.ipynb"]
    assert all(" run_as_colab.py" in line.replace("/", " ") for line in asked[1:])
    assert "issue create --title The weekly run on Colab failed" in gh.read_text()


# Workflows ---------------------------------------------------------------------------------------


def problems(text, known=frozenset(TARGETS)):
    """What is wrong with a workflow, as far as this repository's rules go."""
    workflow = yaml.safe_load(text)
    found = []

    def expect(holds, message):
        if not holds:
            found.append(message)

    expect(workflow.get("permissions") == {"contents": "read"}, "more than reading for every job")
    shell = workflow.get("defaults", {}).get("run", {}).get("shell")
    expect(shell == "bash", "without shell: bash a pipe hides a failure")
    jobs = workflow["jobs"]
    for name, job in jobs.items():
        expect(job.get("runs-on") == "ubuntu-latest", f"{name} runs on {job.get('runs-on')}")
        expect(job.get("timeout-minutes"), f"{name} may hang for six hours")
        needs = job.get("needs", [])
        for needed in [needs] if isinstance(needs, str) else needs:
            expect(needed in jobs, f"{name} needs {needed}, which does not exist")
        ids = {step.get("id") for step in job["steps"]}
        for used in re.findall(r"\bsteps\.([\w-]+)\.", str(job)):
            expect(used in ids, f"{name} uses step {used}, which does not exist")
        written = {k for k, v in job.get("permissions", {}).items() if v == "write"}
        expect(len(written - {"id-token"}) <= 1, f"{name} may write {sorted(written)}")
        checked_out = any(s.get("uses", "").startswith("actions/checkout@") for s in job["steps"])
        for step in job["steps"]:
            uses, run = step.get("uses", ""), step.get("run", "")
            expect(bool(uses) != bool(run), f"{name} has a step that does nothing or two things")
            form = r"actions/[\w-]+@v\d+|docker://[\w./-]+:\d+\.\d+\.\d+"
            expect(not uses or re.fullmatch(form, uses), f"{name} uses {uses}")
            expect("${{ github." not in run, f"{name} pastes the event into its shell: use env")
            for target in re.findall(r"\bmake ([a-z][\w-]*)", run):
                expect(target in known, f"{name} makes {target}, which the Makefile does not know")
            for path in re.findall(r"(?<![\w/])(\.(?:ci|github)/[\w./-]+)", run):
                expect((ROOT / path).is_file(), f"{name} starts {path}, which does not exist")
                expect(checked_out, f"{name} starts {path} without a checkout")
            if re.search(r"\bgh |report\.py", run):
                expect("GH_TOKEN" in step.get("env", {}), f"{name} calls gh without a token")
                expect(written & {"issues", "contents"}, f"{name} calls gh and may not write")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_keep_the_rules(path):
    assert problems(path.read_text(encoding="utf-8")) == []


FAULTS = [
    ("ci", "permissions: {contents: read}", "permissions: write-all", "more than reading"),
    ("ci", "defaults: {run: {shell: bash}}", "defaults: {run: {}}", "a pipe hides"),
    ("ci", "ubuntu-latest", "ubuntu-newest", "runs on ubuntu-newest"),
    ("ci", "timeout-minutes: 90", "name: test", "may hang"),
    ("ci", "[test, library, ", "[tests, library, ", "needs tests"),
    ("ci", "id: deployment", "id: deploy", "step deployment"),
    ("ci", "make test-library", "make library-tests", "makes library-tests"),
    ("ci", "run: .ci/run", "run: .ci/test", ".ci/test, which does not exist"),
    ("ci", "checkout@v7", "checkout@main", "uses actions/checkout@main"),
    ("weekly", "issues: write", "issues: read", "may not write"),
    ("weekly", "        env: {GH_TOKEN", "        with: {GH_TOKEN", "without a token"),
    ("weekly", "      - uses: actions/checkout@v7\n", "", "without a checkout"),
    ("release", "{contents: write}", "{contents: write, packages: write}", "may write"),
    ("release", '"$GITHUB_REF_NAME" > ', '"${{ github.ref_name }}" > ', "use env"),
]


@pytest.mark.parametrize(("name", "old", "new", "said"), FAULTS, ids=[f[3] for f in FAULTS])
def test_planted_faults_are_found(name, old, new, said):
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8")
    assert old in text
    assert any(said in problem for problem in problems(text.replace(old, new)))


@pytest.mark.skipif(not shutil.which("actionlint"), reason="actionlint is not installed")
def test_actionlint_finds_nothing_but_a_planted_fault(tmp_path):
    command = ["actionlint", "-no-color"]
    done = subprocess.run([*command, *WORKFLOWS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    planted = tmp_path / "ci.yml"
    planted.write_text(text.replace("matrix.python }}", "matrix.pyton }}"))
    done = subprocess.run([*command, planted], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and 'property "pyton" is not defined' in done.stdout


def test_an_action_has_one_version_everywhere():
    text = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    used = set(re.findall(r"uses: (\S+)@(\S+)", text))
    assert len({name for name, _ in used}) == len(used), sorted(used)


def test_the_maintainer_reads_about_every_workflow():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in WORKFLOWS:
        assert f"`{path.name}`" in text


def test_every_target_that_is_not_a_file_is_declared():
    phony = set(re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split())
    assert phony == TARGETS
