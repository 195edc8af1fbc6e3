# The two commands of the README are `make demo` and `make test`; both do all set-up themselves.
.DEFAULT_GOAL := help
.PHONY: help demo test lint check bench truth soak engines stubs clean

BIN := .venv/bin

help:  ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo:  ## From a real engine to grams, on this machine (minutes the first time)
	@scripts/environment.sh daemon,cli
	@scripts/engines.sh llama >/dev/null
	@$(BIN)/wattledger demo --engine-python "$$(scripts/engines.sh --path llama)"

test: check engines  ## Everything that CI runs
	$(BIN)/pytest --cov --cov-report=term:skip-covered --durations=10

check: lint  ## Lint, types and layers
	$(BIN)/mypy
	$(BIN)/lint-imports

lint:  ## Style alone
	@scripts/environment.sh dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: engines  ## Cost of the daemon, the hook and the command line, against bars and peers
	@scripts/environment.sh dev
	$(BIN)/python -m benchmarks

truth:  ## Known power through the real library path: the table of docs/accuracy.md
	@scripts/environment.sh dev
	$(BIN)/python -m benchmarks truth

soak:  ## An hour of a daemon under traffic: does anything grow?
	@scripts/environment.sh dev
	$(BIN)/python -m benchmarks soak

engines:  ## Build the real engines that the tests and the demo use (kept between runs)
	@scripts/engines.sh >/dev/null

stubs:  ## Regenerate the protobuf stubs
	scripts/generate_stubs.sh

clean:  ## Remove what make made in this folder
	rm -rf .venv demo-run .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
