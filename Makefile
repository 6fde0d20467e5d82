# What can be done with this repository, on Debian 12, as root. `make` alone explains.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
# Downloads and tools that outlive a clone: fsx, the PostgreSQL image's tar.
export OVS_CACHE ?= /var/cache/ovs-build
export OVS_BIN ?= $(TARGET_DIR)/release
TOTALS := $(TARGET_DIR)/totals.txt
FUZZ_SECONDS ?= 30
SEEDS ?= 2000
FIRST ?= 10000
SCHEDULES ?= 3000
CORRUPTIONS ?= 1000000
MUTANTS_SHARD ?= 0/25
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
# Debian's own python3: that is where python3-pytest is.
PYTEST := /usr/bin/python3 -B -m pytest -p no:cacheprovider

.PHONY: help
help: ## this text
	@echo "ovs: make <target>          (times: 2 cores, first run / later runs)"
	echo
	awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	echo
	echo "  areas: $$(ls integration/test_*.py | sed 's|.*/test_||; s|\.py||' | xargs)"

.PHONY: setup
setup: ## install what is needed from Debian (2 min / 0.1 s)
	@packaging/setup.sh

.PHONY: setup-build
setup-build:
	@packaging/setup.sh build

.PHONY: build
build: setup-build ## the programs, optimised, into target/release (5 min / 5 s)
	@cargo build --release --workspace --bins --locked

.PHONY: check
check: setup-build ## the quick loop: format, lints, tests without root or network (6 min / 1 min)
	@cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	mkdir -p $(TARGET_DIR)
	: >$(TOTALS)
	export OVS_REPORT=$(TOTALS)
	if cargo nextest --version >/dev/null 2>&1; then
	    cargo nextest run --workspace --locked --color=never 2>&1 | tee $(TARGET_DIR)/check.log
	    grep -E '^ *Summary' $(TARGET_DIR)/check.log | sed 's/^ */nextest:     /' >>$(TOTALS)
	else
	    cargo test --workspace --locked --lib --bins --tests --color=never 2>&1 | tee $(TARGET_DIR)/check.log
	    awk '/^test result:/{passed+=$$4; failed+=$$6; ignored+=$$8} END{printf "cargo test:  %d passed, %d failed, %d ignored\n", passed, failed, ignored}' \
	        $(TARGET_DIR)/check.log >>$(TOTALS)
	fi
	cargo test --workspace --locked --doc --color=never 2>&1 | tee $(TARGET_DIR)/doc.log
	awk '/^test result:/{passed+=$$4; failed+=$$6; ignored+=$$8} END{printf "doc tests:   %d passed, %d failed, %d ignored\n", passed, failed, ignored}' \
	    $(TARGET_DIR)/doc.log >>$(TOTALS)
	if cargo deny --version >/dev/null 2>&1; then cargo deny --offline check licenses bans sources; fi

.PHONY: integration
integration: setup build ## real Docker, PostgreSQL, fio, QEMU's tools, fsx against the release build; not test-engines (13 min)
	@$(PYTEST) integration --ignore integration/test_engines.py 2>&1 | tee $(TARGET_DIR)/integration.log
	tail -1 $(TARGET_DIR)/integration.log | sed 's/^=* */integration: /; s/ *=*$$//' >>$(TOTALS)

.PHONY: test
test: ## check, planted defects, threads, integration, object stores but for what test-engines has beside; prints the totals (60 min)
	@SECONDS=0
	$(MAKE) setup
	$(MAKE) check
	$(MAKE) planted
	$(MAKE) shuttle SCHEDULES=500
	$(MAKE) integration
	$(MAKE) engines-short
	$(MAKE) bench-quick
	echo
	echo "totals, after $$((SECONDS / 60)) min $$((SECONDS % 60)) s:"
	cat $(TOTALS)

.PHONY: test-full
test-full: ## as test, with larger data (4 GiB where test writes 1) (40 min)
	@OVS_TEST_SCALE=4 $(MAKE) test

# Real object stores (Ceph, Swift; 255 MB of packages), an emulator of Azure's (190 MB), and the client that asks them.
test-engines: engines-client

.PHONY: engines-client
engines-client: setup-build
	@packaging/setup.sh engines
	cargo build -q --release --workspace --bins --example conformance --locked

# Of test-engines what test has time for: the suite of all backends, probes, and vPools, on Ceph, Swift, Azurite, and composites of them. Left
# out is all that is killed, held, stopped or lost for good there, and tokens that expire.
.PHONY: engines-short
engines-short: setup build engines-client
	@$(PYTEST) integration/test_engines.py -k 'suite or probe or password or vpool' 2>&1 | tee $(TARGET_DIR)/engines.log
	tail -1 $(TARGET_DIR)/engines.log | sed 's/^=* */engines:     /; s/ *=*$$//' >>$(TOTALS)

test-%: setup build ## one area of the integration tests, e.g. make test-nbd (1 to 3 min)
	@$(PYTEST) integration/test_$*.py

.PHONY: fuzz
fuzz: setup-build ## every decoder under a fuzzer, FUZZ_SECONDS (30) each; needs a nightly toolchain (20 min)
	@packaging/setup.sh fuzz
	cargo run -q -p ovs-decoders --example seeds --locked -- fuzz/corpus
	export PATH="$(OVS_CACHE)/tools/bin:$$PATH" CARGO_TARGET_DIR=$(TARGET_DIR)/fuzz
	for target in $(FUZZ_TARGETS); do
	    mkdir -p fuzz/cases/$$target
	    echo "--- $$target, $(FUZZ_SECONDS) s"
	    cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/cases/$$target -- -max_total_time=$(FUZZ_SECONDS) \
	        -max_len=65536 -timeout=20 -rss_limit_mb=2048 -malloc_limit_mb=64 -verbosity=0 -print_final_stats=1
	    rmdir --ignore-fail-on-non-empty fuzz/cases/$$target
	done

.PHONY: planted
planted: setup-build ## shows that the tests find each planted defect, and who finds it (20 min)
	@mkdir -p $(TARGET_DIR)
	/usr/bin/python3 -B tests/planted/run.py | tee $(TARGET_DIR)/planted.log
	tail -1 $(TARGET_DIR)/planted.log | sed 's/^planted: /planted:     /' >>$(TOTALS)

.PHONY: shuttle
shuttle: setup-build ## threads of the directory backend in SCHEDULES (3000) orders per case and scheduler, power lost after each (1 min / 15 s)
	@OVS_SCHEDULES=$(SCHEDULES) cargo test -q --locked -p ovs-backend --features shuttle --lib concurrency
	echo "shuttle:     $(SCHEDULES) schedules of each case" >>$(TOTALS)

.PHONY: coverage
coverage: ## lines that the hermetic tests reach in write buffer, map, snapshots, recovery; fails below 95 % (5 min / 2 min)
	@packaging/setup.sh build coverage
	PATH="$(OVS_CACHE)/tools/bin:$$PATH" /usr/bin/python3 -B tests/coverage/run.py

.PHONY: mutants
mutants: ## mutants of the same code against the same tests, the MUTANTS_SHARD-th (0/25) part; again goes on (20 min a part)
	@packaging/setup.sh build mutants
	export PATH="$(OVS_CACHE)/tools/bin:$$PATH" CARGO_TARGET_DIR=$(TARGET_DIR)/mutants/target
	export OVS_SEEDS=4 OVS_SUBSETS=2 PROPTEST_CASES=16 NEXTEST_PROFILE=mutants
	# Write buffers in memory: their syncs cost nothing.
	[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
	output=$(TARGET_DIR)/mutants/$(subst /,-of-,$(MUTANTS_SHARD))
	mkdir -p $$output
	# What an interrupted part left there was built from a mutant, and its sources look older than it.
	cargo clean -q --profile mutants -p ovs-format -p ovs-volume -p ovs-tests
	# Its own run without a mutant leaves out ovs-tests, which would then notice everything.
	cargo nextest run --cargo-profile mutants --locked -p ovs-format -p ovs-volume -p ovs-tests --lib --tests
	cargo mutants --baseline skip --timeout 120 --iterate --sharding round-robin --shard $(MUTANTS_SHARD) --output $$output --colors never

.PHONY: soak
soak: setup-build ## many seeds of the model, the simulation and the crash sweep: SEEDS (2000) each (20 min)
	@cargo test -q --release --locked -p ovs-tests --no-run
	export OVS_SEEDS=$(SEEDS) OVS_FIRST=$(FIRST)
	for test in model simulation sweep; do
	    echo "--- $$test"
	    cargo test -q --release --locked -p ovs-tests --test $$test -- --nocapture
	done

# A case has one to three of them.
.PHONY: corruptions
corruptions: setup-build ## CORRUPTIONS (1,000,000) of fragments: none served, all found, mended where parity allows (1 h)
	@OVS_CORRUPTIONS=$$(($(CORRUPTIONS) / 2)) cargo test -q --release --locked -p ovs-backend --lib nothing_that_was_changed_is_served

.PHONY: sweep
sweep: setup-build ## 150,000 crash points, and every failing call and damage, of 20 workloads (5 min)
	@OVS_SEEDS=20 OVS_SUBSETS=64 cargo test -q --release --locked -p ovs-tests --test sweep -- --nocapture

.PHONY: demo
demo: ## PostgreSQL in a container on ovs, ovsd killed under load, a clone beside it (8 min / 1 min)
	@packaging/setup.sh build demo
	$(MAKE) build
	packaging/demo.sh $(DEMO_ARGS)

.PHONY: clean-demo
clean-demo: ## stop and remove what `make demo DEMO_ARGS=--keep` left (5 s)
	@packaging/demo.sh --clean

.PHONY: bench
bench: setup build ## alternating rounds against nbdkit and qemu-nbd, table into docs/benchmarks (20 min); the other rows: bench-rows
	@/usr/bin/python3 -B tests/bench/bench.py

# The other rows, a page of docs/benchmarks each; ROWS_ARGS, for instance --rounds 1. What they need beside `build`:
ROWS := overwrite snapshots memory restart many edge thousand objects cache maps coded
bench-memory bench-restart bench-maps: large-map
bench-objects: setup-ceph
bench-coded: coded

.PHONY: bench-rows
bench-rows: $(addprefix bench-,$(ROWS)) ## every row beside those: snapshots, memory, restarts, many vDisks, files, objects, read cache, maps, coded backends; 20 GiB of disk (50 min)

.PHONY: $(addprefix bench-,$(ROWS))
bench-snapshots: ## snapshots and clones, beside qcow2 and reflinks; 16 GiB of disk (5 min)
bench-memory: ## idle vDisks, the map of 1 TiB (4 min)
bench-restart: ## kill -9 to serving: replay, a vDisk of 1 TiB, 100 vDisks (4 min)
bench-many: ## 64 vDisks beside one, and beside qemu-storage-daemon (5 min)
bench-edge: ## a file of ovsd-edge, a loop device on it (5 min)
bench-thousand: ## 1,000 vDisks, 100 of them busy (6 min)
bench-objects: ## beside Ceph's RBD, and ZeroFS if it is there; installs ceph-mon, ceph-osd; 20 GiB of disk (10 min)
bench-cache: ## random reads with a read cache in memory, on an SSD, too small, and without (3 min)
bench-overwrite: ## steady overwrites with scrub: disk bytes per client byte, stored per live byte (3 min)
bench-maps: ## random reads through a map of 2^28 places in 256 MiB beside the same in memory; 3 GiB of disk (4 min)
bench-coded: ## a coded backend over six directories beside one directory: writes, degraded reads, rebuild, flushes; 12 GiB of disk (6 min)
$(addprefix bench-,$(ROWS)): bench-%: setup build
	@/usr/bin/python3 -B tests/bench/$*.py $(ROWS_ARGS)

.PHONY: large-map
large-map: setup-build
	@cargo build -q --release --locked -p ovs-cluster --example large_map

.PHONY: coded
coded: setup-build
	@cargo build -q --release --locked -p ovs-backend --example coded

.PHONY: setup-ceph
setup-ceph:
	@packaging/setup.sh ceph

.PHONY: bench-quick
bench-quick: setup build ## two rows; fails where an operation costs more CPU than with qemu-nbd (1 min)
	@/usr/bin/python3 -B tests/bench/bench.py --quick --gate --targets qemu-nbd-raw,ovs
	echo "bench-quick: CPU per operation within its bounds" >>$(TOTALS)

.PHONY: deb
deb: build ## Debian packages into target/deb (1 min)
	@packaging/deb/build.sh
