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
SOAK_MINUTES ?= 60
FUZZ_SECONDS ?= 120
SOAK_FAULT_RUNS ?= 25
SOAK_CASES ?= 50
OBJECTS ?= 100000
API_FUZZ_EXAMPLES ?= 50
RESHARDS ?= 5
# Where the data, the peers and the results of comparisons lie: some 8 GB with all peers.
COMPARE ?= $(CURDIR)/target/compare
COMPARE_FLAGS ?= --rounds 5
# `dist` is what releases are built with: a third smaller, by link-time optimisation, which takes ten minutes of CPU.
PROFILE ?= release
RELEASE := $${CARGO_TARGET_DIR:-target}/$(PROFILE)/nexus

.PHONY: help run check build test test-env test-rust api-fuzz docs test-suites soak soak-hour fuzz bombs state nexmark objects restart reshard screenshots features compare latency startup profile instructions golden readers lint fmt fmt-check doc book bench deny clean

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Runs a pipeline: make run PIPELINE=pipelines/flights.yaml
	$(CARGO) run --release -- run $(PIPELINE)

check: ## Checks the pipeline files
	$(CARGO) run --release -- check pipelines/*.yaml

build: ## Builds the command; PROFILE=dist as releases are built
	$(CARGO) build --profile $(PROFILE) --locked

test: test-env fmt-check lint doc test-rust ## Everything that must hold: format, lints, docs, all tests

test-env: ## Puts the servers that the tests start into .test-env
	@tests/servers/install.sh "$(TEST_ENV)"

test-rust:
	@for example in $(basename $(notdir $(wildcard examples/*.rs))); do \
		echo "example: $$example"; \
		$(CARGO) run --quiet --all-features --locked --example $$example; \
	done
	$(CARGO) test --workspace --all-features --locked --doc
	$(CARGO) test --workspace --all-features --locked --lib --bins --examples --tests --no-fail-fast
	$(CARGO) test --workspace --all-features --locked --benches

soak: test-env ## Kills and restarts pipelines 500 times (SOAK_CRASHES), runs them 25 times in each hostile environment (SOAK_FAULT_RUNS), asks each query of the oracle 50 times (SOAK_CASES), and proves each time that nothing is lost or doubled
	NEXUS_TEST_CRASHES=$(SOAK_CRASHES) $(CARGO) test --workspace --all-features --locked --test nexus \
		fail_points::killed_at_every_step -- --nocapture
	NEXUS_TEST_FAULT_RUNS=$(SOAK_FAULT_RUNS) $(CARGO) test --workspace --all-features --locked --test nexus hostile:: \
		-- --nocapture --test-threads 3
	NEXUS_TEST_CASES=$(SOAK_CASES) $(CARGO) test --workspace --all-features --locked --test nexus oracle:: -- --nocapture

test-suites: ## Reads public suites: JSON_TEST_SUITE=<JSONTestSuite> PARQUET_TEST_DATA=<parquet-testing>/data
	$(CARGO) test --workspace --all-features --locked --lib -- --ignored --nocapture suites

fuzz: ## Fuzzes each decoder and parser for FUZZ_SECONDS (needs cargo-fuzz)
	cp Cargo.lock tests/fuzz/Cargo.lock
	@for target in $$($(CARGO) fuzz list --fuzz-dir tests/fuzz); do \
		mkdir -p "target/fuzz/$$target"; \
		$(CARGO) fuzz run --fuzz-dir tests/fuzz --sanitizer none --features engine "$$target" \
			"target/fuzz/$$target" "tests/fuzz/corpus/$$target" -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -max_len=4096; \
	done

api-fuzz: test-env ## Sends what schemathesis makes up to the API of a run: API_FUZZ_EXAMPLES requests for each path
	@test -x "$(TEST_ENV)/schemathesis/bin/st" || (python3 -m venv "$(TEST_ENV)/schemathesis" && \
		"$(TEST_ENV)/schemathesis/bin/pip" install --quiet --disable-pip-version-check schemathesis==4.32.5)
	NEXUS_TEST_SCHEMATHESIS="$(TEST_ENV)/schemathesis/bin/st" NEXUS_TEST_EXAMPLES=$(API_FUZZ_EXAMPLES) \
		$(CARGO) test --workspace --all-features --locked --test nexus api::schemathesis -- --nocapture

docs: ## Makes the pages anew that are made from the code: docs/metrics.md
	NEXUS_TEST_DOCS=make $(CARGO) test --workspace --all-features --locked --lib the_page_about_metrics

screenshots: test-env ## Takes the pictures of the book anew: the console and `nexus top` while telemetry.yaml runs on generated load
	NEXUS_TEST_PICTURES=docs/book/src/images $(CARGO) test --workspace --all-features --locked --test nexus \
		pictures:: -- --nocapture

bombs: test-env ## Unpacks bombs of 10 GiB within 128 MiB
	NEXUS_TEST_BOMB_MIB=10240 $(CARGO) test --release --workspace --all-features --locked --test nexus \
		memory::an_endless_line -- --nocapture

soak-hour: test-env build ## Runs two pipelines under faults for an hour (SOAK_MINUTES), and proves flat memory and every row once
	NEXUS_TEST_SOAK_MINUTES=$(SOAK_MINUTES) NEXUS_TEST_COMMAND="$${CARGO_TARGET_DIR:-target}/release/nexus" \
		$(CARGO) test --workspace --all-features --locked --test nexus soak:: -- --nocapture

state: test-env build ## Measures ten million remembered keys with `limits.memory` of 564 MiB, a million open windows with 114, as many sessions with 230
	NEXUS_TEST_KEYS=10000000 NEXUS_TEST_WINDOWS=1000000 NEXUS_TEST_COMMAND="$${CARGO_TARGET_DIR:-target}/release/nexus" \
		$(CARGO) test --workspace --all-features --locked --test nexus outgrow -- --nocapture --test-threads 1

objects: test-env build ## Reads 100 000 announced objects (OBJECTS), some twice, some of them poison, each once
	NEXUS_TEST_OBJECTS=$(OBJECTS) NEXUS_TEST_COMMAND="$${CARGO_TARGET_DIR:-target}/release/nexus" \
		$(CARGO) test --workspace --all-features --locked --test nexus objects:: -- --nocapture

nexmark: test-env build ## Runs the queries of Nexmark over a million events and compares with a batch
	NEXUS_TEST_NEXMARK=1000000 NEXUS_TEST_COMMAND="$${CARGO_TARGET_DIR:-target}/release/nexus" \
		$(CARGO) test --workspace --all-features --locked --test nexus nexmark -- --nocapture

restart: test-env build ## Measures a restart with 10 000 commit records and 1 GiB of state behind it (some ten minutes)
	NEXUS_TEST_RESTART=full NEXUS_TEST_COMMAND="$${CARGO_TARGET_DIR:-target}/release/nexus" \
		$(CARGO) test --workspace --all-features --locked --test nexus restart -- --nocapture

reshard: test-env ## Splits and merges a stream RESHARDS times under load, with kills in between
	NEXUS_TEST_RESHARDS=$(RESHARDS) $(CARGO) test --workspace --all-features --locked --test nexus resharded

compare: build ## Runs Nexus and its peers on the same work, W1 or COMPARE_FLAGS="--work w1z|w2|w3|w4|w5|growth --peers duckdb,polars" (w4 needs `make test-env`)
	python3 benches/compare/compare.py --folder "$(COMPARE)" --nexus "$(RELEASE)" $(COMPARE_FLAGS)

latency: build ## Measures how old rows are when readers of PostgreSQL see them, at 20 000 rows a second and commits each second
	python3 benches/latency/latency.py --nexus "$(RELEASE)"

startup: build ## Measures how soon a run reads, what an idle one takes, and how large the program is (PROFILE=dist: of releases)
	python3 benches/startup/startup.py --nexus "$(RELEASE)"

profile: ## Draws target/profile.svg, a flame graph of the comparison's work (needs perf, and `cargo install inferno`)
	$(CARGO) rustc --profile $(PROFILE) --locked --bin nexus -- -C strip=none
	python3 benches/compare/make_data.py "$(COMPARE)/data-1000000" 1000000 4
	rm -rf "$(COMPARE)/out/profile"
	perf record -F 399 --call-graph dwarf,8192 -o "$(COMPARE)/perf.data" "$(RELEASE)" run benches/compare/telemetry.yaml \
		--set events="$(COMPARE)/data-1000000/*.jsonl" --set lake="$(COMPARE)/out/profile"
	perf script -i "$(COMPARE)/perf.data" | inferno-collapse-perf | inferno-flamegraph > target/profile.svg

instructions: ## Writes down how many instructions the kernels take in the build of the tests (needs valgrind)
	NEXUS_RECORD_INSTRUCTIONS=1 $(CARGO) test --workspace --all-features --locked --bench instructions

golden: ## Makes the golden files of this version's state anew, in tests/golden; they are kept as they are once it is out
	NEXUS_TEST_GOLDEN=make $(CARGO) test --workspace --all-features --locked --test nexus golden -- --nocapture

readers: test-env ## Has Spark read the tables too, beside the readers of `make test` (installs 450 MB; needs Java 17)
	"$(NEXUS_TEST_ENV)/python/bin/pip" install --quiet --disable-pip-version-check pyspark==4.3.0
	NEXUS_TEST_SPARK=1 $(CARGO) test --workspace --all-features --locked --test nexus readers::

features: ## Lints each feature alone, and none, and pairs of them
	@for features in "" cli kinesis otel postgres s3 cli,kinesis cli,postgres cli,s3 kinesis,s3 otel,s3; do \
		echo "nexus: $${features:-none}"; \
		$(CARGO) clippy --quiet --locked --package nexus --no-default-features --features "$$features" -- -D warnings; \
	done
	@for features in "" aws kinesis postgres s3 sql; do \
		echo "nexus-operators: $${features:-none}"; \
		$(CARGO) clippy --quiet --locked --package nexus-operators --no-default-features --features "$$features" -- \
			-D warnings; \
	done

lint: ## Runs clippy; a warning is an error
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings

fmt: ## Formats the code
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all --check

doc: ## Builds the documentation; a warning is an error
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --all-features --locked --no-deps

book: test-env ## Makes pages of the book, in docs/book/book
	"$(NEXUS_TEST_ENV)/python/bin/mdbook" build docs/book

bench: build ## Runs the benchmarks
	$(CARGO) bench --package nexus-benches --locked

deny: ## Checks licences and dependencies (needs cargo-deny)
	$(CARGO) deny --all-features check

clean: ## Removes build output, the test servers and the lake of the flights
	$(CARGO) clean
	rm -rf "$(TEST_ENV)" pipelines/lake
