/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints whose shapes no model has: computed within the memory they are given, or refused. */
#include <stdio.h>

#include "base/buffer.h"
#include "tests/support/model_rig.h"
#include "tests/support/scratch_folder.h"

enum { HIDDEN = 64, FFN = 8, VOCAB = 96, ROWS = 24, PLAIN = 8, ROTARY = 8, LATENT = 16 };

typedef struct checkpoint {
    weft_buffer_t header;
    weft_buffer_t data;
} checkpoint_t;

static void add(checkpoint_t *c, const char *name, const char *dtype, uint32_t element_bytes,
                uint32_t rows, uint32_t columns)
{
    const size_t start = c->data.length;
    const char zeros[64] = {0};
    for (size_t left = (size_t)rows * columns * element_bytes; left > 0;) {
        const size_t n = left < sizeof(zeros) ? left : sizeof(zeros);
        weft_buffer_append(&c->data, zeros, n);
        left -= n;
    }
    weft_buffer_printf(&c->header, "%s\"%s\": {\"dtype\": \"%s\", \"shape\": [",
                       c->header.length == 0 ? "{" : ", ", name, dtype);
    if (rows != 1) {
        weft_buffer_printf(&c->header, "%u, ", rows);
    }
    weft_buffer_printf(&c->header, "%u], \"data_offsets\": [%zu, %zu]}", columns, start,
                       c->data.length);
}

/* Of layer 0. */
static void add_bf16(checkpoint_t *c, const char *name, uint32_t rows, uint32_t columns)
{
    char full[128];
    snprintf(full, sizeof(full), "model.layers.0.%s.weight", name);
    add(c, full, "BF16", 2, rows, columns);
}

static void add_frame(checkpoint_t *c)
{
    add(c, "model.embed_tokens.weight", "BF16", 2, VOCAB, HIDDEN);
    add(c, "model.norm.weight", "BF16", 2, 1, HIDDEN);
    add_bf16(c, "input_layernorm", 1, HIDDEN);
    add_bf16(c, "post_attention_layernorm", 1, HIDDEN);
}

static void write_file(const char *folder, const char *name, const weft_buffer_t *bytes)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes->data, 1, bytes->length, file), bytes->length);
    assert_int_equal(fclose(file), 0);
}

/* more: members of config.json. The checkpoint is used up. */
static void write_checkpoint(checkpoint_t *c, const char *folder, const char *architecture,
                             const char *more)
{
    weft_buffer_t config = {0};
    weft_buffer_t file = {0};
    weft_buffer_printf(&config,
                       "{\"architectures\": [\"%s\"], \"num_hidden_layers\": 1,"
                       " \"hidden_size\": %d, \"num_attention_heads\": 1, \"vocab_size\": %d,"
                       " \"intermediate_size\": %d, \"max_position_embeddings\": 64,"
                       " \"tie_word_embeddings\": true, %s}",
                       architecture, HIDDEN, VOCAB, FFN, more);
    weft_buffer_puts(&c->header, "}");
    const uint64_t length = c->header.length;
    weft_buffer_append(&file, &length, sizeof(length));
    weft_buffer_append(&file, c->header.data, c->header.length);
    weft_buffer_append(&file, c->data.data, c->data.length);
    write_file(folder, "config.json", &config);
    write_file(folder, "model.safetensors", &file);
    weft_buffer_free(&config);
    weft_buffer_free(&file);
    weft_buffer_free(&c->header);
    weft_buffer_free(&c->data);
}

/* ---- latents --------------------------------------------------------------------------------- */

static void write_deepseek(const char *folder, uint32_t q_latent, uint32_t value)
{
    checkpoint_t c = {0};
    char more[512];
    add_frame(&c);
    add_bf16(&c, "self_attn.q_a_proj", q_latent, HIDDEN);
    add_bf16(&c, "self_attn.q_a_layernorm", 1, q_latent);
    add_bf16(&c, "self_attn.q_b_proj", PLAIN + ROTARY, q_latent);
    add_bf16(&c, "self_attn.kv_a_proj_with_mqa", LATENT + ROTARY, HIDDEN);
    add_bf16(&c, "self_attn.kv_a_layernorm", 1, LATENT);
    add_bf16(&c, "self_attn.kv_b_proj", PLAIN + value, LATENT);
    add_bf16(&c, "self_attn.o_proj", HIDDEN, value);
    add_bf16(&c, "mlp.gate_proj", FFN, HIDDEN);
    add_bf16(&c, "mlp.up_proj", FFN, HIDDEN);
    add_bf16(&c, "mlp.down_proj", HIDDEN, FFN);
    snprintf(more, sizeof(more),
             "\"q_lora_rank\": %u, \"kv_lora_rank\": %d, \"qk_nope_head_dim\": %d,"
             " \"qk_rope_head_dim\": %d, \"v_head_dim\": %u, \"n_routed_experts\": 2,"
             " \"num_experts_per_tok\": 1, \"moe_intermediate_size\": %d,"
             " \"first_k_dense_replace\": 1",
             q_latent, LATENT, PLAIN, ROTARY, value, FFN);
    write_checkpoint(&c, folder, "DeepseekV2ForCausalLM", more);
}

/* Of zeros alone: all logits are 0. */
static void compute(const char *folder, const char *isa)
{
    static float logits[VOCAB];
    static const int32_t ids[ROWS] = {0};
    const uint32_t last = ROWS - 1;
    const uint32_t blocks[] = {1, 0};
    k_kv_view_t kv;
    model_rig_t rig;
    model_rig_open(&rig, &(model_rig_config_t){.path = folder,
                                               .isa = isa,
                                               .kv_dtype = K_F16,
                                               .block_tokens = 16,
                                               .n_blocks = 2,
                                               .limits = {ROWS, 1, 64}});
    model_rig_kv(&rig, K_F16, &kv, 1);
    const k_seq_t seq = {.rows = ROWS, .block_table = blocks};
    const model_batch_t batch = {
        .ids = ids, .rows = ROWS, .seqs = &seq, .n_seqs = 1, .max_tokens = ROWS, .kv = &kv};
    model_forward(rig.model, rig.stream, &batch);
    model_logits(rig.model, rig.stream, &last, 1, logits);
    assert_status(k_stream_sync(rig.stream), WEFT_OK);
    for (uint32_t i = 0; i < VOCAB; i++) {
        assert_true(logits[i] == 0);
    }
    model_rig_close(&rig);
}

static char folder[256];

static void compute_here(const char *isa)
{
    compute(folder, isa);
}

static void latents_and_values_wider_than_all_else_have_room(void **state)
{
    (void)state;
    static const uint32_t shapes[][2] = {{32768, 8}, {8, 32768}};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(shapes); i++) {
        scratch_folder_make(folder, sizeof(folder));
        write_deepseek(folder, shapes[i][0], shapes[i][1]);
        for_each_isa(compute_here);
        scratch_folder_remove(folder);
    }
}

/* ---- E4M3 ------------------------------------------------------------------------------------ */

static void scales_of_no_elements_are_refused(void **state)
{
    (void)state;
    static const char *const matrices[] = {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
    checkpoint_t c = {0};
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    add_frame(&c);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(matrices); i++) {
        char name[128];
        snprintf(name, sizeof(name), "model.layers.0.%s.weight", matrices[i]);
        add(&c, name, "F8_E4M3", 1, HIDDEN, HIDDEN);
        snprintf(name, sizeof(name), "model.layers.0.%s.weight_scale", matrices[i]);
        add(&c, name, "F32", 4, 0, 0);
    }
    scratch_folder_make(folder, sizeof(folder));
    write_checkpoint(&c, folder, "LlamaForCausalLM", "\"rms_norm_eps\": 1e-5");
    assert_status(model_source_open(folder, &diag, &source), WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "its scales are of another shape or type"));
    scratch_folder_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(latents_and_values_wider_than_all_else_have_room),
        cmocka_unit_test(scales_of_no_elements_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
