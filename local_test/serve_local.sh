#!/usr/bin/env bash
# Runs an image as SageMaker does: serve_local.sh IMAGE [MODEL_DIR]. Ctrl-C stops it like a scale-in.
# Environment: PORT (8080), MEMORY (4g), RUN_OPTIONS (further options of docker run, such as "-e NAME=value").
# Only /tmp is writable, because serverless endpoints and the Marketplace guarantee no more. It is a volume: files on a
# tmpfs would count as the container's memory.
set -euo pipefail
if [[ ${1-} == -h || ${1-} == --help ]]; then sed -n '2,/^set /s/^# //p' "$0"; exit; fi

image=${1:?usage: serve_local.sh IMAGE [MODEL_DIR]}
models=$(realpath -e "${2:-$(dirname "$0")/models}") || { echo "serve_local.sh: no such directory; 'make models' makes the samples" >&2; exit 1; }
url=http://127.0.0.1:${PORT:-8080}
docker info >/dev/null 2>&1 || { echo "serve_local.sh: no Docker engine answers: start one first" >&2; exit 1; }

# shellcheck disable=SC2086 # RUN_OPTIONS is a list of words
container=$(docker run --detach --memory "${MEMORY:-4g}" --read-only --volume /tmp \
  --publish "127.0.0.1:${PORT:-8080}:8080" --volume "$models:/opt/ml/model:ro" ${RUN_OPTIONS:-} "$image" serve)
# 30 seconds from SIGTERM to SIGKILL, as on SageMaker.
trap 'docker stop --time 30 "$container" >/dev/null; docker rm --force --volumes "$container" >/dev/null' EXIT
trap 'exit 130' INT TERM

printf 'waiting for %s/ping ' "$url"
for ((second = 0; second < ${WAIT:-480}; second++)); do
  if curl --silent --fail --max-time 2 --output /dev/null "$url/ping"; then
    printf ' answers after %s s\n' "$second"
    docker logs --follow "$container" &
    wait $!
    exit "$(docker wait "$container")"
  fi
  [[ $(docker inspect --format '{{.State.Running}}' "$container") == true ]] || break
  printf .
  sleep 1
done
printf ' no answer. Log of the container:\n'
docker logs "$container" 2>&1
docker inspect --format 'exit code {{.State.ExitCode}}, out of memory: {{.State.OOMKilled}}' "$container"
exit 1
