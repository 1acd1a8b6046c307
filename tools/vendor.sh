#!/bin/sh
# Installs what only slow tests need, once for each change of its list: the vendors' models (requirements/vendor.txt, 0.8
# GB) into .venv/vendor, and what drives a browser (requirements/browser.txt, 0.2 GB) into .venv/browser. `make test-all`
# calls it after the set-up.
set -eu
cd "$(dirname "$0")/.."
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 PIP_DISABLE_PIP_VERSION_CHECK=1
for name in vendor browser; do
    list=requirements/$name.txt
    target=.venv/$name
    stamp=$target/installed
    wanted=$(cksum <"$list")
    [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ] && continue
    echo "setup: what $list lists into $target" >&2
    rm -rf "$target"
    .venv/bin/python -m pip install --quiet --no-deps --target "$target" -r "$list" || {
        echo "setup: it could not be installed (see above); is the package index reachable?" >&2
        exit 1
    }
    echo "$wanted" >"$stamp"
done
