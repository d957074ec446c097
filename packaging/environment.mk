# SPDX-License-Identifier: Apache-2.0
# The tools are the system's, whatever shims and module paths the caller's shell has. Every Makefile includes this.

export PATH := /usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL := C.UTF-8
export PYTHONDONTWRITEBYTECODE := 1
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
PYTHON = /usr/bin/python3
