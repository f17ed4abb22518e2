# Nothing needs to be installed first but Python 3.11 or newer: every target makes .venv by itself.
PYTHON ?= python3
PY := .venv/bin/python
RUN := $(PY) run_pipeline.py
TORCH_THREADS := OMP_NUM_THREADS=2

.PHONY: demo test lint bench bench-gpu easy-vqa tables demo-model demo-lstm-model easy-vqa-model clean

demo: .venv/.installed  ## the whole workflow on the embedded world
	@$(RUN) demo --out runs/demo

test: .venv/.installed-dev  ## set-up and all tests, two files at a time
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-dev  ## style, types, known vulnerabilities
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PY) deploy/audit.py

bench: .venv/.installed-dev  ## ours beside Captum; prints ratios, about an hour
	for trunk in resnet18 resnet50 vgg16; do for px in 224 448; do \
	    $(PY) benchmarks/occlusion.py --trunk $$trunk --px $$px --record || exit 1; done; done
	$(PY) benchmarks/occlusion.py --trunk resnet152 --px 448 --repeats 1 --record
	$(PY) benchmarks/occlusion.py --questions 3 --targets 2 --record
	for trunk in resnet18 resnet50 vgg16; do \
	    $(PY) benchmarks/gradients.py --trunk $$trunk --questions 1 || exit 1; done
	$(PY) benchmarks/floor.py
	$(PY) benchmarks/overhead.py
	$(PY) benchmarks/metrics.py

bench-gpu: .venv/.installed-dev  ## the same on an NVIDIA GPU, some twenty minutes
	for trunk in resnet18 resnet50 vgg16 resnet152; do for px in 224 448; do \
	    for precision in float32 tf32; do $(PY) benchmarks/occlusion.py --device cuda --batch 128 \
	        --trunk $$trunk --px $$px --precision $$precision --record || exit 1; done; done; done
	for trunk in resnet18 resnet50 vgg16; do \
	    $(PY) benchmarks/gradients.py --device cuda --trunk $$trunk --questions 1 || exit 1; done
	for precision in float32 tf32 bfloat16; do \
	    $(PY) benchmarks/floor.py --device cuda --batch 128 --precision $$precision || exit 1; done
	$(PY) benchmarks/trunks.py --device cuda --batch 128 --record

easy-vqa: .venv/.installed  ## the same job on real easy-VQA; --set dataset.root=... elsewhere
	$(RUN) run recipes/easy_vqa.yaml --out runs/easy_vqa
	$(RUN) evaluate runs/easy_vqa

tables: demo easy-vqa  ## the README's tables of methods, from these two runs
	$(PY) -m pipeline.report.readme runs/demo --block demo
	$(PY) -m pipeline.report.readme runs/easy_vqa --block easy_vqa

demo-model: .venv/.installed  ## train the embedded model again (under an hour on 2 cores)
	$(TORCH_THREADS) $(PY) -m workers.train demo

demo-lstm-model: .venv/.installed  ## the embedded world's model with a combine layer, likewise
	$(TORCH_THREADS) $(PY) -m workers.train demo-lstm

easy-vqa-model: .venv/.installed
	$(TORCH_THREADS) $(PY) -m workers.train easy-vqa

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -e . -c constraints.txt
	@touch $@

.venv/.installed-dev: .venv/.installed
	.venv/bin/pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
