# Everything a person does with this repository. `make` alone lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.NOTPARALLEL:

PYTHON ?= python3
bin := .venv/bin
pip = $(dir $@)bin/pip install --quiet --disable-pip-version-check

##@ Run

.PHONY: dev
dev: .venv/dev.stamp docker/gateway/node_modules ## Start supergateway and the bridge, and print a line to paste.
	@exec $(bin)/python dev/start.py

##@ Check

.PHONY: test
test: test-tools ## Run every test, with branch coverage; below the bar it fails.
	@$(bin)/coverage erase
	$(bin)/coverage run -m pytest --numprocesses=2 $(PYTEST_ARGS)
	@$(MAKE) coverage

.PHONY: coverage
coverage: .venv/test.stamp ## Report the coverage of the last test run.
	@! ls .coverage.* >/dev/null 2>&1 || $(bin)/coverage combine --quiet
	$(bin)/coverage report

.PHONY: lint
lint: .venv/lint.stamp .venv/test.stamp ## Check style, types and the direction of imports.
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports --no-logo
	$(bin)/mypy

##@ OpenClaw

with-node := PATH="$(CURDIR)/$(bin):$$PATH"

.PHONY: test-openclaw
test-openclaw: .venv/dev.stamp docker/gateway/node_modules openclaw-plugin/node_modules ## Run the plugin's tests on a real bridge.
	$(with-node) npm test --prefix openclaw-plugin

.PHONY: lint-openclaw
lint-openclaw: openclaw-plugin/node_modules ## Check the plugin's types and style.
	$(with-node) npm run check --prefix openclaw-plugin

.PHONY: e2e-openclaw
e2e-openclaw: .venv/dev.stamp docker/gateway/node_modules openclaw-plugin/node_modules ## Use all of the plugin on a real OpenClaw.
	$(with-node) node openclaw-plugin/e2e/run.ts

##@ Change

.PHONY: format
format: .venv/lint.stamp ## Rewrite the code in the house's format.
	$(bin)/ruff check --fix-only .
	$(bin)/ruff format .

.PHONY: clean
clean: ## Remove what was installed and built; the memory in .dev/ and .env stay.
	rm -rf .venv .venv-mcp-1 .venv-mcp-2 docker/gateway/node_modules tests/node_modules
	rm -rf openclaw-plugin/node_modules openclaw-plugin/dist
	rm -rf build dist htmlcov .coverage* .hypothesis .*_cache .import_linter_cache src/*.egg-info

.PHONY: help
help: ## List these targets.
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test-tools
test-tools: .venv/dev.stamp .venv/test.stamp .venv-mcp-1/stamp .venv-mcp-2/stamp docker/gateway/node_modules tests/node_modules

.venv/bin/pip:
	@PYTHON='$(PYTHON)' dev/make-venv.sh .venv

.venv/%.stamp: setup.cfg pyproject.toml | .venv/bin/pip
	@echo "Installing the bridge and its tools for: $*."
	@$(pip) --editable '.[$*]'
	@touch $@

.venv-mcp-1/stamp: MCP := mcp>=1.30,<2
.venv-mcp-2/stamp: MCP := mcp>=2.3,<3
.venv-mcp-%/stamp: Makefile
	@PYTHON='$(PYTHON)' dev/make-venv.sh .venv-mcp-$*
	@echo "Installing the Python MCP client $*.x, which the tests talk with."
	@$(pip) '$(MCP)'
	@touch $@

%/node_modules: %/package.json %/package-lock.json | .venv/dev.stamp
	@echo "Installing the npm packages of $*."
	@PATH="$(CURDIR)/$(bin):$$PATH" npm ci --prefix $* --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@
