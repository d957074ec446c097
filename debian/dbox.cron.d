# SPDX-License-Identifier: Apache-2.0
# The next sign key is prepared, where no systemd runs: there a timer of the same name does it.
17 * * * * root [ -d /run/systemd/system ] || [ ! -x /usr/sbin/dbox-rotate ] || [ ! -e /etc/dre/certs/dbox/owner.p12 ] || /usr/sbin/dbox-rotate --quiet --prepare
# Certificates of clients that end within a month are renewed.
23 3 * * * root [ -d /run/systemd/system ] || [ ! -x /usr/sbin/dbox-init ] || [ ! -e /etc/dre/certs/dbox/client-ca.key ] || /usr/sbin/dbox-init --quiet --renew-due 30d
