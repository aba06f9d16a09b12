#!/bin/sh
# Fetches vtest.avi (768 x 576, 795 frames of people and parked cars) out of Debian's opencv-doc package, into the file
# OUT. Its rights are unclear, so it is fetched and never committed. Needs apt-get and, before it, `apt-get update`.
set -eu
if [ $# -ne 1 ]; then
    echo "usage: $0 OUT" >&2
    exit 64
fi
if [ -s "$1" ]; then
    exit 0
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# apt-get drops to the user _apt for the download.
chmod 755 "$scratch"
(cd "$scratch" && apt-get download opencv-doc >&2)
dpkg-deb --fsys-tarfile "$scratch"/opencv-doc_*.deb |
    tar -x -O ./usr/share/doc/opencv-doc/examples/data/vtest.avi >"$scratch/vtest.avi"
mkdir -p "$(dirname "$1")"
mv "$scratch/vtest.avi" "$1"
