#!/bin/sh
# What the container runs: the cluster of up.sh, until the container is told to stop.
folder=$(dirname "$0")
sh "$folder/up.sh" "$@" || exit
sleep infinity &
trap 'sh "$folder/down.sh"; kill $!; exit 0' TERM INT
wait
