#!/bin/sh
# Installs the vendors' models (requirements/vendor.txt, 0.8 GB) into .venv/vendor, once for each change of the
# list. `make test-all` calls it after the set-up.
set -eu
cd "$(dirname "$0")/.."
target=.venv/vendor
stamp=$target/installed
wanted=$(cksum <requirements/vendor.txt)
[ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && exit 0
echo "setup: the vendors' models into $target" >&2
rm -rf "$target"
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m pip install --quiet --no-deps --target "$target" -r requirements/vendor.txt || {
    echo "setup: they could not be installed (see above); is the package index reachable?" >&2
    exit 1
}
echo "$wanted" >"$stamp"
