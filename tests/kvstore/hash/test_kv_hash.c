/* SPDX-License-Identifier: Apache-2.0 */
#include "kvstore/hash/kv_hash.h"

#include <stdbool.h>
#include <string.h>

#include "kvstore/hash/kv_hash_priv.h"
#include "tests/support/vectors.h"

static const char *text_in(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static void assert_hex(const uint8_t *bytes, size_t n, const char *hex)
{
    assert_int_equal(2 * n, strlen(hex));
    for (size_t i = 0; i < n; i++) {
        char text[3];
        snprintf(text, sizeof(text), "%02x", bytes[i]);
        assert_memory_equal(text, hex + 2 * i, 2);
    }
}

static void assert_hash_is(const kv_hash_t *hash, kv_hash_algo_t algo, const char *hex)
{
    static const kv_hash_t zeros;
    const uint32_t bytes = kv_hash_algo_bytes(algo);
    assert_hex(hash->bytes, bytes, hex);
    assert_memory_equal(hash->bytes + bytes, zeros.bytes, KV_HASH_BYTES - bytes);
}

static kv_hasher_t *create(kv_hash_algo_t algo, const char *seed)
{
    kv_hasher_t *hasher = NULL;
    assert_status(kv_hasher_create(algo, seed, &hasher), WEFT_OK);
    return hasher;
}

static kv_extra_t *extra_of(const json_t *vector)
{
    const json_t *lora = json_object_get(vector, "lora");
    kv_extra_t *extra = NULL;
    assert_status(kv_extra_create(text_in(vector, "cache_salt"),
                                  json_string_value(json_array_get(lora, 0)),
                                  json_string_value(json_array_get(lora, 1)), &extra),
                  WEFT_OK);
    return extra;
}

/* Of the block after parent (NULL: the first one), as the algorithm's serializer writes it. */
static void check_preimage(kv_hash_algo_t algo, const kv_hash_t *parent, const kv_hash_t *root,
                           const int32_t *tokens, uint32_t n, const kv_extra_t *extra,
                           const char *hex)
{
    static uint8_t bytes[KV_HASH_PREIMAGE_BYTES];
    const bool is_cbor = strstr(kv_hash_algo_name(algo), "_cbor") != NULL;
    const kv_hash_input_t input = {
        .parent = parent == NULL ? root->bytes : parent->bytes,
        .parent_bytes = kv_hash_algo_bytes(algo),
        .tokens = tokens,
        .n_tokens = n,
        .lora_name = kv_extra_lora_name(extra),
        .lora_path = kv_extra_lora_path(extra),
        .salt = parent == NULL ? kv_extra_salt(extra) : NULL,
    };
    const uint8_t *end =
        is_cbor ? kv_hash_cbor_block(bytes, &input) : kv_hash_pickle_block(bytes, &input);
    assert_hex(bytes, (size_t)(end - bytes), hex);
}

/* The number of pre-images compared. */
static uint32_t check_case(const json_t *vector)
{
    const uint32_t size = (uint32_t)json_integer_value(json_object_get(vector, "block_size"));
    const json_t *tokens = json_object_get(vector, "tokens");
    const json_t *blocks = json_object_get(vector, "blocks");
    kv_hash_algo_t algo;
    assert_status(kv_hash_algo_parse(text_in(vector, "algo"), NULL, &algo), WEFT_OK);
    kv_hasher_t *hasher = create(algo, text_in(vector, "pythonhashseed"));
    kv_extra_t *extra = extra_of(vector);
    assert_hash_is(kv_hasher_root(hasher), algo, text_in(vector, "none_hash"));
    assert_true(size <= 64 && json_array_size(blocks) == json_array_size(tokens) / size);

    uint32_t n_preimages = 0;
    kv_hash_t hash = {0};
    for (size_t i = 0; i < json_array_size(blocks); i++) {
        const json_t *block = json_array_get(blocks, i);
        const kv_hash_t *parent = i == 0 ? NULL : &hash;
        int32_t ids[64];
        for (size_t t = 0; t < size; t++) {
            ids[t] = (int32_t)json_integer_value(json_array_get(tokens, i * size + t));
        }
        const char *preimage = text_in(block, "preimage");
        if (preimage != NULL) {
            check_preimage(algo, parent, kv_hasher_root(hasher), ids, size, extra, preimage);
            n_preimages++;
        }
        kv_hasher_block(hasher, parent, ids, size, extra, &hash);
        assert_hash_is(&hash, algo, text_in(block, "hash"));
        assert_true(kv_hash_u64(&hash, algo) == strtoull(text_in(block, "event_u64"), NULL, 10));
    }
    kv_extra_release(extra);
    kv_hasher_destroy(hasher);
    return n_preimages;
}

static void chains_equal_vllms(void **state)
{
    (void)state;
    json_t *file = read_json_vector("block_hash/block_hash.json");
    const json_t *cases = json_object_get(file, "cases");
    uint32_t n_cases = 0, n_preimages = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *vector = json_array_get(cases, i);
        if (json_is_null(json_object_get(vector, "mm"))) {
            n_preimages += check_case(vector);
            n_cases++;
        }
    }
    assert_int_equal(n_cases, 66);
    assert_true(n_preimages >= 60);
    json_decref(file);
}

/* What CPython 3.11's pickle.dumps(…, 5) gives for shapes that the vectors lack. */
static void pickles_of_other_shapes_equal_pythons(void **state)
{
    (void)state;
    static const int32_t tokens[3] = {255, 65536, INT32_MAX};
    static const struct {
        uint32_t n_tokens;
        const char *hex;
    } cases[] = {
        {0, "800595180000000000000043100102030405060708090a0b0c0d0e0f1094294e87942e"},
        {1, "8005951b0000000000000043100102030405060708090a0b0c0d0e0f10944bff85944e87942e"},
        {2, "800595200000000000000043100102030405060708090a0b0c0d0e0f10944bff4a0000010086944e"
            "87942e"},
        {3, "800595250000000000000043100102030405060708090a0b0c0d0e0f10944bff4a000001004affff"
            "ff7f87944e87942e"},
    };
    static const uint8_t parent[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint8_t bytes[128];
        const kv_hash_input_t input = {.parent = parent,
                                       .parent_bytes = sizeof(parent),
                                       .tokens = tokens,
                                       .n_tokens = cases[i].n_tokens};
        assert_hex(bytes, (size_t)(kv_hash_pickle_block(bytes, &input) - bytes), cases[i].hex);
    }
}

/* SHA-256 of what Python serializes, for texts at and over the short forms' ends. */
static void long_seeds_give_pythons_roots(void **state)
{
    (void)state;
    static const struct {
        kv_hash_algo_t algo;
        uint32_t length;
        const char *root;
    } cases[] = {
        {KV_HASH_ALGO_sha256, 0,
         "3279c4b947f331d055c47442171c9ea17712596bd7fe094c31d4a5d432b42d68"},
        {KV_HASH_ALGO_sha256_cbor, 0,
         "8d33f520a3c4cef80d2453aef81b612bfe1cb44c8b2025630ad38662763f13d3"},
        {KV_HASH_ALGO_sha256, 23,
         "3ae36dc915f4e00682c7086e8c70c7551acd48a0db0f63938649e2dd2b6d99bd"},
        {KV_HASH_ALGO_sha256_cbor, 23,
         "da778d6b2394c4026d5a7681a619709efd8f2913638742c72bb8e529d1d4b02d"},
        {KV_HASH_ALGO_sha256, 24,
         "65ea5f8329fe89bad1f9925a4b0c356fca18550a4d360bb07c3181bfd3367890"},
        {KV_HASH_ALGO_sha256_cbor, 24,
         "81e28c82f88875f550f00721918d80bcb59854c8796e9fd9804fdb457ad3c929"},
        {KV_HASH_ALGO_sha256, 255,
         "f606dba2caff4f6557c713806abc3cb2c0bd6ea73ec9e6e3cfb028c69ba6a391"},
        {KV_HASH_ALGO_sha256_cbor, 255,
         "770ad6f323075aeadb2da0ca1041b5372b5b2e0d8520a316c738ee4c0af0fdeb"},
        {KV_HASH_ALGO_sha256, 256,
         "2d15d24270913a428e36450de0e7db61ff888f164ad79d3a598b4ca600a61879"},
        {KV_HASH_ALGO_sha256_cbor, 256,
         "76cbab4de454bc7513f219b5bf368e99fe49eca25c5ea007c854b76fe36f4c04"},
        {KV_HASH_ALGO_sha256, 300,
         "1ce7fa8de90b951d46e70ffb6554edfe6e5328c8c4698b1ff6e0416a6328ee0e"},
        {KV_HASH_ALGO_sha256_cbor, 300,
         "2ddea5f3ccdde80fc5c0ca8926b425ce50ec58f4df6e17c2b010317fe122b93d"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char seed[301] = {0};
        memset(seed, '7', cases[i].length);
        kv_hasher_t *hasher = create(cases[i].algo, seed);
        assert_hash_is(kv_hasher_root(hasher), cases[i].algo, cases[i].root);
        kv_hasher_destroy(hasher);
    }
}

static void the_largest_input_fits_every_algorithm(void **state)
{
    (void)state;
    static int32_t tokens[KV_HASH_MAX_TOKENS];
    static char text[KV_EXTRA_MAX_BYTES];
    kv_extra_t *extra = NULL;
    for (int i = 0; i < KV_HASH_MAX_TOKENS; i++) {
        tokens[i] = INT32_MAX - i;
    }
    memset(text, 'x', sizeof(text) - 5);
    assert_status(kv_extra_create("s", "l", text, &extra), WEFT_OK);
    for (int algo = 0; algo < KV_HASH_ALGO_COUNT; algo++) {
        kv_hasher_t *hasher = create((kv_hash_algo_t)algo, "0");
        kv_hash_t first, again, changed;
        kv_hasher_block(hasher, NULL, tokens, KV_HASH_MAX_TOKENS, extra, &first);
        kv_hasher_block(hasher, NULL, tokens, KV_HASH_MAX_TOKENS, extra, &again);
        tokens[KV_HASH_MAX_TOKENS - 1] ^= 1;
        kv_hasher_block(hasher, NULL, tokens, KV_HASH_MAX_TOKENS, extra, &changed);
        assert_memory_equal(&first, &again, sizeof(first));
        assert_memory_not_equal(&first, &changed, sizeof(first));
        kv_hasher_destroy(hasher);
    }
    kv_extra_release(extra);
    text[sizeof(text) - 5] = 'x';
    assert_status(kv_extra_create("s", "l", text, &extra), WEFT_ERR_TOO_LARGE);
}

static void a_salt_counts_in_the_first_block_only(void **state)
{
    (void)state;
    const int32_t tokens[2] = {1, 2};
    kv_hasher_t *hasher = create(KV_HASH_ALGO_sha256_cbor, NULL);
    kv_extra_t *mine = NULL, *yours = NULL;
    assert_status(kv_extra_create("mine", NULL, NULL, &mine), WEFT_OK);
    assert_status(kv_extra_create("yours", NULL, NULL, &yours), WEFT_OK);
    kv_hash_t plain, salted, other, later, unsalted_later;
    kv_hasher_block(hasher, NULL, tokens, 2, NULL, &plain);
    kv_hasher_block(hasher, NULL, tokens, 2, mine, &salted);
    kv_hasher_block(hasher, NULL, tokens, 2, yours, &other);
    assert_memory_not_equal(&plain, &salted, sizeof(plain));
    assert_memory_not_equal(&other, &salted, sizeof(plain));
    kv_hasher_block(hasher, &plain, tokens, 2, mine, &later);
    kv_hasher_block(hasher, &plain, tokens, 2, NULL, &unsalted_later);
    assert_memory_equal(&later, &unsalted_later, sizeof(later));
    kv_extra_release(mine);
    kv_extra_release(yours);
    kv_hasher_destroy(hasher);
}

static void unset_seeds_are_fixed_or_random_as_vllms(void **state)
{
    (void)state;
    for (int algo = 0; algo < KV_HASH_ALGO_COUNT; algo++) {
        const bool is_random = strncmp(kv_hash_algo_name((kv_hash_algo_t)algo), "xx", 2) == 0;
        kv_hasher_t *one = create((kv_hash_algo_t)algo, NULL);
        kv_hasher_t *two = create((kv_hash_algo_t)algo, NULL);
        const bool are_equal =
            memcmp(kv_hasher_root(one), kv_hasher_root(two), sizeof(kv_hash_t)) == 0;
        assert_true(are_equal == !is_random);
        kv_hasher_destroy(one);
        kv_hasher_destroy(two);
    }
}

static void clones_hash_alike(void **state)
{
    (void)state;
    const int32_t tokens[2] = {1, 2};
    for (int algo = 0; algo < KV_HASH_ALGO_COUNT; algo++) {
        kv_hasher_t *hasher = create((kv_hash_algo_t)algo, NULL), *clone = NULL;
        kv_hash_t hash, same;
        kv_hasher_block(hasher, NULL, tokens, 2, NULL, &hash);
        assert_status(kv_hasher_clone(hasher, &clone), WEFT_OK);
        kv_hasher_destroy(hasher);
        assert_int_equal(kv_hasher_algo(clone), algo);
        kv_hasher_block(clone, NULL, tokens, 2, NULL, &same);
        assert_memory_equal(&hash, &same, sizeof(hash));
        kv_hasher_destroy(clone);
    }
}

static void unknown_algorithms_are_told_the_known_ones(void **state)
{
    (void)state;
    weft_diag_t diag = {0};
    kv_hash_algo_t algo;
    assert_status(kv_hash_algo_parse("builtin", &diag, &algo), WEFT_ERR_INVALID);
    assert_string_equal(diag.text, "unknown hash algorithm 'builtin', there are: sha256 "
                                   "sha256_cbor xxhash xxhash_cbor");
}

static void creation_survives_what_cannot_be(void **state)
{
    (void)state;
    static char seed[KV_EXTRA_MAX_BYTES + 2];
    kv_hasher_t *hasher = NULL;
    kv_hasher_t *one = create(KV_HASH_ALGO_sha256, "0");
    weft_alloc_fail_nth(1);
    assert_status(kv_hasher_create(KV_HASH_ALGO_sha256, "0", &hasher), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(1);
    assert_status(kv_hasher_clone(one, &hasher), WEFT_ERR_NO_MEMORY);
    weft_alloc_fail_nth(0);
    memset(seed, '1', sizeof(seed) - 1);
    assert_status(kv_hasher_create(KV_HASH_ALGO_sha256, seed, &hasher), WEFT_ERR_TOO_LARGE);
    assert_null(hasher);
    kv_hasher_destroy(one);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chains_equal_vllms),
        cmocka_unit_test(pickles_of_other_shapes_equal_pythons),
        cmocka_unit_test(long_seeds_give_pythons_roots),
        cmocka_unit_test(the_largest_input_fits_every_algorithm),
        cmocka_unit_test(a_salt_counts_in_the_first_block_only),
        cmocka_unit_test(unset_seeds_are_fixed_or_random_as_vllms),
        cmocka_unit_test(clones_hash_alike),
        cmocka_unit_test(unknown_algorithms_are_told_the_known_ones),
        cmocka_unit_test(creation_survives_what_cannot_be),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
