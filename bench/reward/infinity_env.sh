#!/usr/bin/env bash
# Make infinity's own environment: bench/reward/infinity_env.sh DIRECTORY [PYTHON]
#
# Its pins (transformers below 5, numpy below 2) exclude those of this project, so it cannot live in .venv.
# TORCH=torch==2.13.0 takes the CUDA build; the default is the CPU build that this project is pinned to.
set -euo pipefail

directory=${1:?usage: infinity_env.sh DIRECTORY [PYTHON]}
python=${2:-python3.11}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
torch=${TORCH:-torch==2.13.0+cpu}
index=${TORCH_CPU_INDEX-https://download.pytorch.org/whl/cpu}

"$python" -m venv "$directory"
extra=()
[[ $torch == *+cpu && -n $index ]] && extra=(--extra-index-url "$index")
"$directory/bin/pip" install --quiet "${extra[@]}" "$torch"
"$directory/bin/pip" install --quiet --requirement "$here/infinity-requirements.txt"
"$directory/bin/python" -c 'import infinity_emb; print("infinity", infinity_emb.__version__)'
