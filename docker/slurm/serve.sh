#!/bin/sh
# What the container runs: the cluster of up.sh, until the container is told to stop.
folder=$(dirname "$0")
sleeper=
trap 'sh "$folder/down.sh"; test -z "$sleeper" || kill "$sleeper"; exit 0' TERM INT
sh "$folder/up.sh" "$@" || exit
sleep infinity &
sleeper=$!
wait
