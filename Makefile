# SPDX-License-Identifier: Apache-2.0
# The whole of D-RE. `make check-fast` and `make all` need no privilege; `make demo` and `make check` are for root and
# install what they need with apt. Packages land in dist/, the apt repository in repo/, all else in build/.

DIRECTORIES = dre-core dre-base dbox sec-monitor dscript sysmon libdre libdaware daware-mod

include packaging/environment.mk

.PHONY: installed demo demo-stop check-fast source repo bench lint release-check pypi-deb distclean soak
# One thing at a time: the rings of tests share the host, and the packages one directory.
.NOTPARALLEL:

all install:
	for directory in $(DIRECTORIES); do $(MAKE) -C $$directory $@ || exit 1; done

# Every ring of tests, or RING="unit cli"; see tests/run --help.
check:
	test -x $(PYTHON) || packaging/install-tools build
	$(PYTHON) tests/run $(RING)

check-fast:
	PYTHONPATH=dre-core $(PYTHON) -m pytest -q tests/unit tests/cli

release-check:
	$(PYTHON) tests/run --release

lint:
	packaging/lint

deb:
	packaging/build-deb

# RELEASE=noble, say: what a build of that release elsewhere wants, in dist/noble/.
source:
	packaging/build-deb --source $(RELEASE)

repo: deb
	packaging/make-repo

# The packages of this tree on this host, by apt from repo/, as `make demo` uses them.
installed:
	packaging/install-tools build
	DEB_BUILD_PROFILES=nocheck packaging/build-deb
	packaging/make-repo
	packaging/install-from-repo

# SCENARIO=1|2|3|4 chooses one, KEEP=1 leaves it running, WITHOUT=sec|dscript|release|event leaves one part out.
demo: installed
	[ "$(SCENARIO)" != 4 ] || packaging/install-tools systems
	SCENARIO=$(SCENARIO) KEEP=$(KEEP) WITHOUT=$(WITHOUT) demo/run

demo-stop:
	demo/run --stop

# HOURS=n, or a part of one such as 0.1; SEED=n has the same faults come again. `soak/run --stop` clears up after a kill.
soak: installed
	packaging/install-tools soak
	HOURS=$(HOURS) SEED=$(SEED) soak/run

# What it prints is kept in build/bench, with pictures; BENCH="life many" measures those alone.
bench:
	bench/table $(BENCH)

pypi-deb:
	packaging/pypi-deb $(NAME)

# The key of the repository stays, so that hosts which know it go on; `make distclean` removes it too.
clean:
	for directory in $(DIRECTORIES); do $(MAKE) -C $$directory clean || exit 1; done
	rm -rf dist repo
	[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name archive-key -exec rm -rf {} +
	find tests demo soak bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf build
