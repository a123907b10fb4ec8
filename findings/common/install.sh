# Sourced by the scripts above this folder. Gives each a folder and a virtual environment of its own,
# both gone when it ends, so that no finding depends on what else is installed.
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$here" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME="$room"
unset OPENAI_API_KEY OPENAI_BASE_URL ANTHROPIC_API_KEY GEMINI_API_KEY GOOGLE_API_KEY

# Make the environment with the packages named, and say what there is; pip's own words only if it fails.
install() {
    python3 -m venv "$room/venv"
    if ! "$room/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check "$@" \
        > "$room/pip.log" 2>&1; then
        cat "$room/pip.log" >&2
        exit 1
    fi
    "$room/venv/bin/python" -c 'import sys; print("Python", sys.version.split()[0])'
    printf 'installed:'
    printf ' %s' "$@"
    printf '\n'
}

# Run the Python that stands on standard input, for three minutes at most.
python_with_limit() {
    timeout 180 "$room/venv/bin/python" - "$@"
}
