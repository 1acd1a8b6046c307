#!/bin/sh
# Make .venv/ with the exact pins of requirements/test.txt and clients.txt, and this package, live from the source tree.
# Ends in milliseconds when all of it is current. An interrupted run is noticed by the next one and repaired.
set -eu
cd "$(dirname "$0")/.."
# A sourced ROS or another environment must not leak in: its numpy and its ROS libraries clash with the pinned ones.
unset PYTHONPATH PYTHONHOME LD_LIBRARY_PATH VIRTUAL_ENV CONDA_PREFIX _ROS_WHEELS_BOOTSTRAP_COMPLETE || true

venv=.venv
stamp=$venv/.molmoact2_stamp
unfinished=$venv/.molmoact2_unfinished
package=molmoact2_ros

inputs="requirements/bootstrap.txt requirements/test.txt requirements/clients.txt setup.py setup.cfg tools/setup.sh tools/graphics.sh"
wanted="$(cat $inputs | cksum) $PWD"
current() {
    [ -f "$stamp" ] && [ ! -f "$unfinished" ] && [ -x "$venv/bin/python" ] && [ -x "$venv/bin/molmoact2" ] &&
        [ "$(cat "$stamp")" = "$wanted" ]
}
current && exit 0

say() { echo "setup: $*" >&2; }
fail() { say "$*"; exit 1; }

# Two calls at once: the second waits, then finds the work done.
if command -v flock >/dev/null 2>&1; then
    exec 9<requirements
    flock -n 9 || { say "another set-up is running; waiting for it"; flock 9; }
    current && exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] ||
    fail "the ROS 2 wheels exist for Linux x86_64 only, this is $(uname -sm); use a ROS 2 Jazzy installation there"

trap 'say "interrupted; run it again to finish"; exit 130' INT
trap 'say "ended early; run it again to finish"; exit 143' TERM HUP

reinstall=
if [ -e "$venv" ]; then
    if [ -f "$unfinished" ] && [ "$(cat "$unfinished")" = create ]; then
        say "an earlier set-up did not finish; starting again"
        rm -rf "$venv"
    elif [ ! -x "$venv/bin/python" ] || { [ -f "$stamp" ] && [ "$(cut -d' ' -f3- "$stamp")" != "$PWD" ]; }; then
        [ -f "$stamp" ] || [ -f "$unfinished" ] ||
            fail "$PWD/$venv has no Python and was not made by this script; remove it and run again"
        say "the project has moved or its Python is gone; making $venv again"
        rm -rf "$venv"
    elif ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'; then
        fail "$PWD/$venv is not a Python 3.12 environment; remove it and run again"
    elif [ -f "$unfinished" ]; then
        say "an earlier update did not finish; installing every package again"
        reinstall=--reinstall
    fi
fi

if [ ! -e "$venv" ]; then
    python=$(sh tools/find_python.sh) || exit 1
    say "1/3 environment: $venv from $python (about 6 GB in all)"
    free=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ "$free" -gt 8000000 ] || say "only $((free / 1000000)) GB are free here; the set-up needs about 8"
    mkdir "$venv"
    echo create >"$unfinished"
    "$python" -m venv "$venv" ||
        fail "$python could not make $venv; is its venv module complete (apt: python3.12-venv)?"
else
    say "1/3 environment: $venv is there"
    [ -f "$unfinished" ] || echo update >"$unfinished"
fi

say "2/3 packages: $(wc -l <requirements/test.txt) pinned packages (seconds from a cache, minutes from the network)"
run="$PWD/$venv/bin/python"
# The wheels of ROS start Python anew to set library paths; pip and uv need none of that.
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
[ -x "$venv/bin/uv" ] || "$run" -m pip install --quiet -r requirements/bootstrap.txt ||
    say "uv is not available from the package index; going on with pip, which is slower"
# uv does not read pip's configuration: where that names another index (a company's mirror), uv is told.
index=$("$run" -m pip config get global.index-url 2>/dev/null || true)
index=${PIP_INDEX_URL:-$index}
[ -z "$index" ] || [ -n "${UV_DEFAULT_INDEX:-}" ] || export UV_DEFAULT_INDEX="$index"
with_uv() {
    [ -x "$venv/bin/uv" ] &&
        "$venv/bin/uv" pip install --python "$run" $reinstall "$@" -r requirements/test.txt &&
        "$venv/bin/uv" pip install --python "$run" $reinstall "$@" --no-deps -r requirements/clients.txt
}
# The second try is for networks whose certificate only the system knows.
if ! with_uv && ! with_uv --system-certs; then
    say "uv could not install them; going on with pip, which is slower"
    "$run" -m pip install ${reinstall:+--force-reinstall} --no-deps -r requirements/test.txt -r requirements/clients.txt ||
        fail "the packages could not be installed (see above); is the package index reachable?"
fi

say "3/3 this package, live from $PWD"
# Flat .pth and console scripts; no build isolation, so nothing further is fetched.
"$run" -m pip install --quiet --no-deps --no-build-isolation --editable . ||
    fail "this package could not be installed (see above)"
# An editable install places no data files, so what ROS looks up by package name is linked in.
share=$venv/share/$package
rm -rf "$venv/lib/$package"
mkdir -p "$share" "$venv/lib/$package" "$venv/share/ament_index/resource_index/packages"
ln -sfn "$PWD/resource/$package" "$venv/share/ament_index/resource_index/packages/$package"
ln -sfn "$PWD/package.xml" "$share/package.xml"
for folder in launch config urdf; do ln -sfn "$PWD/$folder" "$share/$folder"; done
# One for each console script of setup.cfg: `ros2 run` looks here.
for name in $(sed -n '/^console_scripts/,/^[^ ]/s/^ *\([a-z0-9_]*\) = .*/\1/p' setup.cfg); do
    ln -sfn "$PWD/scripts/run_console_script" "$venv/lib/$package/$name"
done

sh tools/graphics.sh

unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
AMENT_PREFIX_PATH=$PWD/$venv "$run" -c 'import numpy, rclpy, sensor_msgs.msg, molmoact2_ros' ||
    fail "the environment is complete, but rclpy does not import (see above)"
echo "$wanted" >"$stamp"
rm -f "$unfinished"
say "done"
