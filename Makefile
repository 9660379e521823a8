# `make help` lists what there is. Everything runs from a fresh clone.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

TEST_ENV := $(CURDIR)/.test-env
CARGO ?= cargo
PIPELINE ?= pipelines/flights.yaml

# The tests start real servers; they find them here.
export NEXUS_TEST_ENV ?= $(TEST_ENV)

SOAK_CRASHES ?= 500

.PHONY: help run check build test test-env test-rust soak restart golden lint fmt fmt-check doc bench deny clean

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Runs a pipeline: make run PIPELINE=pipelines/flights.yaml
	$(CARGO) run --release -- run $(PIPELINE)

check: ## Checks the pipeline files
	$(CARGO) run --release -- check pipelines/*.yaml

build: ## Builds the command in release
	$(CARGO) build --release --locked

test: test-env fmt-check lint doc test-rust ## Everything that must hold: format, lints, docs, all tests

test-env: ## Puts the servers that the tests start into .test-env
	@tests/servers/install.sh "$(TEST_ENV)"

test-rust:
	@for example in $(basename $(notdir $(wildcard examples/*.rs))); do \
		echo "example: $$example"; \
		$(CARGO) run --quiet --all-features --locked --example $$example; \
	done
	$(CARGO) test --workspace --all-features --locked --doc
	$(CARGO) test --workspace --all-features --locked --benches
	$(CARGO) test --workspace --all-features --locked --lib --bins --examples --tests --no-fail-fast

soak: test-env ## Kills and restarts pipelines 500 times (SOAK_CRASHES), and proves each time that nothing is lost or doubled
	NEXUS_TEST_CRASHES=$(SOAK_CRASHES) $(CARGO) test --workspace --all-features --locked --test nexus \
		fail_points::killed_at_every_step -- --nocapture

restart: test-env build ## Measures a restart with 10 000 commit records and 1 GiB of state behind it (some ten minutes)
	NEXUS_TEST_RESTART=full NEXUS_TEST_COMMAND="$${CARGO_TARGET_DIR:-target}/release/nexus" \
		$(CARGO) test --workspace --all-features --locked --test nexus restart -- --nocapture

golden: ## Makes the golden files of this version's state anew, in tests/golden; they are kept as they are once it is out
	NEXUS_TEST_GOLDEN=make $(CARGO) test --workspace --all-features --locked --test nexus golden -- --nocapture

lint: ## Runs clippy; a warning is an error
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings

fmt: ## Formats the code
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all --check

doc: ## Builds the documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --locked --no-deps

bench: ## Runs the benchmarks
	$(CARGO) bench --workspace --all-features --locked

deny: ## Checks licences and dependencies (needs cargo-deny)
	$(CARGO) deny --all-features check

clean: ## Removes build output, the test servers and the lake of the flights
	$(CARGO) clean
	rm -rf "$(TEST_ENV)" pipelines/lake
