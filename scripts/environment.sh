#!/usr/bin/env bash
# Make the environment once: scripts/environment.sh FOLDER [PYTHON]. Says what it does; on trouble, one line and the remedy.
# A folder that holds an environment which this script did not make is the reader's own: it is used and left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:?usage: scripts/environment.sh FOLDER [PYTHON]}"
wanted="${2:-}"
need_gb="${MINILIB_NEED_GB:-8}"
done_mark="$venv/.minilib-lock"
busy_mark="$venv/.minilib-unfinished"

say() { printf 'minilib: %s\n' "$*"; }
fail() { printf 'minilib: %s\n' "$*" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' >/dev/null 2>&1; }
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || echo "not usable"; }

if [ -x "$venv/bin/python" ] && [ ! -e "$busy_mark" ]; then
  new_enough "$venv/bin/python" ||
    fail "$venv has Python $(version_of "$venv/bin/python"), but 3.11.4 or newer is needed: remove that folder or name another with VENV=."
  [ -e "$done_mark" ] || exit 0
  cmp -s requirements.lock "$done_mark" && exit 0
  say "requirements.lock has changed: bringing $venv up to date"
fi

# 1. A Python.
python=""
for candidate in ${wanted:+"$wanted"} ${wanted:-python3.11 python3.12 python3.13 python3.14 python3 python}; do
  if command -v "$candidate" >/dev/null 2>&1 && new_enough "$candidate"; then python="$candidate"; break; fi
done
found="${wanted:-python3}"
[ -n "$python" ] ||
  fail "needs Python 3.11.4 or newer, but $found is $(version_of "$found"): install one, or name it: make book PYTHON=/path/to/python3.11"

# 2. Room. The parent may not exist yet: ask the nearest folder that does.
place="$venv"
while [ ! -d "$place" ]; do place="$(dirname "$place")"; done
free_kb="$(df -Pk "$place" | awk 'NR == 2 { print $4 }')"
if [ ! -e "$done_mark" ] && [ "$free_kb" -lt $((need_gb * 1000000)) ]; then
  fail "needs about $need_gb GB of disk for $venv, but $((free_kb / 1000000)) GB are free: make room, or put it elsewhere with VENV=/other/disk/minilib"
fi

# 3. An empty environment.
say "making an environment in $venv with $python ($(version_of "$python")); once, about $need_gb GB, 5 to 15 minutes"
mkdir -p "$venv" 2>/dev/null || fail "cannot write to $venv: name another folder with VENV="
log="$venv/install.log"
"$python" -m venv "$venv" >"$log" 2>&1 ||
  fail "$python cannot make an environment ($(tail -n 1 "$log")): on Debian and Ubuntu install the package python3-venv"
: >"$busy_mark"
py="$venv/bin/python"

# 4. A network. One small package, asked for without patience.
probe="$(mktemp -d)"
trap 'rm -rf "$probe"' EXIT
"$py" -m pip download --quiet --no-deps --no-cache-dir --retries 1 --timeout 20 --dest "$probe" packaging >"$log" 2>&1 ||
  fail "no network: the package index does not answer, and the first run needs it (about 3 GB). Details: $log"

# 5. The packages, as locked, then minilib itself, which stays where it is.
explain() {
  if grep -qi "no space left" "$log"; then
    fail "the disk ran full during the install: make room in $venv and in ${TMPDIR:-/tmp} and run the same command again. Details: $log"
  elif grep -qiE "connection|name resolution|timed out|network is unreachable|retrying" "$log"; then
    fail "the network failed during the install: run the same command again, what was fetched is kept. Details: $log"
  fi
  fail "the install failed: $(grep -m 1 '^ERROR' "$log" || tail -n 1 "$log") Details: $log"
}
say "installing $(grep -c '==' requirements.lock) packages as locked (torch and its libraries are the large ones)"
"$py" -m pip install --disable-pip-version-check --require-hashes -r requirements.lock 2>&1 |
  tee "$log" | { grep --line-buffered -oE '^  Downloading .*[0-9]{2}\.[0-9] MB|^Installing collected packages' || true; } || explain
"$py" -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps --editable . >>"$log" 2>&1 || explain
cp requirements.lock "$done_mark"
rm -f "$busy_mark"
say "environment ready in $venv"
