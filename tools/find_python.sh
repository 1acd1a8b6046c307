#!/bin/sh
# Print the path of a Python 3.12 that really runs, or one line on standard error that says how to get one (exit 1).
# PYTHON=/path/to/python3.12 chooses it by hand.

works() {
    # A pyenv shim is on PATH but fails unless its version is selected: only running it tells.
    "$1" -I -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1
}

if [ -n "${PYTHON:-}" ]; then
    works "$PYTHON" && { echo "$PYTHON"; exit 0; }
    echo "PYTHON=$PYTHON is not a Python 3.12 that runs; unset PYTHON to let one be searched for." >&2
    exit 1
fi

first_without_venv=
for candidate in \
    "$(command -v python3.12 2>/dev/null)" \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12 \
    "${UV_PYTHON_INSTALL_DIR:-${XDG_DATA_HOME:-$HOME/.local/share}/uv/python}"/cpython-3.12*/bin/python3.12 \
    "$(command -v python3 2>/dev/null)" \
    "$(command -v python 2>/dev/null)" \
    /usr/bin/python3.12 /usr/local/bin/python3.12 /opt/*/bin/python3.12 \
    "$HOME"/.asdf/installs/python/3.12*/bin/python3.12 \
    "$HOME"/.local/share/mise/installs/python/3.12*/bin/python3.12 \
    "${CONDA_PREFIX:-/nonexistent}/bin/python" \
    "$HOME"/*conda3/bin/python "$HOME"/*conda3/envs/*/bin/python \
    "$HOME"/*forge*/bin/python "$HOME"/*forge*/envs/*/bin/python; do
    [ -x "$candidate" ] && works "$candidate" || continue
    if "$candidate" -I -c 'import ensurepip, venv' >/dev/null 2>&1; then
        echo "$candidate"
        exit 0
    fi
    first_without_venv=${first_without_venv:-$candidate}
done

if [ -n "$first_without_venv" ]; then
    echo "$first_without_venv cannot make virtual environments; install its venv module:" \
        "sudo apt install python3.12-venv" >&2
else
    echo "No Python 3.12 found. Get one with 'sudo apt install python3.12-venv' (Ubuntu 24.04)," \
        "'pyenv install 3.12' or 'uv python install 3.12', or name yours: PYTHON=/path/to/python3.12 make setup" >&2
fi
exit 1
