# Everything that this repository can do, as one word each. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help setup setup-arm64 demo demo-down test test-arm64 check gen images bundle env tools e2e-binary bench-operator plugin bench-plan bench-inference soak-inference release-dry-run

PLUGIN_DIR ?= $(HOME)/.local/bin

# Recipes take PATH, LIBTORCH and the rest from e2e/env.sh; it is read after setup, which may have just made what it finds.
in_env := . e2e/env.sh &&

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Built and fetched things lie in \$$HAWKEYE_CACHE (default ~/.cache/hawkeye)."

setup: ## install what is missing on this machine; says first what that is
	@e2e/setup.sh

setup-arm64:
	@e2e/setup.sh --arm64

e2e-binary: setup
	@$(in_env) echo "== building hawkeye-e2e" && cargo build --locked --package hawkeye-e2e

demo: e2e-binary ## a real cluster, Hawkeye installed with Helm, a screenshot parsed; leaves it up
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" demo

demo-down: ## remove the demo's cluster and every trace of it
	@$(in_env) if [ -x "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" ]; then "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" demo down; \
	    else echo "no demo was ever started here (cache: $$HAWKEYE_CACHE)"; fi

test: e2e-binary ## every test, unit to end to end
	@e2e/test.sh

test-arm64: setup-arm64 e2e-binary ## both architectures in one cluster, arm64 emulated on x86-64; not part of `make test`
	@e2e/test-arm64.sh

check: setup ## format, lints, licences, generated files
	@e2e/check.sh

gen: e2e-binary ## bring generated files up to date: CRDs, class lists, charts' copies, manifests/install.yaml
	@$(in_env) cargo run --quiet --locked --package hawkeye-crds --example generate
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" tools helm >/dev/null
	@$(in_env) charts/gen.sh

images: setup-arm64 e2e-binary ## build the container images for amd64 and arm64 as archives in $HAWKEYE_CACHE/images
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" images build --all-platforms

bundle: e2e-binary ## export the demo's model bundle to $HAWKEYE_CACHE/bundles/demo
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" images bundle

tools: e2e-binary ## build the local cluster's programs (Kubernetes, etcd, containerd, helm, …)
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" tools

bench-operator: e2e-binary ## what the operator costs with thousands of nodes: SIZES=500,1000,2500,5000 (default 500)
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" bench operator --sizes "$${SIZES:-500}"

plugin: setup ## build `kubectl hawkeye` and install it into PLUGIN_DIR (default ~/.local/bin)
	@$(in_env) cargo build --release --locked --package hawkeye-operator --bin kubectl-hawkeye
	@$(in_env) install -D -m 0755 "$$CARGO_TARGET_DIR/release/kubectl-hawkeye" "$(PLUGIN_DIR)/kubectl-hawkeye"
	@echo "$(PLUGIN_DIR)/kubectl-hawkeye"
	@case ":$$PATH:" in *":$(PLUGIN_DIR):"*) ;; *) echo "kubectl finds it once $(PLUGIN_DIR) is on PATH" ;; esac

release-dry-run: images ## all of a release that needs no registry, into out/release; prints the rest
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" tools helm >/dev/null
	@$(in_env) mkdir -p out/release/plugins && for arch in amd64 arm64; do \
	    cp "$$("$$CARGO_TARGET_DIR/debug/hawkeye-e2e" images plugin --platform "linux/$$arch")" "out/release/plugins/linux_$$arch"; done
	@images/release.sh --dry-run

bench-plan: setup ## time `kubectl hawkeye plan` over up to 5,000 nodes; writes out/bench/plan.json
	@$(in_env) cargo build --release --locked --package hawkeye-operator --bin kubectl-hawkeye --example bench_plan
	@$(in_env) "$$CARGO_TARGET_DIR/release/examples/bench_plan"

bench-inference: e2e-binary ## time the service beside the Python pipeline of the same models; writes out/bench/inference.json (BENCH: more options)
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" images bundle
	@$(in_env) cargo build --release --locked --package hawkeye-inference
	@$(in_env) PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=inference/bench:inference/export/src "$$HAWKEYE_PYTHON" -m hawkeye_bench \
	    --program "$$CARGO_TARGET_DIR/release/hawkeye-inference" --models "$$HAWKEYE_CACHE/bundles/demo" \
	    --bundle "$$HAWKEYE_CACHE/bundles/bench" $(BENCH)

soak-inference: e2e-binary ## 64 clients at once on a service of their own for SECONDS (default 300); fails when a rule is broken
	@$(in_env) "$$CARGO_TARGET_DIR/debug/hawkeye-e2e" images bundle
	@$(in_env) inference/export/captions-test.sh
	@$(in_env) cargo build --release --locked --package hawkeye-inference
	@$(in_env) PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=inference/bench "$$HAWKEYE_PYTHON" -m hawkeye_bench.soak \
	    --program "$$CARGO_TARGET_DIR/release/hawkeye-inference" --bundle "$$HAWKEYE_CACHE/bundles/captions-test" --seconds $(or $(SECONDS),300)

env: ## print the variables of a build: eval "$(make env)"
	@$(in_env) for name in HAWKEYE_CACHE CARGO_TARGET_DIR PATH LIBTORCH LIBTORCH_CXX11_ABI LD_LIBRARY_PATH GOTOOLCHAIN HAWKEYE_PYTHON; do \
	    if [ -n "$${!name:-}" ]; then printf 'export %s=%q\n' "$$name" "$${!name}"; fi; done
