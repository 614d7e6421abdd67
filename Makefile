# The host side's front door. It only sees to it that there is a cargo; the rest is `cargo xtask`.
#
#   make run                 set up, build, boot under every policy, print the table
#   make test                set up, run every test on every architecture
#   make test ARCH=s390      the same on one: x86_64, arm64, s390, powerpc (or powerpc-hash), riscv, um, arm, loongarch
#   make test VARIANT=kasan  the guests only, kernels built otherwise: kasan, kcsan, rt, norust, off, or all
#   make run LINUX=~/linux   the same on your own unpatched Linux 7.3.x tree
#   make apply LINUX=~/linux put the series onto it; make unapply LINUX=~/linux takes it off again

OUT ?= mails
# Without ARCH, `run` is x86_64's, `setup` and `test` are for all. An empty ARCH=, VARIANT= or
# LINUX= is none.
ifneq ($(strip $(ARCH)),)
export ARCH
else
unexport ARCH
endif
ifneq ($(strip $(VARIANT)),)
export VARIANT
else
unexport VARIANT
endif
ifneq ($(strip $(LINUX)),)
export LINUX
else
unexport LINUX
endif

# Debian 12's own cargo is too old; its cargo-web is not, and is newer than Debian 13's own as well.
CARGO_LEAST := 1.85
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help run test setup series apply unapply tidy clean cargo

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))
	@echo 'make setup | series [OUT=DIR] | tidy | clean'
	@echo 'cargo xtask --help has all commands and the exit codes'

run test setup tidy: cargo
	cargo xtask $@

series: cargo
	cargo xtask series --out $(OUT)

apply: cargo
	cargo xtask apply

unapply: cargo
	cargo xtask apply --reverse

clean:
	rm -rf target
	@echo 'downloads and kernel builds stay in $${XDG_CACHE_HOME:-~/.cache}/lazy-tlb'

cargo:
	@if command -v cc >/dev/null && \
	    cargo --version 2>/dev/null | \
	    awk '{ split($$2, v, "."); ok = v[1] > 1 || v[2] >= 85 } END { exit !ok }'; \
	then exit 0; fi; \
	set -e; \
	command -v apt-get >/dev/null || \
		{ echo 'no cargo >= $(CARGO_LEAST), and no apt-get to install it: install Rust' >&2; exit 3; }; \
	echo '+ $(AS_ROOT) apt-get update'; $(AS_ROOT) apt-get update -q; \
	version=$$(apt-cache policy cargo-web | awk '/Candidate: [0-9]/ { print $$2 }'); \
	if dpkg --compare-versions "$$version" ge $(CARGO_LEAST); \
	then packages='cargo-web rustc-web'; else packages='cargo rustc'; fi; \
	set -x; \
	$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive \
		apt-get install -q -y --no-install-recommends $$packages gcc libc6-dev ca-certificates
