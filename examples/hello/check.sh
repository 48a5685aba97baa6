#!/bin/bash
# Starts the service on a free loopback port and asks what a user would notice. Needs nothing but bash.
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "FAIL: $*" >&2; exit 1; }

folder=$(mktemp -d)
LISTEN=127.0.0.1:0 INSTANCE=test-1 ./hello >"$folder/out" 2>"$folder/err" &
server=$!
trap 'kill -9 $server 2>/dev/null || true; rm -rf "$folder"' EXIT

deadline=$((SECONDS + 10))
until port=$(sed -n 's/.*listens on .*:\([0-9]*\)$/\1/p' "$folder/out") && [ -n "$port" ]; do
    kill -0 $server 2>/dev/null || fail "the server ended: $(cat "$folder/err")"
    ((SECONDS < deadline)) || fail "the server does not say where it listens"
    read -rt 0.02 <> <(:) || true
done

# Reads one answer from descriptor 3: sets `status` and `body`.
read_answer() {
    local line length=0
    read -rt 5 -u 3 line || fail "no answer"
    status=${line#* }; status=${status%% *}; connection=keep-alive
    while read -rt 5 -u 3 line && line=${line%$'\r'} && [ -n "$line" ]; do
        case $line in
            Content-Length:*) length=${line#*: } ;;
            "Connection: close") connection=close ;;
        esac
    done
    body=""
    [ "$length" = 0 ] || read -rt 5 -u 3 -N "$length" body
}

expect() { [ "$1" = "$2" ] || fail "$3: expected '$1', got '$2'"; }

exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' >&3
read_answer
expect 200 "$status" "status of /"
[[ $body == "hello $(cat VERSION) from test-1/"* ]] || fail "/ answers '$body'"

# The same connection, two requests at once, one with a body.
printf 'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n' >&3
read_answer; expect 200 "$status" "a POST"
read_answer; expect 404 "$status" "an unknown path"

printf 'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n' >&3
read_answer
if [ -e BROKEN ]; then
    echo "the file BROKEN is here: /healthz answered $status, as planned"
else
    expect 200 "$status" "status of /healthz"
fi

# A second connection, opened before the server is told to stop, is still answered; then all is closed.
exec 4<>"/dev/tcp/127.0.0.1/$port"
kill -TERM $server
printf 'GET / HTTP/1.1\r\nHost: x\r\n\r\n' >&4
exec 3<&4
read_answer
expect 200 "$status" "a request while stopping"
code=0; wait $server || code=$?
expect 0 "$code" "exit code after TERM"
echo "hello $(cat VERSION): all checks passed"
