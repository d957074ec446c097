# SPDX-License-Identifier: Apache-2.0
# The rules of a directory of commands. Its Makefile says what it holds, then includes this:
#   SBIN BIN  commands for the administrator (/usr/sbin), for everybody (/usr/bin)
#   LIB       the Python library beside the commands, private to them
#   SHARE     more directories for the same place, such as rules
#   DEBS      the Debian packages made from the directory; the first names its place below /usr/share

TOP := $(abspath $(dir $(lastword $(MAKEFILE_LIST)))/..)
include $(TOP)/packaging/environment.mk
RST2MAN = /usr/bin/rst2man

DESTDIR =
# The specification names the places, such as /usr/sbin; programs find each other there.
prefix = /usr
sbindir = $(prefix)/sbin
bindir = $(prefix)/bin
datadir = $(prefix)/share
mandir = $(datadir)/man
completiondir = $(datadir)/bash-completion/completions
sysconfdir = /etc
pythondir = $(prefix)/lib/python3/dist-packages
placedir = $(datadir)/$(firstword $(DEBS))

MANS := $(patsubst %.rst,%,$(wildcard man/*.rst))
COMPLETIONS := $(addprefix completion/,$(SBIN) $(BIN))
# The module of a command: <library>.cmd.<command with underscores>.
MODULES = $(or $(LIB),dre).cmd
SOURCES := $(shell find $(LIB) $(TOP)/dre-core/dre -name '*.py')

.PHONY: all check install install-commands install-man deb clean

all: $(MANS) $(COMPLETIONS)

# A page with tables tells so, that tbl is run; and their first column is as wide as the line lets it be.
TABLES = /\n\.TS\n/{ s/^/'\\\\\" t\n/; s/;\n\(|\?\)l|/;\n\1lx|/g; s/\tT{\n\([^\n]*\)\nT}/\t\1/g }
man/%: man/%.rst
	$(RST2MAN) --halt=warning $< $@
	sed -i -z "$(TABLES)" $@

completion/%: $(TOP)/packaging/completion $(SOURCES)
	@mkdir -p completion
	PYTHONPATH=$(CURDIR):$(TOP)/dre-core $(PYTHON) $< $(MODULES).$(subst -,_,$*) >$@.new
	@mv $@.new $@

# The tests without privilege that name the library or a command of this directory; those at the top run all.
empty :=
named = $(or $(LIB),(from|import) dre)|"($(subst $(empty) $(empty),|,$(strip $(SBIN) $(BIN))))"
check:
	cd $(TOP) && PYTHONPATH=dre-core $(PYTHON) -m pytest -q $$(grep -lE '$(named)' tests/unit/*.py tests/cli/*.py)

install: all install-commands install-man

# A command with a private library lies beside it, and is reached by a link: Python then finds the library by itself.
install-commands:
	install -d $(DESTDIR)$(sbindir) $(DESTDIR)$(bindir) $(DESTDIR)$(completiondir)
ifneq ($(LIB)$(SHARE),)
	install -d $(DESTDIR)$(placedir)
	find $(LIB) $(SHARE) -type f ! -name '*.pyc' ! -perm -u+x -exec install -D -m 644 {} $(DESTDIR)$(placedir)/{} \;
	find $(LIB) $(SHARE) -type f ! -name '*.pyc' -perm -u+x -exec install -D -m 755 {} $(DESTDIR)$(placedir)/{} \;
endif
	for command in $(SBIN); do $(call place,$(sbindir)); done
	for command in $(BIN); do $(call place,$(bindir)); done
	for command in $(SBIN) $(BIN); do install -m 644 completion/$$command $(DESTDIR)$(completiondir)/ || exit 1; done

place = $(if $(LIB), \
	install -m 755 $$command $(DESTDIR)$(placedir)/ && ln -sf $(placedir)/$$command $(DESTDIR)$(1)/$$command, \
	install -m 755 $$command $(DESTDIR)$(1)/) || exit 1

install-man: $(MANS)
	for page in $(MANS); do \
		install -D -m 644 $$page $(DESTDIR)$(mandir)/man$${page##*.}/$${page#man/} || exit 1; \
	done

deb:
	$(TOP)/packaging/build-deb $(DEBS)

clean:
	rm -rf completion $(MANS)
	find . -name __pycache__ -prune -exec rm -rf {} +
