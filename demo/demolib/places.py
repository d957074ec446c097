# SPDX-License-Identifier: Apache-2.0
"""Where the demonstration keeps things, and the settings it gives to D-RE. It touches no settings of the host."""

from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
SHOP = HERE / "shop"
SCRIPTS = HERE / "scripts"
REPORTS = HERE.parent / "build" / "demo"  # stay there, one directory for each scenario

HOME = Path("/var/lib/dre-demo")  # all of it is removed at the end
CONF = HOME / "dre.conf"
STATE = HOME / "state"
CERTS = HOME / "etc/certs/dbox"
LOG = HOME / "log"
REMAINS = Path("/var/log/dre-demo")  # the logs, when something went wrong
RUN = Path("/run/dre")  # the real place, so that rules write to the real /run/dre/script
LOCK = Path("/run/dre-demo.lock")
TREES = Path("/var/lib/dre/base")  # the tree stays there for the next time

TREE = "cdshop"
PACKAGES = ("apache2-bin", "gunicorn", "python3-pymysql", "mariadb-server-core", "mariadb-client-core")

BRIDGE = "dredemo0"
WEB, APP, DB = "shop-web", "shop-app", "shop-db"
ADDRESSES = {WEB: "10.231.77.11", APP: "10.231.77.12", DB: "10.231.77.13"}
FEED, REPORT = "batch-feed", "batch-report"
JOBS = {FEED: "10.231.77.14", REPORT: "10.231.77.15"}
PAY, PAY_ADDRESS = "shop-pay", "10.231.77.21"  # a system
URL = f"http://{ADDRESSES[WEB]}"
DBOX_PORT = 18443

SETTINGS = f"""# Settings of the demonstration of D-RE; demo/run wrote them and removes them.
DRE_CORE_STATE_DIR="{STATE}"
DRE_CORE_ETC_DIR="{HOME}/etc"
DRE_CORE_LOG_DIR="{LOG}"
DRE_BRIDGE_IF="{BRIDGE}"
DRE_BRIDGE_ADDRESS="10.231.77.1/24"
DRE_BRIDGE_NAT="no"
DRE_DBOX_LISTEN="127.0.0.1:{DBOX_PORT}"
DRE_DBOX_URL="https://localhost:{DBOX_PORT}"
DRE_DBOX_DATABASE="sqlite:{STATE}/dbox/dbox.sqlite"
DRE_DBOX_CERTS_DIR="{CERTS}"
"""
