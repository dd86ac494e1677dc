# Everything that people and scripts ask of a checkout. `make help` lists it.

CARGO ?= cargo
CASITA := target/release/casita

.PHONY: help run test check build kernel bench clean deps

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: build kernel ## the tour: two VMs from one image
	@tests/tour

test: build kernel ## all tests; guests boot in the lab where this machine's KVM can't run them
	@tests/run-all

check: deps ## the quick tier: format, lints, unit tests
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) clippy --profile agent --package casita-agent --features init --bin casita-agent -- -D warnings
	$(CARGO) test --workspace --lib

# One call each: in one the features of the programs' dependencies would add up.
build: deps ## target/release/casita and the programs beside it
	$(CARGO) build --release --package casita
	$(CARGO) build --release --package casita-image
	$(CARGO) build --release --package casita-fs
	$(CARGO) build --release --package casita-bench
	@test "$$(stat -c %s $(CASITA))" -le 5242880 || { echo "$(CASITA) is larger than 5 MiB" >&2; exit 1; }

kernel: ## the guest kernel; the last line is the path of its vmlinux
	@guest-kernel-config/build

bench: build kernel ## measure, beside peers in the same run; results go to target/bench
	@tests/bench

deps: ## install what is missing to build and run
	@tests/install-packages gcc libc6-dev libcap-ng-dev libseccomp-dev e2fsprogs erofs-utils busybox-static passt

clean: ## remove what was built here; caches stay
	$(CARGO) clean
