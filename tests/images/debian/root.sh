#!/bin/sh
# A minimal Debian root, as a tar file: root.sh SUITE PACKAGES(comma-separated) FILE
# The machine's own mirror, apt settings and certificate authorities go in, so that apt and pip work in it as they do here.
set -eu
suite=$1 packages=$2 file=$3
root=$(mktemp -d -p "$(dirname "$file")" root-XXXXXX)
trap 'rm -rf "$root"' EXIT

mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    awk '/^URIs:/ { print $2; exit } /^deb / { sub(/\[[^]]*\] */, ""); print $2; exit }')
debootstrap --variant=minbase --include="$packages" "$suite" "$root" ${mirror:+"$mirror"} >"$file.log" 2>&1 ||
    { tail -20 "$file.log" >&2; exit 1; }

for setting in /etc/apt/apt.conf.d/*; do
    if grep -q '^ *Acquire::' "$setting"; then cp "$setting" "$root/etc/apt/apt.conf.d/"; fi
done
mkdir -p "$root/usr/local/share/ca-certificates"
find /usr/local/share/ca-certificates -name '*.crt' -exec cp {} "$root/usr/local/share/ca-certificates/" \;
chroot "$root" update-ca-certificates >/dev/null

# As the public Python image: `python` and a pip that installs.
if [ -e "$root/usr/bin/python3" ]; then
    ln -s /usr/bin/python3 "$root/usr/local/bin/python"
    rm -f "$root"/usr/lib/python3.*/EXTERNALLY-MANAGED
fi
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/doc/* "$root"/usr/share/man/* \
    "$root"/usr/share/locale/* "$root"/var/log/*
tar -C "$root" --numeric-owner -cf "$file.part" .
mv "$file.part" "$file"
