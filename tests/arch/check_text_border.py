#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds text/text.h against the Rust behind it, and the check against drifts made on purpose.

text_border (the crate beside this file) writes what the Rust side says as C; the compiler compares it
with text.h. Then every change below is made to a copy of text/ and has to be found.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

# What drifts apart: a file of text/, what stands there once, what takes its place.
DRIFTS = {
    "argument type": ("text.h", "uint32_t max_id", "uint64_t max_id"),
    "argument constness": (
        "text.h", "is_finished(const text_matcher_t", "is_finished(text_matcher_t"),
    "arguments swapped": (
        "src/api/template.rs",
        "bos: *const c_char,\n    eos: *const c_char", "eos: *const c_char,\n    bos: *const c_char"),
    "result type": ("text.h", "uint32_t text_tokenizer_size", "int32_t text_tokenizer_size"),
    "callback": ("text.h", "kind, uint32_t tool_index", "kind, uint64_t tool_index"),
    "function of C only": (
        "text.h", "void text_ids_free(", "void text_ids_clear(text_ids_t ids);\nvoid text_ids_free("),
    "function of Rust only": ("text.h", "void text_ids_free(text_ids_t ids);", ""),
    "function of base": ("src/border.rs", "format: *const c_char, ...", "format: *const c_int, ..."),
    "field type": ("text.h", "int8_t add_eos;", "uint8_t add_eos;"),
    "field order": (
        "src/api/tokenizer.rs",
        "pub bos: i32,\n    pub eos: i32", "pub eos: i32,\n    pub bos: i32"),
    "field in padding": ("text.h", "bool starts_text;", "bool starts_text;\n    bool ends_text;"),
    "field of Rust only": ("src/border.rs", "data: *mut i32,", "data: *mut i32,\n    pub n: usize,"),
    "layout left to Rust": ("src/border.rs", "#[repr(C)]\npub struct Ids", "pub struct Ids"),
    "value moved": ("text.h", "TEXT_GRAMMAR_REGEX,", "TEXT_GRAMMAR_REGEX = 12,"),
    "value of C only": ("text.h", "    TEXT_GRAMMAR_LARK,", "    TEXT_GRAMMAR_EBNF,\n    TEXT_GRAMMAR_LARK,"),
    "last value of C only": ("text.h", "} text_grammar_kind_t", "    TEXT_GRAMMAR_EBNF,\n} text_grammar_kind_t"),
    "status": ("src/error.rs", "TooLarge = -6", "TooLarge = -7"),
}


def find_fault(args, text):
    """What is wrong with text/ at this path, or None."""
    written = subprocess.run([args.border, text], text=True, capture_output=True, check=False)
    if written.returncode != 0:
        return written.stderr.strip()
    compiled = subprocess.run(
        [args.compiler, "-std=c17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror",
         "-I.", f"-I{args.source.absolute()}", "-x", "c", "-"],
        cwd=text.parent, input=written.stdout, text=True, capture_output=True, check=False)
    return compiled.stderr.strip() if compiled.returncode != 0 else None


def find_missed(args, folder):
    """The drifts of which nothing was said."""
    for name, (file, old, new) in DRIFTS.items():
        text = folder / name.replace(" ", "_") / "text"
        shutil.copytree(args.source / "text", text, ignore=shutil.ignore_patterns("target"))
        before = (text / file).read_text(encoding="utf-8")
        if before.count(old) != 1:
            yield f"{name}: text/{file} has no longer one place to change: {old!r}"
            continue
        (text / file).write_text(before.replace(old, new), encoding="utf-8")
        fault = find_fault(args, text)
        if fault is None:
            yield f"{name}: was not found"
        else:
            print(f"{name}: {next((x for x in fault.splitlines() if 'error' in x), fault)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--border", type=pathlib.Path, required=True, help="the built crate")
    parser.add_argument("--compiler", default="cc")
    args = parser.parse_args()
    fault = find_fault(args, args.source / "text")
    if fault is not None:
        sys.exit(f"text/text.h and text/src have drifted apart:\n{fault}")
    with tempfile.TemporaryDirectory() as folder:
        missed = list(find_missed(args, pathlib.Path(folder)))
    if missed:
        sys.exit("\n".join(missed))


if __name__ == "__main__":
    main()
