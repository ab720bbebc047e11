/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/alloc.h"
#include "base/mapped_file.h"
#include "runtime/model/model_source.h"
#include "tests/support/gguf_writer.h"

#define TINY(path) WEFT_TEST_VECTORS "/tiny-models/" path

static model_source_t *open_source(const char *path)
{
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    if (model_source_open(path, &diag, &source) != WEFT_OK) {
        fail_msg("%s", diag.text);
    }
    return source;
}

static void assert_refused(const char *path, const char *reason)
{
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    const weft_status_t status = model_source_open(path, &diag, &source);
    assert_null(source);
    assert_true(status < 0);
    if (strstr(diag.text, reason) == NULL) {
        fail_msg("\"%s\" does not say \"%s\"", diag.text, reason);
    }
}

static const char *const all_models[] = {
    TINY("llama"),           TINY("llama/model.safetensors"), TINY("llama-gguf-f32/model.gguf"),
    TINY("llama-gguf-q8_0"), TINY("llama-rope-linear"),       TINY("llama-rope-llama3"),
    TINY("llama-rope-yarn"), TINY("llama-sharded"),           TINY("mistral"),
    TINY("qwen2"),           TINY("qwen2-gguf-f32"),          TINY("qwen2-gguf-q8_0"),
    TINY("qwen3"),           TINY("qwen3-gguf-f32"),          TINY("qwen3-gguf-q8_0"),
};

static void every_tiny_model_opens_with_the_same_shape(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(all_models); i++) {
        const size_t before = weft_alloc_live_bytes();
        model_source_t *source = open_source(all_models[i]);
        const model_config_t *config = model_source_config(source);
        assert_int_equal(config->layers, 3);
        assert_int_equal(config->hidden, 64);
        assert_int_equal(config->heads, 4);
        assert_int_equal(config->kv_heads, 2);
        assert_int_equal(config->intermediate, 128);
        assert_int_equal(config->vocab, 320);
        assert_int_equal(config->bos, 1);
        assert_int_equal(config->n_eos, 1);
        assert_int_equal(config->eos[0], 2);
        model_source_close(source);
        assert_int_equal(weft_alloc_live_bytes(), before);
    }
}

static void assert_same_matrix(const model_tensor_t *a, const model_tensor_t *b)
{
    assert_int_equal(a->rows, b->rows);
    assert_int_equal(a->columns, b->columns);
    float x[128];
    float y[128];
    size_t a_row;
    size_t b_row;
    assert_true(a->columns <= WEFT_ARRAY_LEN(x));
    assert_int_equal(k_dtype_row_bytes(a->dtype, a->columns, &a_row), WEFT_OK);
    assert_int_equal(k_dtype_row_bytes(b->dtype, b->columns, &b_row), WEFT_OK);
    for (uint64_t row = 0; row < a->rows; row++) {
        k_dequantize(a->dtype, (const char *)a->data + row * a_row, x, a->columns);
        k_dequantize(b->dtype, (const char *)b->data + row * b_row, y, b->columns);
        assert_memory_equal(x, y, a->columns * sizeof(float));
    }
}

/* Every tensor of a has its like in b. */
static void assert_same_weights(const char *a_path, const char *b_path)
{
    model_source_t *a = open_source(a_path);
    model_source_t *b = open_source(b_path);
    size_t compared = 0;
    for (int id = 0; id < MODEL_TENSOR_ROUTER; id++) {
        for (uint32_t layer = 0; layer < 3; layer++) {
            model_tensor_t x;
            model_tensor_t y;
            const model_tensor_key_t key = {(model_tensor_id_t)id, layer, 0};
            if (model_source_find(a, key, NULL, &x) == WEFT_OK &&
                model_source_find(b, key, NULL, &y) == WEFT_OK) {
                assert_same_matrix(&x, &y);
                compared++;
            }
        }
    }
    assert_true(compared >= model_source_tensor_count(a));
    model_source_close(b);
    model_source_close(a);
}

static void shards_and_formats_hold_the_same_weights(void **state)
{
    (void)state;
    assert_same_weights(TINY("llama"), TINY("llama-sharded"));
    assert_same_weights(TINY("llama"), TINY("llama/model.safetensors"));
    assert_same_weights(TINY("qwen2"), TINY("qwen2-gguf-f32"));
    assert_same_weights(TINY("qwen3"), TINY("qwen3-gguf-f32"));
}

static void the_configuration_says_what_the_graphs_must_know(void **state)
{
    (void)state;
    model_source_t *source = open_source(TINY("llama-gguf-f32"));
    const model_config_t *config = model_source_config(source);
    assert_string_equal(config->family, "llama");
    assert_string_equal(config->architecture, "llama");
    assert_string_equal(model_source_format(source), "gguf");
    assert_true(config->rope.interleaved);
    assert_true(config->norm_eps == 1e-5f);
    assert_int_equal(config->rope.dim, 16);
    model_source_close(source);

    source = open_source(TINY("qwen2"));
    config = model_source_config(source);
    assert_int_equal(config->window, 0); /* there, but use_sliding_window is false */
    assert_true(config->has_qkv_bias);
    assert_false(config->rope.interleaved);
    assert_true(config->rope.theta == 1e6f);
    assert_false(config->is_embedding_tied);
    model_source_close(source);

    source = open_source(TINY("qwen3-gguf-f32"));
    config = model_source_config(source);
    assert_int_equal(config->qk_norm, MODEL_QK_NORM_HEAD);
    assert_int_equal(config->head_dim, 32);
    assert_true(config->is_embedding_tied);
    model_source_close(source);

    source = open_source(TINY("mistral"));
    assert_int_equal(model_source_config(source)->window, 16);
    assert_string_equal(model_source_config(source)->name, "mistral");
    model_source_close(source);
}

static void scaled_rotations_are_read_with_all_their_numbers(void **state)
{
    (void)state;
    model_source_t *source = open_source(TINY("llama-rope-yarn"));
    const model_rope_t *rope = &model_source_config(source)->rope;
    assert_int_equal(rope->kind, MODEL_ROPE_YARN);
    assert_true(rope->factor == 4 && rope->beta_fast == 32 && rope->beta_slow == 1);
    assert_float_equal(rope->mscale, 1.1386294, 1e-6); /* 0.1 ln 4 + 1 */
    assert_int_equal(rope->original_context, 64);
    assert_int_equal(model_source_config(source)->max_context, 256);
    model_source_close(source);

    source = open_source(TINY("llama-rope-llama3"));
    rope = &model_source_config(source)->rope;
    assert_int_equal(rope->kind, MODEL_ROPE_LLAMA3);
    assert_true(rope->factor == 8 && rope->low_freq_factor == 1 && rope->high_freq_factor == 4);
    assert_int_equal(rope->original_context, 64);
    model_source_close(source);

    source = open_source(TINY("llama-rope-linear"));
    rope = &model_source_config(source)->rope;
    assert_int_equal(rope->kind, MODEL_ROPE_LINEAR);
    assert_true(rope->factor == 4);
    model_source_close(source);
}

static void a_required_tensor_has_exactly_its_shape(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    model_tensor_t tensor;
    model_source_t *source = open_source(TINY("llama"));
    assert_int_equal(model_source_require(source, (model_tensor_key_t){MODEL_TENSOR_FFN_DOWN, 2, 0},
                                          64, 128, &diag, &tensor),
                     WEFT_OK);
    assert_string_equal(tensor.name, "model.layers.2.mlp.down_proj.weight");
    assert_int_equal(tensor.bytes, 64 * 128 * 2);
    assert_int_equal(model_source_require(source, (model_tensor_key_t){MODEL_TENSOR_FFN_DOWN, 2, 0},
                                          128, 64, &diag, &tensor),
                     WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "is 64 × 128, the model needs 128 × 64"));
    assert_int_equal(model_source_require(source, (model_tensor_key_t){MODEL_TENSOR_FFN_DOWN, 3, 0},
                                          64, 128, &diag, &tensor),
                     WEFT_ERR_MALFORMED);
    assert_non_null(strstr(diag.text, "tensor model.layers.3.mlp.down_proj.weight: missing"));
    assert_int_equal(model_source_find(source, (model_tensor_key_t){MODEL_TENSOR_ROPE_FREQS, 0, 0},
                                       NULL, &tensor),
                     WEFT_ERR_NOT_FOUND);
    model_source_close(source);
}

/* A matrix [6, 8] with a scale for each tile of [4, 3]: its rows 3 and 4, as they lie and turned. */
static void e4m3_is_read_wide_by_rows_and_by_columns(void **state)
{
    (void)state;
    uint8_t codes[6 * 8];
    const float scales[2 * 3] = {1, 2, 3, 4, 5, 6};
    for (uint32_t i = 0; i < sizeof(codes); i++) {
        codes[i] = (uint8_t)(0x30 + i); /* from a half upwards */
    }
    model_tensor_t tensor = {.dtype = K_F32,
                             .rows = 2,
                             .columns = 8,
                             .data = codes,
                             .form = MODEL_FORM_F8_WIDE,
                             .start = 3,
                             .stride = 8,
                             .scales = scales,
                             .scales_dtype = K_F32,
                             .tile_rows = 4,
                             .tile_columns = 3};
    for (uint32_t turned = 0; turned < 2; turned++) {
        float rows[8 * 2];
        tensor.step = turned;
        tensor.rows = turned == 1 ? 8 : 2;
        tensor.columns = turned == 1 ? 2 : 8;
        model_tensor_read(&tensor, 0, tensor.rows, rows);
        for (uint32_t r = 3; r < 5; r++) {
            for (uint32_t c = 0; c < 8; c++) {
                float value;
                k_dequantize(K_F8, &codes[r * 8 + c], &value, 1);
                const float expected = value * scales[r / 4 * 3 + c / 3];
                assert_true(rows[turned == 1 ? c * 2 + (r - 3) : (r - 3) * 8 + c] == expected);
            }
        }
    }
}

/* ---- folders made for one test ------------------------------------------------------------- */

typedef struct folder {
    char path[64];
} folder_t;

static void folder_path(const folder_t *folder, const char *name, char path[256])
{
    snprintf(path, 256, "%s/%s", folder->path, name);
}

static void folder_create(folder_t *folder)
{
    snprintf(folder->path, sizeof(folder->path), "/tmp/weft-source-XXXXXX");
    assert_non_null(mkdtemp(folder->path));
}

static void folder_write(const folder_t *folder, const char *name, const void *data, size_t length)
{
    char path[256];
    folder_path(folder, name, path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, length, file), length);
    fclose(file);
}

static void folder_puts(const folder_t *folder, const char *name, const char *text)
{
    folder_write(folder, name, text, strlen(text));
}

static void folder_link(const folder_t *folder, const char *name, const char *target)
{
    char path[256];
    folder_path(folder, name, path);
    assert_int_equal(symlink(target, path), 0);
}

static void folder_remove(const folder_t *folder)
{
    static const char *const names[] = {
        "a.gguf",
        "b.gguf",
        "model.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
    };
    char path[256];
    for (size_t i = 0; i < WEFT_ARRAY_LEN(names); i++) {
        folder_path(folder, names[i], path);
        unlink(path);
    }
    assert_int_equal(rmdir(folder->path), 0);
}

/* deepseek-v3 read as two layers and one more for multi-token prediction, then without that word. */
static void layers_of_multi_token_prediction_are_left_alone(void **state)
{
    (void)state;
    folder_t folder;
    char text[4096] = "";
    FILE *file = fopen(TINY("deepseek-v3/config.json"), "rb");
    assert_non_null(file);
    assert_true(fread(text, 1, sizeof(text) - 64, file) > 0);
    fclose(file);
    char *end = strrchr(text, '}');
    assert_non_null(end);
    folder_create(&folder);
    folder_link(&folder, "model.safetensors", TINY("deepseek-v3/model.safetensors"));
    strcpy(end, ", \"num_hidden_layers\": 2, \"num_nextn_predict_layers\": 1}");
    folder_puts(&folder, "config.json", text);
    model_source_close(open_source(folder.path));
    strcpy(end, ", \"num_hidden_layers\": 2, \"num_nextn_predict_layers\": 0}");
    folder_puts(&folder, "config.json", text);
    assert_refused(folder.path, "is not part of a deepseek3 model of 2 layers");
    folder_remove(&folder);
}

static void a_folder_must_say_which_model_it_means(void **state)
{
    (void)state;
    folder_t folder;
    folder_create(&folder);
    assert_refused(folder.path, "holds no .gguf and no .safetensors file");
    folder_link(&folder, "a.gguf", TINY("llama-gguf-f32/model.gguf"));
    model_source_close(open_source(folder.path));
    folder_link(&folder, "b.gguf", TINY("llama-gguf-f32/model.gguf"));
    assert_refused(folder.path, "holds 0 .safetensors and 2 .gguf files");
    folder_remove(&folder);
    assert_refused(folder.path, "No such file");
    assert_refused("/dev/null", "is not a regular file");
}

static void a_name_of_the_hub_is_told_to_be_no_path(void **state)
{
    (void)state;
    assert_refused("Org/Name-0.6B", "\"hf download Org/Name-0.6B --local-dir DIR\"");
    static const char *const paths[] = {"Name",     "/Org/Name",       "./Name",  "a/b/c",
                                        "a/b.gguf", "a/b.safetensors", "folder/", "../Name"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(paths); i++) {
        weft_diag_t diag = {0};
        model_source_t *source;
        assert_int_equal(model_source_open(paths[i], &diag, &source), WEFT_ERR_NOT_FOUND);
        assert_null(strstr(diag.text, "download"));
    }
}

static void a_checkpoint_without_its_config_is_refused_by_name(void **state)
{
    (void)state;
    folder_t folder;
    folder_create(&folder);
    folder_link(&folder, "model.safetensors", TINY("llama/model.safetensors"));
    assert_refused(folder.path, "config.json: cannot be opened: No such file");
    folder_link(&folder, "config.json", TINY("mistral/config.json")); /* untied */
    assert_refused(folder.path, "tensor lm_head.weight: missing");
    folder_remove(&folder);

    folder_create(&folder);
    folder_link(&folder, "model.safetensors", TINY("qwen3/model.safetensors"));
    folder_link(&folder, "config.json", TINY("llama/config.json"));
    assert_refused(folder.path, "self_attn.q_proj.weight: is 128 × 64, the model needs 64 × 64");
    folder_remove(&folder);

    folder_create(&folder);
    folder_link(&folder, "model.safetensors", TINY("qwen2/model.safetensors"));
    folder_link(&folder, "config.json", TINY("mistral/config.json"));
    assert_refused(folder.path, "_proj.bias: is not part of a mistral model of 3 layers");
    folder_remove(&folder);
}

static void assert_template(const folder_t *folder, const char *expected)
{
    size_t length;
    model_source_t *source = open_source(folder->path);
    const char *text = model_source_chat_template(source, &length);
    assert_int_equal(length, strlen(expected));
    assert_memory_equal(text, expected, length);
    model_source_close(source);
}

static void the_chat_template_is_found_in_each_of_its_places(void **state)
{
    (void)state;
    folder_t folder;
    size_t length = 7;
    folder_create(&folder);
    folder_link(&folder, "model.safetensors", TINY("llama/model.safetensors"));
    folder_link(&folder, "config.json", TINY("llama/config.json"));
    model_source_t *source = open_source(folder.path);
    assert_null(model_source_chat_template(source, &length));
    assert_int_equal(length, 0);
    model_source_close(source);

    folder_puts(
        &folder, "tokenizer_config.json",
        "{\"model_max_length\": 1000000000000000019884624838656, \"chat_template\": \"one\"}");
    assert_template(&folder, "one");
    folder_puts(&folder, "tokenizer_config.json",
                "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"two\"},"
                " {\"name\": \"default\", \"template\": \"three\"}]}");
    assert_template(&folder, "three");
    folder_puts(&folder, "chat_template.jinja", "four");
    assert_template(&folder, "four");
    folder_remove(&folder);
}

static void an_index_is_held_against_its_shards(void **state)
{
    (void)state;
    static const char hostile[] = WEFT_TEST_VECTORS "/hostile/";
    char path[1024];
    snprintf(path, sizeof(path), "%s%s", hostile, "st-shard-missing");
    assert_refused(path, "model-00002-of-00002.safetensors: cannot be opened");
    snprintf(path, sizeof(path), "%s%s", hostile, "st-shard-lacks-tensor");
    assert_refused(path, "model-00001-of-00001.safetensors: tensor b: missing");
    snprintf(path, sizeof(path), "%s%s", hostile, "st-shard-outside-folder");
    assert_refused(path, "shard \"../st-ok.safetensors\" is not a file name in this folder");
}

static void generation_defaults_and_end_tokens_are_joined(void **state)
{
    (void)state;
    folder_t folder;
    folder_create(&folder);
    folder_link(&folder, "model.safetensors", TINY("llama/model.safetensors"));
    folder_link(&folder, "config.json", TINY("llama/config.json"));
    folder_puts(&folder, "generation_config.json",
                "{\"eos_token_id\": [7, 2], \"temperature\": 0.6, \"top_p\": 0.95, \"top_k\": 20}");
    model_source_t *source = open_source(folder.path);
    const model_config_t *config = model_source_config(source);
    assert_int_equal(config->n_eos, 2);
    assert_int_equal(config->eos[0], 2);
    assert_int_equal(config->eos[1], 7);
    assert_float_equal(config->default_temperature, 0.6, 1e-6);
    assert_float_equal(config->default_top_p, 0.95, 1e-6);
    assert_int_equal(config->default_top_k, 20);
    model_source_close(source);
    folder_puts(&folder, "generation_config.json", "{\"eos_token_id\": 320}");
    assert_refused(folder.path, "eos token 320 is outside the vocabulary of 320");
    folder_remove(&folder);
}

/* Opens a model and builds its tokenizer. */
static weft_status_t load_all(const char *path, weft_diag_t *diag)
{
    model_source_t *source = NULL;
    text_tokenizer_t *tokenizer = NULL;
    weft_status_t status = model_source_open(path, diag, &source);
    if (status == WEFT_OK) {
        status = model_source_tokenizer(source, diag, &tokenizer);
    }
    text_tokenizer_destroy(tokenizer);
    model_source_close(source);
    return status;
}

/* Fails one allocation after another; how many there were. */
static uint64_t fail_each_allocation(const char *path, bool is_strict)
{
    const size_t before = weft_alloc_live_bytes();
    uint64_t n = 0;
    uint64_t taken;
    do {
        weft_diag_t diag = {0};
        weft_alloc_fail_nth(++n);
        const weft_status_t status = load_all(path, &diag);
        taken = weft_alloc_fail_nth(0);
        assert_int_equal(weft_alloc_live_bytes(), before);
        assert_true(status == WEFT_OK || diag.text[0] != '\0');
        if (is_strict && taken >= n) {
            assert_int_equal(status, WEFT_ERR_NO_MEMORY);
            assert_non_null(strstr(diag.text, "out of memory"));
        }
    } while (taken >= n);
    return taken;
}

static void every_failed_allocation_fails_the_load_cleanly(void **state)
{
    (void)state;
    assert_true(fail_each_allocation(TINY("llama-sharded"), true) >= 10);
    assert_true(fail_each_allocation(TINY("qwen2-gguf-q8_0/model.gguf"), true) >= 10);
}

static void *jansson_alloc(size_t size)
{
    return weft_alloc(size, "test.jansson");
}

/* Jansson takes some failures for faults of the text, so only the line and the memory are certain. */
static void every_failed_allocation_of_jansson_ends_with_a_line(void **state)
{
    (void)state;
    json_set_alloc_funcs(jansson_alloc, weft_free);
    const uint64_t taken = fail_each_allocation(TINY("llama-sharded"), false);
    json_set_alloc_funcs(malloc, free);
    assert_true(taken > 500);
}

static void the_default_model_is_what_its_card_says(void **state)
{
    (void)state;
    const char *path = getenv("WEFT_TEST_MODEL");
    if (path == NULL) {
        print_message("skipped: WEFT_TEST_MODEL names no model\n");
        skip();
    }
    size_t length;
    model_source_t *source = open_source(path);
    const model_config_t *config = model_source_config(source);
    assert_int_equal(config->layers, 30);
    assert_int_equal(config->hidden, 576);
    assert_int_equal(config->vocab, 49152);
    assert_int_equal(config->eos[0], 2);
    assert_true(config->is_embedding_tied);
    assert_non_null(model_source_chat_template(source, &length));
    assert_true(length > 100);
    model_source_close(source);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(e4m3_is_read_wide_by_rows_and_by_columns),
        cmocka_unit_test(layers_of_multi_token_prediction_are_left_alone),
        cmocka_unit_test(every_tiny_model_opens_with_the_same_shape),
        cmocka_unit_test(shards_and_formats_hold_the_same_weights),
        cmocka_unit_test(the_configuration_says_what_the_graphs_must_know),
        cmocka_unit_test(scaled_rotations_are_read_with_all_their_numbers),
        cmocka_unit_test(a_required_tensor_has_exactly_its_shape),
        cmocka_unit_test(a_folder_must_say_which_model_it_means),
        cmocka_unit_test(a_name_of_the_hub_is_told_to_be_no_path),
        cmocka_unit_test(a_checkpoint_without_its_config_is_refused_by_name),
        cmocka_unit_test(the_chat_template_is_found_in_each_of_its_places),
        cmocka_unit_test(an_index_is_held_against_its_shards),
        cmocka_unit_test(generation_defaults_and_end_tokens_are_joined),
        cmocka_unit_test(every_failed_allocation_fails_the_load_cleanly),
        cmocka_unit_test(every_failed_allocation_of_jansson_ends_with_a_line),
        cmocka_unit_test(the_default_model_is_what_its_card_says),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
