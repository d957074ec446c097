# SPDX-License-Identifier: Apache-2.0
"""The modules that the programs of D-RE share; no program imports any other package of ours."""

__version__ = "0.1.0"
