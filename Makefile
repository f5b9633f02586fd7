# `make demo` upscales a photo with everything on; `make test` runs the whole suite. Both set themselves up.
PYTHON ?= python3
VENV   ?= .venv
PHOTO  ?=
OUT    ?= out

BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.demo
	$(BIN)/python -m lib_dino demo $(if $(PHOTO),"$(PHOTO)") --out "$(OUT)"

test: $(VENV)/.test lint
	$(BIN)/python -m pytest

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "Python 3.10 to 3.12 is needed; this is %d.%d. Try: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@touch $@

$(VENV)/.test: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps timm==1.0.31  # without torchvision
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) $(OUT)
