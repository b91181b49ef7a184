#!/bin/bash
# Cases that schemathesis makes from /openapi.json, against a daemon over the simulated ChatGPT: no 5xx, and no answer of
# a status, type or shape that the document does not have. `make fuzz` calls it: schema.sh PYTHON SCHEMATHESIS CASES
set -euo pipefail
python=$1 schemathesis=$2 cases=$3
here=$(cd "$(dirname "$0")" && pwd)
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
work=$(mktemp -d)
PORT=$port "$python" -m codexd --demo >"$work/log" 2>&1 &
daemon=$!
trap 'kill $daemon; rm -rf "$work"' EXIT
cd "$work"
# 17 operations; Allow is left out: GET /v1/responses/compact is a stored response of that name.
PYTHONPATH=$here SCHEMATHESIS_HOOKS=hooks "$schemathesis" run "http://127.0.0.1:$port/openapi.json" --wait-for-schema 20 \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,unsupported_method \
    --phases coverage,fuzzing --max-examples $((cases / 17)) --workers 2 --warnings off --no-color
if grep -n "internal error\|Traceback" log; then
    exit 1
fi
