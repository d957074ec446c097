# SPDX-License-Identifier: Apache-2.0
"""One module per command of dre-core; dre-app leads to dre_app and so on."""
