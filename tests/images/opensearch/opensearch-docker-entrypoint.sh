#!/bin/bash
# As the public image's: variables with dots in their names are settings. There is no security plug-in to set or disable.
set -e
[ "${1:-opensearch}" = opensearch ] || exec "$@"
settings=()
while IFS='=' read -r -d '' name value; do
    case "$name" in
    plugins.security.*) ;;
    *.*) settings+=("-E$name=$value") ;;
    esac
done < <(env -0)
exec opensearch "${settings[@]}" "${@:2}"
