# What a user and a developer types. Every target sets up what is missing first (milliseconds when nothing is).
.PHONY: help setup vendor demo test test-all coverage format lint pages docs lock clean

RUN := sh tools/run.sh
TASK ?= pick up the red cube
EPISODES ?= 10
SEED ?= 1000
ARGS ?=
JOBS ?= 2

help:
	@echo "make demo      the simulated SO-101 picks a cube: set-up, 10 episodes, film and picture in out/"
	@echo "make test      set-up and tests;  make test-all  also the slow ones"
	@echo "make lint      ruff and mypy;  make format  ruff's formatter;  make coverage  branches of the inner rooms"
	@echo "make docs      the documentation as a site, in out/site;  make pages  docs/reference from the code"
	@echo "make setup     only the set-up (.venv/);  make lock  pins anew;  make clean"

setup:
	@sh tools/setup.sh

demo:
	@exec $(RUN) molmoact2 sim --robot so101 --task "$(TASK)" --episodes $(EPISODES) --seed $(SEED) --out out $(ARGS)

# What runs on real clocks has the machine to itself; the rest goes first, two at a time.
define both
	@status=0; \
	$(RUN) python -m pytest -n $(JOBS) --dist loadfile -m "not realtime$(1)" $(2) || status=1; \
	$(RUN) python -m pytest -m "realtime$(1)" $(2) || status=1; \
	exit $$status
endef

test:
ifeq ($(ARGS),)
	$(call both, and not slow)
else
	@exec $(RUN) python -m pytest $(ARGS)
endif

# Models and meshes of the vendors, which the slow tests compare with.
vendor: setup
	@sh tools/vendor.sh

test-all: vendor
	$(call both,,$(ARGS))

# Branches of what moves an arm, decides or keeps data, in this process: what node processes run is not counted.
INNER := execution policy embodiments drivers recording
coverage:
	@exec $(RUN) python -m pytest $(foreach room,$(INNER),--cov=molmoact2_ros.$(room)) --cov-branch \
		--cov-report=term:skip-covered $(ARGS)

format:
	$(RUN) ruff check --fix-only --quiet .
	$(RUN) ruff format --quiet .

lint:
	$(RUN) ruff check .
	$(RUN) ruff format --check --quiet .
	$(RUN) mypy

# The pages of docs/reference that are made from the code.
pages:
	$(RUN) python tools/pages.py

# The documentation as a site, in out/site.
docs: setup
	@sh tools/docs.sh

# Compiles the pins anew from what requirements/*.in asks for; versions move only where they must.
lock:
	$(RUN) uv pip compile --quiet --no-header --no-annotate requirements/runtime.in -o requirements/runtime.txt
	$(RUN) uv pip compile --quiet --no-header --no-annotate requirements/test.in -o requirements/test.txt
	$(RUN) uv pip compile --quiet --no-header --no-annotate requirements/serve.in -c requirements/test.txt -o requirements/serve.txt
	$(RUN) uv pip compile --quiet --no-header --no-annotate requirements/docs.in -c requirements/test.txt -o requirements/docs.txt
	$(RUN) uv pip compile --quiet --no-header --no-annotate requirements/panel.in -c requirements/test.txt -o requirements/panel.txt
	$(RUN) uv pip compile --quiet --no-header --no-annotate requirements/robot.in -c requirements/test.txt -o requirements/robot.txt

clean:
	rm -rf build install log out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
