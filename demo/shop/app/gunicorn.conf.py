# SPDX-License-Identifier: Apache-2.0
"""How gunicorn runs the shop. HUP starts workers with the current release and lets the old ones finish their request.

Nothing is written below /srv: what the app's delta holds is the release and its settings, no more.
"""

bind = "0.0.0.0:8000"
workers = 3
user = group = "www-data"
pythonpath = "/srv/shop/current"
wsgi_app = "wsgi:application"
pidfile = "/run/shop.pid"
worker_tmp_dir = "/run"
graceful_timeout = 2
timeout = 20
