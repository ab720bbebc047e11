# SPDX-License-Identifier: Apache-2.0
"""Makes GGUF copies of tiny checkpoints, with the names and keys of the gguf package 0.19.0.

    pip install gguf==0.19.0 && python3 make_gguf.py

writes <model>-gguf/model.gguf beside each folder of MODELS, and copies its golden.json: the weights are
the same bf16 numbers. What converters change is changed: rows of q and k of granite and mixtral are
reordered, Gemma's norms have 1 added, experts are stacked.
"""
import json
import pathlib
import re
import shutil
import struct

import gguf
import numpy as np

HERE = pathlib.Path(__file__).parent
ARCH = gguf.MODEL_ARCH
MODELS = {
    "gemma2": ARCH.GEMMA2,
    "gemma3": ARCH.GEMMA3,
    "phi3-longrope": ARCH.PHI3,
    "granite": ARCH.GRANITE,
    "olmo2": ARCH.OLMO2,
    "mixtral": ARCH.LLAMA,
    "gpt-oss-mxfp4": ARCH.GPT_OSS,
    "deepseek-v2": ARCH.DEEPSEEK2,
    "deepseek-v3": ARCH.DEEPSEEK2,
}
BF16 = gguf.GGMLQuantizationType.BF16
MXFP4 = gguf.GGMLQuantizationType.MXFP4


def load(folder):
    """Tensors as float32, U8 ones as they are."""
    data = (folder / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, info in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        raw = np.frombuffer(data[8 + length + begin : 8 + length + end], np.uint8)
        if info["dtype"] == "BF16":
            raw = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif info["dtype"] == "F32":
            raw = raw.view(np.float32)
        tensors[name] = raw.reshape(info["shape"])
    return tensors


def reorder(w, heads):
    """Row (half, j) of each head to 2j + half."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def stack_experts(tensors):
    """The experts' matrices, one tensor a kind."""
    out, stacks = {}, {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if match:
            stacks.setdefault(f"{match[1]}.{match[3]}.weight", {})[int(match[2])] = value
        else:
            out[name] = value
    return out | {name: np.stack([s[e] for e in range(len(s))]) for name, s in stacks.items()}


def split_kv_b(tensors, config):
    """kv_b_proj apart: keys on their side, values; a matrix a head."""
    out = {}
    for name, value in tensors.items():
        if name.endswith("kv_b_proj.weight"):
            plain, v = config["qk_nope_head_dim"], config["v_head_dim"]
            heads = value.reshape(config["num_attention_heads"], plain + v, -1)
            out[name.replace("kv_b", "k_b")] = heads[:, :plain].swapaxes(1, 2)
            out[name.replace("kv_b", "v_b")] = heads[:, plain:]
        elif name.endswith("e_score_correction_bias"):
            out[name.replace("e_score_correction_bias", "e_score_correction.bias")] = value
        else:
            out[name] = value
    return out


def mxfp4(blocks, scales):
    """[..., n, 16] nibbles in order, to GGUF's blocks: elements i and i + 16 share a byte."""
    low, high = blocks & 15, blocks >> 4
    codes = np.stack([low, high], axis=-1).reshape(*blocks.shape[:-1], 32)
    packed = codes[..., :16] | codes[..., 16:] << 4
    whole = np.concatenate([scales[..., None], packed], axis=-1)
    return whole.reshape(*whole.shape[:-2], -1)


def part_gpt_oss(tensors):
    """gate and up, which come in turns, apart; (array, type) where it is MXFP4."""
    out = {}
    for name, value in tensors.items():
        if name.endswith("_scales"):
            continue
        if name.endswith("_blocks"):
            name = name[: -len("_blocks")]
            value = mxfp4(value, tensors[name + "_scales"])
        if "gate_up_proj" in name:
            for i, part in enumerate(("gate_proj", "up_proj")):
                out[name.replace("gate_up_proj", part)] = value[:, i::2]
        else:
            out[name] = value
    return out


def gguf_name(names, name):
    if name.endswith("_bias"):
        return names.get_name(name[: -len("_bias")]) + ".bias"
    if name.endswith("sinks"):
        return names.get_name(name) + ".weight"
    known = names.get_name(name, try_suffixes=(".weight", ".bias"))
    return known if known.endswith((".weight", ".bias")) else known + ".weight"


def add_deepseek(w, config):
    rope, latent = config["qk_rope_head_dim"], config["kv_lora_rank"]
    w.add_head_count_kv(1)
    w.add_key_length(latent + rope)
    w.add_value_length(latent)
    w.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    w.add_value_length_mla(config["v_head_dim"])
    w.add_rope_dimension_count(rope)
    w.add_kv_lora_rank(latent)
    if config["q_lora_rank"]:
        w.add_q_lora_rank(config["q_lora_rank"])
    w.add_leading_dense_block_count(config["first_k_dense_replace"])
    w.add_expert_count(config["n_routed_experts"])
    w.add_expert_used_count(config["num_experts_per_tok"])
    w.add_expert_feed_forward_length(config["moe_intermediate_size"])
    w.add_expert_shared_count(config["n_shared_experts"])
    w.add_expert_weights_scale(config["routed_scaling_factor"])
    w.add_expert_weights_norm(config["norm_topk_prob"])
    is_sigmoid = config["scoring_func"] == "sigmoid"
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if is_sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)
    w.add_expert_group_count(config["n_group"])
    w.add_expert_group_used_count(config["topk_group"])
    w.add_rope_scaling_yarn_log_mul(0.1 * config["rope_scaling"]["mscale_all_dim"])


def add_config(w, model, config, tokenizer):
    w.add_block_count(config["num_hidden_layers"])
    w.add_context_length(config["max_position_embeddings"])
    w.add_embedding_length(config["hidden_size"])
    w.add_feed_forward_length(config["intermediate_size"])
    w.add_head_count(config["num_attention_heads"])
    w.add_layer_norm_rms_eps(config["rms_norm_eps"])
    w.add_rope_freq_base(config["rope_theta"])
    if model.startswith("deepseek"):
        add_deepseek(w, config)
    else:
        w.add_head_count_kv(config["num_key_value_heads"])
        head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
        w.add_key_length(head)
        w.add_value_length(head)
        w.add_rope_dimension_count(head)
    if config.get("sliding_window"):
        w.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        w.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        w.add_final_logit_softcapping(config["final_logit_softcapping"])
    if "query_pre_attn_scalar" in config:
        w.add_attention_scale(config["query_pre_attn_scalar"] ** -0.5)
    if "sliding_window_pattern" in config:
        w.add_sliding_window_pattern(config["sliding_window_pattern"])
    if "num_local_experts" in config:
        w.add_expert_count(config["num_local_experts"])
        w.add_expert_used_count(config["num_experts_per_tok"])
        w.add_expert_feed_forward_length(config["intermediate_size"])
    if model == "granite":
        w.add_attention_scale(config["attention_multiplier"])
        w.add_embedding_scale(config["embedding_multiplier"])
        w.add_residual_scale(config["residual_multiplier"])
        w.add_logit_scale(config["logits_scaling"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(scaling["factor"])
    if "yarn" in (scaling.get("rope_type"), scaling.get("type")):
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(scaling["factor"])
        w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    if scaling.get("type") == "longrope":
        original, longest = config["original_max_position_embeddings"], config["max_position_embeddings"]
        w.add_rope_scaling_orig_ctx_len(original)
        w.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(longest / original) / np.log(original))))
        for kind in ("long", "short"):
            w.add_tensor(f"rope_factors_{kind}.weight", np.array(scaling[f"{kind}_factor"], np.float32))
    vocab = tokenizer["model"]["vocab"]
    added = {t["id"]: t["content"] for t in tokenizer["added_tokens"]}
    tokens = {i: t for t, i in vocab.items()} | added
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list([tokens[i] for i in range(len(tokens))])
    w.add_token_types([3 if i in added else 1 for i in range(len(tokens))])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(False)


def convert(model, arch):
    folder, out = HERE / model, HERE / f"{model}-gguf"
    config = json.loads((folder / "config.json").read_text())
    tensors = load(folder)
    if model == "mixtral" or model.startswith("deepseek"):
        tensors = stack_experts(tensors)
    if model.startswith("deepseek"):
        tensors = split_kv_b(tensors, config)
    if model.startswith("gpt-oss"):
        tensors = part_gpt_oss(tensors)
    out.mkdir(exist_ok=True)
    shutil.copy(folder / "golden.json", out / "golden.json")
    w = gguf.GGUFWriter(out / "model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    add_config(w, model, config, json.loads((folder / "tokenizer.json").read_text()))
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, value in tensors.items():
        if model in ("granite", "mixtral") and name.endswith("q_proj.weight"):
            value = reorder(value, config["num_attention_heads"])
        if model in ("granite", "mixtral") and name.endswith("k_proj.weight"):
            value = reorder(value, config["num_key_value_heads"])
        if model.startswith("gemma") and name.endswith("norm.weight"):
            value = value + np.float32(1)
        known = gguf_name(names, name)
        if value.dtype == np.uint8:
            w.add_tensor(known, value, raw_dtype=MXFP4)
        elif value.ndim == 1 or known.endswith(".bias"):
            w.add_tensor(known, np.ascontiguousarray(value, np.float32))
        else:
            w.add_tensor(known, gguf.quants.quantize(np.ascontiguousarray(value), BF16), raw_dtype=BF16)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


for each, architecture in MODELS.items():
    convert(each, architecture)
