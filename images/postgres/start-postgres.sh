#!/bin/sh
# Starts PostgreSQL, after making its data folder on the first start. Runs as any user with an entry in /etc/passwd;
# writes only to PGDATA's parent and /tmp. The password of `postgres` comes from POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  if [ -z "${POSTGRES_PASSWORD_FILE:-}" ]; then
    : "${POSTGRES_PASSWORD:?set POSTGRES_PASSWORD_FILE or POSTGRES_PASSWORD: the password of the user postgres}"
    POSTGRES_PASSWORD_FILE=/tmp/password
    (umask 077; printf '%s\n' "$POSTGRES_PASSWORD" > "$POSTGRES_PASSWORD_FILE")
  fi
  # Made aside and moved, so that a kill halfway leaves nothing that looks finished.
  rm -rf "$PGDATA.new"
  initdb -D "$PGDATA.new" --username=postgres --pwfile="$POSTGRES_PASSWORD_FILE" \
    --auth-host=scram-sha-256 --auth-local=peer --encoding=UTF8 --locale=C.UTF-8 --data-checksums
  printf 'host all all all scram-sha-256\n' >> "$PGDATA.new/pg_hba.conf"
  mv "$PGDATA.new" "$PGDATA"
  rm -f /tmp/password
fi
unset POSTGRES_PASSWORD
exec postgres -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/tmp
