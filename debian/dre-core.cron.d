# SPDX-License-Identifier: Apache-2.0
# Snapshots of apps and systems on their schedules, where no systemd runs: there timers of the same names do it.
*/5 * * * * root [ -d /run/systemd/system ] || [ ! -x /usr/sbin/dre-app ] || /usr/sbin/dre-app --quiet snapshot run >/dev/null
*/5 * * * * root [ -d /run/systemd/system ] || [ ! -x /usr/sbin/dre-sys ] || /usr/sbin/dre-sys --quiet snapshot run >/dev/null
