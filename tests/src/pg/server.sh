# A throw-away Postgres. Prints its directory, serves, and removes everything when standard input ends: that happens
# with the test process, however it dies. usage: server.sh <bin dir> <port>; PGPASSWORD is the superuser's password.
set -eu
# PIPE: the test process may be gone before it has read the directory.
trap '' INT TERM HUP PIPE
dir=$(mktemp -d "${TMPDIR:-/tmp}/agentapi-pg.XXXXXX")
pid=
clean_up() {
    if [ -n "$pid" ]; then
        # Not yet waited for, so the number can't belong to another process. Again and again: a server that has just
        # been started may not have its signal handlers yet.
        while grep -qs '^State:[[:space:]]*[^Z]' "/proc/$pid/status"; do
            kill -QUIT "$pid" 2>/dev/null || true
            sleep 0.05
        done
        wait "$pid" || true
    fi
    rm -rf "$dir"
}
trap clean_up EXIT
printf '%s' "$PGPASSWORD" >"$dir/password"
"$1/initdb" --pgdata="$dir/data" --username=postgres --pwfile="$dir/password" --auth=password --encoding=UTF8 \
    --locale=C.UTF-8 --no-sync --no-instructions >"$dir/log" 2>&1 </dev/null || { cat "$dir/log" >&2; exit 1; }
rm "$dir/password"
chmod 755 "$dir"
chmod 644 "$dir/log"
"$1/postgres" -D "$dir/data" -p "$2" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
    -c fsync=off -c full_page_writes=off -c synchronous_commit=off -c max_connections=300 -c shared_buffers=64MB \
    -c log_statement="${LOG_STATEMENT:-none}" </dev/null >>"$dir/log" 2>&1 &
pid=$!
echo "$dir"
cat >/dev/null
