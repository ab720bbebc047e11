/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/compiler.h"
#include "runtime/model/model_config.h"
#include "runtime/model/model_config_priv.h"
#include "tests/support/gguf_writer.h"

/* A sound llama, then `more` members ("" or ", \"key\": value"). */
static weft_status_t read_config(const char *architecture, const char *more, weft_diag_t *diag,
                                 model_config_t *config)
{
    char json[4096];
    snprintf(json, sizeof(json),
             "{\"architectures\": [\"%s\"], \"num_hidden_layers\": 2, \"hidden_size\": 64,"
             " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 128,"
             " \"vocab_size\": 320, \"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-5%s}",
             architecture, more);
    memset(diag, 0, sizeof(*diag));
    return model_config_from_json(json, strlen(json), NULL, 0, diag, config);
}

static model_config_t good(const char *architecture, const char *more)
{
    weft_diag_t diag;
    model_config_t config;
    if (read_config(architecture, more, &diag, &config) != WEFT_OK) {
        fail_msg("%s%s: %s", architecture, more, diag.text);
    }
    return config;
}

static void assert_refused(const char *architecture, const char *more, weft_status_t expected,
                           const char *reason)
{
    weft_diag_t diag;
    model_config_t config;
    const weft_status_t status = read_config(architecture, more, &diag, &config);
    if (status != expected || strstr(diag.text, reason) == NULL ||
        strncmp(diag.text, "config.json: ", 13) != 0) {
        fail_msg("%s: status %d, \"%s\" does not say \"%s\"", more, status, diag.text, reason);
    }
}

static void what_is_absent_has_the_library_defaults(void **state)
{
    (void)state;
    const model_config_t config = good("LlamaForCausalLM", "");
    assert_string_equal(config.family, "llama");
    assert_int_equal(config.head_dim, 16);
    assert_int_equal(config.rope.kind, MODEL_ROPE_PLAIN);
    assert_true(config.rope.theta == 10000);
    assert_int_equal(config.rope.dim, 16);
    assert_false(config.rope.interleaved);
    assert_false(config.is_embedding_tied);
    assert_int_equal(config.bos, -1);
    assert_int_equal(config.n_eos, 0);
    assert_true(isnan(config.default_temperature));
    assert_int_equal(config.default_top_k, -1);
}

static void unknown_architectures_are_named_with_the_known_ones(void **state)
{
    (void)state;
    assert_refused("GPT2LMHeadModel", "", WEFT_ERR_UNSUPPORTED,
                   "architecture \"GPT2LMHeadModel\" is not supported (known: LlamaForCausalLM, "
                   "Qwen2ForCausalLM, Qwen3ForCausalLM, ");
}

static void model_type_serves_when_architectures_is_absent(void **state)
{
    (void)state;
    static const char json[] =
        "{\"model_type\": \"qwen3\", \"num_hidden_layers\": 2, \"hidden_size\": 64,"
        " \"num_attention_heads\": 4, \"intermediate_size\": 128, \"vocab_size\": 320,"
        " \"max_position_embeddings\": 256, \"head_dim\": 32}";
    weft_diag_t diag = {0};
    model_config_t config;
    assert_int_equal(model_config_from_json(json, strlen(json), NULL, 0, &diag, &config), WEFT_OK);
    assert_string_equal(config.architecture, "Qwen3ForCausalLM");
    assert_int_equal(config.kv_heads, 4);
    assert_int_equal(config.qk_norm, MODEL_QK_NORM_HEAD);
    assert_true(config.norm_eps == 1e-6f);
}

static void rotations_are_read_old_and_new_style(void **state)
{
    (void)state;
    model_config_t config = good(
        "LlamaForCausalLM", ", \"rope_theta\": 1, \"rope_parameters\": {\"rope_theta\": 500000,"
                            " \"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1,"
                            " \"high_freq_factor\": 4,"
                            " \"original_max_position_embeddings\": 64}");
    assert_int_equal(config.rope.kind, MODEL_ROPE_LLAMA3);
    assert_true(config.rope.theta == 500000);
    assert_int_equal(config.rope.original_context, 64);

    config = good("Qwen2ForCausalLM", ", \"rope_parameters\": {\"rope_theta\": 1e6}");
    assert_int_equal(config.rope.kind, MODEL_ROPE_PLAIN);
    assert_true(config.rope.theta == 1e6f);

    config = good("Qwen2ForCausalLM", ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4,"
                                      " \"original_max_position_embeddings\": 256}");
    assert_int_equal(config.rope.kind, MODEL_ROPE_YARN);
    assert_int_equal(config.max_context, 1024);
    assert_float_equal(config.rope.mscale, 1.1386294, 1e-6);

    config =
        good("LlamaForCausalLM", ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4,"
                                 " \"mscale\": 0.5, \"mscale_all_dim\": 1, \"beta_fast\": 16}");
    assert_float_equal(config.rope.mscale, 1.0693147 / 1.1386294, 1e-6);
    assert_true(config.rope.beta_fast == 16);

    config = good("LlamaForCausalLM", ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}");
    assert_int_equal(config.max_context, 512);
    config = good("LlamaForCausalLM", ", \"partial_rotary_factor\": 0.5");
    assert_int_equal(config.rope.dim, 8);
}

static void rotations_that_we_cannot_turn_are_refused(void **state)
{
    (void)state;
    const char *llama = "LlamaForCausalLM";
    assert_refused(llama, ", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}",
                   WEFT_ERR_UNSUPPORTED, "rope_type \"dynamic\" is not supported (known: default,");
    assert_refused(llama, ", \"rope_scaling\": {\"factor\": 2}", WEFT_ERR_MALFORMED,
                   "rope_scaling: rope_type: missing");
    assert_refused(llama, ", \"rope_scaling\": 4", WEFT_ERR_MALFORMED, "is not an object");
    assert_refused(llama, ", \"rope_scaling\": {\"type\": \"linear\"}", WEFT_ERR_MALFORMED,
                   "rope_scaling: factor: missing");
    assert_refused(llama, ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 0}",
                   WEFT_ERR_INVALID, "rope scaling by 0");
    assert_refused(llama, ", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": -1}",
                   WEFT_ERR_INVALID, "rope scaling by -1");
    assert_refused(llama,
                   ", \"rope_scaling\": {\"type\": \"longrope\", \"short_factor\": [1, 2],"
                   " \"long_factor\": [1, 2], \"original_max_position_embeddings\": 64}",
                   WEFT_ERR_MALFORMED, "short_factor: is not one number a pair");
    assert_refused(llama, ", \"rope_theta\": -1", WEFT_ERR_INVALID, "rope theta -1");
    assert_refused(llama, ", \"rope_theta\": 1e300", WEFT_ERR_INVALID, "rope theta inf");
    assert_refused(llama, ", \"partial_rotary_factor\": 2", WEFT_ERR_INVALID,
                   "partial_rotary_factor");
    assert_refused(llama,
                   ", \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"},"
                   " \"sliding_attention\": {\"rope_theta\": -1}}",
                   WEFT_ERR_INVALID, "rope theta -1");
}

static void variants_that_the_graphs_lack_are_refused(void **state)
{
    (void)state;
    const char *llama = "LlamaForCausalLM";
    assert_refused(llama, ", \"hidden_act\": \"gelu\"", WEFT_ERR_UNSUPPORTED, "only silu");
    assert_refused(llama, ", \"attention_bias\": true", WEFT_ERR_UNSUPPORTED, "attention_bias");
    assert_refused(llama, ", \"mlp_bias\": true", WEFT_ERR_UNSUPPORTED, "mlp_bias");
    assert_refused(llama, ", \"quantization_config\": {\"quant_method\": \"hqq\"}",
                   WEFT_ERR_UNSUPPORTED, "method \"hqq\" is not supported");
    assert_refused(llama, ", \"quantization_config\": {\"quant_method\": \"gptq\", \"bits\": 8}",
                   WEFT_ERR_UNSUPPORTED, "quantization_config: bits: only 4");
    assert_refused(llama,
                   ", \"quantization_config\": {\"quant_method\": \"awq\", \"group_size\": 24}",
                   WEFT_ERR_INVALID, "group_size");
    assert_refused("Qwen3ForCausalLM", ", \"attention_bias\": true", WEFT_ERR_UNSUPPORTED,
                   "attention_bias");
}

static void a_window_counts_only_where_its_family_says_so(void **state)
{
    (void)state;
    const char *window = ", \"sliding_window\": 16";
    assert_int_equal(good("LlamaForCausalLM", window).window, 0);
    assert_int_equal(good("MistralForCausalLM", window).window, 16);
    assert_int_equal(good("MistralForCausalLM", ", \"sliding_window\": null").window, 0);
    assert_int_equal(good("Qwen2ForCausalLM", window).window, 0);
    assert_int_equal(good("Qwen2ForCausalLM", ", \"sliding_window\": 16, \"max_window_layers\": 0,"
                                              " \"use_sliding_window\": true")
                         .window,
                     16);
    assert_int_equal(good("Qwen2ForCausalLM", ", \"sliding_window\": 16, \"max_window_layers\": 2,"
                                              " \"use_sliding_window\": true")
                         .window,
                     0);
    const char *from_1 = ", \"sliding_window\": 16, \"max_window_layers\": 1,"
                         " \"use_sliding_window\": true";
    const char *only_1 = ", \"sliding_window\": 16,"
                         " \"layer_types\": [\"full_attention\", \"sliding_attention\"]";
    const model_config_t mixed[] = {good("Qwen2ForCausalLM", from_1),
                                    good("MistralForCausalLM", only_1)};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(mixed); i++) {
        assert_int_equal(model_layer_window(&mixed[i], 0), 0);
        assert_int_equal(model_layer_window(&mixed[i], 1), 16);
        assert_int_equal(model_kv_window(&mixed[i]), 0);
    }
    const model_config_t all = good("MistralForCausalLM", window);
    assert_int_equal(model_kv_window(&all), 16);
    assert_int_equal(good("MistralForCausalLM",
                          ", \"sliding_window\": 16,"
                          " \"layer_types\": [\"full_attention\", \"full_attention\"]")
                         .window,
                     0);
}

static void families_set_what_their_files_do_not_say(void **state)
{
    (void)state;
    const model_config_t gemma = good("Gemma2ForCausalLM", ", \"sliding_window\": 16,"
                                                           " \"query_pre_attn_scalar\": 16");
    assert_true(gemma.embedding_scale == 8 && gemma.attention_scale == 0.25f);
    assert_true(gemma.has_post_norms && gemma.norm_offset == 1 && gemma.is_embedding_tied);
    assert_int_equal(model_layer_window(&gemma, 0), 16);
    assert_int_equal(model_layer_window(&gemma, 1), 0);
    assert_refused("Gemma2ForCausalLM", ", \"hidden_activation\": \"silu\"", WEFT_ERR_UNSUPPORTED,
                   "only gelu_pytorch_tanh");
    const char *experts = ", \"num_local_experts\": 4, \"num_experts_per_tok\": 2";
    const model_config_t mixtral = good("MixtralForCausalLM", experts);
    assert_int_equal(mixtral.experts.count, 4);
    assert_int_equal(mixtral.experts.intermediate, 128);
    assert_true(model_layer_has_experts(&mixtral, 1));
    const model_config_t qwen =
        good("Qwen3MoeForCausalLM", ", \"num_experts\": 4, \"num_experts_per_tok\": 2,"
                                    " \"moe_intermediate_size\": 32, \"mlp_only_layers\": [1]");
    assert_true(model_layer_has_experts(&qwen, 0) && !model_layer_has_experts(&qwen, 1));
    assert_refused("MixtralForCausalLM", ", \"num_local_experts\": 4, \"num_experts_per_tok\": 5",
                   WEFT_ERR_INVALID, "5 of 4 experts used");
    assert_refused("GraniteForCausalLM", ", \"residual_multiplier\": 0", WEFT_ERR_INVALID,
                   "scales of embedding, attention, branches, logits");
}

static void numbers_that_a_graph_cannot_use_are_refused(void **state)
{
    (void)state;
    static const char latent[] =
        ", \"kv_lora_rank\": %u, \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 16,"
        " \"v_head_dim\": 16, \"n_routed_experts\": 8, \"num_experts_per_tok\": 2";
    char more[512];
    snprintf(more, sizeof(more), latent, 32);
    assert_int_equal(good("DeepseekV2ForCausalLM", more).head_dim, 24);
    snprintf(more, sizeof(more), latent, 0);
    assert_refused("DeepseekV2ForCausalLM", more, WEFT_ERR_INVALID,
                   "kv_lora_rank: must be above 0");
    snprintf(more, sizeof(more), latent, 33);
    assert_refused("DeepseekV2ForCausalLM", more, WEFT_ERR_INVALID, "do not fit together");
    assert_refused("GptOssForCausalLM",
                   ", \"num_local_experts\": 4, \"num_experts_per_tok\": 2, \"swiglu_limit\": -1",
                   WEFT_ERR_INVALID, "activation limit -1");
    assert_refused("Gemma3ForCausalLM",
                   ", \"rope_parameters\": {\"full_attention\": {\"rope_type\": \"default\"},"
                   " \"sliding_attention\": {\"rope_type\": \"default\","
                   " \"partial_rotary_factor\": 0.45}}",
                   WEFT_ERR_INVALID, "7 rotated elements");
}

static void the_context_of_gemma_3_is_scaled_already(void **state)
{
    (void)state;
    const char *linear = ", \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 8}";
    assert_int_equal(good("LlamaForCausalLM", linear).max_context, 8 * 256);
    const model_config_t gemma = good("Gemma3ForCausalLM", linear);
    assert_int_equal(gemma.max_context, 256);
    assert_true(gemma.rope.factor == 8 && gemma.local_rope.factor == 1);
}

static void extents_out_of_bounds_are_refused_with_their_numbers(void **state)
{
    (void)state;
    const char *llama = "LlamaForCausalLM";
    /* Of two members of one name the last counts, as in Python. */
    assert_refused(llama, ", \"num_hidden_layers\": 5000", WEFT_ERR_INVALID,
                   "number of layers is 5000, must be 1 to 1024");
    assert_refused(llama, ", \"hidden_size\": 64.5", WEFT_ERR_MALFORMED,
                   "hidden_size: is not an integer");
    assert_refused(llama, ", \"vocab_size\": 0", WEFT_ERR_INVALID, "vocabulary is 0");
    assert_refused(llama, ", \"head_dim\": 15", WEFT_ERR_INVALID, "head size 15 is odd");
    assert_refused(llama, ", \"num_key_value_heads\": 3", WEFT_ERR_INVALID,
                   "4 heads do not divide over 3 key/value heads");
    assert_refused(llama, ", \"rms_norm_eps\": 0", WEFT_ERR_INVALID, "norm epsilon 0");
    assert_refused(llama, ", \"bos_token_id\": 320", WEFT_ERR_INVALID, "bos token 320");
    assert_refused(llama, ", \"eos_token_id\": [1, 2, 3, 4, 5, 6, 7, 8, 9]", WEFT_ERR_TOO_LARGE,
                   "eos_token_id: more than 8 ids");
    assert_refused(llama, ", \"eos_token_id\": \"</s>\"", WEFT_ERR_MALFORMED,
                   "eos_token_id: is not an integer");
}

/* ---- GGUF metadata ------------------------------------------------------------------------- */

/* A sound model but for `more` keys, which the caller appends. */
static weft_buffer_t begin_gguf(const char *architecture, uint64_t more)
{
    char key[128];
    weft_buffer_t file = {0};
    static const struct {
        const char *field;
        uint32_t value;
    } fields[] = {
        {"block_count", 2},      {"embedding_length", 64},    {"feed_forward_length", 128},
        {"context_length", 256}, {"attention.head_count", 4}, {"attention.head_count_kv", 2},
    };
    gguf_write_header(&file, 3, 0, WEFT_ARRAY_LEN(fields) + 2 + more);
    gguf_write_key_string(&file, "general.architecture", architecture);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(fields); i++) {
        snprintf(key, sizeof(key), "%s.%s", architecture, fields[i].field);
        gguf_write_key_u32(&file, key, fields[i].value);
    }
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", architecture);
    gguf_write_key_f32(&file, key, 1e-5f);
    return file;
}

static weft_status_t read_gguf(weft_buffer_t *file, weft_diag_t *diag, model_config_t *config)
{
    gguf_t *gguf = NULL;
    memset(diag, 0, sizeof(*diag));
    assert_int_equal(gguf_parse(file->data, file->length, file->length, "x.gguf", diag, &gguf),
                     WEFT_OK);
    const weft_status_t status = model_config_from_gguf(gguf, "x.gguf", diag, config);
    gguf_destroy(gguf);
    weft_buffer_free(file);
    return status;
}

static void gguf_scaling_is_read(void **state)
{
    (void)state;
    weft_diag_t diag;
    model_config_t config;
    weft_buffer_t file = begin_gguf("llama", 3);
    gguf_write_key_string(&file, "llama.rope.scaling.type", "yarn");
    gguf_write_key_f32(&file, "llama.rope.scaling.factor", 4);
    gguf_write_key_u32(&file, "llama.rope.scaling.original_context_length", 64);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_OK);
    assert_int_equal(config.rope.kind, MODEL_ROPE_YARN);
    assert_int_equal(config.rope.original_context, 64);
    assert_float_equal(config.rope.mscale, 1.1386294, 1e-6);
    assert_true(config.rope.interleaved);

    file = begin_gguf("qwen2", 2);
    gguf_write_key_string(&file, "qwen2.rope.scaling.type", "linear");
    gguf_write_key_f32(&file, "qwen2.rope.scaling.factor", 2);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_OK);
    assert_int_equal(config.rope.kind, MODEL_ROPE_LINEAR);
    assert_false(config.rope.interleaved);

    file = begin_gguf("llama", 1);
    gguf_write_key_f32(&file, "llama.rope.scale_linear", 4);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_OK);
    assert_int_equal(config.rope.kind, MODEL_ROPE_LINEAR);
    assert_true(config.rope.factor == 4);

    file = begin_gguf("llama", 1);
    gguf_write_key_string(&file, "llama.rope.scaling.type", "dynamic");
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "key llama.rope.scaling.type: only none, linear, yarn"));
}

static void a_gemma_2_of_old_has_the_window_that_its_file_leaves_out(void **state)
{
    (void)state;
    weft_diag_t diag;
    model_config_t config;
    weft_buffer_t file = begin_gguf("gemma2", 0);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_OK);
    assert_int_equal(model_layer_window(&config, 0), 4096);
    assert_int_equal(model_layer_window(&config, 1), 0);
}

static void gguf_variants_and_strangers_are_refused(void **state)
{
    (void)state;
    weft_diag_t diag;
    model_config_t config;
    weft_buffer_t file = begin_gguf("gpt2", 0);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "x.gguf: architecture \"gpt2\" is not supported (known: "
                                      "llama, qwen2, qwen3, "));
    file = begin_gguf("llama", 1);
    gguf_write_key_u32(&file, "llama.expert_count", 8);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_ERR_MALFORMED);
    file = begin_gguf("qwen3", 2);
    gguf_write_key_u32(&file, "qwen3.expert_count", 8);
    gguf_write_key_u32(&file, "qwen3.expert_used_count", 2);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_ERR_UNSUPPORTED);
    file = begin_gguf("llama", 1);
    gguf_write_key_u32(&file, "llama.attention.value_length", 8);
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_ERR_UNSUPPORTED);
    file = begin_gguf("llama", 1);
    gguf_write_key_string(&file, "llama.attention.key_length", "16");
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_ERR_MALFORMED);
    assert_string_equal(diag.text, "x.gguf: key llama.attention.key_length: is not an integer");
}

static void gguf_ends_are_the_named_ids_and_well_known_control_tokens(void **state)
{
    (void)state;
    weft_diag_t diag;
    model_config_t config;
    weft_buffer_t file = begin_gguf("llama", 4);
    gguf_write_key_u32(&file, "tokenizer.ggml.eos_token_id", 1);
    gguf_write_key_u32(&file, "tokenizer.ggml.eot_token_id", 0);
    gguf_write_key_array(&file, "tokenizer.ggml.tokens", GGUF_STRING, 4);
    gguf_write_string(&file, "<|eot_id|>");
    gguf_write_string(&file, "</s>");
    gguf_write_string(&file, "<|im_end|>"); /* written by people: an ordinary token here */
    gguf_write_string(&file, "<|endoftext|>");
    gguf_write_key_array(&file, "tokenizer.ggml.token_type", GGUF_INT32, 4);
    const uint32_t types[] = {3, 3, 1, 3};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(types); i++) {
        gguf_write_uint(&file, types[i], 4);
    }
    assert_int_equal(read_gguf(&file, &diag, &config), WEFT_OK);
    assert_int_equal(config.n_eos, 3);
    assert_int_equal(config.eos[0], 1);
    assert_int_equal(config.eos[1], 0);
    assert_int_equal(config.eos[2], 3);
}

/* The token that ends a turn of Phi ends a thought of GPT-OSS. */
static void an_end_of_one_family_is_none_of_another(void **state)
{
    (void)state;
    static const char *const architectures[] = {"phi3", "gpt-oss"};
    for (uint32_t i = 0; i < 2; i++) {
        weft_diag_t diag;
        model_config_t config;
        char key[64];
        weft_buffer_t file = begin_gguf(architectures[i], i == 0 ? 2 : 4);
        gguf_write_key_array(&file, "tokenizer.ggml.tokens", GGUF_STRING, 1);
        gguf_write_string(&file, "<|end|>");
        gguf_write_key_array(&file, "tokenizer.ggml.token_type", GGUF_INT32, 1);
        gguf_write_uint(&file, 3, 4);
        if (i == 1) {
            snprintf(key, sizeof(key), "%s.expert_count", architectures[i]);
            gguf_write_key_u32(&file, key, 4);
            snprintf(key, sizeof(key), "%s.expert_used_count", architectures[i]);
            gguf_write_key_u32(&file, key, 2);
        }
        assert_int_equal(read_gguf(&file, &diag, &config), WEFT_OK);
        assert_int_equal(config.n_eos, i == 0 ? 1 : 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_absent_has_the_library_defaults),
        cmocka_unit_test(unknown_architectures_are_named_with_the_known_ones),
        cmocka_unit_test(model_type_serves_when_architectures_is_absent),
        cmocka_unit_test(rotations_are_read_old_and_new_style),
        cmocka_unit_test(rotations_that_we_cannot_turn_are_refused),
        cmocka_unit_test(variants_that_the_graphs_lack_are_refused),
        cmocka_unit_test(a_window_counts_only_where_its_family_says_so),
        cmocka_unit_test(families_set_what_their_files_do_not_say),
        cmocka_unit_test(numbers_that_a_graph_cannot_use_are_refused),
        cmocka_unit_test(the_context_of_gemma_3_is_scaled_already),
        cmocka_unit_test(extents_out_of_bounds_are_refused_with_their_numbers),
        cmocka_unit_test(gguf_scaling_is_read),
        cmocka_unit_test(a_gemma_2_of_old_has_the_window_that_its_file_leaves_out),
        cmocka_unit_test(gguf_variants_and_strangers_are_refused),
        cmocka_unit_test(gguf_ends_are_the_named_ids_and_well_known_control_tokens),
        cmocka_unit_test(an_end_of_one_family_is_none_of_another),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
