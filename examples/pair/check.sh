#!/bin/bash
# Starts both services and asks what a user would notice. Needs nothing but bash.
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "FAIL: $*" >&2; exit 1; }
pause() { read -rt 0.02 <> <(:) || true; }

folder=$(mktemp -d)
trap 'kill -9 $(jobs -p) 2>/dev/null || true; rm -rf "$folder"' EXIT
export STATE_DIR=$folder

LISTEN=127.0.0.1:0 ./echo >"$folder/out" &
echo_pid=$!
deadline=$((SECONDS + 10))
until port=$(sed -n 's/.*listens on .*:\([0-9]*\)$/\1/p' "$folder/out") && [ -n "$port" ]; do
    ((SECONDS < deadline)) || fail "echo does not say where it listens"
    pause
done
exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'over the hills\n' >&3
read -rt 5 -u 3 line || fail "no echo"
[ "$line" = "over the hills" ] || fail "echo says '$line'"
kill -TERM $echo_pid
wait $echo_pid || fail "echo ended with $?"

! ./alive 2>/dev/null || fail "alive before the worker began"
./worker >/dev/null &
worker_pid=$!
until ./alive 2>/dev/null; do
    ((SECONDS < deadline)) || fail "the worker is not alive"
    pause
done
kill -TERM $worker_pid
wait $worker_pid || fail "worker ended with $?"
echo "pair: all checks passed"
