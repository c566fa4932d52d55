# All tasks of this repository. `make` without a target lists them.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:

PYTHON ?= python3
bin := .venv/bin
pip = $(dir $@)bin/pip install --quiet --disable-pip-version-check

# Ignores the user's settings of Python, pip and npm, except those that select the source of packages.
packages_come_from = PIP_CACHE_DIR PIP_CERT PIP_CLIENT_CERT PIP_CONFIG_FILE PIP_DEFAULT_TIMEOUT PIP_EXTRA_INDEX_URL \
	PIP_FIND_LINKS PIP_INDEX_URL PIP_KEYRING_PROVIDER PIP_NO_INDEX PIP_PROXY PIP_RETRIES PIP_TIMEOUT PIP_TRUSTED_HOST \
	$(foreach prefix,npm_config_ NPM_CONFIG_,$(addprefix $(prefix),/% ca cafile cache cert https_proxy key noproxy proxy \
	registry strict_ssl userconfig CA CAFILE CACHE CERT HTTPS_PROXY KEY NOPROXY PROXY REGISTRY STRICT_SSL USERCONFIG)) \
	NODE_EXTRA_CA_CERTS
of_a_person = $(filter PYTHON% PIP_% npm_config_% NPM_CONFIG_% NODE_%,$(.VARIABLES))
unexport $(filter-out PYTHON $(packages_come_from),$(of_a_person))
export PIP_USER := 0
export npm_config_update_notifier := false

# Connections to loopback never use a proxy.
comma := ,
loopback := localhost,127.0.0.1,::1
direct = $(if $(findstring $(loopback),$1),$1,$(if $1,$1$(comma))$(loopback))
export NO_PROXY := $(call direct,$(or $(no_proxy),$(NO_PROXY)))
export no_proxy := $(NO_PROXY)

# Requirements of targets; a missing one is an error with one sentence.
.PHONY: on-linux
on-linux:
	@test "$$(uname -s)" = Linux || { echo 'make $(MAKECMDGOALS) works on Linux only.' >&2; exit 2; }

with-node := PATH="$(CURDIR)/$(bin):$$PATH"

# Runs a command in a network namespace with only loopback.
offline = unshare --net --map-root-user sh -c 'ip link set lo up && exec "$$@"' -

require-go = command -v go >/dev/null || \
	{ echo 'Go is missing, and a tool has to be built with it: install it from https://go.dev/dl.' >&2; exit 1; }

##@ Run

.PHONY: dev
dev: .venv/dev.stamp docker/gateway/node_modules/stamp ## Start supergateway and the bridge, and print a line to paste; GATEWAY=none: without supergateway.
	@GATEWAY='$(GATEWAY)' exec $(bin)/python dev/start.py

##@ Check

.PHONY: test
test: test-tools ## Run all tests, with branch coverage; fails below the minimum.
	@$(bin)/coverage erase
	$(bin)/coverage run -m pytest --numprocesses=2 $(PYTEST_ARGS)
	@$(MAKE) coverage

.PHONY: coverage
coverage: .venv/test.stamp ## Report the coverage of the last test run.
	@! ls .coverage.* >/dev/null 2>&1 || $(bin)/coverage combine --quiet
	$(bin)/coverage report $(COVERAGE_ARGS)

.PHONY: conformance
conformance: test-tools ## Run the public conformance suite directly and through the bridge, and compare the results.
	PYTHONPATH=tests $(bin)/python -m conformance $(WRITE)

.PHONY: interop
interop: test-tools interop-tools ## Test the bridge with real MCP clients, two releases of each, and let two of them sign in.
	PYTHONPATH=tests $(bin)/python -m interop.connected
	PYTHONPATH=tests $(bin)/python -m interop.oauth
	PYTHONPATH=tests $(bin)/python -m interop $(WRITE)

.PHONY: interop-all
interop-all: on-linux test-tools interop-tools tests/interop/agents/node_modules/stamp ## Connect all MCP clients, also those that are large or must be built first; needs Linux and Go.
	@$(require-go)
	cd tests/interop/go && go build -o interop-newest . && go build -modfile=previous.mod -o interop-previous .
	$(with-node) node --input-type=module --eval "await (await import('./openclaw-plugin/e2e/openclaw.ts')).installOpenClaw()"
	$(offline) env PYTHONPATH=tests $(bin)/python -m interop.connected --all
	PYTHONPATH=tests $(bin)/python -m interop.oauth --all
	PYTHONPATH=tests $(bin)/python -m interop --all $(WRITE)

.PHONY: https
https: on-linux test-tools .tools/bin/caddy ## Test nginx and Caddy in front of a real bridge, with the configuration in docs/https.md (Linux).
	@dev/packages curl nginx-light
	$(bin)/pytest --numprocesses=3 --dist=loadgroup tests/https

faults = PYTHONPATH=tests $(bin)/python -m chaos $@ $(if $(SEED),--seed $(SEED)) $(WRITE)

.PHONY: chaos-quick
chaos-quick: on-linux test-tools proxies ## Inject a few faults of every kind, in five minutes; SEED=… repeats a run (Linux).
	$(faults)

.PHONY: chaos-defects
chaos-defects: on-linux test-tools proxies ## Plant known defects in the bridge, and check that the fault injection finds each (Linux).
	$(bin)/pytest --numprocesses=2 tests/chaos

.PHONY: chaos
chaos: on-linux test-tools proxies ## Inject thousands of faults, and account for every call (Linux).
	$(faults)

.PHONY: soak
soak: on-linux test-tools proxies ## Inject faults under load for half an hour; MINUTES=… changes the time (Linux).
	$(faults) $(if $(MINUTES),--minutes $(MINUTES))

.PHONY: lint
lint: .venv/dev.stamp .venv/lint.stamp .venv/test.stamp ## Check style, types and the direction of imports.
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports --no-logo
	$(bin)/mypy

.PHONY: audit
audit: .venv/dev.stamp .venv/audit.stamp ## Check the packages in the images for known vulnerabilities; fails if a database cannot be reached.
	@dev/audit

##@ Measure

# PEERS=all includes ToolHive, which is built with Go. All programs then run in a network namespace with only loopback.
isolated = $(if $(filter all,$(PEERS)),$(offline))
bench = $(isolated) .venv-bench/bin/python -m bench

.PHONY: bench-quick
bench-quick: on-linux bench-tools ## Compare the bridge with other proxies, in two minutes; PEERS=all includes ToolHive (Linux).
	@$(bench) quick

.PHONY: bench
bench: on-linux bench-tools ## Compare the bridge with other proxies for longer, also with idle, slow and large streams (Linux).
	@$(bench) standard

.PHONY: bench-full
bench-full: on-linux bench-tools ## Do the same with every body size, form of response and number of connections (Linux).
	@$(bench) full

.PHONY: bench-smoke
bench-smoke: on-linux bench-tools ## Check that the benchmarks work, and that a request costs no more instructions than before (Linux).
	@$(bench) smoke

.PHONY: bench-streams
bench-streams: on-linux bench-tools ## Measure the cost of idle and slow streams and of large answers (Linux).
	@$(bench) streams

.PHONY: bench-memory
bench-memory: on-linux bench-tools docker/gateway/node_modules/stamp .venv-mcp-2/stamp ## Let agents write memories at once on real servers, and restart the servers (Linux).
	@$(bench) memory

.PHONY: bench-instructions
bench-instructions: on-linux bench-tools ## Count a request's instructions; WRITE=--write stores them as the new limit (Linux).
	@$(bench) instructions $(WRITE)

.PHONY: bench-calls
bench-calls: bench-tools ## Count the Python calls of one warm tools/call, its modules, and the changes between them.
	@$(bench) calls

.PHONY: bench-profile
bench-profile: on-linux bench-tools ## Profile the CPU time of a request (Linux).
	@$(bench) profile

.PHONY: bench-crosscheck
bench-crosscheck: bench-tools ## Compare the benchmarks' load tool with wrk.
	@$(bench) crosscheck

.PHONY: bench-tricks
bench-tricks: on-linux bench-tools ## Measure the saving of each optimisation of the hot path, by undoing one at a time (Linux).
	@$(bench) tricks

.PHONY: bench-all
bench-all: on-linux bench-tools docker/gateway/node_modules/stamp .venv-mcp-2/stamp ## Measure everything except the full matrix, in about twenty minutes (Linux).
	@$(bench) all

.PHONY: bench-publish
bench-publish: .venv-bench/stamp ## Write the results of the last runs, with the charts, into docs/performance.md.
	@$(bench) publish

##@ OpenClaw

.PHONY: test-openclaw
test-openclaw: .venv/dev.stamp docker/gateway/node_modules/stamp openclaw-plugin/node_modules/stamp ## Run the plugin's tests on a real bridge.
	$(with-node) npm test --prefix openclaw-plugin

.PHONY: lint-openclaw
lint-openclaw: openclaw-plugin/node_modules/stamp ## Check the plugin's types and style.
	$(with-node) npm run check --prefix openclaw-plugin

.PHONY: e2e-openclaw
e2e-openclaw: .venv/dev.stamp docker/gateway/node_modules/stamp openclaw-plugin/node_modules/stamp build/standin/vestige ## Test the whole plugin on a real OpenClaw, with supergateway and without; needs Go.
	$(with-node) node openclaw-plugin/e2e/run.ts

##@ Deploy

# The images: REGISTRY and TAG, or the guide's ECR_VESTIGE and ECR_BRIDGE. DRY_RUN=1 only prints the commands.
CONTAINER_TOOL ?= $(shell docker/container-tool)
REGISTRY ?= localhost
ECR_VESTIGE ?= $(REGISTRY)/vestige-mcp
ECR_BRIDGE ?= $(REGISTRY)/vestige-bridge
TAG ?=
tag = $(or $(TAG),local)
BUILD_ARGS ?=
GATEWAY ?= supergateway
RELEASE ?= vestige
NAMESPACE ?= openclaw
HELM ?= $(or $(shell command -v helm),.tools/bin/helm)
HELM_ARGS ?=
# A Helm built with `go install` assumes Kubernetes 1.20 unless it queries a cluster.
KUBE_VERSION := 1.35.0
run = $(if $(DRY_RUN),@echo,)
image_values = --set vestigeImage.repository=$(ECR_VESTIGE) --set vestigeImage.tag=$(tag) \
	--set bridgeImage.repository=$(ECR_BRIDGE) --set bridgeImage.tag=$(tag)

.PHONY: images
images: ## Build both images; GATEWAY=none builds Vestige's without supergateway.
	$(run) $(CONTAINER_TOOL) build $(BUILD_ARGS) --build-arg VERSION=$(tag) --build-arg GATEWAY=$(GATEWAY) -t $(ECR_VESTIGE):$(tag) -f docker/Dockerfile.vestige .
	$(run) $(CONTAINER_TOOL) build $(BUILD_ARGS) --build-arg VERSION=$(tag) -t $(ECR_BRIDGE):$(tag) -f docker/Dockerfile.bridge .

.PHONY: sbom
sbom: .tools/bin/syft ## Write the contents of both images into dist/, as SPDX; needs Go.
	$(run) env CONTAINER_TOOL=$(CONTAINER_TOOL) docker/sbom $(ECR_VESTIGE):$(tag) dist/vestige-mcp.spdx.json
	$(run) env CONTAINER_TOOL=$(CONTAINER_TOOL) docker/sbom $(ECR_BRIDGE):$(tag) dist/vestige-bridge.spdx.json

.PHONY: login
login: ecr = $(firstword $(subst /, ,$(ECR_VESTIGE)))
login: ## Log in to the ECR registry of ECR_VESTIGE.
	$(if $(DRY_RUN),@echo ')aws ecr get-login-password --region $(word 4,$(subst ., ,$(ecr))) | $(CONTAINER_TOOL) login --username AWS --password-stdin $(ecr)$(if $(DRY_RUN),')

.PHONY: push
push: ## Push both images as TAG; ALLOW_DIRTY=1 includes uncommitted changes.
	@test -n '$(TAG)' || { echo 'TAG is empty. Set the version to push: make push TAG=v0.2.0.' >&2; exit 2; }
	@test -n '$(ALLOW_DIRTY)' || test -z "$$(git status --porcelain)" || \
		{ echo 'There are uncommitted changes. Commit them, or say ALLOW_DIRTY=1.' >&2; exit 2; }
	$(run) $(CONTAINER_TOOL) push $(ECR_VESTIGE):$(TAG)
	$(run) $(CONTAINER_TOOL) push $(ECR_BRIDGE):$(TAG)

# The name of the chart's objects: the chart's rule.
fullname = $(if $(findstring vestige,$(RELEASE)),$(RELEASE),$(RELEASE)-vestige)

.PHONY: install
install: $(HELM) ## Install the chart; HELM_ARGS sets the token: "--set auth.existingSecret=…".
	$(run) $(HELM) install $(RELEASE) charts/vestige --namespace $(NAMESPACE) --create-namespace $(image_values) $(HELM_ARGS)

.PHONY: upgrade
upgrade: $(HELM) ## Upgrade to TAG, and keep all values that were set before.
	@test -n '$(TAG)' || { echo 'TAG is empty. Set the version to upgrade to: make upgrade TAG=v0.2.0.' >&2; exit 2; }
	$(run) $(HELM) upgrade $(RELEASE) charts/vestige --namespace $(NAMESPACE) --reset-then-reuse-values \
		--set vestigeImage.tag=$(TAG) --set bridgeImage.tag=$(TAG) $(HELM_ARGS)

.PHONY: uninstall
uninstall: $(HELM) ## Uninstall the chart; the memory stays in its PersistentVolumeClaim.
	$(run) $(HELM) uninstall $(RELEASE) --namespace $(NAMESPACE)
	@echo 'The memory is kept. To delete it too: kubectl delete pvc --namespace $(NAMESPACE) $(fullname)'

.PHONY: status
status: ## Show the release's pod, Service and claim.
	$(run) kubectl get pods,services,ingresses,persistentvolumeclaims --namespace $(NAMESPACE) -l app.kubernetes.io/instance=$(RELEASE)

.PHONY: logs
logs: ## Follow the logs of both containers.
	$(run) kubectl logs --namespace $(NAMESPACE) -l app.kubernetes.io/instance=$(RELEASE) --all-containers --prefix --follow

.PHONY: port-forward
port-forward: ## Forward port 8000 of this machine to the Service.
	$(run) kubectl port-forward --namespace $(NAMESPACE) svc/$(fullname) 8000:8000

# Runs a command in Vestige's container: on Kubernetes, or with COMPOSE=docker/compose.yaml in compose.
compose = $(if $(filter docker,$(CONTAINER_TOOL)),docker compose,podman-compose) -f $(COMPOSE)
in-vestige = $(if $(COMPOSE),$(compose) exec -T vestige-mcp,kubectl exec --namespace $(NAMESPACE) deploy/$(fullname) -c vestige-mcp --)
BACKUP ?= backups/$(RELEASE)-$(shell date -u +%Y%m%dT%H%M%SZ).db

.PHONY: backup
backup: ## Make a backup and copy it into BACKUP=…; COMPOSE=docker/compose.yaml: of the memory in Docker Compose.
	$(run) docker/bring-backup $(BACKUP) $(in-vestige) vestige-backup -

.PHONY: chart-lint
chart-lint: on-linux chart-tools ## Lint the chart, and test its rendered objects and its alerts (Linux).
	$(HELM) lint --strict --kube-version $(KUBE_VERSION) charts/vestige --set auth.token=a-token-for-the-linter-alone
	HELM='$(HELM)' .venv-e2e/bin/python -m pytest -c e2e/pytest.ini e2e/chart $(PYTEST_ARGS)

.PHONY: deploy-lint
deploy-lint: on-linux .venv-e2e/stamp .tools/bin/actionlint ## Check the Dockerfiles, shell scripts, workflows and the systemd unit (Linux).
	@e2e/packages
	.venv-e2e/bin/hadolint docker/Dockerfile.vestige docker/Dockerfile.bridge
	shellcheck $$(git grep --cached -lE '^#!.*(ba)?sh')
	.tools/bin/actionlint
	dev/check-unit docs/systemd/vestige-bridge.service
	.venv-e2e/bin/mypy --strict e2e dev/headings.py

.PHONY: e2e
e2e: on-linux $(HELM) .venv-e2e/stamp ## Build the images and run the deployment guide on the cluster of KUBECONFIG (Linux).
	@e2e/packages
	HELM='$(abspath $(HELM))' CONTAINERS_CONF='$(CURDIR)/e2e/containers.conf' PATH="$(CURDIR)/.venv-e2e/bin:$$PATH" \
		.venv-e2e/bin/python -m pytest -c e2e/pytest.ini e2e/walk $(PYTEST_ARGS)

##@ Release

.PHONY: release-check
release-check: .venv/dev.stamp .venv/test.stamp $(HELM) openclaw-plugin/node_modules/stamp ## Build wheel, sdist, plugin and chart into dist/ as a release does, and check their contents; needs Go.
	@$(require-go)
	@$(with-node) HELM='$(abspath $(HELM))' $(bin)/python dev/release_check.py

.PHONY: version
version: ## Print the version; make version NEW=0.3.0 sets it for package, plugin, chart and images.
	@$(PYTHON) dev/version.py $(NEW)

.PHONY: published
published: .venv/dev.stamp .venv/test.stamp ## Make the documents name the releases of the GitHub account OWNER; with OWNER= they name none.
	@sed -i.old 's/^OWNER: Final = .*/OWNER: Final = "$(OWNER)"/' src/vestige_bridge/cli/published.py
	@rm src/vestige_bridge/cli/published.py.old
	@$(bin)/python dev/generate.py

.PHONY: chart-package
chart-package: $(HELM) ## Package the chart into dist/; RUNBOOK_URL=… is the default link of its alerts.
	@rm -rf build/chart && mkdir -p build && cp -R charts/vestige build/chart
	@sed -i.old -E 's|^( +runbookUrl: ).*|\1$(or $(RUNBOOK_URL),docs/operations.md)|' build/chart/values.yaml
	@rm build/chart/values.yaml.old
	$(HELM) package build/chart --destination dist

##@ Change

.PHONY: format
format: .venv/lint.stamp ## Format the code.
	$(bin)/ruff check --fix-only .
	$(bin)/ruff format .

.PHONY: generated
generated: .venv/dev.stamp .venv/test.stamp ## Generate the pages, the parts of pages and the shell completion that are made from other files.
	$(bin)/python dev/generate.py

compile = $(bin)/uv pip compile --quiet --no-config --upgrade --generate-hashes --python-version 3.13 --python-platform linux \
	--custom-compile-command 'make requirements'

.PHONY: requirements
requirements: .venv/audit.stamp ## Update the pinned requirements, with hashes, of the bridge's image and its build.
	$(compile) --extra oauth setup.cfg --output-file docker/requirements.txt
	sed -nE 's/^requires = \["(.*)"\]$$/\1/p' pyproject.toml | $(compile) - --output-file docker/build-requirements.txt

.PHONY: clean
clean: ## Remove installed and built files; the memory in .dev/ and .env stay.
	rm -rf .venv .venv-e2e .venv-bench* .venv-mcp-* docker/gateway/node_modules tests/node_modules tests/*/node_modules tests/*/*/node_modules
	rm -rf openclaw-plugin/node_modules openclaw-plugin/dist
	rm -rf build dist htmlcov .coverage* .hypothesis .*_cache .import_linter_cache src/*.egg-info

.PHONY: help
help: ## List these targets.
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test-tools
test-tools: .venv/dev.stamp .venv/test.stamp .venv-mcp-1/stamp .venv-mcp-2/stamp docker/gateway/node_modules/stamp tests/node_modules/stamp tests/conformance/node_modules/stamp

# In chaos, clients without a token share the bridge's connections through these; make chaos-defects tests that check.
.PHONY: proxies
proxies:
	@dev/packages haproxy nginx-light

.PHONY: bench-tools
bench-tools: .venv/dev.stamp .venv-bench/stamp .venv-bench-mcp-proxy/stamp bench-packages build/bench/upstream build/bench/upstream-go build/bench/load
bench-tools: $(if $(filter all,$(PEERS)),.tools/bin/thv)

.PHONY: bench-packages
bench-packages:
	@dev/packages gcc iproute2 libc6-dev nginx-light valgrind wrk

.PHONY: chart-tools
chart-tools: $(HELM) .venv-e2e/stamp .tools/bin/prometheus .tools/httproutes.yaml build/dashboard/check .venv/dev.stamp docker/gateway/node_modules/stamp

.PHONY: interop-tools
interop-tools: .venv-mcp-1-previous/stamp .venv-mcp-2-previous/stamp .venv-mcp-fastmcp/stamp .venv-mcp-fastmcp-previous/stamp
interop-tools: tests/interop/node_modules/stamp

# Each stamp is written last, so that an interrupted installation is repeated.
.venv/stamp:
	@PYTHON='$(PYTHON)' dev/make-venv.sh .venv
	@touch $@

.venv/%.stamp: setup.cfg pyproject.toml .venv/stamp
	@echo "Installing the bridge and its tools for: $*."
	@$(pip) --editable '.[$*]'
	@touch $@

.venv-bench/stamp: bench/requirements.txt
.venv-bench-mcp-proxy/stamp: bench/requirements-mcp-proxy.txt
.venv-bench/stamp .venv-bench-mcp-proxy/stamp:
	@PYTHON='$(PYTHON)' dev/make-venv.sh $(@D)
	@echo "Installing the proxies of the benchmarks."
	@$(pip) --requirement $<
	@touch $@

build/bench/%: bench/%.c bench/http.h | bench-packages
	@mkdir -p $(@D)
	cc -std=gnu17 -O2 -Wall -Wextra -o $@ $<

build/bench/upstream-go: bench/upstream.go
	@command -v go >/dev/null || { echo 'Go is missing: the second upstream of the benchmarks is built with it.' >&2; exit 2; }
	@mkdir -p $(@D)
	go build -o $@ $<

build/standin/vestige: $(wildcard e2e/standin/*)
	@$(require-go)
	@echo "Building the stand-in for Vestige."
	@cd e2e/standin && go build -o '$(abspath $@)' .

build/dashboard/check: $(wildcard e2e/dashboard/*)
	@$(require-go)
	@echo "Building the check of the dashboard against Grafana's schema."
	@cd e2e/dashboard && go build -o '$(abspath $@)' .

.venv-e2e/stamp: e2e/requirements.txt
	@PYTHON='$(PYTHON)' dev/make-venv.sh .venv-e2e
	@echo "Installing the packages of the deployment tests."
	@$(pip) --requirement e2e/requirements.txt
	@touch $@

.tools/bin/prometheus:
	@dev/extract $(@D) prometheus usr/bin/prometheus usr/bin/promtool

.tools/bin/caddy:
	@dev/extract $(@D) caddy usr/bin/caddy

# The schema of HTTPRoute, from the standard channel; 1.7 requires Go 1.27.
.tools/httproutes.yaml: GATEWAY_API := sigs.k8s.io/gateway-api@v1.6.3
.tools/httproutes.yaml: crd = config/crd/standard/gateway.networking.k8s.io_httproutes.yaml
.tools/httproutes.yaml:
	@$(require-go)
	@install -D -m 644 "$$(cd / && go mod download -json $(GATEWAY_API) | sed -n 's/^\t"Dir": "\(.*\)",$$/\1/p')/$(crd)" $@

.tools/bin/helm: GO_PACKAGE := helm.sh/helm/v3/cmd/helm@v3.22.0
.tools/bin/syft: GO_PACKAGE := github.com/anchore/syft/cmd/syft@v1.57.0
.tools/bin/publisher: GO_PACKAGE := github.com/modelcontextprotocol/registry/cmd/publisher@v1.8.9
.tools/bin/actionlint: GO_PACKAGE := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
# Releases since 0.55 require Go 1.27.
.tools/bin/thv: GO_PACKAGE := github.com/stacklok/toolhive/cmd/thv@v0.47.0
.tools/bin/%:
	@$(require-go)
	@echo "Building $*."
	@GOBIN='$(abspath $(@D))' go install $(GO_PACKAGE)

.venv-mcp-1/stamp: MCP := mcp==1.30.0
.venv-mcp-1-previous/stamp: MCP := mcp==1.29.1
.venv-mcp-2/stamp: MCP := mcp==2.3.0
.venv-mcp-2-previous/stamp: MCP := mcp==2.2.0
.venv-mcp-fastmcp/stamp: MCP := fastmcp-slim[client]==4.1.6
.venv-mcp-fastmcp-previous/stamp: MCP := fastmcp-slim[client]==4.1.4
.venv-mcp-%/stamp: Makefile
	@PYTHON='$(PYTHON)' dev/make-venv.sh .venv-mcp-$*
	@echo "Installing the Python MCP client $(MCP), which the tests talk with."
	@$(pip) '$(MCP)'
	@touch $@

%/node_modules/stamp: %/package.json %/package-lock.json | .venv/dev.stamp
	@echo "Installing the npm packages of $*."
	@PATH="$(CURDIR)/$(bin):$$PATH" npm ci --prefix $* --ignore-scripts --include=dev --no-audit --no-fund --loglevel=error >/dev/null
	@touch $@
