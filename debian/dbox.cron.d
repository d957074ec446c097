# SPDX-License-Identifier: Apache-2.0
# The next sign key is prepared, where no systemd runs: there a timer of the same name does it.
17 * * * * root [ -d /run/systemd/system ] || [ ! -x /usr/sbin/dbox-rotate ] || [ ! -e /etc/dre/certs/dbox/owner.p12 ] || /usr/sbin/dbox-rotate --quiet --prepare
# Certificates of clients that end within a month are renewed.
23 3 * * * root [ -d /run/systemd/system ] || [ ! -x /usr/sbin/dbox-init ] || [ ! -e /etc/dre/certs/dbox/client-ca.key ] || /usr/sbin/dbox-init --quiet --renew-due 30d
# Tree heads are cosigned and stamped, where the settings name somebody who does it.
*/10 * * * * root [ -d /run/systemd/system ] || [ ! -x /usr/bin/dbox-witness ] || ! grep -Eqs '^DRE_DBOX_(WITNESSES|TSA_URL)=.?[a-z/]' /etc/dre.conf /etc/dre.conf.d/*.conf || /usr/bin/dbox-witness --quiet --ask
