#!/usr/bin/env bash
# Writes the locks anew: exact versions with hashes, no download addresses. Run after changing pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
  .venv/bin/uv pip compile pyproject.toml --quiet --generate-hashes --no-emit-index-url --no-header \
    --python-version 3.11 --override requirements/overrides.txt "$@"
}
compile --extra embedded --extra dev --output-file requirements/dev.txt
compile --extra embedded --constraint requirements/dev.txt --output-file requirements/embedded.txt
grep -A200 "^uv==" requirements/dev.txt | awk 'NR>1 && !/^    /{exit} /^uv==|--hash/' | sed '$ s/ \\$//' > requirements/uv.txt
