# make demo   the whole pipeline on embedded data: nothing but packages is downloaded
# make test   every test that needs no GPU and no root
# make test-faults  runs that are killed, full disks, many processes, two hosts (needs root for that one)
# make test-fuzz  damaged and hostile files, a minute for every parser; FUZZ_SECONDS=600 for more
# make test-slurm  the DAG and what may die, on a SLURM of its own (needs root, and its packages from Debian)
# make lint   style, rules, and that generated files are in step
# make lock   newer versions of the packages; make generated  files made from others

PYTHON ?= python3
VENV := .venv
RUN := . $(VENV)/bin/activate &&
SNAKEMAKE := snakemake --cores all
FUZZ_SECONDS ?= 60
COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: demo test test-faults test-fuzz test-slurm lint lock generated clean
.SILENT:

demo: $(VENV)/installed
	$(RUN) $(SNAKEMAKE) --quiet rules host -- results/fid_coco.json results/report.html results/model/model_index.json
	$(RUN) python -m pipeline show results/fid_coco.json

test: $(VENV)/installed
	$(RUN) python -m pytest tests/unit tests/workflow -m "not gpu" --numprocesses 2 --dist loadfile

test-faults: $(VENV)/installed
	$(RUN) python -m pytest tests/faults --durations 10

test-fuzz: $(VENV)/installed
	$(RUN) python -m pytest tests/fuzz --fuzz-seconds $(FUZZ_SECONDS) --numprocesses 2

test-slurm: $(VENV)/installed
	$(RUN) python -m pytest tests/slurm --durations 10

lint: $(VENV)/installed
	$(RUN) ruff check . && ruff format --check .
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) snakemake --lint
	$(RUN) python -m pipeline.config.generated --check && python envs/make_conda.py --check

$(VENV)/installed: envs/requirements.lock envs/installer.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	echo "Installing the locked packages into $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --require-hashes -r envs/installer.lock
	$(RUN) uv pip install --quiet --compile-bytecode --require-hashes -r envs/requirements.lock
	touch $@

lock:
	$(PYTHON) -m venv $(VENV) && $(RUN) pip install --quiet uv
	$(RUN) $(COMPILE) --upgrade envs/requirements.in -o envs/requirements.lock
	$(RUN) echo uv | $(COMPILE) --upgrade - -o envs/installer.lock
	$(MAKE) generated

generated: $(VENV)/installed
	$(RUN) python -m pipeline.config.generated && python envs/make_conda.py

clean:
	rm -rf $(VENV) .snakemake results/*
