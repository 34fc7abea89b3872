#!/usr/bin/env bash
# Installs what the project needs: system packages (bubblewrap, libseccomp), .venv from the locks in requirements/.
# Usage: tools/setup.sh embedded|dev
set -euo pipefail
cd "$(dirname "$0")/.."
extras=${1:-embedded}
say() { printf '\033[2m· %s\033[0m\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

stamp=".venv/.agentkeep-$extras"
lock="requirements/$extras.txt"
fresh() { [ -e "$stamp" ] && ! [ "$lock" -nt "$stamp" ] && ! [ pyproject.toml -nt "$stamp" ]; }

system_packages() {  # names of what is missing
  command -v bwrap >/dev/null || echo bubblewrap
  "$python" -c 'import ctypes; ctypes.CDLL("libseccomp.so.2")' 2>/dev/null || echo libseccomp2
  [ -x .venv/bin/python ] || "$python" -c 'import ensurepip' 2>/dev/null || echo python3.11-venv
}

python=$(command -v python3.11 || true)
[ -n "$python" ] || die "Python 3.11 was not found. Install it (Debian 12: apt-get install python3.11) and run this again."

missing=$(system_packages | tr '\n' ' ')
if [ -n "${missing// /}" ]; then
  command -v apt-get >/dev/null || die "please install these with your package manager, then run this again: $missing"
  run=""
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "these packages are missing, and neither root nor sudo is at hand: ask whoever
administers this machine to run 'apt-get install ${missing% }', then run this again"
    run="sudo"
  fi
  say "installing system packages with apt-get: $missing"
  $run apt-get update -qq
  $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

fresh && exit 0
[ -x .venv/bin/python ] || { say "creating .venv"; "$python" -m venv .venv; }
[ -x .venv/bin/uv ] || { say "installing uv"; .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt; }
say "installing $(grep -c '==' "$lock") locked packages ($lock)"
.venv/bin/uv pip install -q --system-certs --python .venv/bin/python --require-hashes --no-deps -r "$lock"
.venv/bin/uv pip install -q --system-certs --python .venv/bin/python --no-deps --no-build-isolation -e .
touch "$stamp"
