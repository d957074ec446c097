# SPDX-License-Identifier: Apache-2.0
"""The D-Script language and its engine: load, check, core, journal, engine, and one file per step in steps/."""
