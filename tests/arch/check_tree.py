#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the tree against ARCHITECTURE.md and the house rules.

Draws the picture of who includes whom from the #include lines and compares it with the fenced block
of ARCHITECTURE.md and the USES of CMakeLists.txt; looks for include cycles, file names that occur
twice, files without their SPDX line, and headers that do not compile alone. Prints one line a fault.
"""

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
ARROW = re.compile(r"^(\S+)\s+─►\s+(.+)$", re.M)
USES = re.compile(r"^weft(?:_cargo)?_folder\((\S+)(?:\s+USES\s+([^)]*?))?(?:\s+LIBRARIES[^)]*)?\)", re.M)
SOURCES = {".c", ".h", ".def", ".inc", ".cu", ".cuh", ".cpp", ".rs"}
SPDX = "SPDX-License-Identifier: Apache-2.0"
# As weft_folder() in cmake/folder.cmake compiles them.
ISA_FLAGS = {
    "_avx2.h": ["-mavx2", "-mfma", "-mf16c"],
    "_avx512.h": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"],
    "_amx.h": ["-mamx-tile", "-mamx-int8"],
}
TEST_DEFINES = [f'-D{name}=""' for name in ("WEFT_TEST_VECTORS", "WEFT_SOURCE_DIR", "WEFT_BINARY_DIR")]
# Written against vector types that the includer chooses.
NOT_ALONE = {"kernels/cpu/simd_math.h"}
# Of CUDA kernels and of their emulator: C++, or with headers of a toolkit in them.
CUDA = re.compile(r"^kernels/cuda/|^tests/cuda_emu/")
# The versions of one op are files of one name, one for each instruction set.
SAME_NAMES = re.compile(r"^kernels/\w+/(\w+/)?\w+\.(c|cu)$|\.def$|\.rs$|^tests/")


class Tree:
    def __init__(self, root):
        self.root = root
        self.picture = self.read_picture()
        self.faults = []
        self.files = {
            path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
            for top in sorted({folder.split("/")[0] for folder in self.picture} | {"tests"})
            for path in sorted((root / top).rglob("*"))
            if path.suffix in SOURCES and "target" not in path.parts
        }

    def read_picture(self):
        text = (self.root / "ARCHITECTURE.md").read_text(encoding="utf-8")
        for block in re.findall(r"```\n(.*?)```", text, re.S):
            rows = ARROW.findall(block)
            if rows:
                return {folder: set(below.replace(",", "").split()) for folder, below in rows}
        sys.exit("ARCHITECTURE.md: no fenced block with lines `folder ─► folders below`")

    def folder_of(self, name):
        fits = [folder for folder in self.picture if name.startswith(folder + "/")]
        return max(fits, key=len, default=None)

    def includes(self, name):
        return INCLUDE.findall(self.files[name])

    def fault(self, text):
        self.faults.append(text)

    def check_edges(self):
        for name in self.files:
            folder = self.folder_of(name)
            for target in self.includes(name):
                if target not in self.files:
                    if not target.startswith("generated/"):
                        self.fault(f'{name}: includes "{target}", which is not there')
                    continue
                below = self.folder_of(target)
                if folder is None or below is None or below == folder:
                    continue
                if below not in self.picture[folder]:
                    self.fault(f"{name}: includes {target}, but {folder} may not use {below}")

    def check_private(self):
        """A _priv.h is for files beside it and below, tests of the same top folder, and what serves many tests."""
        for name in self.files:
            if name.startswith(("tests/fuzz/", "tests/support/")):
                continue
            for target in self.includes(name):
                own = pathlib.PurePosixPath(name).parent.parts
                theirs = pathlib.PurePosixPath(target).parent.parts
                if own[0] == "tests":
                    own, theirs = own[1:2], theirs[:1]
                if target.endswith("_priv.h") and own[: len(theirs)] != theirs:
                    self.fault(f"{name}: includes {target}, which is private to {'/'.join(theirs)}")

    def check_cmake(self):
        text = (self.root / "CMakeLists.txt").read_text(encoding="utf-8")
        built = {folder: set((uses or "").split()) for folder, uses in USES.findall(text)}
        for folder, uses in built.items():
            drawn = {below for below in self.picture.get(folder, ()) if below in self.picture}
            if uses != drawn:
                self.fault(f"CMakeLists.txt: {folder} uses {sorted(uses)}, drawn {sorted(drawn)}")
        for folder in self.picture:
            if folder not in built and folder != "cli":
                self.fault(f"CMakeLists.txt: builds no {folder}, which ARCHITECTURE.md draws")

    def check_cycles(self):
        """Among folders as drawn and among headers as written."""
        self.find_cycle({f: b & self.picture.keys() for f, b in self.picture.items()}, "folders")
        graph = {n: set(self.includes(n)) & self.files.keys() for n in self.files if n.endswith(".h")}
        self.find_cycle(graph, "headers")

    def find_cycle(self, graph, kind):
        done = set()

        def visit(node, way):
            if node in way:
                self.fault(f"cycle of {kind}: " + " → ".join([*way[way.index(node):], node]))
            elif node not in done:
                for below in sorted(graph.get(node, ())):
                    visit(below, [*way, node])
                done.add(node)

        for node in sorted(graph):
            visit(node, [])

    def check_names(self):
        seen = {}
        for name in self.files:
            if not SAME_NAMES.search(name):
                base = name.rsplit("/", 1)[1]
                if base in seen:
                    self.fault(f"{name}: has the name of {seen[base]}")
                seen[base] = name

    def check_spdx(self):
        for name, text in self.files.items():
            if SPDX not in text.split("\n", 1)[0]:
                self.fault(f"{name}: does not begin with its SPDX line")

    def check_headers(self, build):
        """Each one as a file of its own, with the flags of some file of this build."""
        commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
        entry = next(c for c in commands if c["file"].endswith("/base/option.c"))
        words = shlex.split(entry["command"])
        kept = re.compile(r"-(I|D|std=|isystem)")
        flags = [w for i, w in enumerate(words) if kept.match(w) or words[i - 1] == "-isystem"]
        compiler = next(w for w in words if not w.endswith("ccache"))
        for name in self.files:
            if not name.endswith(".h") or name in NOT_ALONE or CUDA.match(name):
                continue
            isa = next((more for end, more in ISA_FLAGS.items() if name.endswith(end)), [])
            done = subprocess.run(
                [compiler, *flags, *isa, *TEST_DEFINES, f"-I{self.root}", "-fsyntax-only", "-Wall",
                 "-Werror", "-Wno-unused-function", "-x", "c", "-"],
                input=f'#include "{name}"\n', text=True, capture_output=True, check=False)
            if done.returncode != 0:
                self.fault(f"{name}: does not compile alone: {first_error(done.stderr)}")


def first_error(text):
    return next((line for line in text.splitlines() if "error" in line), text.strip())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=pathlib.Path, required=True)
    parser.add_argument("--build", type=pathlib.Path, help="for the headers' flags")
    args = parser.parse_args()
    tree = Tree(args.source)
    tree.check_edges()
    tree.check_private()
    tree.check_cmake()
    tree.check_cycles()
    tree.check_names()
    tree.check_spdx()
    if args.build is not None:
        tree.check_headers(args.build)
    print("\n".join(tree.faults) or f"{len(tree.files)} files in order")
    return 1 if tree.faults else 0


if __name__ == "__main__":
    sys.exit(main())
