#!/bin/sh
# Starts the usual stack: usual_stack.sh NGINX PYTHON WORKERS. The environment sets port, models and directory, with the
# variables of this server. SIGTERM stops it.
set -eu

here=$(dirname "$0")
conf=$SERVE_RUN_DIR/nginx.conf
sed "s|{{run}}|$SERVE_RUN_DIR|; s|{{port}}|$SAGEMAKER_BIND_TO_PORT|" "$here/usual_stack.conf" >"$conf"
user=''
test "$(id -u)" != 0 || user='user root;'
"$1" -e stderr -p "$SERVE_RUN_DIR" -c "$conf" -g "daemon off; $user" &
nginx=$!
PYTHONPATH=$here/.. "$2" -m gunicorn 'bench.usual_stack:create()' --workers "$3" --bind "unix:$SERVE_RUN_DIR/gunicorn.sock" \
  --timeout 120 --no-control-socket --log-level warning &
gunicorn=$!
trap 'kill "$nginx" "$gunicorn"; wait' TERM
wait
