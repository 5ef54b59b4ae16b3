# shellcheck shell=bash
# Sourced by the other scripts: ROOT, and a virtual environment in ROOT/.venv that fits
# pyproject.toml. When nothing has changed since the last time this costs one checksum.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
BIN="$ROOT/.venv/bin"

say() { printf '%s\n' "$*" >&2; }

# The first interpreter that is new enough.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    say 'Python 3.11 or newer is needed. On Debian 12 and Ubuntu 24.04, as root:'
    say '    apt-get install python3 python3-venv'
    return 1
}

# Debian and Ubuntu keep the module that puts pip into a virtual environment in its own package.
need_ensurepip() {
    local python="$1" package
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        return
    fi
    package="$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $package"
        apt-get update -qq >&2
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$package" >&2
    else
        say "Python's venv module is not complete. As root: apt-get install $package"
        return 1
    fi
}

# A moved or copied folder needs a new environment: the old one's programs name the old path.
make_venv() {
    local stamp="$ROOT/.venv/.stamp" wanted python
    wanted="$ROOT $(cksum <"$ROOT/pyproject.toml")"
    if [ -f "$stamp" ] && [ "$(<"$stamp")" = "$wanted" ]; then
        return
    fi
    if [[ -f "$stamp" && "$(<"$stamp")" != "$ROOT "* ]] ||
        ! "$BIN/python" -m pip -V &>/dev/null; then
        python="$(find_python)" || return
        need_ensurepip "$python" || return
        say 'making a virtual environment in .venv'
        "$python" -m venv --clear "$ROOT/.venv" || return
    fi
    say 'installing what pyproject.toml names'
    "$BIN/python" -m pip install --quiet --disable-pip-version-check -e "$ROOT[dev]" >&2 || return
    printf '%s\n' "$wanted" >"$stamp"
}

make_venv || exit 1
