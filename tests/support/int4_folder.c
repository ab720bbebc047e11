/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/support/int4_folder.h"

#include <stdio.h>
#include <string.h>

#include "kernels/dtypes.h"
#include "tests/support/check.h"

static void add_tensor(int4_checkpoint_t *c, const char *name, const char *dtype, uint32_t rows,
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

static void add_plain(int4_checkpoint_t *c, const char *name, uint32_t rows, uint32_t columns)
{
    static uint16_t values[INT4_VOCAB * INT4_HIDDEN];
    const uint32_t n = (rows > 0 ? rows : 1) * columns;
    for (uint32_t i = 0; i < n; i++) {
        values[i] = k_f32_to_bf16((float)test_random_below(&c->random, 1000) / 1000);
    }
    add_tensor(c, name, "BF16", rows, columns, values, n * sizeof(*values));
}

static void random_matrix(test_random_t *random, uint32_t rows, uint32_t columns, int4_matrix_t *m)
{
    m->rows = rows;
    m->columns = columns;
    for (uint32_t i = 0; i < rows * columns; i++) {
        m->q[i] = (uint8_t)test_random_below(random, 16);
    }
    for (uint32_t g = 0; g < columns / INT4_GROUP; g++) {
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

static void add_words(int4_checkpoint_t *c, const char *name, const int4_matrix_t *m)
{
    static uint32_t words[INT4_FFN * INT4_FFN / 8];
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

static void add_zeros(int4_checkpoint_t *c, const char *name, const int4_matrix_t *m)
{
    uint32_t words[INT4_FFN / INT4_GROUP * INT4_FFN / 8];
    uint8_t numbers[8];
    const uint32_t groups = m->columns / INT4_GROUP;
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

static void add_packed(int4_checkpoint_t *c, const char *name, uint32_t rows, uint32_t columns)
{
    char full[128];
    uint16_t scales[INT4_FFN / INT4_GROUP * INT4_FFN];
    uint32_t order[INT4_FFN];
    int4_matrix_t *m = &c->down;
    const uint32_t groups = columns / INT4_GROUP;
    random_matrix(&c->random, rows, columns, m);
    for (uint32_t i = 0; i < groups * rows; i++) {
        scales[i] = m->scale[i / rows][i % rows];
    }
    for (uint32_t k = 0; k < columns; k++) {
        order[k] = c->sorts_groups ? (k + 1) % columns / INT4_GROUP : k / INT4_GROUP;
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

void int4_folder_write(int4_checkpoint_t *c, const char *folder)
{
    char config[1024];
    const char *layer = "model.layers.0.";
    static const struct {
        const char *name;
        uint32_t rows;
        uint32_t columns;
    } matrices[] = {
        {"self_attn.q_proj", INT4_HIDDEN, INT4_HIDDEN},
        {"self_attn.k_proj", INT4_HIDDEN / 2, INT4_HIDDEN},
        {"self_attn.v_proj", INT4_HIDDEN / 2, INT4_HIDDEN},
        {"self_attn.o_proj", INT4_HIDDEN, INT4_HIDDEN},
        {"mlp.gate_proj", INT4_FFN, INT4_HIDDEN},
        {"mlp.up_proj", INT4_FFN, INT4_HIDDEN},
        {"mlp.down_proj", INT4_HIDDEN, INT4_FFN},
    };
    add_plain(c, "model.embed_tokens.weight", INT4_VOCAB, INT4_HIDDEN);
    add_plain(c, "model.norm.weight", 0, INT4_HIDDEN);
    add_plain(c, "model.layers.0.input_layernorm.weight", 0, INT4_HIDDEN);
    add_plain(c, "model.layers.0.post_attention_layernorm.weight", 0, INT4_HIDDEN);
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
             INT4_HIDDEN, INT4_FFN, INT4_VOCAB, c->is_awq ? "awq" : "gptq", INT4_GROUP);
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
