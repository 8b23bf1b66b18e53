#!/usr/bin/env bash
# Make an environment of its own for somebody else's program: bench/interop/env.sh REQUIREMENTS DIRECTORY [PYTHON]
#
# Theirs are not our pins, so they cannot live in .venv. The file lists every package: nothing is resolved here.
set -euo pipefail

requirements=${1:?usage: env.sh REQUIREMENTS DIRECTORY [PYTHON]}
directory=${2:?usage: env.sh REQUIREMENTS DIRECTORY [PYTHON]}
python=${3:-python3.11}

"$python" -m venv --clear "$directory"
"$directory/bin/pip" install --quiet --no-deps --requirement "$requirements"
