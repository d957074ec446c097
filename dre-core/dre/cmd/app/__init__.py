# SPDX-License-Identifier: Apache-2.0
"""The verbs of dre-app, in groups; dre.cmd.dre_app names them all."""
