/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints of packed 4-bit weights, packed here by the rule of those who write them. */
#include <stdio.h>

#include "base/buffer.h"
#include "tests/support/model_rig.h"
#include "tests/support/model_slices.h"
#include "tests/support/random.h"
#include "tests/support/scratch_folder.h"

enum { HIDDEN = 64, FFN = 128, VOCAB = 96, GROUP = 32 };

/* A matrix [rows, columns] of numbers, and what they stand for. */
typedef struct matrix {
    uint32_t rows;
    uint32_t columns;
    uint8_t q[FFN * FFN];
    uint8_t zero[FFN / GROUP][FFN];
    uint16_t scale[FFN / GROUP][FFN];
} matrix_t;

typedef struct checkpoint {
    weft_buffer_t header;
    weft_buffer_t data;
    bool is_awq;
    test_random_t random;
    matrix_t down; /* the last one written: layer 0's */
    bool sorts_groups;
} checkpoint_t;

static void add_tensor(checkpoint_t *c, const char *name, const char *dtype, uint32_t rows,
                       uint32_t columns, const void *data, size_t bytes)
{
    const size_t start = c->data.length;
    weft_buffer_append(&c->data, data, bytes);
    weft_buffer_printf(&c->header, "%s\"%s\": {\"dtype\": \"%s\", \"shape\": [",
                       c->header.length == 0 ? "{" : ", ", name, dtype);
    if (rows > 0) {
        weft_buffer_printf(&c->header, "%u, ", rows);
    }
    weft_buffer_printf(&c->header, "%u], \"data_offsets\": [%zu, %zu]}", columns, start,
                       c->data.length);
}

static void add_plain(checkpoint_t *c, const char *name, uint32_t rows, uint32_t columns)
{
    static uint16_t values[VOCAB * HIDDEN];
    const uint32_t n = (rows > 0 ? rows : 1) * columns;
    for (uint32_t i = 0; i < n; i++) {
        values[i] = k_f32_to_bf16((float)test_random_below(&c->random, 1000) / 1000);
    }
    add_tensor(c, name, "BF16", rows, columns, values, n * sizeof(*values));
}

static void random_matrix(test_random_t *random, uint32_t rows, uint32_t columns, matrix_t *m)
{
    m->rows = rows;
    m->columns = columns;
    for (uint32_t i = 0; i < rows * columns; i++) {
        m->q[i] = (uint8_t)test_random_below(random, 16);
    }
    for (uint32_t g = 0; g < columns / GROUP; g++) {
        for (uint32_t n = 0; n < rows; n++) {
            m->zero[g][n] = (uint8_t)test_random_between(random, 1, 15);
            m->scale[g][n] = k_f32_to_f16((float)test_random_between(random, 1, 100) / 1000);
        }
    }
}

/*
 * Eight numbers a word. AutoAWQ puts number order[i] of eight neighbours at place i; AutoGPTQ
 * number i.
 */
static uint32_t pack_word(const uint8_t numbers[8], bool is_awq)
{
    static const uint32_t order[] = {0, 2, 4, 6, 1, 3, 5, 7};
    uint32_t word = 0;
    for (uint32_t i = 0; i < 8; i++) {
        word |= (uint32_t)numbers[is_awq ? order[i] : i] << (4 * i);
    }
    return word;
}

static void add_words(checkpoint_t *c, const char *name, const matrix_t *m)
{
    static uint32_t words[FFN * FFN / 8];
    uint8_t numbers[8];
    const uint32_t across = c->is_awq ? m->rows / 8 : m->rows;
    const uint32_t down = c->is_awq ? m->columns : m->columns / 8;
    for (uint32_t i = 0; i < down; i++) {
        for (uint32_t j = 0; j < across; j++) {
            for (uint32_t e = 0; e < 8; e++) {
                numbers[e] = c->is_awq ? m->q[(j * 8 + e) * m->columns + i]
                                       : m->q[j * m->columns + i * 8 + e];
            }
            words[i * across + j] = pack_word(numbers, c->is_awq);
        }
    }
    add_tensor(c, name, "I32", down, across, words, (size_t)down * across * 4);
}

static void add_zeros(checkpoint_t *c, const char *name, const matrix_t *m)
{
    uint32_t words[FFN / GROUP * FFN / 8];
    uint8_t numbers[8];
    const uint32_t groups = m->columns / GROUP;
    for (uint32_t g = 0; g < groups; g++) {
        for (uint32_t j = 0; j < m->rows / 8; j++) {
            for (uint32_t e = 0; e < 8; e++) {
                numbers[e] = (uint8_t)(m->zero[g][j * 8 + e] - !c->is_awq); /* GPTQ: less 1 */
            }
            words[g * (m->rows / 8) + j] = pack_word(numbers, c->is_awq);
        }
    }
    add_tensor(c, name, "I32", groups, m->rows / 8, words, (size_t)groups * m->rows / 8 * 4);
}

static void add_packed(checkpoint_t *c, const char *name, uint32_t rows, uint32_t columns)
{
    char full[128];
    uint16_t scales[FFN / GROUP * FFN];
    uint32_t order[FFN];
    matrix_t *m = &c->down;
    const uint32_t groups = columns / GROUP;
    random_matrix(&c->random, rows, columns, m);
    for (uint32_t i = 0; i < groups * rows; i++) {
        scales[i] = m->scale[i / rows][i % rows];
    }
    for (uint32_t k = 0; k < columns; k++) {
        order[k] = c->sorts_groups ? (k + 1) % columns / GROUP : k / GROUP;
    }
    snprintf(full, sizeof(full), "%s.qweight", name);
    add_words(c, full, m);
    snprintf(full, sizeof(full), "%s.qzeros", name);
    add_zeros(c, full, m);
    snprintf(full, sizeof(full), "%s.scales", name);
    add_tensor(c, full, "F16", groups, rows, scales, (size_t)groups * rows * 2);
    if (!c->is_awq) {
        snprintf(full, sizeof(full), "%s.g_idx", name);
        add_tensor(c, full, "I32", 0, columns, order, columns * 4);
    }
}

static void write_file(const char *folder, const char *name, const void *data, size_t length,
                       const void *more, size_t more_length)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, length, file), length);
    assert_int_equal(fwrite(more, 1, more_length, file), more_length);
    assert_int_equal(fclose(file), 0);
}

/* One layer of a llama. */
static void write_checkpoint(checkpoint_t *c, const char *folder)
{
    char config[1024];
    const char *layer = "model.layers.0.";
    static const struct {
        const char *name;
        uint32_t rows;
        uint32_t columns;
    } matrices[] = {
        {"self_attn.q_proj", HIDDEN, HIDDEN},     {"self_attn.k_proj", HIDDEN / 2, HIDDEN},
        {"self_attn.v_proj", HIDDEN / 2, HIDDEN}, {"self_attn.o_proj", HIDDEN, HIDDEN},
        {"mlp.gate_proj", FFN, HIDDEN},           {"mlp.up_proj", FFN, HIDDEN},
        {"mlp.down_proj", HIDDEN, FFN},
    };
    add_plain(c, "model.embed_tokens.weight", VOCAB, HIDDEN);
    add_plain(c, "model.norm.weight", 0, HIDDEN);
    add_plain(c, "model.layers.0.input_layernorm.weight", 0, HIDDEN);
    add_plain(c, "model.layers.0.post_attention_layernorm.weight", 0, HIDDEN);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(matrices); i++) {
        char name[96];
        snprintf(name, sizeof(name), "%s%s", layer, matrices[i].name);
        add_packed(c, name, matrices[i].rows, matrices[i].columns);
    }
    weft_buffer_puts(&c->header, "}");
    snprintf(config, sizeof(config),
             "{\"architectures\": [\"LlamaForCausalLM\"], \"num_hidden_layers\": 1,"
             " \"hidden_size\": %d, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
             " \"intermediate_size\": %d, \"vocab_size\": %d, \"max_position_embeddings\": 64,"
             " \"tie_word_embeddings\": true, \"quantization_config\": {\"quant_method\": \"%s\","
             " \"bits\": 4, \"group_size\": %d}}",
             HIDDEN, FFN, VOCAB, c->is_awq ? "awq" : "gptq", GROUP);
    const uint64_t length = c->header.length;
    weft_buffer_t start = {0};
    weft_buffer_append(&start, &length, sizeof(length));
    weft_buffer_append(&start, c->header.data, c->header.length);
    write_file(folder, "model.safetensors", start.data, start.length, c->data.data, c->data.length);
    write_file(folder, "config.json", config, strlen(config), "", 0);
    weft_buffer_free(&start);
    weft_buffer_free(&c->header);
    weft_buffer_free(&c->data);
}

static void check_down(const model_source_t *source, const matrix_t *m)
{
    static uint8_t rows[HIDDEN * FFN];
    static float values[HIDDEN * FFN];
    weft_diag_t diag = {0};
    model_tensor_t tensor;
    const model_tensor_key_t key = {.id = MODEL_TENSOR_FFN_DOWN};
    model_rig_check(model_source_require(source, key, HIDDEN, FFN, &diag, &tensor), &diag);
    model_tensor_read(&tensor, 0, HIDDEN, rows);
    k_dequantize(tensor.dtype, rows, values, HIDDEN * FFN);
    for (uint32_t n = 0; n < HIDDEN; n++) {
        for (uint32_t k = 0; k < FFN; k++) {
            const int number = m->q[n * FFN + k] - m->zero[k / GROUP][n];
            const float expected = (float)number * k_f16_to_f32(m->scale[k / GROUP][n]);
            assert_true(values[n * FFN + k] == expected);
        }
    }
}

static void check_kind(bool is_awq)
{
    static checkpoint_t c;
    char folder[256];
    weft_diag_t diag = {0};
    c = (checkpoint_t){.is_awq = is_awq, .random = {test_seed(5)}};
    scratch_folder_make(folder, sizeof(folder));
    write_checkpoint(&c, folder);
    model_rig_t rig;
    model_rig_open(&rig, &(model_rig_config_t){.path = folder,
                                               .isa = "auto",
                                               .kv_dtype = K_F16,
                                               .block_tokens = 16,
                                               .n_blocks = 1,
                                               .limits = {1, 1, 16}});
    check_down(rig.source, &c.down);
    slices_t slices = {.source = rig.source, .random = &c.random};
    assert_slices(&slices, MODEL_FILE_HF);
    assert_int_equal(slices.n_of_form[MODEL_FORM_INT4], 7);
    model_rig_close(&rig);

    c.sorts_groups = true;
    write_checkpoint(&c, folder);
    model_source_t *source = NULL;
    const weft_status_t status = model_source_open(folder, &diag, &source);
    if (is_awq) { /* has no order */
        assert_status(status, WEFT_OK);
    } else {
        assert_status(status, WEFT_ERR_UNSUPPORTED);
        assert_non_null(strstr(diag.text, "desc_act"));
    }
    model_source_close(source);
    scratch_folder_remove(folder);
}

static void gptq_and_awq_numbers_are_found_where_their_writers_put_them(void **state)
{
    (void)state;
    check_kind(false);
    check_kind(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gptq_and_awq_numbers_are_found_where_their_writers_put_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
