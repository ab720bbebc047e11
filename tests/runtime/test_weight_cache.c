/* SPDX-License-Identifier: Apache-2.0 */
/* Packed weights kept in a file: what is believed of one, and models that use it. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/weight_cache.h"
#include "tests/support/scratch_folder.h"
#include "tests/support/tiny_rig.h"

static const weight_cache_key_t key = {"fifteen letters"};

/* ---- the file ------------------------------------------------------------------------------ */

typedef struct kept {
    char folder[128];
    char path[192];
    uint8_t weights[10000];
} kept_t;

static void keep(kept_t *kept)
{
    weft_diag_t diag = {0};
    scratch_folder_make(kept->folder, sizeof(kept->folder));
    snprintf(kept->path, sizeof(kept->path), "%s/weights.packed", kept->folder);
    for (size_t i = 0; i < sizeof(kept->weights); i++) {
        kept->weights[i] = (uint8_t)(i * 31 >> 3);
    }
    model_rig_check(
        weight_cache_save(kept->path, &key, kept->weights, sizeof(kept->weights), &diag), &diag);
}

static weft_status_t open_kept(const kept_t *kept, const weight_cache_key_t *of, size_t bytes)
{
    weft_diag_t diag = {0};
    weft_mapped_file_t file = {0};
    const void *weights = NULL;
    const weft_status_t status = weight_cache_open(kept->path, of, bytes, &diag, &file, &weights);
    if (status >= 0) {
        assert_int_equal((uintptr_t)weights % 4096, 0);
        assert_memory_equal(weights, kept->weights, bytes);
    } else {
        assert_true(diag.text[0] != '\0');
    }
    weft_mapped_file_close(&file);
    return status;
}

static void what_was_saved_is_mapped(void **state)
{
    (void)state;
    kept_t kept;
    keep(&kept);
    assert_status(open_kept(&kept, &key, sizeof(kept.weights)), WEFT_OK);
    scratch_folder_remove(kept.folder);
}

static void a_file_of_something_else_is_refused(void **state)
{
    (void)state;
    kept_t kept;
    keep(&kept);
    const size_t bytes = sizeof(kept.weights);
    const weight_cache_key_t other = {"fifteen lettres"};
    assert_status(open_kept(&kept, &other, bytes), WEFT_ERR_MALFORMED);
    assert_status(open_kept(&kept, &key, bytes - 1), WEFT_ERR_MALFORMED);
    assert_status(open_kept(&kept, &key, bytes + 1), WEFT_ERR_MALFORMED);
    scratch_folder_remove(kept.folder);
}

/* Whatever was cut off, the header included. */
static void a_truncated_file_is_refused(void **state)
{
    (void)state;
    kept_t kept;
    keep(&kept);
    for (off_t length = 4096 + (off_t)sizeof(kept.weights) - 1; length >= 0; length -= 1777) {
        assert_int_equal(truncate(kept.path, length), 0);
        assert_status(open_kept(&kept, &key, sizeof(kept.weights)), WEFT_ERR_MALFORMED);
    }
    assert_int_equal(truncate(kept.path, 0), 0);
    assert_status(open_kept(&kept, &key, sizeof(kept.weights)), WEFT_ERR_MALFORMED);
    assert_int_equal(unlink(kept.path), 0);
    assert_status(open_kept(&kept, &key, sizeof(kept.weights)), WEFT_ERR_NOT_FOUND);
    scratch_folder_remove(kept.folder);
}

static void a_save_replaces_a_file_that_is_mapped(void **state)
{
    (void)state;
    kept_t kept;
    weft_diag_t diag = {0};
    weft_mapped_file_t file = {0};
    const void *weights = NULL;
    keep(&kept);
    const size_t bytes = sizeof(kept.weights);
    model_rig_check(weight_cache_open(kept.path, &key, bytes, &diag, &file, &weights), &diag);
    uint8_t *changed = test_calloc(bytes, 1);
    model_rig_check(weight_cache_save(kept.path, &key, changed, bytes, &diag), &diag);
    assert_memory_equal(weights, kept.weights, bytes);
    memcpy(kept.weights, changed, bytes);
    assert_status(open_kept(&kept, &key, bytes), WEFT_OK);
    weft_mapped_file_close(&file);
    test_free(changed);
    scratch_folder_remove(kept.folder);
}

static void a_failed_save_leaves_no_file(void **state)
{
    (void)state;
    char path[256];
    kept_t kept;
    weft_diag_t diag = {0};
    keep(&kept);
    snprintf(path, sizeof(path), "%s/folder", kept.folder);
    assert_int_equal(mkdir(path, 0700), 0); /* cannot be renamed over */
    assert_status(weight_cache_save(path, &key, kept.weights, 10, &diag), WEFT_ERR_IO);
    assert_non_null(strstr(diag.text, path));
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(unlink(kept.path), 0);
    assert_int_equal(rmdir(kept.folder), 0); /* nothing else was left in it */
}

/* ---- models -------------------------------------------------------------------------------- */

static const k_ops_t *real_ops;
static uint32_t n_packed;

static void count_pack(k_stream_t *stream, k_dtype_t dtype, k_weight_form_t form, uint32_t columns,
                       const k_weight_part_t *parts, uint32_t n_parts, void *dst)
{
    n_packed++;
    real_ops->weight_pack(stream, dtype, form, columns, parts, n_parts, dst);
}

/* The logits of a few tokens. Returns how many weights were packed for them. */
static uint32_t run_kept(const char *path, bool keeps_packed, float logits[TINY_VOCAB])
{
    static const int32_t tokens[] = {5, 17, 200, 3, 77};
    const uint32_t n = WEFT_ARRAY_LEN(tokens);
    test_random_t random = {1};
    weft_diag_t diag = {0};
    model_rig_t rig;
    tiny_sequence_t placed;
    const model_rig_config_t config = {.path = path,
                                       .isa = "auto",
                                       .kv_dtype = K_F32,
                                       .block_tokens = 16,
                                       .n_blocks = TINY_BLOCKS,
                                       .limits = {.max_rows = TINY_MAX_PIECE,
                                                  .max_outputs = TINY_MAX_PIECE,
                                                  .max_context = 128,
                                                  .keeps_packed = keeps_packed}};
    model_rig_open_source(&rig, &config);
    real_ops = rig.stream->ops;
    k_ops_t counting = *real_ops;
    counting.weight_pack = count_pack;
    n_packed = 0;
    rig.stream->ops = &counting;
    model_rig_check(model_create(rig.source, NULL, &config.limits, rig.stream, &diag, &rig.model),
                    &diag);
    rig.stream->ops = real_ops;
    model_rig_open_kv(&rig, &config);
    float *all = test_malloc(n * TINY_VOCAB * sizeof(*all));
    tiny_place(&rig, K_F32, &random, &placed);
    tiny_run(&rig, &placed, tokens, 0, n, all);
    memcpy(logits, all + (n - 1) * TINY_VOCAB, TINY_VOCAB * sizeof(*logits));
    test_free(all);
    model_rig_close(&rig);
    return n_packed;
}

static void copy_file(const char *from, const char *to)
{
    static uint8_t bytes[4 << 20];
    FILE *file = fopen(from, "rb");
    assert_non_null(file);
    const size_t n = fread(bytes, 1, sizeof(bytes), file);
    assert_true(n > 0 && n < sizeof(bytes));
    fclose(file);
    file = fopen(to, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void check_kept_model(const char *name)
{
    char folder[128];
    char path[192];
    char source[1024];
    float plain[TINY_VOCAB];
    float logits[TINY_VOCAB];
    scratch_folder_make(folder, sizeof(folder));
    snprintf(path, sizeof(path), "%s/model.gguf", folder);
    snprintf(source, sizeof(source), "%s", tiny_model_path(name));
    copy_file(source, path);
    const uint32_t all = run_kept(path, false, plain);
    if (all == 0) {
        scratch_folder_remove(folder);
        skip(); /* nothing is packed on this machine */
    }
    assert_int_equal(run_kept(path, true, logits), all); /* there is no file yet */
    assert_memory_equal(logits, plain, sizeof(plain));
    assert_int_equal(run_kept(path, true, logits), 0);
    assert_memory_equal(logits, plain, sizeof(plain));

    copy_file(source, path); /* the same bytes, but who knows */
    assert_int_equal(run_kept(path, true, logits), all);
    assert_int_equal(run_kept(path, true, logits), 0);
    assert_memory_equal(logits, plain, sizeof(plain));
    scratch_folder_remove(folder);
}

static void a_model_reads_what_it_packed_before(void **state)
{
    (void)state;
    check_kept_model("llama-gguf-q8_0");
    check_kept_model("mixtral-gguf");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_saved_is_mapped),
        cmocka_unit_test(a_file_of_something_else_is_refused),
        cmocka_unit_test(a_truncated_file_is_refused),
        cmocka_unit_test(a_save_replaces_a_file_that_is_mapped),
        cmocka_unit_test(a_failed_save_leaves_no_file),
        cmocka_unit_test(a_model_reads_what_it_packed_before),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
