#!/bin/sh
# Builds the image with whatever builder is here. Usage: build.sh [TAG]
set -eu
cd "$(dirname "$0")/../.."
tag=${1:-warmroute:$(sed -n '/^\[workspace.package\]/,/^$/s/^version = "\(.*\)"/\1/p' Cargo.toml)}

for builder in podman buildah docker; do
    if command -v "$builder" >/dev/null; then
        echo "building $tag with $builder"
        exec "$builder" build -f packaging/oci/Containerfile -t "$tag" .
    fi
done
echo "please install podman, buildah or docker" >&2
exit 1
