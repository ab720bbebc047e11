/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>
#include <unistd.h>

#include "base/mapped_file.h"
#include "runtime/engine/engine_priv.h"
#include "tests/support/engine_rig.h"
#include "tests/support/random.h"
#include "tests/support/scratch_folder.h"

#define FOLDER WEFT_TEST_VECTORS "/tiny-models/llama"

typedef uint8_t print_t[ENGINE_FINGERPRINT_BYTES];

static void copy_file(const char *folder, const char *name, size_t flipped)
{
    char path[512];
    weft_mapped_file_t from;
    snprintf(path, sizeof(path), FOLDER "/%s", name);
    assert_status(weft_mapped_file_open(path, NULL, &from), WEFT_OK);
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *to = fopen(path, "wb");
    assert_non_null(to);
    for (size_t i = 0; i < from.length; i++) {
        const int byte = ((const unsigned char *)from.data)[i];
        assert_int_not_equal(fputc(i == flipped ? byte ^ 1 : byte, to), EOF);
    }
    assert_int_equal(fclose(to), 0);
    weft_mapped_file_close(&from);
}

static void print_of(engine_rig_t *rig, const char *folder, print_t print)
{
    model_source_t *source = NULL;
    assert_status(model_source_open(folder, NULL, &source), WEFT_OK);
    assert_status(engine_fingerprint(rig->engine, source, print), WEFT_OK);
    model_source_close(source);
}

static void every_byte_of_the_weights_counts(void **state)
{
    (void)state;
    enum { ROUNDS = 40 };
    engine_rig_t rig;
    char folder[64];
    print_t original;
    print_t again;
    weft_mapped_file_t weights;
    test_random_t random = {test_seed(9)};
    engine_rig_open_small(&rig);
    print_of(&rig, FOLDER, original);
    assert_status(weft_mapped_file_open(FOLDER "/model.safetensors", NULL, &weights), WEFT_OK);
    uint64_t header;
    memcpy(&header, weights.data, sizeof(header)); /* the file begins with its header's length */
    const uint32_t data = (uint32_t)(8 + header);
    scratch_folder_make(folder, sizeof(folder));
    copy_file(folder, "config.json", SIZE_MAX);
    copy_file(folder, "model.safetensors", SIZE_MAX);
    print_of(&rig, folder, again);
    assert_memory_equal(original, again, sizeof(original));
    for (uint32_t i = 0; i < ROUNDS; i++) {
        copy_file(folder, "model.safetensors",
                  data + test_random_below(&random, (uint32_t)weights.length - data));
        print_of(&rig, folder, again);
        assert_memory_not_equal(original, again, sizeof(original));
    }
    scratch_folder_remove(folder);
    weft_mapped_file_close(&weights);
    engine_rig_close(&rig);
}

static void what_changes_a_blocks_bits_counts(void **state)
{
    (void)state;
    engine_rig_t rig;
    print_t first;
    print_t other;
    engine_options_t options = engine_rig_options();
    engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
    print_of(&rig, FOLDER, first);
    engine_rig_close(&rig);
    const engine_options_t original = options;
    for (int i = 0; i < 4; i++) {
        options = original;
        options.cpu_isa = i == 0 ? "ref" : options.cpu_isa;
        options.block_size = i == 1 ? 8 : options.block_size;
        options.kv_cache_dtype = i == 2 ? "f32" : options.kv_cache_dtype;
        options.hash_algo = i == 3 ? "sha256" : options.hash_algo;
        engine_rig_open(&rig, ENGINE_RIG_MODEL, &options);
        print_of(&rig, FOLDER, other);
        assert_memory_not_equal(first, other, sizeof(first));
        engine_rig_close(&rig);
    }
}

/* The same tokens have other keys where longrope takes its other divisors. */
static void the_context_counts_where_it_chooses_divisors(void **state)
{
    (void)state;
    static const struct {
        const char *model;
        bool differs;
    } rows[] = {{"phi3-longrope", true}, {"phi3-longrope-gguf", true}, {"llama", false}};
    for (size_t i = 0; i < WEFT_ARRAY_LEN(rows); i++) {
        print_t prints[2];
        char path[256];
        snprintf(path, sizeof(path), WEFT_TEST_VECTORS "/tiny-models/%s", rows[i].model);
        for (uint32_t j = 0; j < 2; j++) {
            engine_rig_t rig;
            engine_options_t options = engine_rig_options();
            options.max_model_len = j == 0 ? 16 : 64;
            engine_rig_open(&rig, rows[i].model, &options);
            print_of(&rig, path, prints[j]);
            engine_rig_close(&rig);
        }
        assert_int_equal(memcmp(prints[0], prints[1], sizeof(print_t)) != 0, rows[i].differs);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_of_the_weights_counts),
        cmocka_unit_test(what_changes_a_blocks_bits_counts),
        cmocka_unit_test(the_context_counts_where_it_chooses_divisors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
