/* SPDX-License-Identifier: Apache-2.0 */
/* Latent attention on the GPU against kernels/ref, and against itself in other steps. */
#include "base/float8.h"
#include "kernels/cuda/attention/mla_attention.h"
#include "tests/cuda_emu/device_arrays.h"

enum { MAX_SEQS = 3 };

static uint64_t seed;

typedef struct sizes {
    uint32_t heads;
    uint32_t plain;
    uint32_t latent;
    uint32_t rotary;
    uint32_t block_tokens;
    k_dtype_t kv;
    bool interleaved;
} sizes_t;

/* Sequences of a step one after the other, and what the cache holds of each before it. */
typedef struct scene {
    sizes_t size;
    uint32_t n_seqs;
    uint32_t start[MAX_SEQS];
    uint32_t rows[MAX_SEQS];
    uint32_t max_tokens;
    uint32_t all_rows;
    uint32_t blocks; /* of a sequence */
    float *q;        /* [all_rows, heads, plain + rotary] */
    float *latents;  /* [all_rows, heads, latent + rotary]: q as head_linear leaves it */
    float *c;        /* [all_rows, latent + rotary] */
    float *cache;    /* [n_seqs · blocks, block_tokens, latent + rotary] */
    float *inv_freq;
    uint32_t *tables; /* [n_seqs, blocks] */
} scene_t;

static uint32_t dim_of(const sizes_t *size)
{
    return size->latent + size->rotary;
}

static size_t kv_bytes(k_dtype_t dtype)
{
    return k_dtype_info(dtype)->block_bytes;
}

/* Random floats that bf16 holds, and f16 too. */
static float *coarse_floats(test_random_t *random, size_t n)
{
    float *x = random_floats(random, n);
    for (size_t i = 0; i < n; i++) {
        x[i] = roundf(x[i] * 64) / 64;
    }
    return x;
}

static scene_t make_scene(test_random_t *random, sizes_t size, uint32_t n_seqs,
                          const uint32_t *start, const uint32_t *rows)
{
    const uint32_t dim = dim_of(&size);
    scene_t s = {.size = size, .n_seqs = n_seqs};
    for (uint32_t i = 0; i < n_seqs; i++) {
        const uint32_t tokens = start[i] + rows[i];
        s.start[i] = start[i];
        s.rows[i] = rows[i];
        s.all_rows += rows[i];
        s.max_tokens = s.max_tokens < tokens ? tokens : s.max_tokens;
    }
    s.blocks = (s.max_tokens + size.block_tokens - 1) / size.block_tokens;
    const size_t cached = (size_t)n_seqs * s.blocks * size.block_tokens;
    s.q = coarse_floats(random, (size_t)s.all_rows * size.heads * (size.plain + size.rotary));
    s.latents = coarse_floats(random, (size_t)s.all_rows * size.heads * dim);
    s.c = coarse_floats(random, (size_t)s.all_rows * dim);
    s.cache = coarse_floats(random, cached * dim);
    s.inv_freq = random_floats(random, size.rotary / 2);
    s.tables = test_calloc((size_t)n_seqs * s.blocks, sizeof(uint32_t));
    for (uint32_t i = 0; i < n_seqs * s.blocks; i++) { /* backwards */
        s.tables[i] = n_seqs * s.blocks - 1 - i;
    }
    return s;
}

static void free_scene(scene_t *s)
{
    test_free(s->q);
    test_free(s->latents);
    test_free(s->c);
    test_free(s->cache);
    test_free(s->inv_freq);
    test_free(s->tables);
}

static k_kv_view_t view_of(const sizes_t *size, k_dtype_t dtype, void *base)
{
    const size_t dim = dim_of(size);
    return (k_kv_view_t){.base = base,
                         .dtype = dtype,
                         .block_tokens = size->block_tokens,
                         .heads = 1,
                         .head_dim = (uint32_t)dim / 2,
                         .block_stride = size->block_tokens * dim * kv_bytes(dtype),
                         .head_stride = size->block_tokens * dim * kv_bytes(dtype),
                         .token_stride = dim * kv_bytes(dtype),
                         .part_stride = dim / 2 * kv_bytes(dtype)};
}

static k_mla_write_args_t write_args(const scene_t *s)
{
    const sizes_t *size = &s->size;
    return (k_mla_write_args_t){.q_stride = (size_t)size->heads * (size->plain + size->rotary),
                                .q_out_stride = (size_t)size->heads * dim_of(size),
                                .c_stride = dim_of(size),
                                .q_heads = size->heads,
                                .q_dim = size->plain + size->rotary,
                                .latent = size->latent,
                                .rotary = size->rotary,
                                .mscale = 1.25f,
                                .interleaved = size->interleaved,
                                .n_seqs = s->n_seqs,
                                .rows = s->all_rows};
}

static k_mla_attention_args_t attention_args(const scene_t *s, const k_mla_write_args_t *write)
{
    return (k_mla_attention_args_t){.q = write->q_out,
                                    .q_stride = write->q_out_stride,
                                    .o_stride = (size_t)s->size.heads * s->size.latent,
                                    .q_heads = s->size.heads,
                                    .latent = s->size.latent,
                                    .scale = 0.11f,
                                    .kv = write->kv,
                                    .seqs = write->seqs,
                                    .n_seqs = s->n_seqs,
                                    .max_tokens = s->max_tokens};
}

static void list_seqs(const scene_t *s, const uint32_t *tables, k_seq_t *seqs)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < s->n_seqs; i++) {
        seqs[i] = (k_seq_t){.row = row,
                            .rows = s->rows[i],
                            .start = s->start[i],
                            .block_table = tables + i * s->blocks};
        row += s->rows[i];
    }
}

static uint8_t *bytes_of(const float *x, size_t n)
{
    uint8_t *bytes = test_malloc(n);
    for (size_t i = 0; i < n; i++) {
        bytes[i] = weft_f32_to_f8(x[i]);
    }
    return bytes;
}

/* o [all_rows, heads, latent]; only a cache of bytes is rounded to its type. */
static float *run_on_cpu(const scene_t *s)
{
    const sizes_t *size = &s->size;
    const size_t cached = (size_t)s->n_seqs * s->blocks * size->block_tokens * dim_of(size);
    const size_t q = (size_t)s->all_rows * size->heads * dim_of(size);
    k_stream_t *stream = open_stream("ref", 1, 1, 1);
    k_seq_t seqs[MAX_SEQS];
    const bool has_bytes = size->kv == K_F8;
    void *cache = has_bytes ? bytes_of(s->cache, cached) : test_malloc(cached * sizeof(float));
    float *q_out = test_malloc(q * sizeof(float));
    float *c = test_malloc((size_t)s->all_rows * dim_of(size) * sizeof(float));
    float *o = test_malloc((size_t)s->all_rows * size->heads * size->latent * sizeof(float));
    if (!has_bytes) {
        memcpy(cache, s->cache, cached * sizeof(float));
    }
    memcpy(q_out, s->latents, q * sizeof(float));
    memcpy(c, s->c, (size_t)s->all_rows * dim_of(size) * sizeof(float));
    list_seqs(s, s->tables, seqs);
    k_mla_write_args_t write = write_args(s);
    write.q = s->q;
    write.q_out = q_out;
    write.c = c;
    write.inv_freq = s->inv_freq;
    write.kv = view_of(size, has_bytes ? K_F8 : K_F32, cache);
    write.seqs = seqs;
    stream->ops->mla_write(stream, &write);
    k_mla_attention_args_t attention = attention_args(s, &write);
    attention.o = o;
    stream->ops->mla_attention(stream, &attention);
    k_stream_destroy(stream);
    test_free(cache);
    test_free(q_out);
    test_free(c);
    return o;
}

static uint16_t *upload_bf16(const float *x, size_t n)
{
    uint16_t *halves = test_malloc((n + 1) * sizeof(*halves));
    for (size_t i = 0; i < n; i++) {
        halves[i] = k_f32_to_bf16(x[i]);
    }
    uint16_t *device = device_array(halves, n * sizeof(*halves));
    test_free(halves);
    return device;
}

/* The cache in its own type. */
static void *upload_cache(const scene_t *s)
{
    const size_t n = (size_t)s->n_seqs * s->blocks * s->size.block_tokens * dim_of(&s->size);
    if (s->size.kv == K_F32) {
        return device_array(s->cache, n * sizeof(float));
    }
    if (s->size.kv == K_F8) {
        uint8_t *bytes = bytes_of(s->cache, n);
        void *device = device_array(bytes, n);
        test_free(bytes);
        return device;
    }
    uint16_t *halves = test_malloc(n * sizeof(*halves));
    for (size_t i = 0; i < n; i++) {
        halves[i] = s->size.kv == K_F16 ? k_f32_to_f16(s->cache[i]) : k_f32_to_bf16(s->cache[i]);
    }
    void *device = device_array(halves, n * sizeof(*halves));
    test_free(halves);
    return device;
}

/* The bf16 numbers of o. scratch_bytes: with none, no sequence is split. */
static uint16_t *run_on_gpu(const scene_t *s, size_t scratch_bytes)
{
    const sizes_t *size = &s->size;
    const size_t rows = s->all_rows;
    const size_t o_bytes = rows * size->heads * size->latent * sizeof(uint16_t);
    const k_cuda_launch_t at = device_launch(scratch_bytes);
    k_seq_t seqs[MAX_SEQS];
    list_seqs(s, device_array(s->tables, (size_t)s->n_seqs * s->blocks * sizeof(uint32_t)), seqs);
    k_mla_write_args_t write = write_args(s);
    write.q = upload_bf16(s->q, rows * size->heads * (size->plain + size->rotary));
    write.q_out = upload_bf16(s->latents, rows * size->heads * dim_of(size));
    write.c = upload_bf16(s->c, rows * dim_of(size));
    write.inv_freq = device_array(s->inv_freq, size->rotary / 2 * sizeof(float));
    write.kv = view_of(size, size->kv, upload_cache(s));
    write.seqs = device_array(seqs, sizeof(seqs));
    assert_cuda((cudaError_t)k_cuda_mla_write(&write, at.stream));
    k_mla_attention_args_t attention = attention_args(s, &write);
    const k_cuda_attention_plan_t plan = {.scratch = at.scratch, .scratch_bytes = at.scratch_bytes};
    attention.o = device_array(NULL, o_bytes);
    assert_cuda((cudaError_t)k_cuda_mla_attention(&attention, &plan, at.stream));
    uint16_t *o = cuda_download(attention.o, o_bytes);
    device_free_all();
    return o;
}

static void check_scene(const scene_t *s)
{
    const size_t n = (size_t)s->all_rows * s->size.heads * s->size.latent;
    /* Weights and keys are rounded to bf16; a key next to a tie may become another byte. */
    const float bound = s->size.kv == K_F8 ? 0.05f : 0.02f;
    float *expected = run_on_cpu(s);
    uint16_t *got = run_on_gpu(s, (size_t)4 << 20);
    for (size_t i = 0; i < n; i++) {
        const float value = k_bf16_to_f32(got[i]);
        if (!(fabsf(value - expected[i]) <= bound)) {
            fail_msg("element %zu of %zu is %g, not %g", i, n, (double)value, (double)expected[i]);
        }
    }
    uint16_t *whole = run_on_gpu(s, 0);
    assert_memory_equal(got, whole, n * sizeof(*got));
    test_free(whole);
    test_free(got);
    test_free(expected);
}

static void small_latents_are_attended_as_by_the_reference(void **state)
{
    (void)state;
    test_random_t random = {seed};
    for (uint32_t round = 0; round < test_rounds(30); round++) {
        static const k_dtype_t types[] = {K_BF16, K_F16, K_F32, K_F8};
        const sizes_t size = {.heads = test_random_between(&random, 1, 40),
                              .plain = 2 * test_random_between(&random, 1, 9),
                              .latent = 16 * test_random_between(&random, 1, 4),
                              .rotary = 16 * test_random_between(&random, 1, 4),
                              .block_tokens = 8u << test_random_below(&random, 3),
                              .kv = types[test_random_below(&random, 4)],
                              .interleaved = test_random_below(&random, 2) == 0};
        const uint32_t n_seqs = test_random_between(&random, 1, MAX_SEQS);
        uint32_t start[MAX_SEQS];
        uint32_t rows[MAX_SEQS];
        for (uint32_t i = 0; i < n_seqs; i++) {
            start[i] = test_random_below(&random, 150);
            rows[i] = test_random_below(&random, 3) == 0 ? test_random_between(&random, 2, 9) : 1;
        }
        scene_t s = make_scene(&random, size, n_seqs, start, rows);
        check_scene(&s);
        free_scene(&s);
    }
}

/* The kernels of more than 128 elements want 120 KiB of shared memory a block: sm_86 has less. */
static bool has_large_latents(void)
{
    int shared_bytes = 0;
    assert_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
    return shared_bytes >= 120 << 10;
}

/* Of DeepSeek's size, and over the end of a segment, where sequences are split. */
static void large_latents_and_split_sequences_are_attended(void **state)
{
    static const uint32_t start[] = {1020, 1100, 70};
    static const uint32_t rows[] = {1, 2, 1};
    (void)state;
    test_random_t random = {seed};
    const sizes_t small = {4, 8, 32, 16, 16, K_BF16, true};
    scene_t s = make_scene(&random, small, 3, start, rows);
    check_scene(&s);
    free_scene(&s);
    const sizes_t large = {16, 16, 512, 64, 64, K_BF16, true};
    assert_int_equal(k_cuda_mla_is_supported(large.kv, dim_of(&large), large.latent),
                     has_large_latents());
    if (!has_large_latents()) {
        return;
    }
    s = make_scene(&random, large, 2, start + 1, (const uint32_t[]){1, 3});
    check_scene(&s);
    free_scene(&s);
}

/* A row has the same bits alone and among others, in another tile. */
static void a_row_does_not_depend_on_its_step(void **state)
{
    (void)state;
    test_random_t random = {seed};
    const sizes_t size = {8, 8, 24, 8, 8, K_BF16, false};
    const size_t row = (size_t)size.heads * size.latent;
    const uint32_t start = 90;
    const uint32_t rows = 7;
    scene_t s = make_scene(&random, size, 1, &start, &rows);
    uint16_t *together = run_on_gpu(&s, 0);
    /* What the step wrote is in the cache: the last row alone finds it there. */
    for (uint32_t last = 1; last < rows; last += 5) {
        scene_t one = s;
        one.start[0] = start;
        one.rows[0] = one.all_rows = last;
        uint16_t *some = run_on_gpu(&one, 0);
        assert_memory_equal(some, together, last * row * sizeof(*some));
        test_free(some);
    }
    test_free(together);
    free_scene(&s);
}

int main(void)
{
    cuda_skip_without_device();
    seed = test_seed(92);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_latents_are_attended_as_by_the_reference),
        cmocka_unit_test(large_latents_and_split_sequences_are_attended),
        cmocka_unit_test(a_row_does_not_depend_on_its_step),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
