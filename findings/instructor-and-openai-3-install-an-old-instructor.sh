#!/bin/bash
# Asked for instructor beside a current openai, pip says nothing and installs an instructor years old.
#
# Expected: the newest instructor allows openai 3 by name ("openai<4.0.0,>=2.0.0"), so both install; if not,
# pip reports a conflict.
# What happens: they exclude each other by a third package: instructor wants jiter below 0.15, openai 3.57.0
# wants 0.16 or newer. With versions for both, pip refuses. With a version for openai only, pip walks back
# through instructor's releases until one has no upper bound, and that one is installed without a warning: 1.3.2,
# which has no `Instructor.on()`, so the code that ran with 1.17 fails at its first line.
# Matters to: requirements without upper and lower bounds; an upgrade of one package is a downgrade of another.
# Versions: instructor up to 1.17.0, openai 3.57.0. 2026-11-27.
set -eu
. "$(dirname "$0")/common/install.sh"
python3 -m venv "$room/venv"
pip=("$room/venv/bin/pip" install --disable-pip-version-check --dry-run)
if "${pip[@]}" instructor==1.17.0 openai==3.57.0 > "$room/both.log" 2>&1; then
    echo "both were accepted together: not as it was"
    exit 1
fi
grep -E 'depends on jiter' "$room/both.log"
"${pip[@]}" 'instructor<=1.17.0' openai==3.57.0 > "$room/one.log" 2>&1
chosen=$(grep -oE 'instructor-[0-9.]+[0-9]' "$room/one.log" | tail -1)
echo "without a version for instructor, pip would install: $chosen"
[ "$chosen" = instructor-1.3.2 ]
