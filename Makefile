# The only entry point. Everything happens in .venv, which the first call makes.
#
#   make book         train a first Vision Transformer on digits, build the book
#   make test         all tests: library, notebooks, book, browser
#   make serve        the book at http://localhost:8000
#   make notebooks    write notebooks/*.ipynb from book/chapters and vitmini; execute what changed
#   make results      redo the recorded experiments that a CPU can do (about 37 hours, most of
#                     them for CIFAR-10; a second call goes on where the first one stopped)
#   make gpu [PART=speedrun]
#                     what needs a GPU, in parts of nine minutes at most: tests, throughput, the
#                     speed run, recorded experiments, chapters; a second call goes on
#   make assignments  write notebooks/assignments from book/assignments, try the solutions
#   make grade SUBMISSIONS=folder [GRADES=grading]
#                     points, pages of feedback and tables of what students handed in
#   make test-library [TORCH=2.6.*] [PYTHON=python3.10] [VENV=/tmp/old]
#                     the tests of the library alone, with another PyTorch, Python and environment
#   make colab        run each notebook in Colab's own image (docker, a download of many GB)
#   make links        try the book's links to other sites
#   make dist         the sdist and the wheel of a release, compared with the repository
#   make move ADDRESS=https://github.com/ORG/REPO
#                     the course moves to another public address
#   make clean        remove what make made, except trained runs

.DEFAULT_GOAL := help
.PHONY: help book html test lint serve notebooks results move clean chromium test-library colab links dist gpu assignments grade
SHELL := bash
PYTHON ?= python3
VENV := .venv
TORCH :=
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
HTML := _build/html
GRADING := $(VENV)/grading
GRADES := grading
SOURCES := notebooks/assignments/source

help:
	@sed -n 's/^#   //p' Makefile

# uv, where it is installed, makes the environment in seconds from its cache. What pip installs is
# compiled on all cores afterwards, without the packages' own tests and the hundreds of models in
# transformers; a few files are templates, which nobody can compile.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: Python 3.10 or newer is needed, set PYTHON=..." >&2; exit 2; }
	@echo "Setting up $(VENV), once: a few minutes, 6 GB on disk"
	@if command -v uv >/dev/null; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install -q --python $(BIN)/python -r requirements.txt $(TORCH:%="torch==%"); \
	else \
	  { $(PYTHON) -m venv $(VENV) || { echo "make: Python's venv is missing: apt install python3-venv" >&2; exit 2; }; } && \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check -U pip "setuptools>=77" && \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -r requirements.txt $(TORCH:%="torch==%") && \
	  { $(BIN)/python -m compileall -qq -j 0 -x '/(tests|transformers/models)/' $(VENV)/lib || true; }; \
	fi
	@touch $@

runs/digits/model.safetensors: | $(INSTALLED)
	$(BIN)/python -m vitmini train --recipe digits --out runs/digits --resume

book: runs/digits/model.safetensors html
	@echo "The first ViT is in runs/digits, the book in $(HTML)/index.html"

# A page that is not built again would keep its old list of chapters beside it.
html: $(INSTALLED)
	@if [ _toc.yml -nt $(HTML)/index.html ]; then rm -rf $(HTML) _build/.doctrees; fi
	$(BIN)/jupyter-book build . -W -n --keep-going -q

serve: $(INSTALLED)
	@test -e $(HTML)/index.html || $(MAKE) book
	$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory $(HTML)

notebooks: $(INSTALLED)
	$(BIN)/python book/draw.py
	$(BIN)/python book/generate.py

RESULTS := train-digits patch-size-digits pooling-digits attention-digits norm-digits attention-cost-cpu model-speed-cpu throughput-cpu positions-cifar10 initialisation-cifar10 patch-size-cifar10 learning-rate-cifar10 optimizer-cifar10 augmentation-cifar10 equal-images-cifar10 ingredients-cifar10 train-cifar10-mini data-hunger data-hunger-compute data-hunger-whole data-hunger-tuned data-hunger-tuned-hybrid distillation distillation-long distillation-tuned distillation-better-teacher distillation-better-student distillation-softer distillation-softer-first position-growth resolution siblings
results: $(INSTALLED)
	for name in $(RESULTS); do VITMINI_PROFILE=cpu $(BIN)/python -m vitmini experiment $$name || exit 1; done

gpu: $(INSTALLED)
	$(BIN)/python book/gpu.py $(PART)

# nbgrader is large, and only who writes or marks assignments needs it.
$(GRADING): requirements-grading.txt $(INSTALLED)
	@if command -v uv >/dev/null; then uv pip install -q --python $(BIN)/python -r $<; \
	else $(BIN)/python -m pip install -qq --disable-pip-version-check -r $<; fi
	@touch $@

assignments: $(GRADING)
	$(BIN)/python book/assign.py

grade: $(GRADING)
	@test -n "$(SUBMISSIONS)" || { echo "make: say where they are: make grade SUBMISSIONS=folder" >&2; exit 2; }
	$(BIN)/python book/grade.py "$(SUBMISSIONS)" --out "$(GRADES)" --sources "$(SOURCES)" $(OPTIONS)

move: $(GRADING)
	@test -n "$(ADDRESS)" || { echo "make: say where to: make move ADDRESS=https://github.com/ORG/REPO" >&2; exit 2; }
	$(BIN)/python book/generate.py --inputs --move "$(ADDRESS)"

# Tests run side by side, a core each: more threads would only wait for each other.
# The browser tests want Chromium; Debian and Ubuntu have a package, others get Playwright's.
chromium: $(INSTALLED)
	@$(BIN)/python tests/browser.py --install

# Jupyter Book has one core busy for a minute: the other one trains and checks meanwhile. What the
# tests import is compiled once, whatever the shell says of bytecode.
test: $(GRADING)
	$(MAKE) -j 2 book chromium lint
	PYTHONDONTWRITEBYTECODE= VITMINI_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the library promises for any PyTorch and Python that it supports: all tests but those of the
# notebooks, the book and its tools. An environment that holds another PyTorch is refused.
NOT_LIBRARY := assignments book browser colab generate grading notebooks public widgets
test-library: $(INSTALLED)
	@v=$$($(BIN)/python -c 'import torch; print(torch.__version__)') && echo "PyTorch $$v" && \
	  case $$v in $(or $(TORCH),*)*) ;; *) echo "make: not PyTorch $(TORCH): set another VENV" >&2; exit 2;; esac
	VITMINI_PROFILE=ci OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder -q $(NOT_LIBRARY:%=--ignore=tests/test_%.py)

# Google publishes what Colab runs. Each notebook gets a fresh machine, as it would there; the one
# without CUDA is smaller, COLAB=us-docker.pkg.dev/colab-images/public/runtime is the other.
COLAB := us-docker.pkg.dev/colab-images/public/cpu-runtime
colab:
	docker pull -q $(COLAB)
	@failed=0; for notebook in notebooks/*.ipynb; do \
	  docker run --rm --user root --entrypoint python3 -e VITMINI_PROFILE=ci -v "$(CURDIR):/course:ro" \
	    $(COLAB) /course/tests/run_as_colab.py "/course/$$notebook" || failed=1; \
	done; exit $$failed

# In a folder of its own: jupyter-book would write its report among the book's pages.
links: $(INSTALLED)
	$(BIN)/jupyter-book build . --builder linkcheck --path-output _build/links -q

dist: $(INSTALLED)
	$(BIN)/python .github/release.py dist

clean:
	rm -rf .venv _build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
