# SPDX-License-Identifier: Apache-2.0
# Snapshots of apps on their schedules, where no systemd runs: there dre-app-snapshot.timer does it.
*/5 * * * * root [ -d /run/systemd/system ] || [ ! -x /usr/sbin/dre-app ] || /usr/sbin/dre-app --quiet snapshot run >/dev/null
