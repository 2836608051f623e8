# The two commands of the README, and what they need. `make install` alone sets up the environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install dpo arena goodhart sweep collect test lint clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

dpo: install
	$(BIN)/python -m hf_align.recipes.dpo $(ARGS)

goodhart: install
	$(BIN)/python -m hf_align.recipes.explore $(ARGS)

sweep: install
	$(BIN)/python -m hf_align.recipes.goodhart $(ARGS)

arena: install
	$(BIN)/python -m hf_align.recipes.arena $(ARGS)

collect: install
	$(BIN)/python -m hf_align.recipes.collect $(ARGS)

test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv outputs
