"""
What a step is made of, in instructions: `nox -s account`.

Counted as gates.py does it, on a core that has the names of its functions (PICOSTEP_BUILD_SYMBOLS=1), and
sorted into parts by these names.
"""

from __future__ import annotations

import re
from collections import Counter

from counted import MANY
from gates import FEW, costs, in_new_process

WORKS = ("step, 3 KB", "send_step(), 3 KB")

PARTS = {
    "interpreter: its loop, calls": r"_PyEval|Vectorcall|_Py_CheckFunctionResult|rangeiter",
    "methods: their arguments": r"__pyx_pw_|__Pyx_CyFunction|ParseKeyword|PyErr_",
    "checks of texts": r"set_text|set_bodies",
    "checks of numbers": r"set_tokens|PyLong_AsLongLong",
    "the object: made and freed": r"tp_new|tp_dealloc|Alloc|PyObject_(Malloc|Free)|memset|_Py_NewReference",
    "ids": r"new_id|format_id|chacha",
    "clock": r"clock_gettime|monotonic|vdso",
    "record: times, state": r"f_8picostep_8_records_(finish|begin|start|end)",
    "frame: size, room, header, commit": r"f_8picostep_5_ring_append",
    "copies": r"mem(cpy|move)",
}


def functions(report: str) -> Counter[str]:
    """Sum the instructions of a report of callgrind by function."""
    sums: Counter[str] = Counter()
    for _, name, count in costs(report):
        sums[name.partition("'")[0]] += count
    return sums


def part_of(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "all else")


def main() -> None:
    found: dict[str, Counter[str]] = {}
    for work in WORKS:
        few, many = (functions(in_new_process(work, turns)) for turns in (FEW, MANY))
        sums: Counter[str] = Counter()
        for name in many:
            sums[part_of(name)] += many[name] - few[name]
        found[work] = sums
    print(f"{'instructions a step':36}" + "".join(f"{work:>20}" for work in WORKS))
    for part in (*PARTS, "all else"):
        print(f"{part:36}" + "".join(f"{found[work][part] / (MANY - FEW):>20,.0f}" for work in WORKS))
    print(f"{'together':36}" + "".join(f"{found[work].total() / (MANY - FEW):>20,.0f}" for work in WORKS))


if __name__ == "__main__":
    main()
