# SPDX-License-Identifier: Apache-2.0
"""D-System Monitor: the modules behind dre-lms."""
