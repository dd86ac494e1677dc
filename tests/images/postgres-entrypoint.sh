#!/bin/sh
# Starts the server; makes a cluster first where there is none. As root it only hands the data
# directory to the server's user, whose own this script then is.
set -e
if [ "$1" = postgres ]; then
    if [ "$(id -u)" = 0 ]; then
        mkdir -p "$PGDATA" /var/run/postgresql
        chown postgres:postgres "$PGDATA" /var/run/postgresql
        chmod 700 "$PGDATA"
        exec setpriv --reuid postgres --regid postgres --init-groups "$0" "$@"
    fi
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        initdb --username postgres --auth trust --no-sync --no-instructions "$PGDATA"
        sync
    fi
fi
exec "$@"
