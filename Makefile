# make demo       enhance the sample clip, with nothing but Python 3.11+ and make at hand
# make test       all tests but the long ones
# make test-long  the long ones, two at a time, then those that measure waits
# make test-tensorrt  those that build TensorRT engines, in an environment of their own; no GPU needed
# make check      format, lint, types and tests: what CI runs
# make docs       the site, in docs/_build/html; warnings are errors
# make coverage   which share of the lines the tests run
# make gpu-kit    what travels to a machine with a GPU for its first half hour, in build/gpu-kit, and a
#                 rehearsal of it on the CPU; docs/gpu-checklist.md
# make gpu-train  what travels to a machine with a GPU for training, in build/gpu-train; docs/training.md
# make clean      remove what these made
# make install    as root: the daemon under PREFIX and its systemd units; see docs/operations.md
# make uninstall  remove both; the configuration, the queue and the user stay
#
# PYTHON=python3.12    another interpreter          VENV=path         another environment
# PYTEST_ARGS='-k fo'  passed to pytest             NUM_PROCESSES=0  tests in one process, not three
# PIP_ARGS='...'       passed to pip, for example
#   PIP_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu' for PyTorch's CPU build
# DATA=path             for gpu-train: pictures, test sets and feature weights; else SRSTREAM_DATA
# GPU_TRAIN_ARGS='...'  for gpu-train, for example --state FOLDER, with what came back from there
# PREFIX=/opt/srstream  where install puts it           PROFILE=cpu|gpu  which hardening it gets
# DESTDIR=path          a folder to install below, for packages; systemd is then not told

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
NUM_PROCESSES ?= 3
DATA ?= $(SRSTREAM_DATA)
GPU_TRAIN_ARGS ?=
PREFIX ?= /opt/srstream
DESTDIR ?=
PROFILE ?= cpu
UNITS := $(DESTDIR)/etc/systemd/system

BIN := $(VENV)/bin
SAMPLE := samples/nasa_13013.mp4
DEMO := build/demo

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test test-long test-tensorrt check lint format docs coverage gpu-kit gpu-train clean help
.PHONY: install install-venv install-units uninstall

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "srstream needs Python 3.11 or newer; name one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of packages, so that a second call installs nothing.
$(VENV)/.base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable .
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[test]'
	@touch $@ $(VENV)/.base

$(VENV)/.docs: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --editable '.[docs]'
	@touch $@ $(VENV)/.base

demo: $(VENV)/.base
	@mkdir -p $(DEMO)
	$(BIN)/srstream enhance $(SAMPLE) --end 5 --overwrite --restart -o $(DEMO)/nasa_13013_4x.mp4
	@$(BIN)/python -m srstream.pictures.before_after \
		$(SAMPLE) $(DEMO)/nasa_13013_4x.mp4 $(DEMO)/before_after.png >/dev/null
	@echo
	@echo "enhanced clip         $(DEMO)/nasa_13013_4x.mp4"
	@echo "before/after picture  $(DEMO)/before_after.png   (left bicubic, right srstream)"

# Half of a test's time is waiting. Neighbours stay together, so that fixtures are made once.
test: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(NUM_PROCESSES) --dist worksteal $(PYTEST_ARGS)

test-long: $(VENV)/.test
	@# pytest exits with 5 where PYTEST_ARGS leaves no test of a kind.
	$(BIN)/python -m pytest -m "long and not alone" --timeout 1800 --numprocesses 2 --dist worksteal \
		$(PYTEST_ARGS); one=$$?; \
	$(BIN)/python -m pytest -m "long and alone" --timeout 1800 $(PYTEST_ARGS); two=$$?; \
	case $$one-$$two in 0-0|0-5|5-0) ;; *) exit 1;; esac

# torch-tensorrt-rtx is torch-tensorrt without a driver; the two must never be installed together.
$(VENV)-tensorrt/.built: pyproject.toml
	$(PYTHON) -m venv $(VENV)-tensorrt
	$(VENV)-tensorrt/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		--editable . torch==2.13.0 torch-tensorrt-rtx==2.13.0 hypothesis pytest pytest-timeout
	@touch $@

test-tensorrt: $(VENV)-tensorrt/.built
	FAIL_WITHOUT_TENSORRT=1 $(VENV)-tensorrt/bin/python -m pytest tests/engines/test_tensorrt_build.py \
		--timeout 600 -W ignore $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: lint test

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env -b html docs docs/_build/html

coverage: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses $(NUM_PROCESSES) --dist worksteal --cov srstream --cov trainer \
		--cov-report term:skip-covered $(PYTEST_ARGS)

gpu-kit: $(VENV)/.test
	PYTHON=$(BIN)/python gpu/pack.sh
	rm -rf build/gpu-rehearsal
	PYTHON=$(BIN)/python LEVEL=0 gpu/pack.sh build/gpu-rehearsal/carried \
		$$($(BIN)/python -c 'import sys; print("{}.{}".format(*sys.version_info))')
	$(BIN)/python gpu/rehearse.py build/gpu-rehearsal/there build/gpu-rehearsal/carried all \
		--out build/gpu-rehearsal/out

gpu-train: $(VENV)/.test
	@test -d "$(DATA)/train" || { echo "no pictures in $(DATA)/train; name their folder with DATA=path"; exit 1; }
	$(BIN)/python gpu/cargo.py --data $(DATA) --output build/gpu-train $(GPU_TRAIN_ARGS)

clean:
	rm -rf $(VENV) $(VENV)-tensorrt build dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find srstream trainer tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

install: install-venv install-units

# A staged environment must not know where it was staged, and everyone must be able to run it.
install-venv:
	@case "$$(readlink -f "$$(command -v $(PYTHON))")" in /home/*|/root/*) \
		echo "$(PYTHON) lies in a home folder, which the service cannot see; name another with" \
			"PYTHON=/usr/bin/python3"; exit 1;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "srstream needs Python 3.11 or newer; name one with: make install PYTHON=python3.12"; exit 1; }
	umask 022; $(PYTHON) -m venv $(DESTDIR)$(PREFIX)
	umask 022; $(DESTDIR)$(PREFIX)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
		$(PIP_ARGS) $(if $(filter gpu,$(PROFILE)),'.[tensorrt]',.)
	$(if $(DESTDIR),grep -rlI "$(DESTDIR)" $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/pyvenv.cfg | xargs -r sed -i 's#$(DESTDIR)##g')

# An existing configuration is never touched; what is new in the shipped one lies beside it.
install-units:
	@test -e systemd/srstream.service.d/hardening-$(PROFILE).conf || \
		{ echo "PROFILE=$(PROFILE): there is cpu and gpu"; exit 1; }
	install -d $(UNITS)/srstream.service.d $(UNITS)/srstream-worker@.service.d \
		$(DESTDIR)/etc/sysusers.d $(DESTDIR)/etc/tmpfiles.d $(DESTDIR)/etc/srstream
	install -m 644 systemd/srstream.service systemd/srstream.socket systemd/srstream-worker@.service $(UNITS)
	sed -i 's#/opt/srstream/#$(PREFIX)/#' $(UNITS)/srstream.service $(UNITS)/srstream-worker@.service
	rm -f $(UNITS)/srstream.service.d/hardening-cpu.conf $(UNITS)/srstream.service.d/hardening-gpu.conf
	install -m 644 systemd/srstream.service.d/hardening-$(PROFILE).conf $(UNITS)/srstream.service.d
	install -m 644 systemd/srstream.service.d/hardening-gpu.conf $(UNITS)/srstream-worker@.service.d
	install -m 644 systemd/sysusers.d/srstream.conf $(DESTDIR)/etc/sysusers.d
	install -m 644 systemd/tmpfiles.d/srstream.conf $(DESTDIR)/etc/tmpfiles.d
	test -e $(DESTDIR)/etc/srstream/srstream.toml || \
		install -m 644 configs/srstream.toml $(DESTDIR)/etc/srstream
	install -m 644 configs/srstream.toml $(DESTDIR)/etc/srstream/srstream.toml.example
ifeq ($(DESTDIR),)
	systemd-sysusers
	systemd-tmpfiles --create /etc/tmpfiles.d/srstream.conf
	systemctl daemon-reload
	@if systemctl --quiet is-active srstream.service; then \
		echo "The daemon runs on as it was. To take what was installed: systemctl restart srstream"; \
	else \
		echo "Name the folders of jobs in /etc/srstream/srstream.toml and in a drop-in (systemctl edit" \
			"srstream), then: systemctl enable --now srstream.socket srstream.service"; \
	fi
endif

uninstall:
ifeq ($(DESTDIR),)
	-systemctl disable --now srstream.service srstream.socket
	-systemctl disable srstream-worker@.service
	-systemctl stop 'srstream-worker@*.service'
endif
	rm -f $(UNITS)/srstream.service $(UNITS)/srstream.socket $(UNITS)/srstream-worker@.service \
		$(UNITS)/srstream.service.d/hardening-*.conf $(UNITS)/srstream-worker@.service.d/hardening-gpu.conf \
		$(DESTDIR)/etc/sysusers.d/srstream.conf $(DESTDIR)/etc/tmpfiles.d/srstream.conf \
		$(DESTDIR)/etc/srstream/srstream.toml.example
	rmdir $(UNITS)/srstream.service.d $(UNITS)/srstream-worker@.service.d 2>/dev/null || true
	test ! -e $(DESTDIR)$(PREFIX)/pyvenv.cfg || rm -rf $(DESTDIR)$(PREFIX)
ifeq ($(DESTDIR),)
	rm -rf /run/srstream /run/srstream-worker
	systemctl daemon-reload
	@echo "Kept: /etc/srstream, drop-ins of yours, /var/lib/srstream, /var/lib/srstream-worker," \
		"/var/cache/srstream and the user srstream."
endif
