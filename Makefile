# Needs Python 3.11, 3.12 or 3.13 and make; everything else is installed into .venv, from the locks and by their hashes.

VENV = .venv
UV = $(VENV)/bin/uv
INSTALL = $(UV) pip install --python $(VENV)/bin/python
COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	--custom-compile-command "make lock" pyproject.toml --group build $(LOCK_ARGS)
PYTHONS = $(or $(PYTHON),python3.13 python3.12 python3.11 python3)
# More than the two cores of a small machine, because the tests wait for more than half of their time. No more than
# that, because each worker collects the tests and has servers of its own.
PYTEST_ARGS = -n 6 --dist worksteal
RUNS = 100
SEED =
CAMPAIGN_ARGS =
DIR =
CORPUS_ARGS =
SYSTEM_ARGS =
LOCK_ARGS =

# Empty means that Python keeps what it has compiled. Where an image sets it, every process would compile what it imports
# anew: half of the CPU time of a start.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help run system test campaign corpus model lock

help:
	@echo 'make run    process the scenario of runner.toml; whatever its addresses call "embedded" is started too'
	@echo 'make system  the whole system on this machine: runners are killed for a minute, and nothing is lost'
	@echo 'make test   run the tests (PYTEST_ARGS="-k writer" for some of them)'
	@echo 'make campaign RUNS=1000 SEED=1  seeded faults of every kind; says how to replay a run that goes wrong'
	@echo 'make corpus DIR=folder  hold the reader against FFmpeg over a folder of your videos (CORPUS_ARGS="--jobs 4")'
	@echo 'make model  check the protocol exhaustively (needs spin and a C compiler)'
	@echo 'make lock   write the locks anew after a change of pyproject.toml (LOCK_ARGS=--upgrade: newest versions)'

run: $(VENV)/.runner
	$(VENV)/bin/trio-runner run runner.toml

system: $(VENV)/.runner
	$(VENV)/bin/python -m tests.campaign.system $(SYSTEM_ARGS)

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

lock: $(VENV)/.uv
	$(COMPILE) --extra embedded $(LOCK_ARGS) --output-file requirements.lock
	$(COMPILE) --extra embedded --extra http2 --extra kubernetes $(LOCK_ARGS) --group dev --constraints requirements.lock \
	    --output-file requirements-dev.lock
	$(COMPILE) --extra http2 --extra kubernetes $(LOCK_ARGS) --no-emit-package uv --constraints requirements-dev.lock \
	    --output-file requirements-runtime.lock

campaign: $(VENV)/.dev
	$(VENV)/bin/python -m tests.campaign --runs $(RUNS) $(if $(SEED),--seed $(SEED)) $(CAMPAIGN_ARGS)

corpus: $(VENV)/.dev
	$(VENV)/bin/python -m tests.cases.corpus $(CORPUS_ARGS) -- "$(DIR)"

model:
	bash tests/campaign/check_model.sh

$(VENV)/.runner: requirements.lock pyproject.toml $(VENV)/.uv
	$(INSTALL) --require-hashes --requirements requirements.lock
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runner
	$(INSTALL) --require-hashes --requirements requirements-dev.lock
	@touch $@

# A name on the PATH is no interpreter yet (pyenv has shims for versions that are switched off), and Debian's Python has
# no venv module without its package: ask each candidate. uv comes first, by pip, because it then installs the rest in
# 2 s where pip takes 15 s.
$(VENV)/.uv:
	@seen=; broken=; made=; \
	for python in $(PYTHONS); do \
	    version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    case $$version in \
	        3.11|3.12|3.13) ;; \
	        *) seen="$$seen $$version"; continue ;; \
	    esac; \
	    if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        echo "making $(VENV) with Python $$version ($$python)"; \
	        "$$python" -m venv --clear $(VENV) || exit 1; \
	        made=yes; break; \
	    fi; \
	    broken="$$broken $$version"; \
	done; \
	[ -n "$$made" ] || { \
	    for version in $$broken; do \
	        echo "Python $$version has no venv module; on Debian and Ubuntu: apt-get install python$$version-venv" >&2; \
	    done; \
	    [ -n "$$broken" ] || echo "Python 3.11, 3.12 or 3.13 is needed; found:$${seen:- none}." \
	        "If it is not on the PATH: make run PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	}
	@awk '/^uv==/ {found = 1} found {print} found && !/\\$$/ {exit}' requirements.lock >$(VENV)/uv.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $(VENV)/uv.lock
	@touch $@
