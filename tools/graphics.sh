#!/bin/sh
# Software OpenGL (Mesa) for the simulated cameras on a Debian or Ubuntu that lacks it, without root and without
# touching the system: its own packages, unpacked into .venv/graphics. Does nothing where EGL works.
set -eu
cd "$(dirname "$0")/.."
target=.venv/graphics
wanted="libegl1 libegl-mesa0 libgl1-mesa-dri libopengl0"
say() { echo "setup: $*" >&2; }

# Asks for a real context: the library may be there without a driver behind it.
MUJOCO_GL=egl .venv/bin/python -c 'import mujoco; mujoco.GLContext(16, 16).make_current()' >/dev/null 2>&1 && exit 0
[ -e "$target/usr" ] && exit 0
command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || {
    say "no OpenGL without a display: the simulated cameras will not work until libEGL and Mesa are installed"
    exit 0
}
say "no OpenGL without a display here: unpacking the system's packages of it into $target"
say "(system-wide: sudo apt install $wanted)"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/root"
# Lists and archives of our own: the system's may be missing, old, or not ours to write.
apt() {
    apt-get -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives" \
        -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" "$@"
}
if apt update >"$work/log" 2>&1 &&
    apt install --simulate --no-install-recommends $wanted >"$work/plan" 2>>"$work/log" &&
    names=$(awk '$1 == "Inst" { print $2 }' "$work/plan") && [ -n "$names" ] &&
    (cd "$work/archives" && apt download $names) >>"$work/log" 2>&1; then
    for package in "$work"/archives/*.deb; do dpkg-deb -x "$package" "$work/root"; done
    mkdir -p "$target"
    rm -rf "$target/usr"
    [ ! -d "$work/root/lib" ] || cp -a "$work/root/lib/." "$work/root/usr/lib/"
    mv "$work/root/usr" "$target/usr"
else
    tail -n 3 "$work/log" >&2
    say "that did not work; the simulated cameras need: sudo apt install $wanted"
fi
