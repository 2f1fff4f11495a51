# Everything one does with this repository. `make demo` shows the product, `make test` is what CI runs.
# On a fresh machine either installs what is missing first; see scripts/setup.sh.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Where rustup puts cargo; whatever is in PATH comes first.
export PATH := $(PATH):$(HOME)/.cargo/bin
# .sqlx says what the database would: a build needs none.
export SQLX_OFFLINE := true

TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
BROKERD := $(TARGET_DIR)/debug/brokerd

# Where `brokerd dev` keeps things by itself. Root's home is closed to the user that PostgreSQL runs as.
HOME_DEV_DIR := $(if $(filter /root,$(HOME)),/var/lib/broker-dev,$(HOME)/.local/state/broker/dev)
DEV_DIR := $(if $(filter /%,$(XDG_STATE_HOME)),$(XDG_STATE_HOME)/broker/dev,$(HOME_DEV_DIR))

# What is fuzzed: each file there is a target. With LLVM's own instrumentation, which stable Rust has too; these are
# the flags of `cargo fuzz run --sanitizer none`.
FUZZ_TARGETS := $(sort $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))))
FUZZ_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/fuzz/target)
FUZZ_SECONDS ?= 120
FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares

# How many events the history of `make bench` has. Ten million take 20 GB in the temporary directory, until it is done.
EVENTS ?= 10000000

.PHONY: help
help: ## Show what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1@\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS=@ read -r target text; \
	do printf '%-21s %s\n' "$$target" "$$text"; done

.PHONY: demo
demo: build ## See the whole product once, on this machine, without an account
	@scripts/demo.sh

.PHONY: drill
drill: build ## Type the commands of docs/runbook.md into a stack of their own, and compare what they print
	@scripts/drill.sh

.PHONY: dev
dev: build ## Run the whole product until Ctrl-C, and try it from another terminal
	@printf '%s\n' 'When it says "ready", in another terminal:' \
	    '  set -a; . "$(DEV_DIR)/dev.env"; set +a; PATH="$(TARGET_DIR)/debug:$$PATH"' \
	    '  broker scopes' ''
	@exec "$(BROKERD)" dev --dir "$(DEV_DIR)"

.PHONY: test
test: check check-actions ## Check and test everything, as CI does
	@scripts/setup.sh --oracle
	@scripts/setup.sh --clients
	@scripts/setup.sh --sk-dummy
	@scripts/setup.sh --mcp-client
	@AWS_CLI="$$(scripts/setup.sh --print-aws)" CLIENTS="$$(scripts/setup.sh --print-clients)" \
	    POLICY_ORACLE="$$(scripts/setup.sh --print-oracle)" SK_DUMMY="$$(scripts/setup.sh --print-sk-dummy)" \
	    MCP_CLIENT="$$(scripts/setup.sh --print-mcp-client)" cargo test --workspace --locked
	@# For so short a time, what is built sooner is worth more than what runs faster.
	@CARGO_PROFILE_RELEASE_OPT_LEVEL=1 $(MAKE) --no-print-directory fuzz FUZZ_SECONDS=3

.PHONY: check
check: lint build ## Check form, lints, scripts, the example configuration and what its rules decide
	@"$(BROKERD)" check --config config
	@"$(BROKERD)" check --config config --cases config/cases.toml

.PHONY: lint
lint: setup ## Check form, lints and scripts
	@for script in scripts/*.sh .ci/run; do bash -n "$$script" || exit 1; done
	cargo fmt --all --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --workspace --all-targets --locked -- -D warnings

.PHONY: build
build: setup ## Build broker and brokerd
	cargo build --workspace --locked

.PHONY: fuzz
fuzz: setup ## Feed the readers of signatures and statements what nobody would send, FUZZ_SECONDS each
	@RUSTFLAGS="$(FUZZ_FLAGS)" CARGO_TARGET_DIR="$(FUZZ_DIR)" \
	    cargo build --locked --release --bins --manifest-path fuzz/Cargo.toml --target $(FUZZ_HOST)
	@for target in $(FUZZ_TARGETS); do \
	    echo "fuzz: $$target, $(FUZZ_SECONDS) s"; \
	    mkdir -p "$(FUZZ_DIR)/corpus/$$target" "$(FUZZ_DIR)/found" && log="$(FUZZ_DIR)/$$target.log" && \
	    "$(FUZZ_DIR)/$(FUZZ_HOST)/release/$$target" -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=1024 \
	        -max_len=16384 -dict=fuzz/json.dict -artifact_prefix="$(FUZZ_DIR)/found/$$target-" \
	        "$(FUZZ_DIR)/corpus/$$target" "fuzz/seeds/$$target" >"$$log" 2>&1 || { tail -n 40 "$$log" >&2; exit 1; }; \
	    sed -n '/^Done/p' "$$log"; \
	done

.PHONY: bench
bench: setup ## Measure what a decision costs, what `broker` costs beside the AWS CLI, how long a wait is, and what EVENTS cost
	cargo bench --locked --package broker --bench decide
	cargo bench --locked --package broker --bench verify
	@ulimit -n hard && cargo bench --locked --package tests --bench log
	cargo build --release --locked --package cli
	cargo build --release --locked --package broker
	@AWS_CLI="$${AWS_CLI:-$$(scripts/setup.sh --print-aws)}" cargo bench --locked --package tests --bench client
	@ulimit -n hard && cargo bench --locked --package tests --bench waiting
	@EVENTS=$(EVENTS) cargo bench --locked --package tests --bench history

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

.PHONY: sqlx
sqlx: setup ## Describe the queries in .sqlx anew, after one or the schema has changed
	@scripts/sqlx.sh

.PHONY: actions
actions: ## Make the table of AWS actions anew from its pinned sources, and say what changed
	@scripts/actions.sh

.PHONY: check-actions
check-actions: ## Check that the table of AWS actions is what its sources give
	@scripts/actions.sh --check

.PHONY: setup
setup: ## Install what is missing on this machine, and say so
	@scripts/setup.sh

.PHONY: clean-dev
clean-dev: ## Forget everything that `make dev` keeps
	@if pid="$$(head -n 1 "$(DEV_DIR)/postgres/postmaster.pid" 2>/dev/null)" && kill -0 "$$pid" 2>/dev/null; \
	then echo 'brokerd dev runs on $(DEV_DIR); stop it first' >&2; exit 1; fi
	rm -rf "$(DEV_DIR)"
