"""The contract of a chapter: its parts, its set-up, its stored outputs, where it came from."""

from __future__ import annotations

import ast
import base64
import io
import re
import struct

import generate
import pytest
from conftest import NOTEBOOKS, ROOT, code_cells, each_notebook, read

PARTS = ["What you will build", "Objectives", "Compared with the paper", "Exercises"]
PARTS += ["Quiz", "Summary", "References"]
METADATA = {"kernelspec", "language_info", "accelerator", "colab", "vitmini"}


def headings(notebook):
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return re.findall(r"^## (.+)$", text, re.M)


def chapter_of(path):
    return ROOT / "book" / "chapters" / f"{path.stem}.md"


def test_there_is_a_notebook_for_every_chapter_and_no_other():
    assert [p.stem for p in NOTEBOOKS] == [c.stem for c in generate.chapters()]


@each_notebook
def test_regenerating_the_cells_changes_nothing(path):
    stored, fresh = read(path), generate.build(chapter_of(path))
    fresh.cells.append(generate.provenance_cell(path.stem, stored.metadata["vitmini"]))
    for kept, made in zip(stored.cells, fresh.cells, strict=True):
        assert (kept.cell_type, kept.id, kept.source) == (made.cell_type, made.id, made.source)
        assert kept.metadata == made.metadata
    fresh.metadata["vitmini"] = stored.metadata["vitmini"]
    assert stored.metadata == fresh.metadata


@each_notebook
def test_the_stored_outputs_belong_to_these_cells_and_this_library(path):
    stored = read(path).metadata["vitmini"]["fingerprint"]
    assert stored == generate.fingerprint(generate.build(chapter_of(path))), "run make notebooks"


@each_notebook
def test_a_figure_is_stored_once_as_vectors_where_nothing_in_it_is_a_picture(path):
    shown = [o.data for c in code_cells(read(path)) for o in c.outputs if "data" in o]
    vectors = [data["image/svg+xml"] for data in shown if "image/svg+xml" in data]
    assert not any({"image/svg+xml", "image/png"} <= set(data) for data in shown)
    assert not any("<image" in text for text in vectors)
    if path.stem[:2] in ("11", "12", "13"):
        assert vectors


@each_notebook
def test_shown_definitions_are_the_librarys(path):
    for cell in code_cells(read(path)):
        named = re.match(r"# (vitmini/\w+\.py)\n", cell.source)
        if named:
            library = ast.parse((ROOT / named[1]).read_text()).body
            definitions = {ast.dump(node) for node in library}
            assert all(ast.dump(node) in definitions for node in ast.parse(cell.source).body)


def test_the_set_up_cell_is_the_same_everywhere_and_short():
    cells = {code_cells(read(path))[0].source for path in NOTEBOOKS}
    assert len(cells) == 1
    source = cells.pop()
    assert len(source.splitlines()) <= 5 and generate.address() in source
    assert "requirements" not in source and "torch" not in source and "numpy" not in source


@each_notebook
def test_parts_come_in_order(path):
    notebook = read(path)
    assert notebook.cells[0].source.startswith("# ")
    found = headings(notebook)
    assert [h for h in found if h in PARTS] == PARTS, found
    assert found[:2] == PARTS[:2] and found[-4:] == PARTS[-4:]
    first = next(i for i, c in enumerate(notebook.cells) if c.cell_type == "code")
    before = "\n".join(c.source for c in notebook.cells[:first])
    assert "## Objectives" in before and re.search(r"!\[[^]]{40,}\]\(data:image/png", before)
    facts = before.splitlines()[2]
    assert re.search(
        r"Reading: \d+ minutes · exercises: \d+ minutes · running: .* T4 · \[open in C", facts
    )


@each_notebook
def test_a_gpu_is_asked_for_where_the_chapter_wants_one(path):
    import jupytext

    wanted = jupytext.read(chapter_of(path), fmt="md:myst").metadata["course"]["gpu"]
    metadata = read(path).metadata
    assert metadata.get("accelerator") == ("GPU" if wanted else None)
    assert set(metadata) <= METADATA and metadata.kernelspec.name == "python3"


@each_notebook
def test_at_least_five_cells_are_compared_and_print_no_device_or_time(path):
    compared = [
        c for c in code_cells(read(path)) if "nbval-check-output" in c.metadata.get("tags", [])
    ]
    assert len(compared) >= 5
    for cell in compared:
        assert cell.outputs, cell.source
        assert not re.search(r"profile|time\.|device_name|get_num_threads", cell.source)


@each_notebook
def test_stored_outputs_are_whole_clean_and_small(path):
    raw = path.read_text(encoding="utf-8")
    assert len(raw) < 2_000_000, "a page weighs at most 2 MB"
    for bad in ("/tmp/", "/root/", "/home/", "/work/", "/content/"):
        assert bad not in raw, f"local path {bad}"
    cells = code_cells(read(path))
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", output.text
            assert len(str(output)) < 600_000, cell.source
            assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def width_of(data):
    """Of a figure, in pixels."""
    if "image/png" in data:
        return struct.unpack(">II", base64.b64decode(data["image/png"])[16:24])[0]
    return float(re.search(r'<svg[^>]* width="([\d.]+)pt"', data["image/svg+xml"])[1]) * 96 / 72


def says_that_nothing_is_measured(cell):
    """A cell that draws a stored result, if there is one, and says so where there is none."""
    told = "".join(str(output.get("text", "")) for output in cell.outputs)
    return "vm.list_results(" in cell.source and told.startswith("Not measured yet: ")


@each_notebook
def test_every_figure_has_a_text_for_those_who_do_not_see_it(path):
    for cell in code_cells(read(path)):
        kinds = {"image/png", "image/svg+xml"}
        figures = [o.data for o in cell.outputs if kinds & set(o.get("data", {}))]
        drawn = "vm.plot." in cell.source.splitlines()[-1] or "vm.plot." in cell.source[-200:]
        if re.search(r"vm\.widgets\.(stepper|\w+_explorer|own_picture)\(", cell.source):
            html = "".join(o["data"].get("text/html", "") for o in cell.outputs if "data" in o)
            assert '<figure class="vm-' in html, f"no explorer came out of:\n{cell.source}"
            alts = re.findall(r'<img [^>]*alt="([^"]*)"', html)
            # an explorer of maps may stand without a picture: its map has a text that changes
            assert alts or "<canvas" in html
            assert len(alts) == html.count("<img ") and all(len(alt) > 20 for alt in alts)
        elif figures or (drawn and not says_that_nothing_is_measured(cell)):
            assert len(figures) == 1, f"no figure came out of:\n{cell.source}"
            assert len(cell.metadata["mystnb"]["image"]["alt"]) > 60
            assert 250 < width_of(figures[0]) < 1000


@each_notebook
def test_cells_are_short_except_the_librarys(path):
    for cell in code_cells(read(path))[1:]:  # the set-up holds the address on one line
        if not cell.source.startswith("# vitmini/"):
            assert len(cell.source.splitlines()) <= 25, cell.source
            longest = max(map(len, cell.source.splitlines()))
            assert longest <= 105, f"{longest} columns do not fit on a page:\n{cell.source}"


@each_notebook
def test_the_last_line_says_where_it_was_executed(path):
    notebook = read(path)
    record = notebook.metadata["vitmini"]
    assert record["profile"] in ("cpu", "gpu"), "a rehearsal is not for readers"
    line = notebook.cells[-1].source
    for part in (record["date"], record["device"], record["commit"], record["versions"]["torch"]):
        assert part in line


def test_pictures_travel_inside_the_notebook():
    from PIL import Image

    name = ROOT / "book" / "static" / "00-build.png"
    text = generate.text_cell("![a picture](../static/00-build.png)")
    data = base64.b64decode(re.search(r"base64,(.*)\)", text)[1])
    assert data == name.read_bytes() and Image.open(io.BytesIO(data)).format == "PNG"


def test_numbers_come_from_the_stored_file():
    import vitmini as vm

    metric = vm.load_result("train-digits")["metrics"]["test_accuracy"]
    text = "{{train-digits:metrics.test_accuracy.mean:.1%}} {{train-digits:seeds:count}}"
    assert generate.text_cell(text) == f"{metric['mean']:.1%} {len(metric['values'])}"
    text = text.replace(":.1%", ":.1%|not measured yet")
    assert generate.text_cell(text) == f"{metric['mean']:.1%} {len(metric['values'])}"
    assert generate.text_cell("{{never-run:metrics.x.mean:.1%|not measured yet}} | b") == (
        "not measured yet | b"
    )
    with pytest.raises(OSError, match="never-run"):
        generate.text_cell("{{never-run:metrics.x.mean:.1%}}")


def test_a_key_may_hold_a_dot_and_a_wrong_one_is_named():
    value = {"metrics": {"rate_0.1": {"mean": 2.0}, "rate_0": 1.0}, "seeds": [3, 4]}
    assert generate.look_up(value, "metrics.rate_0.1.mean") == 2.0
    assert generate.look_up(value, "metrics.rate_0") == 1.0
    assert generate.look_up(value, "seeds.1") == 4
    with pytest.raises(ValueError, match=r"no rate_2 among rate_0\.1, rate_0"):
        generate.look_up(value, "metrics.rate_2")
    with pytest.raises(ValueError, match=r"no 2 among 1\.0"):
        generate.look_up(value, "metrics.rate_0.2")


def test_a_name_that_the_library_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="defines no nothing"):
        generate.code_cell("# vitmini/patches.py: patchify, nothing")


def test_what_a_chapter_depends_on_is_found_through_imports():
    found = {p.stem for p in generate.modules_of(generate.build(chapter_of(NOTEBOOKS[0])))}
    assert {"model", "encoder", "attention", "patches", "train", "augment", "plot", "ch00"} <= found
    assert "experiments" not in found and "ch01" not in found
