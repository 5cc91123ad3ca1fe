# The two commands: `make demo` shows what warmroute does, `make test` passes all tests. Both first
# install what they need (`setup`). See README.md.

CARGO ?= cargo
VENV := target/venv
PYTHON := $(VENV)/bin/python

.PHONY: setup build demo test test-vllm lint deny bench bench-instructions bench-streams bench-truth bench-upgrade bench-routers \
	bench-replay bench-simulate bench-experiments bench-aligned bench-decisions bench-index test-index soak-index bench-calls test-llama deb \
	test-deb test-systemd image help

help:
	@echo "make demo | test | lint | test-vllm | test-llama | build | setup"
	@echo "make bench | bench-instructions | bench-streams | bench-truth | bench-upgrade | bench-routers | bench-replay | bench-simulate | bench-experiments | bench-index"
	@echo "make deb | test-deb | test-systemd | image"

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
	$(CARGO) fmt --manifest-path bench/rivals/Cargo.toml --check
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

# target/debian/warmroute_VERSION_ARCH.deb; the tool is compiled once per clone. docs/install.md.
CARGO_DEB_VERSION := 3.8.0
CARGO_DEB := target/tools/bin/cargo-deb
$(CARGO_DEB): | setup
	$(CARGO) install --quiet --locked --debug --root target/tools cargo-deb@$(CARGO_DEB_VERSION)
deb: build $(CARGO_DEB)
	rm -f target/debian/*.deb
	target/release/warmroute generate --dir target/packaging
	$(CARGO) tree --package warmroute --edges normal --prefix none --format '{p}: {l}' \
		| sed -e 's/ (\*)$$//' -e '/ (\//d' | LC_ALL=C sort -u > target/packaging/crates.txt
	$(CARGO_DEB) --no-build --strip --output target/debian/

# Both need root and debootstrap, touch nothing outside target/, and say SKIP where they cannot run.
test-deb: deb
	tests/packaging/deb.sh target/debian/*.deb
test-systemd: deb
	tests/systemd/run.sh target/debian/*.deb

# The container image, with podman, buildah or docker.
image:
	packaging/oci/build.sh

bench: setup
	$(CARGO) build --release
	$(CARGO) build --release -p warmroute-bench
	$(CARGO) run --release -p warmroute-bench --bin bench-proxy -- $(BENCH_ARGS)
	$(CARGO) run --release -p warmroute-bench --bin bench-scale
	$(CARGO) run --release -p warmroute-bench --bin bench-events

# Instructions a request, against a bare Pingora, counted by callgrind; needs the package valgrind.
bench-instructions: setup
	$(CARGO) build --release -p warmroute -p warmroute-bench --bin warmroute --bin bench-instructions
	target/release/bench-instructions $(INSTRUCTIONS_ARGS)

# Memory of a proxy that holds ten thousand silent streams, or as many as the limit on files allows.
bench-streams: setup
	$(CARGO) build --release -p warmroute -p warmroute-bench --bin warmroute --bin bench-streams
	target/release/bench-streams

# Reports lost, late, repeated or false; engines killed and emptied: how long is what we believe wrong?
bench-truth: build
	$(CARGO) build --release -p warmroute-bench --bin bench-truth
	$(CARGO) run --release -p warmroute-bench --bin bench-truth -- $(TRUTH_ARGS)

# Reloads, upgrades, crashes and plain restarts under load: what is lost? Eight minutes, or
# UPGRADE_ARGS=--quick.
bench-upgrade: build
	$(CARGO) build --release -p warmroute-bench --bin bench-upgrade
	$(CARGO) run --release -p warmroute-bench --bin bench-upgrade -- $(UPGRADE_ARGS)

# One router and two in front of the same engines, with and without a broker: what is lost?
bench-routers: build
	$(CARGO) build --release -p warmroute-bench --bin bench-routers
	$(CARGO) run --release -p warmroute-bench --bin bench-routers -- $(ROUTERS_ARGS)

# A trace under several policies, each with cold engines: docs/replay.md.
bench-replay: build
	$(CARGO) build --release -p warmroute-bench --bin warmroute-bench
	target/release/warmroute-bench replay $(REPLAY_ARGS)

# Policies in virtual time against modelled engines; no router, no sockets: docs/simulate.md.
bench-simulate: setup
	$(CARGO) build --release -p warmroute-bench --bin warmroute-bench
	target/release/warmroute-bench simulate $(SIMULATE_ARGS)

# All experiments of docs/results/2026-11-21-policy-experiments.md, or STAGES="sweep mixed ..."; TRACES
# names the folder of recorded traces, and what needs one is skipped without. Hours.
bench-experiments: build
	$(CARGO) build --release -p warmroute-bench --bin warmroute-bench
	scripts/bench-experiments.sh $(STAGES)
	python3 scripts/experiments_tables.py target/experiments > target/experiments/tables.md

# Decisions and events a second of a large fleet, without sockets: 1,000 workers and 10 M blocks, or as
# DECISIONS_ARGS say.
bench-decisions: setup
	$(CARGO) run --release -p warmroute-bench --bin bench-decisions -- $(DECISIONS_ARGS)

# What tokenizing costs a request; TOKENIZER names a folder with tokenizer.json.
bench-aligned: setup
	$(CARGO) run --release -p warmroute-bench --bin bench-aligned -- --tokenizer $(TOKENIZER)

# Our prefix indexes and other routers' in one run: equal answers checked, then timed. With INDEX_ARGS
# --trace FILE on a trace of block ids, decompressed; otherwise --workers, --length, --blocks.
RIVALS := --manifest-path bench/rivals/Cargo.toml --target-dir target/rivals --locked
bench-index: setup
	$(CARGO) run --release $(RIVALS) -- $(INDEX_ARGS)
# How long single calls of the product's index take.
bench-calls: setup
	$(CARGO) run --release $(RIVALS) --bin bench-calls -- $(CALLS_ARGS)
# The tests of the product's index, and of the bench; CASES for a longer run (docs/adr/0017).
test-index: setup
	$(CARGO) test --release $(RIVALS)
# 100 million blocks through a byte bound: memory stays flat. SOAK_ARGS="MILLIONS MIB".
soak-index: setup
	$(CARGO) run --release $(RIVALS) --bin soak-index -- $(SOAK_ARGS)
