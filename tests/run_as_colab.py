"""Run notebooks as Colab runs them: python tests/run_as_colab.py NOTEBOOK ...

Each notebook is copied alone into an empty folder and executed from its first cell by the Python
that runs this script, which must not know vitmini yet: the set-up cell installs it. Reported are a
cell that fails, an output of a cell tagged `nbval-check-output` that is not the stored one, and a
package that the set-up cell replaced.

`make colab` starts it in Colab's public image, tests/test_colab.py in a simulated Colab. It imports
only what Colab brings along.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError


def installed() -> dict[str, str]:
    """Name and version of every package; of two with one name, the one that an import finds."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        found.setdefault(distribution.metadata["Name"].lower(), distribution.version)
    return found


def printed(outputs: list[nbformat.NotebookNode]) -> str:
    """What a cell printed and returned, as one text, however the kernel cut it up."""
    parts = []
    for output in outputs:
        if output.get("name") == "stdout":
            parts.append(output.text)
        elif "data" in output:
            parts.append(output.data.get("text/plain", "") + "\n")
    return "".join(parts)


def problems(path: Path, timeout: int = 900) -> list[str]:
    """Execute one notebook, alone in an empty folder, and say what is wrong with it."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    stored = [printed(cell.outputs) for cell in cells]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        client = NotebookClient(notebook, timeout=timeout, resources={"metadata": {"path": folder}})
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            return [str(error)]
    found = []
    for cell, wanted in zip(cells, stored, strict=True):
        now = printed(cell.outputs)
        if "nbval-check-output" in cell.metadata.get("tags", []) and now != wanted:
            found.append(f"stored output:\n{wanted}\noutput now:\n{now}\nof:\n{cell.source}")
    return found


def main(notebooks: list[Path]) -> int:
    before = installed()
    if not notebooks:
        print("run_as_colab: name at least one notebook", file=sys.stderr)
        return 2
    if "vitmini" in before:
        print("run_as_colab: vitmini is installed here, which it is not on Colab", file=sys.stderr)
        return 2
    print(f"Python {platform.python_version()}, PyTorch {before.get('torch')}", flush=True)
    failed = False
    for path in notebooks:
        start = time.perf_counter()
        found = problems(path)
        after = installed()
        changed = {n: (v, after.get(n)) for n, v in before.items() if after.get(n) != v}
        if changed:
            found.append(f"the set-up cell replaced packages (before, after): {changed}")
        if "vitmini" not in after:
            found.append("the set-up cell did not install vitmini here")
        seconds = time.perf_counter() - start
        print(f"{path.name}: {'FAILED' if found else 'passed'} in {seconds:.0f} s", flush=True)
        print(*found, sep="\n\n", end="\n" if found else "", flush=True)
        failed = failed or bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
