#!/usr/bin/env bash
# Sends a file as SageMaker does: predict.sh FILE [CONTENT_TYPE] [--target NAME]. URL defaults to http://127.0.0.1:8080.
# Prints the answer to stdout, status and time to stderr. Exits 1 unless the status is 2xx.
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

# --data-binary: --data would remove the newlines of CSV. curl's body goes to stdout, its figures to the variable.
exec 3>&1
figures=$(curl --silent --no-buffer --header "Content-Type: ${type:-$guess}" "${headers[@]}" --data-binary "@$file" \
  --write-out '%{stderr}%{http_code} %{time_total}' "$url/invocations" 2>&1 >&3) ||
  { echo "predict.sh: no answer from $url: start the server (make run)" >&2; exit 1; }
read -r status seconds <<<"$figures"
printf '\n%s in %.1f ms\n' "$status" "${seconds}e3" >&2
[[ $status == 2* ]]
