#!/bin/sh
# Run a program of .venv/bin (`sh tools/run.sh pytest ...`), after setting up what is missing.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
sh "$root/tools/setup.sh"
program=$1
shift
# A sourced ROS or another environment must not leak in: its numpy and its libraries clash with the pinned ones.
unset PYTHONPATH PYTHONHOME LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE || true
graphics=$root/.venv/graphics/usr
if [ -d "$graphics" ]; then # put there by tools/graphics.sh on a machine without libEGL
    libraries=$(echo "$graphics"/lib/*-linux-gnu)
    export LD_LIBRARY_PATH="$libraries" LIBGL_DRIVERS_PATH="$libraries/dri" GBM_BACKENDS_PATH="$libraries/gbm"
    export __EGL_VENDOR_LIBRARY_DIRS="$graphics/share/glvnd/egl_vendor.d"
fi
exec "$root/.venv/bin/$program" "$@"
