"""The stack most containers have: every model in each gunicorn sync worker, nginx in front, a unix socket between."""
