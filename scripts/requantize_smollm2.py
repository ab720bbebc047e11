#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""requantize_smollm2.py GGUF DIR: the default model as safetensors whose matrices are E4M3 (one scale a
tensor, a tile of 128 x 128) and four bits as AWQ and GPTQ pack them, a folder of DIR each, and as
DIR/mxfp4.gguf: what test_smollm2 measures with WEFT_TEST_QUANTS. Rounded to nearest, nothing calibrated.
Needs scripts/requirements-quants.txt."""

import json
import os
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize

NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 576,
          "intermediate_size": 1536, "max_position_embeddings": 8192, "num_attention_heads": 9,
          "num_hidden_layers": 30, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
          "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": 49152, "bos_token_id": 1,
          "eos_token_id": 2, "attention_bias": False, "mlp_bias": False}
GROUP = 64
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def e4m3_values() -> np.ndarray:
    """Of codes 0 to 126."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))


def to_e4m3(x: np.ndarray) -> np.ndarray:
    values = e4m3_values()
    middles = (values[1:] + values[:-1]) / 2
    return (np.searchsorted(middles, np.abs(x)) | np.where(x < 0, 0x80, 0)).astype(np.uint8)


def fp8(name: str, w: np.ndarray, tile: int) -> dict:
    rows, columns = w.shape
    tile_rows, tile_columns = (tile, tile) if tile > 0 else (rows, columns)
    scales = np.empty((-(-rows // tile_rows), -(-columns // tile_columns)), np.float32)
    codes = np.empty(w.shape, np.uint8)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = np.s_[i * tile_rows:(i + 1) * tile_rows, j * tile_columns:(j + 1) * tile_columns]
            scales[i, j] = np.abs(w[at]).max() / 448
            codes[at] = to_e4m3(w[at] / scales[i, j])
    if tile > 0:
        return {name + ".weight": ("F8_E4M3", codes), name + ".weight_scale_inv": ("F32", scales)}
    return {name + ".weight": ("F8_E4M3", codes), name + ".weight_scale": ("F32", scales.reshape(()))}


def words(numbers: np.ndarray, order: list) -> np.ndarray:
    """Eight numbers of the last axis to a word, order[i] of them at nibble i."""
    eight = numbers.astype(np.uint32).reshape(*numbers.shape[:-1], -1, 8)
    packed = np.zeros(eight.shape[:-1], np.uint32)
    for nibble, number in enumerate(order):
        packed |= eight[..., number] << np.uint32(4 * nibble)
    return packed


def int4(name: str, w: np.ndarray, is_awq: bool) -> dict:
    rows, columns = w.shape
    groups = w.reshape(rows, -1, GROUP)
    low, high = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
    scales = np.maximum((high - low) / 15, 1e-8).astype(np.float16)
    step = scales.astype(np.float32)
    zeros = np.clip(np.round(-low / step), 1, 15)
    q = np.clip(np.round(groups / step[..., None]) + zeros[..., None], 0, 15).reshape(rows, columns)
    plain = list(range(8))
    if is_awq:
        qweight, qzeros = words(q.T, AWQ_ORDER), words(zeros.T, AWQ_ORDER)
    else:
        qweight, qzeros = words(q, plain).T, words(zeros.T - 1, plain)
    return {name + ".qweight": ("I32", qweight), name + ".qzeros": ("I32", qzeros),
            name + ".scales": ("F16", scales.T)}


def save(folder: str, tensors: dict, quantization: dict) -> None:
    os.makedirs(folder, exist_ok=True)
    header, at = {}, 0
    for name, (dtype, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(data.shape), "data_offsets": [at, at + data.nbytes]}
        at += data.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, data in tensors.values():
            file.write(np.ascontiguousarray(data).tobytes())
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(CONFIG | {"quantization_config": quantization}, file, indent=1)


def save_mxfp4(reader: GGUFReader, path: str) -> None:
    """Safetensors have this type for GPT-OSS's experts alone."""
    writer = GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        w = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name.startswith("blk.") and w.ndim == 2:
            writer.add_tensor(tensor.name, quantize(w, GGMLQuantizationType.MXFP4),
                              raw_dtype=GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(tensor.name, w)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def unpermuted(w: np.ndarray, heads: int) -> np.ndarray:
    """GGUF has a rotation's pairs side by side."""
    return w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)


def load(reader: GGUFReader) -> tuple:
    matrices, plain = {}, {}
    for tensor in reader.tensors:
        w = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")
        if part[0] != "blk":
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[part[0]]
            plain[name + ".weight"] = ("F32", w)
            continue
        name = f"model.layers.{part[1]}.{NAMES[part[2]]}"
        if w.ndim == 1:
            plain[name + ".weight"] = ("F32", w)
        else:
            heads = {"attn_q": 9, "attn_k": 3}.get(part[2], 0)
            matrices[name] = unpermuted(w, heads) if heads > 0 else w
    return matrices, plain


def main() -> None:
    reader = GGUFReader(sys.argv[1])
    matrices, plain = load(reader)
    fp8_config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    int4_config = {"bits": 4, "group_size": GROUP}
    forms = {
        "fp8": (lambda name, w: fp8(name, w, 0), fp8_config),
        "fp8-128": (lambda name, w: fp8(name, w, 128), fp8_config | {"weight_block_size": [128, 128]}),
        "awq": (lambda name, w: int4(name, w, True),
                int4_config | {"quant_method": "awq", "version": "gemm", "zero_point": True}),
        "gptq": (lambda name, w: int4(name, w, False),
                 int4_config | {"quant_method": "gptq", "desc_act": False, "sym": False}),
    }
    for folder, (convert, config) in forms.items():
        tensors = dict(plain)
        for name, w in matrices.items():
            tensors |= convert(name, w)
        save(os.path.join(sys.argv[2], folder), tensors, config)
    save_mxfp4(reader, os.path.join(sys.argv[2], "mxfp4.gguf"))


if __name__ == "__main__":
    main()
