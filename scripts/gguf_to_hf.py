#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""gguf_to_hf.py GGUF DIR: a Llama GGUF as a folder of bf16 safetensors with its tokenizer, as vLLM and
weft both read it. Needs torch, transformers, gguf (scripts/interop_env.sh)."""

import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_plain(folder: str, name: str) -> torch.nn.Module:
    """The dequantized weights in a model that does not call itself quantized, or it could not be saved."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    plain = type(loaded)(type(loaded.config)(**config))
    missing, unexpected = plain.load_state_dict(loaded.state_dict(), strict=False)
    plain.tie_weights()
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    return plain.to(torch.bfloat16)


def split_digits(path: str) -> None:
    """SmolLM2 splits every digit off first, which transformers does not learn from the GGUF."""
    with open(path, encoding="utf-8") as file:
        tokenizer = json.load(file)
    if tokenizer["pre_tokenizer"]["type"] == "ByteLevel":
        digits = {"type": "Digits", "individual_digits": True}
        tokenizer["pre_tokenizer"] = {
            "type": "Sequence", "pretokenizers": [digits, tokenizer["pre_tokenizer"]]
        }
    with open(path, "w", encoding="utf-8") as file:
        json.dump(tokenizer, file, ensure_ascii=False, indent=1)


def main() -> None:
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    out = sys.argv[2]
    AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
    split_digits(os.path.join(out, "tokenizer.json"))
    load_plain(folder, name).save_pretrained(out)  # last: its file says that the folder is whole


if __name__ == "__main__":
    main()
