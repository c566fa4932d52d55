#!/bin/sh
# Creates the virtual environment FOLDER, or prints which package is missing.
# usage: dev/make-venv.sh FOLDER
set -eu

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "$python is missing: install Python 3.11 or newer with venv (Debian, Ubuntu: apt install python3 python3-venv)." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$("$python" --version) is too old: install Python 3.11 or newer, or name one with make PYTHON=python3.12." >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "$python has no venv: install it (Debian, Ubuntu: apt install python3-venv)." >&2
    exit 1
fi
echo "Making $1 with $("$python" --version)."
rm -rf "$1"
"$python" -m venv "$1"
