#!/usr/bin/env bash
# Rewrite requirements.lock from pyproject.toml: exact versions and hashes for Python 3.11 and newer, on every platform.
# Only names, versions and hashes go in; no index, file or host, so that a reader's own mirror works as well.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:?usage: scripts/lock.sh PYTHON}"
new="$(mktemp)"
trap 'rm -f "$new"' EXIT
{
  echo "# Exact versions for the book and for CI, written by 'make lock' from pyproject.toml. Do not edit by hand."
  echo "# Readers who install minilib beside their own packages need not use it: pyproject.toml has loose bounds."
  "$python" -m uv pip compile pyproject.toml --no-config --universal --python-version 3.11 \
    --extra book --extra curate --extra scale --extra gpu --extra course --extra dev --upgrade \
    --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links --quiet
} >"$new"
if grep -nE '://|@ |file:|index-url|find-links' "$new"; then
  echo "minilib: the lines above name a place instead of a version; requirements.lock is left as it was." >&2
  exit 1
fi
cat "$new" >requirements.lock
echo "minilib: requirements.lock holds $(grep -c '==' requirements.lock) packages"
