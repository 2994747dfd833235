#!/usr/bin/env bash
# The tests on the oldest or on the newest versions that pyproject.toml allows: scripts/canary.sh oldest|newest FOLDER [PYTEST ARGUMENTS]
# Needs uv. The environment in FOLDER is made when it is missing; remove FOLDER for versions of another day.
set -euo pipefail
cd "$(dirname "$0")/.."
end="${1:?usage: scripts/canary.sh oldest|newest FOLDER [PYTEST ARGUMENTS]}"
venv="${2:?usage: scripts/canary.sh oldest|newest FOLDER [PYTEST ARGUMENTS]}"
shift 2
case "$end" in
  oldest) resolution=lowest-direct python=3.11 ;;
  newest) resolution=highest python="${CANARY_PYTHON:-3.11}" ;;
  *) echo "canary: the first argument must be oldest or newest; not $end" >&2; exit 2 ;;
esac
if [ ! -e "$venv/.minilib-canary" ]; then
  echo "canary: making $venv with the $end versions (Python $python)"
  uv venv --quiet --python "$python" "$venv"
  uv pip install --quiet --python "$venv/bin/python" --resolution "$resolution" --prerelease disallow \
    -e ".[book,curate,scale,gpu,course,dev]" "pip>=24"
  touch "$venv/.minilib-canary"
fi
uv pip freeze --python "$venv/bin/python" |
  grep -iE '^(torch|torchvision|open-clip-torch|diffusers|transformers|scikit-learn|numpy|scipy|timm|matplotlib|seaborn|pyarrow|numba)=='
export PYTHONPATH="$PWD" TOKENIZERS_PARALLELISM=false
exec "$venv/bin/python" -m pytest -q -m "not book" "$@"
