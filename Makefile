# codexd: `make demo` to see it, `make test` to check it. Everything happens in .venv, from hash-pinned lock files.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What a lock lists and nothing else. Without --no-deps, pip asks the index for the newest of whatever it believes is
# missing; afterwards `pip check` says whether something is.
PINNED := --disable-pip-version-check --no-deps --require-hashes --only-binary :all:
LOCKED := $(PINNED) --requirement
# sdnotify has no wheel and is built here, with what packaging/wheel's lock lists: the index is not asked for a builder.
BUILT  := $(PINNED) --no-binary sdnotify --no-build-isolation --use-pep517 --requirement
WHEEL  := packaging/wheel/requirements.lock
CHECKED = said=$$($1/pip check --disable-pip-version-check) || { echo "$$said"; exit 1; }

# A virtual environment that is a lock, in the target's directory.
define locked
$(PYTHON) -m venv $(@D)
$(@D)/bin/pip install -qq $(LOCKED) $<
@$(call CHECKED,$(@D)/bin)
@touch $@
endef

.PHONY: help demo test watch news lint format bench bench-ci plots rig fuzz soak suites audit sbom docs pictures lock clients clients-node clients-python install uninstall deb debs dist release rootfs pythons image container system test-system upstream-diff upstream-accept upstream-parity clean
help:
	@echo "make demo    run codexd over a simulated ChatGPT"
	@echo "make test    run the whole suite; with ARGS=\"tests/protocol -k stop\" some tests"
	@echo "make watch   run tests again when a file changes"
	@echo "make clients install the clients (Node and Python) that the suite then runs too"
	@echo "make install put codexd on this server, as root: /usr/lib/codexd, units, manual pages; make uninstall removes it"
	@echo "make deb     a Debian package for this system, in build/; make debs: for Debian 12 and 13, in build/debs/"
	@echo "make release all of a release from its tag, in build/release: packages, image, checksums, notes"
	@echo "make image   a container image, with docker; with ENGINE=podman, with podman"
	@echo "make test-system  the units under a real systemd, nginx; needs root"
	@echo "make soak    mixed use and faults for SECONDS=600; checks every outcome and looks for leaks"
	@echo "make suites  third-party checks of the three APIs"
	@echo "make fuzz    random and tampered input for longer; EXAMPLES=10000 of each kind"
	@echo "make audit   known vulnerabilities of the locked dependencies; make sbom: the parts of a release, as CycloneDX"
	@echo "make upstream-diff  compare the newest official client with the snapshot; upstream-accept updates the snapshot"
	@echo "make upstream-parity  codexd's own requests beside the official client's, field by field"
	@echo "make bench   what a stream and a request cost, beside nginx and two Python peers"
	@echo "make bench-ci  the instructions that they take, beside the committed figures; make plots: how costs grow"
	@echo "make lint    ruff, flake8-async, mypy, import-linter"
	@echo "make docs    the documentation as a site, in build/site"
	@echo "make lock    regenerate the lock files from pyproject.toml"

demo: $(VENV)/.runtime
	@$(BIN)/python -m codexd --demo

# With ARGS, such as ARGS="tests/protocol -k stop", only some tests, without coverage.
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(or $(ARGS),--cov --cov-fail-under=100)
watch: $(VENV)/.dev
	$(BIN)/ptw --now --clear --delay 0.5 --patterns '*.py,*.json,*.txt,*.md,*.toml' . $(or $(ARGS),tests/protocol tests/app tests/parts)
# The changelog of the next version, from packaging/news; VERSION=1.2.0 writes it and removes the files.
news: $(VENV)/.dev
	$(BIN)/towncrier build $(if $(filter command line,$(origin VERSION)),--yes --version $(VERSION),--draft --version NEXT)

# 110: another process's lock has no event to wait for. 127: httpx's successor has another name; codexd is built for
# httpx. 128: wrappers hand their task_status on. 124 and 9xx: optional rules that thin wrappers and fixtures break.
ASYNC_OFF = ASYNC110,ASYNC124,ASYNC127,ASYNC128,ASYNC900,ASYNC910,ASYNC911,ASYNC912,ASYNC913
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8-async --disable=$(ASYNC_OFF) --startable-in-context-manager=_serve_api $$(git ls-files -co --exclude-standard '*.py')
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fuzz: $(VENV)/.dev build/schemathesis/.done
	EXAMPLES=$(or $(EXAMPLES),10000) $(BIN)/python -m pytest -q --hypothesis-profile=fuzz tests/fuzz $(ARGS)
	tests/fuzz/schema.sh $(abspath $(BIN))/python $(abspath build/schemathesis/bin/schemathesis) $(or $(EXAMPLES),10000)
build/schemathesis/.done: tests/fuzz/requirements.lock
	$(locked)

soak: $(VENV)/.dev
	$(BIN)/python tests/soak/soak.py --seconds $(or $(SECONDS),600) $(ARGS)
	$(BIN)/python tests/soak/conversations.py --conversations $(or $(CONVERSATIONS),500)

# Third-party checks of the APIs: llm-comply, and LangChain's standard tests.
suites: $(VENV)/.dev build/suites/.done tests/clients/python/.venv/.done
	$(BIN)/python tests/suites/suites.py
build/suites/.done: tests/suites/requirements.lock
	$(locked)

# What npm's newest official client sends today, beside tests/upstream/snapshot, and what codexd sends beside it. It needs
# npm, x86-64 Linux and half a minute. What was looked at becomes the snapshot by upstream-accept.
UPSTREAM = $(BIN)/python tests/upstream/wirediff.py
upstream-diff: $(VENV)/.dev
	@$(UPSTREAM) diff $(ARGS)
upstream-accept: $(VENV)/.dev
	@$(UPSTREAM) accept
upstream-parity: $(VENV)/.dev
	@$(UPSTREAM) parity

# Known vulnerabilities of what is locked: those of a dated list, and where PyPI's database can be reached, those of that.
# And what a release is made of.
audit: build/audit/.done
	$(PYTHON) packaging/audit/check.py
	build/audit/bin/pip-audit --require-hashes --disable-pip --strict -r requirements.lock \
	    || { $(PYTHON) -c 'import socket; socket.create_connection(("pypi.org", 443), 5)' 2>/dev/null && exit 1; \
	         echo "PyPI's database cannot be reached: only the dated list was asked"; }
sbom: build/audit/.done
	build/audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	    --output-file build/codexd.cdx.json requirements.lock
build/audit/.done: packaging/audit/requirements.lock
	$(locked)

# Beside nginx and two Python peers, as ratios; it needs Rust, nginx and ten minutes. Never a test.
bench: $(VENV)/.runtime
	$(BIN)/python tests/bench/bench.py $(ARGS)
# Instructions are counted, not timed, so these figures may be a test; Rust and valgrind are needed.
bench-ci: $(VENV)/.runtime
	$(BIN)/python tests/bench/bench.py --check
plots: $(VENV)/.runtime build/bench/plots/.done
	build/bench/plots/bin/python tests/bench/growth.py $(ARGS)
# The simulated backend and the load generator of all three, and of their test.
RIG := build/bench/rig/backend build/bench/rig/load
rig: $(RIG)
$(RIG): build/bench/rig/%: tests/bench/rig/src/%.rs tests/bench/rig/src/sys.rs tests/bench/rig/src/websocket.rs
	@command -v rustc >/dev/null || { echo "the rig is written in Rust: apt-get install rustc"; exit 1; }
	@mkdir -p $(@D)
	rustc -O --edition 2021 -o $@ $<
build/bench/plots/.done: tests/bench/requirements.lock
	$(locked)

# The documentation as a site, in build/site, after its links and its spelling were checked.
docs: build/docs/.done
	git ls-files -z '*.md' '*.py' '*.toml' '*.[158]' '*.service' '*.socket' '*.default' Makefile | xargs -0 build/docs/bin/codespell
	NO_MKDOCS_2_WARNING=1 build/docs/bin/mkdocs build --quiet --strict --config-file packaging/docs/mkdocs.yml
	@echo "build/site/index.html"
build/docs/.done: packaging/docs/requirements.lock
	$(locked)

# The pictures of the README, from the demonstration; chromium is needed.
pictures: build/docs/.done $(VENV)/.runtime
	build/docs/bin/python packaging/docs/pictures.py $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All locks are made without the address of any package index, for every Python and system that codexd runs on at once:
# what only some of them need has its marker in the lock.
LOCK = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	--no-header --annotation-style=line --custom-compile-command "make lock"
LOCKS = packaging/audit packaging/wheel packaging/docs tests/bench tests/clients/python tests/fuzz tests/suites tests/system
lock: $(VENV)/.dev
	$(LOCK) --output-file requirements.lock pyproject.toml
	$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
	for each in $(LOCKS); do $(LOCK) --output-file $$each/requirements.lock $$each/requirements.in || exit 1; done

# Clients that the suite runs when they are there, apart from codexd's own environment.
clients: clients-node clients-python
clients-node: tests/clients/node_modules/.done
clients-python: tests/clients/python/.venv/.done
tests/clients/node_modules/.done: tests/clients/package-lock.json
	npm ci --prefix tests/clients --no-audit --no-fund
	@touch $@
tests/clients/python/.venv/.done: tests/clients/python/requirements.lock
	$(locked)

# What a server gets, under DESTDIR: the application with its pinned dependencies, commands, units, manual pages,
# completions, a commented configuration. It runs on the system's own interpreter: a service cannot see anybody's home.
SERVER_PYTHON ?= /usr/bin/python3
LIB   = $(DESTDIR)/usr/lib/codexd
SHARE = $(DESTDIR)/usr/share
install:
	@test -n "$(DESTDIR)" || test "$$(id -u)" = 0 || { echo "make install writes to /usr and /etc: run it as root"; exit 1; }
	$(SERVER_PYTHON) -m venv build/pip
	build/pip/bin/pip install -qq $(LOCKED) $(WHEEL)
	rm -rf $(LIB)
	build/pip/bin/pip install -qq --no-compile --target $(LIB) $(BUILT) requirements.lock
	build/pip/bin/pip install -qq --disable-pip-version-check --no-compile --no-deps --no-build-isolation --target $(LIB) .
	@export PYTHONPATH=$(LIB); $(call CHECKED,build/pip/bin)
	rm -rf $(LIB)/bin $(LIB)/share $(LIB)/codexd-*.dist-info/direct_url.json
	@# What no server runs: the packages' own tests, C sources, and types for checkers.
	find $(LIB) -depth \( -name tests -o -name _tests \) -type d -exec rm -rf {} +
	find $(LIB) \( -name '*.c' -o -name '*.h' -o -name '*.pyi' \) -delete
	@# Modules that nobody runs begin as if somebody did, by an interpreter that Debian does not have.
	find $(LIB)/prometheus_client -name '*.py' -exec sed -i '1{/^#!/d}' {} +
	test "$(COMPILE_ALL)" = no || $(SERVER_PYTHON) -m compileall -q -s "$(DESTDIR)" $(LIB)
	install -d $(DESTDIR)/usr/bin $(SHARE)/man/man1 $(SHARE)/man/man5 $(SHARE)/man/man8
	@for name in codexd:codexd.__main__ codexctl:codexd.ctl.__main__; do \
		printf '#!/usr/bin/python3 -I\nimport sys\n\nsys.path.insert(0, "/usr/lib/codexd")\nfrom %s import cli\n\ncli()\n' \
			"$${name#*:}" > $(DESTDIR)/usr/bin/$${name%%:*} && chmod 755 $(DESTDIR)/usr/bin/$${name%%:*} || exit 1; done
	install -D -m 644 -t $(DESTDIR)/usr/lib/systemd/system systemd/*.service systemd/*.socket
	install -D -m 644 -t $(DESTDIR)/usr/lib/systemd/user systemd/user/*.service
	install -D -m 644 systemd/codexd.sysusers $(DESTDIR)/usr/lib/sysusers.d/codexd.conf
	install -D -m 644 systemd/codexd.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/codexd.conf
	install -D -m 644 -t $(SHARE)/doc/codexd/examples packaging/nginx/*.conf packaging/caddy/Caddyfile
	@for page in docs/man/*.[158]; do install -m 644 $$page $(SHARE)/man/man$${page##*.}/ || exit 1; done
	install -d $(SHARE)/bash-completion/completions $(SHARE)/zsh/vendor-completions $(SHARE)/fish/vendor_completions.d
	@export PYTHONPATH=$(LIB) PYTHONDONTWRITEBYTECODE=1; ctl="$(SERVER_PYTHON) -m codexd.ctl completion"; \
		$$ctl bash > $(SHARE)/bash-completion/completions/codexctl \
		&& $$ctl zsh > $(SHARE)/zsh/vendor-completions/_codexctl \
		&& $$ctl fish > $(SHARE)/fish/vendor_completions.d/codexctl.fish
	test -e $(DESTDIR)/etc/default/codexd || install -D -m 644 systemd/codexd.default $(DESTDIR)/etc/default/codexd
	test -e $(DESTDIR)/etc/codexd/config.toml || install -D -m 644 packaging/config.toml $(DESTDIR)/etc/codexd/config.toml

# Everything that install put there; the configuration and the state stay.
uninstall:
	rm -rf $(LIB) $(SHARE)/doc/codexd
	rm -f $(DESTDIR)/usr/bin/codexd $(DESTDIR)/usr/bin/codexctl
	rm -f $(DESTDIR)/usr/lib/systemd/system/codexd* $(DESTDIR)/usr/lib/systemd/user/codexd.service
	rm -f $(DESTDIR)/usr/lib/sysusers.d/codexd.conf $(DESTDIR)/usr/lib/tmpfiles.d/codexd.conf
	rm -f $(foreach page,$(notdir $(wildcard docs/man/*.[158])),$(SHARE)/man/man$(subst .,,$(suffix $(page)))/$(page))
	rm -f $(SHARE)/bash-completion/completions/codexctl $(SHARE)/zsh/vendor-completions/_codexctl
	rm -f $(SHARE)/fish/vendor_completions.d/codexctl.fish

# A Debian package of this checkout for the system that it is built on, whose Python the compiled modules are for:
# build/codexd_VERSION+debian12_ARCH.deb. It needs debhelper and dh-python.
# Builds that see no git are told the version.
VERSION = $(shell $(PYTHON) packaging/release.py version)
SYSTEM_ID = $(shell . /etc/os-release 2>/dev/null; echo "$$ID$$VERSION_ID" | tr -cd a-z0-9)
DEB_VERSION = $(subst .dev,~dev,$(VERSION))+$(SYSTEM_ID)
TREE = build/deb/codexd-$(VERSION)
deb:
	rm -rf build/deb build/codexd_*
	mkdir -p $(TREE)
	git ls-files -z | tar --null -T - -c | tar -x -C $(TREE)
	cp -r $(TREE)/packaging/deb $(TREE)/debian
	printf 'codexd (%s) unstable; urgency=medium\n\n  * /usr/share/doc/codexd/CHANGELOG.md tells what is new.\n\n -- %s  %s\n' \
		"$(DEB_VERSION)" "codexd maintainers <codexd@localhost>" "$$(git log -1 --format=%cD)" > $(TREE)/debian/changelog
	echo CHANGELOG.md > $(TREE)/debian/docs
	export CODEXD_VERSION=$(VERSION) SOURCE_DATE_EPOCH=$$($(PYTHON) packaging/release.py epoch); cd $(TREE) && dpkg-buildpackage -b -us -uc -d >../build.log 2>&1 || { tail -n 30 ../build.log; exit 1; }
	mv build/deb/codexd_*.deb build/

# The same for each Debian, built in one that is made here, as root with mmdebstrap: build/debs.
DEBIANS   = bookworm trixie
AUTHORITY = /etc/ssl/certs/ca-certificates.crt
INSIDE    = chroot $1 env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 PIP_CERT=/authority.crt
debs: $(DEBIANS:%=build/debs/.%)
build/debs/.%: build/builder-% requirements.lock pyproject.toml Makefile $(shell git ls-files codexd prompts systemd packaging docs)
	rm -rf $</src && mkdir -p $</src build/debs
	git ls-files -z | tar --null -T - -c | tar -x -C $</src
	tar -c .git | tar -x -C $</src
	cp -L /etc/resolv.conf $</etc/resolv.conf && cp $(AUTHORITY) $</authority.crt
	$(call INSIDE,$<) make -C /src deb
	rm -f build/debs/codexd_*+$$(. $</etc/os-release; echo $$ID$$VERSION_ID)_*.deb
	cp $</src/build/codexd_*.deb build/debs/
	@touch $@
.PRECIOUS: build/builder-% build/rootfs-%
build/builder-%:
	rm -rf $@.part
	mmdebstrap -q --variant=minbase --include=ca-certificates,debhelper,dh-python,dpkg-dev,git,make,python3,python3-venv $* $@.part
	mv $@.part $@

# The source distribution and the wheel, in dist/: the same bytes for the same commit.
dist: $(VENV)/.dev
	rm -rf dist
	SOURCE_DATE_EPOCH=$$($(PYTHON) packaging/release.py epoch) $(BIN)/python -m build --no-isolation --outdir dist . >/dev/null

# All of a release, in build/release: from a clean checkout whose commit has the tag vX.Y.Z and a section in the changelog.
# Packages need root and mmdebstrap, the image buildah; what cannot be made here is said and left out. The image is for
# this machine's architecture.
RELEASE = build/release
release: $(VENV)/.dev build/audit/.done
	@test -z "$$(git status --porcelain)" || { echo "Commit or stash your changes first: a release is what is committed."; exit 1; }
	@git describe --exact-match --tags --match 'v[0-9]*' >/dev/null 2>&1 || { echo "Tag the commit first: git tag v$$($(PYTHON) -c 'import sys; sys.path.insert(0, "packaging"); import release; print(release.newest_in_changelog())')"; exit 1; }
	rm -rf $(RELEASE) && mkdir -p $(RELEASE)
	$(PYTHON) packaging/release.py notes > $(RELEASE)/NOTES.md
	@$(MAKE) --no-print-directory dist sbom
	cp dist/* build/codexd.cdx.json $(RELEASE)/
	@$(MAKE) --no-print-directory debs && cp build/debs/*.deb $(RELEASE)/ || echo "Debian packages cannot be built here: the release will have none"
	@$(MAKE) --no-print-directory $(CONTAINER)/.image && cp $(CONTAINER)/codexd.tar $(RELEASE)/codexd-$(VERSION)-image-$$(uname -m).tar \
		|| echo "the image cannot be built here: the release will have none"
	cd $(RELEASE) && sha256sum -- * > SHA256SUMS
	@ls -l $(RELEASE)

# A container image, tagged codexd, by docker or podman.
ENGINE ?= docker
image:
	$(ENGINE) build --file packaging/docker/Dockerfile --build-arg VERSION=$(VERSION) --tag codexd $(IMAGE_ARGS) .

# The same for the tests: where no engine and no registry is, buildah builds it on a bare Debian that is made here.
# And the linters of what tells engines and clusters what to do.
CONTAINER = build/container
BUILDAH   = buildah --root $(CURDIR)/$(CONTAINER)/store --runroot /run/codexd-buildah --storage-driver overlay
BASE      = docker.io/library/debian:bookworm-slim
container: $(CONTAINER)/linters/.done $(CONTAINER)/.image
$(CONTAINER)/linters/.done: tests/system/requirements.lock
	$(locked)
$(CONTAINER)/.base:
	mkdir -p $(CONTAINER)
	mmdebstrap -q --variant=minbase --include=ca-certificates bookworm $(CONTAINER)/base.tar
	made=$$($(BUILDAH) from scratch) && $(BUILDAH) add -q $$made $(CONTAINER)/base.tar / >/dev/null \
		&& $(BUILDAH) config --cmd /bin/bash $$made && $(BUILDAH) commit -q --rm $$made $(BASE) >/dev/null
	rm $(CONTAINER)/base.tar
	@touch $@
$(CONTAINER)/.image: $(CONTAINER)/.base requirements.lock pyproject.toml Makefile $(shell git ls-files codexd prompts systemd packaging docs)
	@$(MAKE) --no-print-directory image ENGINE="$(BUILDAH)" IMAGE_ARGS="--isolation chroot --network host --pull-never \
		--format docker --ignorefile packaging/docker/Dockerfile.dockerignore --volume $(AUTHORITY):$(AUTHORITY):ro"
	rm -f $(CONTAINER)/codexd.tar
	$(BUILDAH) push -q localhost/codexd:latest docker-archive:$(CONTAINER)/codexd.tar:localhost/codexd:latest
	@touch $@

# The same for the tests of tests/system, which put it into a machine of their own.
SYSTEM := build/system
system: $(SYSTEM)/.done
$(SYSTEM)/.done: requirements.lock pyproject.toml Makefile $(shell git ls-files codexd prompts systemd packaging docs)
	rm -rf $(SYSTEM)
	@$(MAKE) --no-print-directory install DESTDIR=$(CURDIR)/$(SYSTEM) >/dev/null
	@touch $@
# Debians without anything else, for the packages to be installed in. They need mmdebstrap, and root.
rootfs: $(DEBIANS:%=build/rootfs-%)
build/rootfs-%:
	rm -rf $@.part
	mmdebstrap -q --variant=minbase --include=systemd,systemd-sysv,dbus,python3,adduser,curl,init-system-helpers $* $@.part
	mv $@.part $@
# A plain install of the wheel, with whatever the index offers within pyproject.toml's bounds, on every Python that can be
# had: this machine's and pyenv's, and in a root made of Debian's testing those that are newer.
PYTHONS = 3.11 3.12 3.13 3.14 3.15
pythons: $(VENV)/.dev
	rm -rf build/pythons && mkdir -p build/pythons
	@$(MAKE) --no-print-directory dist
	@for version in $(PYTHONS); do \
		python=$$(ls -d $$HOME/.pyenv/versions/$$version.*/bin/python 2>/dev/null | tail -n 1); \
		python=$${python:-$$(command -v python$$version)}; \
		if test -n "$$python" && "$$python" -m venv build/pythons/$$version; then \
			echo "$$python"; build/pythons/$$version/bin/pip install -qq --disable-pip-version-check dist/codexd-*.whl || exit 1; \
		else $(MAKE) --no-print-directory build/pythons/newer/$$version || echo "no Python $$version can be had here"; fi; done
build/pythons/newer/%: build/builder-newer
	cp -L /etc/resolv.conf $</etc/resolv.conf && cp $(AUTHORITY) $</authority.crt && rm -rf $</wheel $</$* && cp -r dist $</wheel
	$(call INSIDE,$<) sh -c 'python$* -m venv /$* && /$*/bin/pip install -qq --disable-pip-version-check /wheel/codexd-*.whl'
	mkdir -p $(@D) && ln -sfn $(CURDIR)/$< $@
build/builder-newer:
	rm -rf $@.part
	@# A mirror that is a few weeks behind has lists that call themselves expired; they are signed all the same.
	mmdebstrap -q --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
		--include=ca-certificates,python3.14-venv,python3.15-venv forky $@.part
	mv $@.part $@
test-system: $(VENV)/.dev system
	$(BIN)/python -m pytest -m system tests/system $(ARGS)

# ---

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "codexd needs Python 3.11 or newer as $(PYTHON): apt-get install python3 python3-venv, or make PYTHON=python3.x demo"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo "codexd needs Python's venv module: apt-get install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.venv requirements.lock $(WHEEL)
	@echo "Setting up $(VENV) (once) ..."
	@$(BIN)/pip install -qq $(LOCKED) $(WHEEL)
	@$(BIN)/pip install -qq $(BUILT) requirements.lock
	@$(call CHECKED,$(BIN))
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/codexd-checkout.pth"
	@printf '#!%s\nfrom codexd.__main__ import cli\n\ncli()\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/codexd
	@printf '#!%s\nfrom codexd.ctl.__main__ import cli\n\ncli()\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/codexctl
	@chmod +x $(BIN)/codexd $(BIN)/codexctl
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@$(BIN)/pip install -qq $(BUILT) requirements-dev.lock
	@$(call CHECKED,$(BIN))
	@touch $@

clean:
	rm -rf $(VENV) tests/clients/node_modules tests/clients/python/.venv .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist build
