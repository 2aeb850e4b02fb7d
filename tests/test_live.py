"""What a run shows while it goes on, in a notebook and elsewhere."""

from __future__ import annotations

import base64
import dataclasses
import json
import struct

import IPython.display
import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

import vitmini as vm
from vitmini import live

CONFIG = vm.TrainConfig(epochs=6, warmup=0)


def record(epoch, **more):
    return {"epoch": epoch, "train_loss": 2.5 - 0.3 * epoch, "lr": 1e-3, "seconds": 2.0} | (
        more or {"val_accuracy": 0.1 * epoch}
    )


class Screen:
    """Stands in for a notebook's page: what lies on it, and how often that was drawn."""

    def __init__(self, monkeypatch):
        self.outputs, self.drawn, self.now = [], 0, 100.0
        monkeypatch.setattr(live, "in_notebook", lambda: True)
        monkeypatch.setattr(IPython.display, "display", self.display)
        monkeypatch.setattr(live.time, "monotonic", lambda: self.now)

    def display(self, data, raw, display_id):
        assert raw and display_id is True
        self.outputs.append(data)
        self.drawn += 1
        return self

    def update(self, data, raw):
        assert raw
        self.outputs[-1] = data
        self.drawn += 1


def test_a_notebook_shows_one_picture_and_redraws_it_once_a_second(monkeypatch, capsys):
    screen = Screen(monkeypatch)
    show = vm.LiveCurve(dataclasses.replace(CONFIG, epochs=20))
    assert screen.drawn == 0
    for epoch in range(1, 20):
        show(record(epoch))
        screen.now += 0.4
    assert 6 <= screen.drawn <= 8  # 7.6 seconds have passed
    show(record(20))
    drawn = screen.drawn
    assert drawn >= 7 and len(screen.outputs) == 1  # the last epoch waits for nothing
    assert screen.outputs[0]["text/plain"] == "learning curve"
    assert capsys.readouterr() == ("", "")


def test_drawing_takes_at_most_a_tenth_of_the_time(monkeypatch):
    screen = Screen(monkeypatch)

    def slow(figure):
        screen.now += 3.0
        return b""

    monkeypatch.setattr("vitmini.widgets.figure_bytes", slow)
    show = vm.LiveCurve(dataclasses.replace(CONFIG, epochs=1000))
    for epoch in range(1, 200):
        show(record(epoch))
        screen.now += 1.0
    assert screen.drawn * 3.0 <= 0.1 * (screen.now - 100) + 3.0 and screen.drawn > 3


def test_the_title_tells_time_but_not_in_ci(monkeypatch):
    history = [record(1, seconds=60.0), *map(record, range(2, 5))]
    show = vm.LiveCurve(CONFIG, history=history)
    monkeypatch.delenv("VITMINI_PROFILE", raising=False)
    assert show._title() == "epoch 4 of 6 · 2.0 s each · 4.0 s left"
    show.history = [record(e) for e in range(1, 7)]
    assert show._title() == "6 epochs in 12 s"
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    assert show._title() == "epoch 6 of 6"
    words = [live._duration(s) for s in (0.25, 34.4, 130, 5 * 3600, 7500)]
    assert words == ["0.2 s", "34 s", "2 min", "5 h 0 min", "2 h 5 min"]


def test_elsewhere_there_is_a_line_an_epoch_as_on_the_command_line(capsys):
    show = vm.LiveCurve(CONFIG)
    show(record(1))
    show(record(2, seconds=1.0))
    assert capsys.readouterr().out == (
        "epoch 1/6: loss 2.200, validation 10.0%\nepoch 2/6: loss 1.900\n"
    )


def write(folder, epochs):
    folder.mkdir(exist_ok=True)
    lines = "".join(json.dumps(record(e)) + "\n" for e in epochs)
    (folder / "metrics.jsonl").write_text(lines)


def test_a_resumed_run_knows_its_earlier_epochs(tmp_path, capsys):
    write(tmp_path, [1, 2])
    show = vm.LiveCurve(CONFIG, tmp_path)
    assert capsys.readouterr().out == "2 of 6 epochs are done\n"
    show(record(3))
    assert [r["epoch"] for r in show.history] == [1, 2, 3]
    # killed between the checkpoint and its metrics: the checkpoint knew one epoch more
    show = vm.LiveCurve(CONFIG, tmp_path)
    write(tmp_path, [1, 2, 3, 4])
    show(record(4))
    assert [r["epoch"] for r in show.history] == [1, 2, 3, 4]
    given = vm.LiveCurve(CONFIG, history=[record(1)])
    given(record(2))
    assert [r["epoch"] for r in given.history] == [1, 2]


SPOILED = ("garbage", "[1]\n", '{"epoch": 2, "train_loss": 1}\n', "{}\n", "[" * 100_000)
SPOILED += ('{"epoch": 1, "train_loss": "x"}\n', '{"epoch": 1, "train_loss": 1, "seconds": []}\n')


@pytest.mark.parametrize("text", SPOILED, ids=range(len(SPOILED)))
def test_metrics_that_cannot_be_read_are_left_out(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert vm.LiveCurve(CONFIG, tmp_path).history == []
    write(tmp_path, range(1, 9))  # a longer run than this one
    assert vm.LiveCurve(CONFIG, tmp_path).history == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"config": "digits"}, "config must be the TrainConfig"),
        ({"config": {"epochs": 6}}, "config must be the TrainConfig"),
        ({"folder": 3}, "folder must be"),
        ({"folder": ""}, "folder must be"),
        *(({"history": h}, "history must hold") for h in (3, "x", [3], [{}], [record(2)])),
        ({"history": [record(1, train_loss="x")]}, "history must hold"),
    ],
)
def test_what_is_no_run_is_refused_by_name(more, words):
    with pytest.raises(ValueError, match=words):
        vm.LiveCurve(**{"config": CONFIG} | more)


def test_folder_and_history_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="folder and history must not both be given"):
        vm.LiveCurve(CONFIG, tmp_path, [record(1)])


def test_the_curve_leaves_room_for_the_epochs_to_come():
    figure = vm.plot.learning_curve([record(1), record(2, seconds=1.0)], epochs=6, title="now")
    left, right = figure.axes
    assert left.get_xlim() == right.get_xlim() == (0, 6.5)
    assert list(left.lines[0].get_xdata()) == [1, 2] and list(right.lines[0].get_xdata()) == [1]
    assert left.lines[0].get_marker() == "."  # one epoch alone is seen
    assert figure.get_suptitle() == "now"


CELL = """\
import dataclasses, torch, vitmini as vm
torch.set_num_threads(1)
config = dataclasses.replace(vm.RECIPES["digits"], epochs=3, model_options={"depth": 1})
data, folder = vm.load_data("digits"), "runs/live"
torch.manual_seed(0)
model = vm.create_model("vit_digits", depth=1)
resume = {"resume": True, "on_epoch": vm.LiveCurve(config, folder)}
history = vm.train(model, data, config, out=folder, **resume)"""


def test_a_stored_notebook_keeps_one_whole_picture_and_no_time(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VITMINI_PROFILE", "ci")
    cells = [nbformat.v4.new_code_cell(CELL) for _ in range(2)]  # the second finds it finished
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, resources={"metadata": {"path": tmp_path}}, timeout=200).execute()
    for cell in notebook.cells:
        [output] = cell.outputs
        assert output.output_type == "display_data"
        assert output.data["text/plain"] == "learning curve"
        picture = base64.b64decode(output.data["image/png"])
        assert 250 < struct.unpack(">II", picture[16:24])[0] < 1000
    first, second = (cell.outputs[0].data["image/png"] for cell in notebook.cells)
    assert first == second  # all three epochs, and nothing that a clock decides
    metrics = (tmp_path / "runs" / "live" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 3 and len(first) > 1000
