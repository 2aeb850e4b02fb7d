# The only entry point. Everything happens in .venv, which the first call makes.
#
#   make book         train a first Vision Transformer on digits, build the book
#   make test         all tests: library, notebooks, book, browser
#   make serve        the book at http://localhost:8000
#   make notebooks    write notebooks/*.ipynb from book/chapters and vitmini; execute what changed
#   make results      redo the recorded experiments that a CPU can do (about 15 minutes)
#   make move ADDRESS=https://github.com/ORG/REPO
#                     the course moves to another public address
#   make clean        remove what make made, except trained runs

.DEFAULT_GOAL := help
.PHONY: help book test serve notebooks results move clean chromium
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
HTML := _build/html

help:
	@sed -n 's/^#   //p' Makefile

# uv, where it is installed, makes the environment in seconds from its cache.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: Python 3.10 or newer is needed, set PYTHON=..." >&2; exit 2; }
	@echo "Setting up .venv, once: a few minutes, 6 GB on disk"
	@if command -v uv >/dev/null; then \
	  uv venv -q --allow-existing --python $(PYTHON) .venv && \
	  uv pip install -q --python $(BIN)/python -r requirements.txt; \
	else \
	  { $(PYTHON) -m venv .venv || { echo "make: Python's venv is missing: apt install python3-venv" >&2; exit 2; }; } && \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check -U pip "setuptools>=77" && \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt; \
	fi
	@touch $@

runs/digits/model.safetensors: | $(INSTALLED)
	$(BIN)/python -m vitmini train --recipe digits --out runs/digits --resume

book: runs/digits/model.safetensors
	$(BIN)/jupyter-book build . -W -n --keep-going -q
	@echo "The first ViT is in runs/digits, the book in $(HTML)/index.html"

serve: $(INSTALLED)
	@test -e $(HTML)/index.html || $(MAKE) book
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory $(HTML)

notebooks: $(INSTALLED)
	$(BIN)/python book/draw.py
	$(BIN)/python book/generate.py

results: $(INSTALLED)
	VITMINI_PROFILE=cpu $(BIN)/python -m vitmini experiment train-digits
	VITMINI_PROFILE=cpu $(BIN)/python -m vitmini experiment patch-size-digits

move: $(INSTALLED)
	@test -n "$(ADDRESS)" || { echo "make: say where to: make move ADDRESS=https://github.com/ORG/REPO" >&2; exit 2; }
	$(BIN)/python book/generate.py --inputs --move "$(ADDRESS)"

# Tests run side by side, a core each: more threads would only wait for each other.
# The browser tests want Chromium; Debian and Ubuntu have a package, others get Playwright's.
chromium: $(INSTALLED)
	@$(BIN)/python tests/browser.py --install

test: book chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	VITMINI_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -q

clean:
	rm -rf .venv _build build *.egg-info .pytest_cache .mypy_cache .ruff_cache
