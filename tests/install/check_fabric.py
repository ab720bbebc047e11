#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds libweft-fabric against what a program that is not weft needs of it.

Installs the component into a folder of its own; looks at what the library exports and what it
needs; compiles examples/fabric_hello.c with what pkg-config says, and nothing else, and runs it; and
compares sizes of structures with docs/fabric.md. Prints what is wrong and exits with 1.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HEADERS = {"transport/xfer/xfer.h", "transport/xfer/xfer_exchange.h", "base/alloc.h", "base/buffer.h", "base/clock.h", "base/compiler.h",
           "base/diag.h", "base/log.h", "base/status.h", "base/status.def"}
# The C library's own, and what a fast checksum or hash may take.
MAY_NEED = re.compile(r"^(libc|libm|libdl|libpthread|ld-linux-x86-64|ld-linux-aarch64)\.so")
FUNCTION = re.compile(r"^[a-z].*?\b\*?(xfer_[a-z_]+)\(", re.M)
SAYS = ["reader: this is block 6", "reader: this is block 2", "reader: this is block 3",
        "reader: 12288 bytes by ", "shelf: reader says: took three"]


def run(*command, **more):
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True, check=False,
                          timeout=120, **more)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def installed(prefix, name):
    found = sorted(prefix.rglob(name))
    if not found:
        sys.exit(f"{name} was not installed")
    return found[0]


def check_headers(prefix):
    include = prefix / "include" / "weft"
    found = {path.relative_to(include).as_posix() for path in include.rglob("*") if path.is_file()}
    if found != HEADERS:
        sys.exit(f"headers: {sorted(found ^ HEADERS)} should not, or should, be there")


def declared(header):
    text = re.sub(r"/\*.*?\*/", "", header.read_text(encoding="utf-8"), flags=re.S)
    text = re.sub(r"typedef struct.*?^\}.*?;", "", text, flags=re.S | re.M)
    return set(FUNCTION.findall(text))


def check_exports(prefix, library):
    exported = {line.split()[-1].split("@")[0] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    functions = set().union(*(declared(header) for header in prefix.rglob("xfer*.h")))
    if len(functions) < 25:
        sys.exit(f"xfer.h: only {len(functions)} functions were understood")
    for name in sorted(functions - exported):
        sys.exit(f"xfer.h declares {name}, which is not exported: transport/weft-fabric.map")
    strange = {name for name in exported - functions if name.startswith("xfer_") or not name.startswith("weft_")}
    if strange:
        sys.exit(f"exported, but in no header: {sorted(strange)}")


def check_needs(library):
    text = run("readelf", "-d", library)
    if not re.search(r"SONAME.*\[libweft-fabric\.so\.\d+\]", text):
        sys.exit("the library has no soname with a version")
    for needed in re.findall(r"NEEDED.*\[(.*)\]", text):
        if not MAY_NEED.match(needed):
            sys.exit(f"the library needs {needed}")


def flags_of(prefix):
    env = {**os.environ, "PKG_CONFIG_PATH": str(installed(prefix, "weft-fabric.pc").parent)}
    return run("pkg-config", "--cflags", "--libs", "weft-fabric", env=env).split()


def check_example(library, flags, source, compiler, folder):
    program = folder / "fabric_hello"
    run(compiler, "-std=c17", "-Wall", "-Wextra", "-Werror", source, "-o", program, *flags)
    says = run(program, env={**os.environ, "LD_LIBRARY_PATH": str(library.parent)})
    for line in SAYS:
        if line not in says:
            sys.exit(f"fabric_hello did not say \"{line}\", but:\n{says}")


def check_sizes(flags, manual, compiler, folder):
    rows = re.findall(r"^\| `(\w+_t)` \| (\d+) \|$", manual.read_text(encoding="utf-8"), re.M)
    if len(rows) < 5:
        sys.exit(f"{manual}: the table of structures was not found")
    asserts = "".join(f'_Static_assert(sizeof({name}) == {size}, "{name}");\n' for name, size in rows)
    source = folder / "sizes.c"
    source.write_text(f"#include <weft/transport/xfer/xfer.h>\n{asserts}", encoding="utf-8")
    run(compiler, "-std=c17", "-fsyntax-only", source, *flags)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--cmake", required=True)
    parser.add_argument("--compiler", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        prefix = folder / "prefix"
        run(args.cmake, "--install", args.build, "--component", "fabric", "--prefix", prefix)
        library = installed(prefix, "libweft-fabric.so")
        check_headers(prefix)
        check_exports(prefix, library)
        check_needs(library)
        flags = flags_of(prefix)
        check_example(library, flags, args.source / "examples/fabric_hello.c", args.compiler, folder)
        check_sizes(flags, args.source / "docs/fabric.md", args.compiler, folder)


if __name__ == "__main__":
    main()
