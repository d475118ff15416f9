# Two commands for a newcomer: `make demo` and `make test`. Both make .venv by themselves; all
# that must be there is Python >= 3.10 with venv, a C++ compiler and make.

PYTHON ?= python3
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip --disable-pip-version-check -q
RUN = $(VENV)/bin/

.NOTPARALLEL:
.PHONY: demo test lint types contract docs native check clean dev

demo: $(VENV)/.demo-ready $(VENV)/.model-ready
	$(RUN)foveate watch --demo --out demo
	@echo "Open demo/report.html in a browser."

test: $(VENV)/.dev-ready $(VENV)/.model-ready
	$(RUN)python -m pytest -n 2 --dist loadfile -q

dev: $(VENV)/.dev-ready $(VENV)/.model-ready

lint: $(VENV)/.dev-ready
	$(RUN)ruff check .
	$(RUN)ruff format --check .

types: $(VENV)/.dev-ready
	$(RUN)mypy

contract: $(VENV)/.dev-ready
	PYTHONPATH=src $(RUN)lint-imports

docs: $(VENV)/.dev-ready
	NO_MKDOCS_2_WARNING=1 $(RUN)mkdocs build --strict -q

# The engine's own tests and random damage to its files, under address and undefined sanitizers.
native: $(VENV)/.dev-ready
	$(RUN)cmake -S . -B build/sanitized -DFOVEATE_SANITIZE=ON > /dev/null
	$(RUN)cmake --build build/sanitized -j 2 > /dev/null
	build/sanitized/test_native
	FOVEATE_FUZZ_RUNS=1000 build/sanitized/fuzz_replay

check: lint types contract docs native test

clean:
	rm -rf $(VENV) build dist site demo foveate-out

# torch first and alone: the constraint names the CPU build, before anything else can ask for
# the default one with its gigabytes of CUDA.
$(VENV)/.base-ready: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=24'
	$(PIP) install -c constraints.txt torch
	touch $@

# mediapipe depends on the OpenCV build with a desktop window system; servers have none, and both
# builds own the same files, so the headless one is put back last.
define headless
	$(PIP) uninstall -y opencv-contrib-python
	$(PIP) install --force-reinstall --no-deps -c constraints.txt opencv-python-headless
endef

$(VENV)/.demo-ready: $(VENV)/.base-ready pyproject.toml CMakeLists.txt $(wildcard native/*)
	$(PIP) install -c constraints.txt -e '.[faces,demo]'
	$(headless)
	touch $@

$(VENV)/.dev-ready: $(VENV)/.base-ready pyproject.toml CMakeLists.txt $(wildcard native/*)
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(headless)
	touch $@

# The face model: verified by its hash, kept in FOVEATE_DATA. Without a network `make demo` still
# runs when the file is already there.
$(VENV)/.model-ready: | $(VENV)/.base-ready
	test -e $(VENV)/.dev-ready || $(MAKE) $(VENV)/.demo-ready
	$(RUN)foveate models fetch face_landmarker
	touch $@
