"""Tell the maintainers that a weekly run failed: python .github/report.py TITLE LOG

Opens an issue with the end of the log; while an issue of that title is open, comments on it
instead. Speaks through GitHub's command line, gh, which reads GH_TOKEN.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

LENGTH = 20_000  # characters; an issue holds 65,536


def gh(*arguments: str, body: str | None = None) -> str:
    done = subprocess.run(["gh", *arguments], input=body, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(f"report: gh {' '.join(arguments)} failed")
    return done.stdout


def text(log: Path) -> str:
    """The address of the run, and the end of what it printed, without colours."""
    where = [
        os.environ.get(f"GITHUB_{name}", "?") for name in ("SERVER_URL", "REPOSITORY", "RUN_ID")
    ]
    printed = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    end = re.sub(r"\x1b\[[0-9;]*m", "", printed)[-LENGTH:].replace("~~~~", "~~~ ")
    said = f"The log ends with:\n\n~~~~text\n{end.strip()}\n~~~~" if end else "It left no log."
    return f"{where[0]}/{where[1]}/actions/runs/{where[2]} failed. {said}\n"


def main(title: str, log: str) -> None:
    listed = gh("issue", "list", "--state", "open", "--limit", "1000", "--json", "number,title")
    numbers = [str(issue["number"]) for issue in json.loads(listed) if issue["title"] == title]
    if numbers:
        print(gh("issue", "comment", numbers[0], "--body-file", "-", body=text(Path(log))))
    else:
        print(gh("issue", "create", "--title", title, "--body-file", "-", body=text(Path(log))))


if __name__ == "__main__":
    main(*sys.argv[1:])
