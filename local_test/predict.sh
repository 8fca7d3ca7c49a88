#!/usr/bin/env bash
# Sends a file as the platform would: predict.sh FILE [CONTENT_TYPE] [--target NAME]. URL is http://127.0.0.1:8080.
# The answer goes to stdout, status and time to stderr; any status but 2xx exits 1.
set -euo pipefail
if [[ ${1-} == -h || ${1-} == --help ]]; then sed -n '2,/^set /s/^# //p' "$0"; exit; fi

usage="usage: predict.sh FILE [CONTENT_TYPE] [--target NAME]"
url=${URL:-http://127.0.0.1:8080} file='' type='' headers=()
while (($#)); do
  case $1 in
    --target) headers+=(--header "X-Amzn-SageMaker-Target-Model: ${2:?$usage}") && shift ;;
    *) if [[ -z $file ]]; then file=$1; else type=$1; fi ;;
  esac
  shift
done
[[ -r ${file:?$usage} ]] || { echo "predict.sh: cannot read $file" >&2; exit 1; }

case $file in
  *.csv) guess=text/csv ;;
  *.libsvm) guess=text/libsvm ;;
  *.npy) guess=application/x-npy ;;
  *.jsonl) guess=application/jsonlines ;;
  *.txt) guess=text/plain ;;
  *) guess=application/json ;;
esac

# --data-binary: --data would take the newlines out of CSV. The body passes on to stdout, curl's figures are caught.
exec 3>&1
figures=$(curl --silent --no-buffer --header "Content-Type: ${type:-$guess}" "${headers[@]}" --data-binary "@$file" \
  --write-out '%{stderr}%{http_code} %{time_total}' "$url/invocations" 2>&1 >&3) ||
  { echo "predict.sh: no answer from $url: is it being served? (make run)" >&2; exit 1; }
read -r status seconds <<<"$figures"
printf '\n%s in %.1f ms\n' "$status" "${seconds}e3" >&2
[[ $status == 2* ]]
