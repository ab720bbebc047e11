#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Adds up the JUnit files that the test runners of ./dev test wrote.

usage: count_tests.py FOLDER [STEP...]    STEP: one that failed without leaving results

Prints a line for each file, the failed and skipped tests, and last "N passed, N failed, N skipped".
Exits with 1 when anything failed.
"""
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


def outcome(case):
    """A case's outcome and, in one line, the reason for one that is not "passed"."""
    for tag, result in (("failure", FAILED), ("error", FAILED), ("skipped", SKIPPED)):
        node = case.find(tag)
        if node is not None:
            is_not_run = case.get("status") == "notrun" and result == SKIPPED
            reason = (node.get("message") or node.text or "").strip().split("\n")[0]
            # ctest: a program that is missing was not "skipped"; only exit code 77 is.
            if is_not_run and "SKIP_RETURN_CODE" not in reason:
                result = FAILED
            return result, reason
    return PASSED, ""


def main(folder, broken_steps):
    totals = {PASSED: 0, FAILED: 0, SKIPPED: 0}
    remarks = []
    for path in sorted(Path(folder).glob("*.xml")):
        counts = dict.fromkeys(totals, 0)
        for case in ElementTree.parse(path).iter("testcase"):
            result, reason = outcome(case)
            counts[result] += 1
            if result != PASSED:
                name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
                remarks.append(f"  {result}: {path.stem}: {name}: {reason}"[:200])
        print(f"  {path.stem:16}" + "".join(f"{n:6} {what}" for what, n in counts.items()))
        for what, n in counts.items():
            totals[what] += n
    for step in broken_steps:
        totals[FAILED] += 1
        remarks.append(f"  {FAILED}: {step}: no results; see build/logs")
    for remark in sorted(remarks):
        print(remark)
    print(", ".join(f"{n} {what}" for what, n in totals.items()))
    return 1 if totals[FAILED] > 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
