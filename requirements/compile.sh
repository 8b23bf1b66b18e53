#!/usr/bin/env bash
# Regenerates every pinned file in this folder from its .in file.
#
#   requirements/compile.sh                  re-resolve inside today's pins
#   requirements/compile.sh --upgrade        take the newest versions that fit
#
# One resolution (dev.in holds all of the others) decides every version; the smaller files are cut out of it,
# so that no two of them can disagree. torch stands in a file of its own without a hash: the same version
# comes from different places (a local wheel folder, PyTorch's index), not always as the same file.
# Needs uv (https://docs.astral.sh/uv); uv reads neither pip's configuration nor its wheel folder, hence the options.
set -euo pipefail
cd "$(dirname "$0")"

find_links=()
if [[ -n "${PIP_FIND_LINKS:-}" ]]; then find_links=(--find-links "$PIP_FIND_LINKS"); fi
if [[ -n "${PIP_CERT:-}" && -z "${SSL_CERT_FILE:-}" ]]; then export SSL_CERT_FILE="$PIP_CERT"; fi

compile() { # name, further options
    local name=$1
    shift
    uv pip compile "$name.in" --output-file "$name.txt" --python-version 3.11 --no-header --quiet --no-annotate \
        --overrides overrides.txt --generate-hashes "${find_links[@]}" "$@"
}

all=$(mktemp)
trap 'rm -f "$all"' EXIT
cpu_torch=(--no-emit-package torch)

compile dev "${cpu_torch[@]}" "$@"
grep -oE '^[A-Za-z0-9._-]+==[^ ]+' dev.txt >"$all"
for name in train cpu gateway policy reward init cli; do
    compile "$name" "${cpu_torch[@]}" --constraints "$all" --upgrade
done

# CUDA: official vLLM brings its own torch, so this is a resolution of its own; deepspeed exists as source only.
uv pip compile gpu.in --output-file gpu.txt --python-version 3.11 --python-platform x86_64-manylinux_2_35 --no-header --quiet \
    --no-annotate --generate-hashes --only-binary :all: --no-binary deepspeed "$@"
