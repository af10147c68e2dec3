# Two commands: `make demo` trains CycleGAN on built-in pictures, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs

.PHONY: demo test format clean

# Installs once: again only when pyproject.toml has changed since.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/lightning-gen fit --config configs/cyclegan.yaml --trainer.default_root_dir $(RUN)

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --dist worksteal

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache
