/* SPDX-License-Identifier: Apache-2.0 */
/* Models of random weights: that they are models, that they are the same again, that they compute. */
#include <stdio.h>
#include <unistd.h>

#include "base/mapped_file.h"
#include "runtime/model/synth/model_synth.h"
#include "runtime/model/synth/synth_values.h"
#include "tests/support/model_rig.h"
#include "tests/support/scratch_folder.h"

#define ROWS      12
#define MAX_VOCAB 512

static const char *const families[] = {
#define MODEL(family, hf, gguf) #family,
#include "runtime/model/models.def"
#undef MODEL
};

static char folder[256];

static const char *in_folder(const char *name)
{
    static char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static weft_status_t synthesize(const char *family, const char *dtype, uint64_t seed,
                                uint32_t threads, const char *name, weft_diag_t *diag)
{
    uint64_t bytes = 0;
    const model_synth_options_t options = {family, "tiny", dtype, seed, threads};
    return model_synth_write(&options, in_folder(name), diag, &bytes);
}

static void must_synthesize(const char *family, const char *dtype, uint64_t seed, uint32_t threads,
                            const char *name)
{
    weft_diag_t diag = {0};
    model_rig_check(synthesize(family, dtype, seed, threads, name, &diag), &diag);
}

static bool same_bytes(const char *a, const char *b)
{
    weft_mapped_file_t x = {0};
    weft_mapped_file_t y = {0};
    weft_diag_t diag = {0};
    model_rig_check(weft_mapped_file_open(in_folder(a), &diag, &x), &diag);
    model_rig_check(weft_mapped_file_open(in_folder(b), &diag, &y), &diag);
    const bool same = x.length == y.length && memcmp(x.data, y.data, x.length) == 0;
    weft_mapped_file_close(&x);
    weft_mapped_file_close(&y);
    return same;
}

static void a_seed_gives_the_same_bytes_whatever_the_threads(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"f32", "bf16", "q4_k"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(dtypes); i++) {
        must_synthesize("llama", dtypes[i], 7, 1, "one.gguf");
        must_synthesize("llama", dtypes[i], 7, 3, "three.gguf");
        must_synthesize("llama", dtypes[i], 8, 1, "other.gguf");
        assert_true(same_bytes("one.gguf", "three.gguf"));
        assert_false(same_bytes("one.gguf", "other.gguf"));
    }
}

/* The logits behind some tokens; every one a number, and not all the same. */
static void compute(const char *path, uint32_t vocab, float logits[MAX_VOCAB])
{
    const uint32_t blocks[] = {0};
    int32_t tokens[ROWS];
    k_kv_view_t kv[8];
    model_rig_t rig;
    assert_true(vocab <= MAX_VOCAB);
    model_rig_open(&rig, &(model_rig_config_t){.path = path,
                                               .isa = "auto",
                                               .kv_dtype = K_F32,
                                               .block_tokens = 16,
                                               .n_blocks = 1,
                                               .limits = {ROWS, ROWS, 16}});
    model_rig_kv(&rig, K_F32, kv, WEFT_ARRAY_LEN(kv));
    for (int32_t i = 0; i < ROWS; i++) {
        tokens[i] = 5 + 23 * i;
    }
    const k_seq_t seq = {.rows = ROWS, .block_table = blocks};
    const model_batch_t batch = {
        .ids = tokens, .rows = ROWS, .seqs = &seq, .n_seqs = 1, .max_tokens = ROWS, .kv = kv};
    const uint32_t last[] = {ROWS - 1};
    model_forward(rig.model, rig.stream, &batch);
    model_logits(rig.model, rig.stream, last, 1, logits);
    assert_status(k_stream_sync(rig.stream), WEFT_OK);
    double squares = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        assert_true(isfinite(logits[i]));
        squares += (double)logits[i] * (double)logits[i];
    }
    assert_true(squares / vocab > 0.001 && squares / vocab < 1000);
    model_rig_close(&rig);
}

/* Any text is its bytes again. */
static void check_tokenizer(const model_source_t *source)
{
    static const char text[] = "weft: \xc3\xa4\xe2\x82\xac and  spaces\n";
    weft_diag_t diag = {0};
    text_tokenizer_t *tokenizer = NULL;
    text_ids_t ids = {0};
    text_bytes_t back = {0};
    model_rig_check(model_source_tokenizer(source, &diag, &tokenizer), &diag);
    assert_int_equal(text_tokenizer_size(tokenizer), model_source_config(source)->vocab);
    model_rig_check(text_tokenizer_encode(tokenizer, text, strlen(text), true, true, &diag, &ids),
                    &diag);
    model_rig_check(text_tokenizer_decode(tokenizer, ids.data, ids.length, true, &diag, &back),
                    &diag);
    assert_int_equal(back.length, strlen(text));
    assert_memory_equal(back.data, text, back.length);
    text_ids_free(ids);
    text_bytes_free(back);
    text_tokenizer_destroy(tokenizer);
}

/* GGUF files of these rotate neighbours: the same weights are another model there. */
static bool is_reordered(const char *family)
{
    return strcmp(family, "llama") == 0 || strcmp(family, "mistral") == 0 ||
           strcmp(family, "mixtral") == 0 || strcmp(family, "granite") == 0;
}

static void check_family(const char *family, uint64_t seed)
{
    static float logits[2][MAX_VOCAB];
    static const char *const names[] = {"model.gguf", "checkpoint"};
    uint32_t vocab = 0;
    /* Matrices that checkpoints keep in one tensor. */
    const bool is_gguf_alone =
        strcmp(family, "gpt_oss") == 0 || strncmp(family, "deepseek", 8) == 0;
    for (size_t i = 0; i < (is_gguf_alone ? 1 : 2); i++) {
        weft_diag_t diag = {0};
        model_source_t *source = NULL;
        must_synthesize(family, "f32", seed, 2, names[i]);
        model_rig_check(model_source_open(in_folder(names[i]), &diag, &source), &diag);
        vocab = model_source_config(source)->vocab;
        check_tokenizer(source);
        model_source_close(source);
        compute(in_folder(names[i]), vocab, logits[i]);
    }
    for (uint32_t i = 0; !is_gguf_alone && !is_reordered(family) && i < vocab; i++) {
        if (!(fabsf(logits[0][i] - logits[1][i]) < 2e-4f)) {
            fail_msg("%s: logit %u is %g in GGUF, %g in safetensors", family, i,
                     (double)logits[0][i], (double)logits[1][i]);
        }
    }
}

static void every_family_is_the_same_model_in_both_formats(void **state)
{
    (void)state;
    for (size_t i = 0; i < WEFT_ARRAY_LEN(families); i++) {
        check_family(families[i], i);
    }
}

static bool has_text(const char *name, const char *text)
{
    weft_mapped_file_t file = {0};
    weft_diag_t diag = {0};
    model_rig_check(weft_mapped_file_open(in_folder(name), &diag, &file), &diag);
    const bool has = memmem(file.data, file.length, text, strlen(text)) != NULL;
    weft_mapped_file_close(&file);
    return has;
}

static void e4m3_matrices_have_scales_and_the_rest_is_bf16(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"fp8", "fp8_block", "f8_e4m3"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(dtypes); i++) {
        static float logits[MAX_VOCAB];
        weft_diag_t diag = {0};
        model_source_t *source = NULL;
        must_synthesize("qwen3moe", dtypes[i], 3, 2, "checkpoint");
        assert_true(has_text("checkpoint/model.safetensors", "experts.7.up_proj.weight_scale"));
        assert_int_equal(has_text("checkpoint/model.safetensors", "weight_scale_inv"), i == 1);
        assert_false(has_text("checkpoint/model.safetensors", "mlp.gate.weight_scale"));
        assert_false(has_text("checkpoint/model.safetensors", "lm_head.weight_scale"));
        model_rig_check(model_source_open(in_folder("checkpoint"), &diag, &source), &diag);
        const uint32_t vocab = model_source_config(source)->vocab;
        model_source_close(source);
        compute(in_folder("checkpoint"), vocab, logits);
    }
    weft_diag_t diag = {0};
    assert_status(synthesize("llama", "fp8", 0, 1, "x.gguf", &diag), WEFT_ERR_UNSUPPORTED);
}

/* The matrices of four bits, as their reader gives them. */
static void check_int4_weights(const char *name)
{
    enum { ROW = 64 };
    weft_diag_t diag = {0};
    model_source_t *source = NULL;
    model_tensor_t tensor = {0};
    uint8_t blocks[ROW / 32 * 19];
    float x[ROW];
    double sum = 0;
    double squares = 0;
    model_rig_check(model_source_open(in_folder(name), &diag, &source), &diag);
    const model_tensor_key_t key = {.id = MODEL_TENSOR_ATTN_Q};
    model_rig_check(model_source_find(source, key, &diag, &tensor), &diag);
    assert_int_equal(tensor.dtype, K_I4_32);
    assert_int_equal(tensor.columns, ROW);
    for (uint64_t row = 0; row < tensor.rows; row++) {
        model_tensor_read(&tensor, row, 1, blocks);
        k_dequantize(K_I4_32, blocks, x, ROW);
        for (uint32_t i = 0; i < ROW; i++) {
            sum += (double)x[i];
            squares += (double)x[i] * (double)x[i];
        }
    }
    const double n = (double)tensor.rows * ROW;
    assert_true(fabs(sum / n) < 0.02);
    assert_true(fabs(sqrt(squares / n) * sqrt(ROW) - 1) < 0.1);
    model_source_close(source);
}

static void matrices_of_four_bits_have_zeros_and_scales(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"awq", "gptq"};
    static const char *const family_names[] = {"llama", "qwen3moe", "phi3"};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(dtypes) * WEFT_ARRAY_LEN(family_names); i++) {
        static float logits[MAX_VOCAB];
        weft_diag_t diag = {0};
        model_source_t *source = NULL;
        must_synthesize(family_names[i / 2], dtypes[i % 2], 3, 2, "checkpoint");
        assert_true(has_text("checkpoint/model.safetensors", "mlp.down_proj.qweight") ||
                    has_text("checkpoint/model.safetensors", "experts.7.down_proj.qweight"));
        assert_false(has_text("checkpoint/model.safetensors", "lm_head.qweight"));
        assert_false(has_text("checkpoint/model.safetensors", "mlp.gate.qweight"));
        model_rig_check(model_source_open(in_folder("checkpoint"), &diag, &source), &diag);
        const uint32_t vocab = model_source_config(source)->vocab;
        model_source_close(source);
        compute(in_folder("checkpoint"), vocab, logits);
        if (i < WEFT_ARRAY_LEN(dtypes)) {
            check_int4_weights("checkpoint");
        }
    }
    weft_diag_t diag = {0};
    assert_status(synthesize("llama", "awq", 0, 1, "x.gguf", &diag), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "GGUF has no type \"awq\""));
}

static void blocks_have_the_deviation_asked_for_and_no_mean(void **state)
{
    (void)state;
    enum { N = 256 * 256 };
    static synth_normal_t normal;
    static float x[N];
    static uint8_t bytes[N * 4];
    static synth_values_t values;
    synth_normal_init(&normal);
    for (int dtype = 0; dtype < K_DTYPE_COUNT; dtype++) {
        if (!synth_values_has((k_dtype_t)dtype)) {
            continue;
        }
        double sum = 0;
        double squares = 0;
        synth_values_init(&values, &normal, (k_dtype_t)dtype, 5, 0, 0.03);
        synth_values_fill(&values, 0, N / k_dtype_info((k_dtype_t)dtype)->block_elements, bytes);
        k_dequantize((k_dtype_t)dtype, bytes, x, N);
        for (uint32_t i = 0; i < N; i++) {
            sum += (double)x[i];
            squares += (double)x[i] * (double)x[i];
        }
        assert_true(fabs(sum / N) < 0.001);
        /* A scale that is a power of two comes as near as it can. */
        assert_true(fabs(log2(sqrt(squares / N) / 0.03)) < (dtype == K_MXFP4 ? 0.51 : 0.1));
    }
}

static void pieces_are_the_whole(void **state)
{
    (void)state;
    static synth_normal_t normal;
    static synth_values_t values;
    static const k_dtype_t dtypes[] = {K_F32, K_F16, K_F8, K_Q4_0, K_Q6_K};
    synth_normal_init(&normal);
    for (size_t i = 0; i < WEFT_ARRAY_LEN(dtypes); i++) {
        const size_t block = k_dtype_info(dtypes[i])->block_bytes;
        uint8_t whole[13 * 256];
        uint8_t part[13 * 256];
        synth_values_init(&values, &normal, dtypes[i], 3, 0, 1);
        synth_values_fill(&values, 0, 13, whole);
        for (size_t first = 0; first < 13; first++) {
            synth_values_fill(&values, first, 13 - first, part);
            assert_memory_equal(part, whole + first * block, (13 - first) * block);
        }
    }
}

static void what_cannot_be_made_is_refused_by_name(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    uint64_t bytes;
    const model_synth_options_t unknown = {"llama", "9b", "f16", 0, 1};
    assert_status(model_synth_write(&unknown, in_folder("x.gguf"), &diag, &bytes),
                  WEFT_ERR_NOT_FOUND);
    assert_non_null(
        strstr(diag.text, "of family llama (known: tiny, 135m, 360m, 1b, 3b, 8b, 70b, wide)"));
    assert_status(synthesize("llama4", "q4_0", 0, 1, "x.gguf", &diag), WEFT_ERR_NOT_FOUND);
    assert_non_null(strstr(diag.text, "(known: llama, mistral, mixtral, "));
    assert_status(synthesize("llama", "q4_0", 0, 1, "folder", &diag), WEFT_ERR_UNSUPPORTED);
    assert_non_null(strstr(diag.text, "q4_0"));
    assert_status(synthesize("llama", "int3", 0, 1, "x.gguf", &diag), WEFT_ERR_UNSUPPORTED);
    assert_status(synthesize("llama", "f16", 0, 1, "missing/x.gguf", &diag), WEFT_ERR_IO);
}

static void a_failed_allocation_leaves_no_file(void **state)
{
    (void)state;
    weft_status_t status = WEFT_ERR_NO_MEMORY;
    uint64_t failures = 0;
    for (uint64_t n = 1; status < 0; n++) {
        weft_diag_t diag = {0};
        weft_alloc_fail_nth(n);
        status = synthesize("llama", "f16", 0, 1, "faulty.gguf", &diag);
        weft_alloc_fail_nth(0);
        if (status < 0) {
            assert_status(status, WEFT_ERR_NO_MEMORY);
            assert_int_not_equal(access(in_folder("faulty.gguf"), F_OK), 0);
            assert_int_not_equal(access(in_folder("faulty.gguf.part"), F_OK), 0);
            failures++;
        }
    }
    assert_true(failures >= 3);
}

static int make_folder(void **state)
{
    (void)state;
    scratch_folder_make(folder, sizeof(folder));
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    scratch_folder_remove(in_folder("checkpoint"));
    scratch_folder_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_seed_gives_the_same_bytes_whatever_the_threads),
        cmocka_unit_test(every_family_is_the_same_model_in_both_formats),
        cmocka_unit_test(e4m3_matrices_have_scales_and_the_rest_is_bf16),
        cmocka_unit_test(matrices_of_four_bits_have_zeros_and_scales),
        cmocka_unit_test(blocks_have_the_deviation_asked_for_and_no_mean),
        cmocka_unit_test(pieces_are_the_whole),
        cmocka_unit_test(what_cannot_be_made_is_refused_by_name),
        cmocka_unit_test(a_failed_allocation_leaves_no_file),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
