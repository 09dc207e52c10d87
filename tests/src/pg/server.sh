# A throw-away Postgres. Prints its directory, serves, and removes everything when standard input ends: that happens
# with the test process, however it dies. The line "crash" on standard input kills it and starts it again.
# usage: server.sh <bin dir> <port> <more arguments of postgres>; PGPASSWORD is the superuser's password.
set -eu
# PIPE: the test process may be gone before it has read the directory.
trap '' INT TERM HUP PIPE
dir=$(mktemp -d "${TMPDIR:-/tmp}/agentapi-pg.XXXXXX")
pid=
alive() { grep -qs '^State:[[:space:]]*[^Z]' "/proc/$pid/status"; }
clean_up() {
    if [ -n "$pid" ]; then
        # Not yet waited for, so the number can't belong to another process. Again and again: a server that has just
        # been started may not have its signal handlers yet.
        while alive; do
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
bin=$1 port=$2
shift 2
serve() {
    "$bin/postgres" -D "$dir/data" -p "$port" -c listen_addresses=127.0.0.1 -c unix_socket_directories= \
        -c max_connections=300 -c shared_buffers=64MB -c log_statement="${LOG_STATEMENT:-none}" "$@" \
        </dev/null >>"$dir/log" 2>&1 &
    pid=$!
}
serve "$@"
echo "$dir"
while read -r word; do
    [ "$word" = crash ] || continue
    kill -KILL "$pid"
    wait "$pid" || true
    echo "server.sh: killed" >>"$dir/log"
    # It starts only when the last process of the one before has noticed.
    serve "$@"
    until grep -qs "^$pid$" "$dir/data/postmaster.pid" && grep -qs ready "$dir/data/postmaster.pid"; do
        sleep 0.1
        alive || { wait "$pid" || true; serve "$@"; }
    done
done
