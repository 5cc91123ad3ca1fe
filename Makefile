# The two commands: `make demo` shows what warmroute does, `make test` passes all tests. Both first
# install what they need (`setup`). See README.md.

CARGO ?= cargo
VENV := target/venv
PYTHON := $(VENV)/bin/python

.PHONY: setup build demo test test-vllm lint deny bench bench-truth help

help:
	@echo "make demo | test | lint | bench | bench-truth | test-vllm | build | setup"

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
	$(CARGO) build --release
	python3 tests/vllm/run.py --router target/release/warmroute --work target/vllm $(VLLM_ARGS)

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
