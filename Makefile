# The two commands: `make demo` shows what warmroute does, `make test` passes all tests. Both first
# install what they need (`setup`). See README.md.

CARGO ?= cargo
VENV := target/venv
PYTHON := $(VENV)/bin/python

.PHONY: setup build demo test test-vllm lint deny bench bench-truth bench-aligned test-llama help

help:
	@echo "make demo | test | lint | bench | bench-truth | test-vllm | test-llama | build | setup"

# System packages, only when something is missing; Rust comes from rust-toolchain.toml.
setup:
	@scripts/setup.sh

build: setup
	$(CARGO) build --release

demo: setup
	$(CARGO) run --release -- demo $(DEMO_ARGS)

# A real client for the integration tests.
$(VENV)/.ready: tests/python/requirements.txt | setup
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

test: setup $(VENV)/.ready
	$(PYTHON) -m unittest discover -s engines/vllm/tests
	WARMROUTE_TEST_PYTHON=$(abspath $(PYTHON)) $(CARGO) test --workspace

# Two real vLLM servers on CPUs: 6 GB of disk, 10 GB of memory, up to 15 minutes.
test-vllm: build
	scripts/vllm-env.sh target/vllm
	python3 tests/vllm/run.py --router target/release/warmroute --work target/vllm $(VLLM_ARGS)

# Two llama-servers, compiled for some minutes: what is learned from answers alone.
test-llama: build
	scripts/llama-env.sh target/llama
	python3 tests/vllm/llama.py --router target/release/warmroute --work target/llama

lint: setup deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items
	for file in conf/*.yaml; do $(CARGO) run --quiet -- check --conf $$file || exit 1; done

# Compiled once per clone; without optimization, as it runs for a second.
DENY_VERSION := 0.20.2
DENY := target/tools/bin/cargo-deny
$(DENY): | setup
	$(CARGO) install --quiet --locked --debug --root target/tools cargo-deny@$(DENY_VERSION)
deny: $(DENY)
	$(DENY) check bans licenses sources

bench: setup
	$(CARGO) build --release
	$(CARGO) build --release -p warmroute-bench
	$(CARGO) run --release -p warmroute-bench --bin bench-proxy -- $(BENCH_ARGS)
	$(CARGO) run --release -p warmroute-bench --bin bench-scale
	$(CARGO) run --release -p warmroute-bench --bin bench-events

# Reports lost, late, repeated or false; engines killed and emptied: how long is what we believe wrong?
bench-truth: build
	$(CARGO) build --release -p warmroute-bench --bin bench-truth
	$(CARGO) run --release -p warmroute-bench --bin bench-truth -- $(TRUTH_ARGS)

# What tokenizing costs a request; TOKENIZER names a folder with tokenizer.json.
bench-aligned: setup
	$(CARGO) run --release -p warmroute-bench --bin bench-aligned -- --tokenizer $(TOKENIZER)
