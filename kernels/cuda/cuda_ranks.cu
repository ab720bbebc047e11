/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/cuda/cuda_ranks.h"

#include "kernels/cuda/k_cuda_norm.h"

enum {
    THREADS = 512,
    UNROLL = 4,              /* of copies */
    LOOKS = 32,              /* at a flag, between two looks at whether it is still worth waiting */
    CHANNEL_BYTES = 8 << 10, /* that are worth a block of their own */
    PAIR_CHANNEL_BYTES = 64 << 10,
    NORM_ROWS = 128,   /* that are worth a kernel for sum and norm: four for each channel */
    SUM_THREADS = 256, /* of what others have gathered */
    SUM_BLOCKS = 256,
};

/* The head of a region. Who writes: r: that rank; own: the region's own rank. */
struct head_t {
    uint32_t arrived[CUDA_RANKS_CHANNELS][CUDA_RANKS_MAX];    /* r: its step */
    uint32_t ready[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS]; /* r: pieces it has sent here */
    uint32_t taken[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS]; /* r: pieces it has read from here */
    uint32_t failed;                                          /* any: a CUDA_RANKS_FAILED */
    uint32_t steps[CUDA_RANKS_CHANNELS];                      /* own */
    uint32_t sent[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS];  /* own: pieces to r */
    uint32_t received[CUDA_RANKS_MAX][CUDA_RANKS_PAIR_CHANNELS]; /* own: pieces from r */
};

static_assert(sizeof(head_t) <= CUDA_RANKS_HEAD_BYTES);

/* ---- where things are ----------------------------------------------------------------------- */

SIMT_DEVICE head_t *head_of(const cuda_ranks_t &g, uint32_t rank)
{
    return reinterpret_cast<head_t *>(g.regions[rank]);
}

/* Of this block's channel: where `source` writes for `owner` at this step. */
SIMT_DEVICE char *place_of(const cuda_ranks_t &g, uint32_t owner, uint32_t step, uint32_t source)
{
    const size_t place = (size_t)(2 * blockIdx.x + step % 2) * g.size + source;
    return g.regions[owner] + CUDA_RANKS_HEAD_BYTES + place * g.place_bytes;
}

/* Where `source` writes its piece number `count` for `owner`. */
SIMT_DEVICE char *pair_place_of(const cuda_ranks_t &g, uint32_t owner, uint32_t source,
                                uint32_t count)
{
    const size_t pair = source < owner ? source : source - 1;
    const size_t place = (pair * CUDA_RANKS_PAIR_CHANNELS + blockIdx.x) * 2 + count % 2;
    const size_t places = (size_t)2 * CUDA_RANKS_CHANNELS * g.size;
    return g.regions[owner] + CUDA_RANKS_HEAD_BYTES + places * g.place_bytes + place * g.pair_bytes;
}

/* A channel's part of n elements: whole vectors but for the last one. */
struct part_t {
    size_t first;
    size_t last;
};

SIMT_DEVICE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

SIMT_DEVICE size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

SIMT_DEVICE part_t part_of_channel(size_t n, size_t unit)
{
    const size_t length = round_up((n + gridDim.x - 1) / gridDim.x, unit);
    return {least(n, length * blockIdx.x), least(n, length * (blockIdx.x + 1))};
}

/* ---- failure -------------------------------------------------------------------------------- */

/* The first failure that a rank hears of is the one that it keeps. */
SIMT_DEVICE void tell(const cuda_ranks_t &g, uint32_t failure)
{
    const uint32_t earlier = simt_atomic_cas(&head_of(g, g.rank)->failed, 0u, failure);
    failure = earlier != 0 ? earlier : failure;
    simt_store_release(&g.told->failure, failure);
    for (uint32_t rank = 0; rank < g.size; rank++) {
        uint32_t *failed = &head_of(g, rank)->failed;
        if (rank != g.rank && simt_load_acquire(failed) == 0) {
            simt_store_release(failed, failure);
        }
    }
}

SIMT_DEVICE bool has_failed(const cuda_ranks_t &g)
{
    const uint32_t failure = simt_load_acquire(&head_of(g, g.rank)->failed);
    if (failure != 0) {
        simt_store_release(&g.told->failure, failure);
    }
    return failure != 0;
}

/* Whether it is still worth waiting for peer. */
SIMT_DEVICE bool check_peer(const cuda_ranks_t &g, uint32_t peer, uint64_t *since)
{
    const uint64_t now = simt_clock_ns();
    *since = *since == 0 ? now : *since;
    if (has_failed(g)) {
        return false;
    }
    const uint32_t abort = simt_load_acquire(&g.told->abort);
    const bool is_late = now - *since > g.timeout_ns;
    if (abort != 0 || is_late) {
        tell(g, abort != 0 ? abort : CUDA_RANKS_FAILED(peer) | CUDA_RANKS_TIMEOUT);
    }
    return abort == 0 && !is_late;
}

/* One thread, until peer's flag has come to target, as counters do. False: the group has failed. */
SIMT_DEVICE bool await(const cuda_ranks_t &g, const uint32_t *flag, uint32_t target, uint32_t peer)
{
    uint64_t since = 0;
    for (uint32_t looks = 1; (int32_t)(simt_load_acquire(flag) - target) < 0; looks++) {
        if (looks % LOOKS == 0 && !check_peer(g, peer, &since)) {
            return false;
        }
        simt_spin();
    }
    return true;
}

/* ---- steps ---------------------------------------------------------------------------------- */

/* The same answer in all threads. */
SIMT_DEVICE bool begin(const cuda_ranks_t &g)
{
    return !simt_sync_block_or(threadIdx.x == 0 && has_failed(g));
}

SIMT_DEVICE uint32_t load_step(const cuda_ranks_t &g)
{
    return head_of(g, g.rank)->steps[blockIdx.x];
}

SIMT_DEVICE void store_step(const cuda_ranks_t &g, uint32_t step)
{
    if (threadIdx.x == 0) {
        head_of(g, g.rank)->steps[blockIdx.x] = step;
    }
}

/*
 * Says that this rank's channel is at the step, with everything that its threads have written before, and
 * waits until all ranks' are. False, in all threads: the group has failed.
 */
SIMT_DEVICE bool meet(const cuda_ranks_t &g, uint32_t step)
{
    const uint32_t peer = threadIdx.x;
    bool is_lost = false;
    simt_sync_block();
    if (peer < g.size) {
        simt_fence_system();
        simt_store_release(&head_of(g, peer)->arrived[blockIdx.x][g.rank], step);
        is_lost = !await(g, &head_of(g, g.rank)->arrived[blockIdx.x][peer], step, peer);
    }
    return !simt_sync_block_or(is_lost);
}

/* ---- copies ---------------------------------------------------------------------------------- */

SIMT_DEVICE bool is_aligned(const void *a, const void *b, size_t unit)
{
    return (reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)) % unit == 0;
}

SIMT_DEVICE uint4 load_word(const char *at, uint4)
{
    return simt_load_16(at);
}

template <class W> SIMT_DEVICE W load_word(const char *at, W)
{
    return *reinterpret_cast<const W *>(at);
}

SIMT_DEVICE void store_word(char *at, uint4 word)
{
    simt_store_16(at, word);
}

template <class W> SIMT_DEVICE void store_word(char *at, W word)
{
    *reinterpret_cast<W *>(at) = word;
}

/* dst(k): the k-th of `count` places to write to, aligned as `like` is. UNROLL loads are on their way. */
template <class W, class D>
SIMT_DEVICE void copy_words(D dst, uint32_t count, const char *src, size_t first, size_t last)
{
    const size_t stride = blockDim.x * sizeof(W);
    size_t at = first + threadIdx.x * sizeof(W);
    for (; at + (UNROLL - 1) * stride + sizeof(W) <= last; at += UNROLL * stride) {
        W words[UNROLL];
        SIMT_UNROLL
        for (int i = 0; i < UNROLL; i++) {
            words[i] = load_word(src + at + i * stride, W{});
        }
        for (uint32_t k = 0; k < count; k++) {
            SIMT_UNROLL
            for (int i = 0; i < UNROLL; i++) {
                store_word(dst(k) + at + i * stride, words[i]);
            }
        }
    }
    for (; at + sizeof(W) <= last; at += stride) {
        const W word = load_word(src + at, W{});
        for (uint32_t k = 0; k < count; k++) {
            store_word(dst(k) + at, word);
        }
    }
}

template <class D>
SIMT_DEVICE void copy_to_each(D dst, uint32_t count, const char *like, const char *src,
                              size_t bytes)
{
    size_t done = 0;
    if (is_aligned(src, like, 16)) {
        copy_words<uint4>(dst, count, src, 0, bytes);
        done = bytes / 16 * 16;
    } else if (is_aligned(src, like, 4)) {
        copy_words<uint32_t>(dst, count, src, 0, bytes);
        done = bytes / 4 * 4;
    }
    copy_words<uint8_t>(dst, count, src, done, bytes);
}

SIMT_DEVICE void copy(char *dst, const char *src, size_t bytes)
{
    copy_to_each([dst](uint32_t) { return dst; }, 1, dst, src, bytes);
}

/* To this rank's place on every rank, and its own. */
SIMT_DEVICE void give_to_all(const cuda_ranks_t &g, uint32_t step, const void *src, size_t bytes)
{
    copy_to_each([&g, step](uint32_t rank) { return place_of(g, rank, step, g.rank); }, g.size,
                 nullptr, static_cast<const char *>(src), bytes);
}

/* ---- sums ------------------------------------------------------------------------------------ */

template <class T> constexpr int LANES = 16 / sizeof(T);
template <class T> constexpr bool IS_F16 = false;
template <> constexpr bool IS_F16<__half> = true;

template <class T> SIMT_DEVICE void unpack(uint4 v, float (&x)[4])
{
    x[0] = simt_bits_float(v.x);
    x[1] = simt_bits_float(v.y);
    x[2] = simt_bits_float(v.z);
    x[3] = simt_bits_float(v.w);
}

template <class T> SIMT_DEVICE void unpack(uint4 v, float (&x)[8])
{
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        const float2 pair = IS_F16<T> ? simt_unpack_f16(words[i]) : simt_unpack_bf16(words[i]);
        x[2 * i] = pair.x;
        x[2 * i + 1] = pair.y;
    }
}

template <class T> SIMT_DEVICE uint4 pack(const float (&x)[4])
{
    return {simt_float_bits(x[0]), simt_float_bits(x[1]), simt_float_bits(x[2]),
            simt_float_bits(x[3])};
}

template <class T> SIMT_DEVICE uint4 pack(const float (&x)[8])
{
    uint32_t words[4];
    SIMT_UNROLL
    for (int i = 0; i < 4; i++) {
        words[i] = IS_F16<T> ? simt_pack_f16(x[2 * i], x[2 * i + 1])
                             : simt_pack_bf16(x[2 * i], x[2 * i + 1]);
    }
    return {words[0], words[1], words[2], words[3]};
}

/* vector(k): part k's, added in the order of k. */
template <class T, class V> SIMT_DEVICE uint4 add_vectors(V vector, uint32_t n_parts)
{
    float sum[LANES<T>];
    unpack<T>(vector(0u), sum);
    for (uint32_t part = 1; part < n_parts; part++) {
        float x[LANES<T>];
        unpack<T>(vector(part), x);
        SIMT_UNROLL
        for (int k = 0; k < LANES<T>; k++) {
            sum[k] += x[k];
        }
    }
    return pack<T>(sum);
}

/* What lies at the ranks' places of this rank at the step, vector i of it. */
template <class T> SIMT_DEVICE uint4 sum_vector(const cuda_ranks_t &g, uint32_t step, size_t i)
{
    return add_vectors<T>(
        [&g, step, i](uint32_t rank) {
            return simt_load_16(place_of(g, g.rank, step, rank) + i * 16);
        },
        g.size);
}

/* Vector i of an array [count] of any alignment, zeroes behind its end. */
template <class T> SIMT_DEVICE uint4 load_vector(const char *array, size_t i, size_t count)
{
    const size_t at = i * LANES<T>;
    uint32_t words[4] = {};
    if (at + LANES<T> <= count && is_aligned(array, nullptr, 16)) {
        return simt_load_16(array + i * 16);
    }
    SIMT_UNROLL
    for (int k = 0; k < LANES<T>; k++) {
        if (at + k >= count) {
            continue;
        }
        if constexpr (sizeof(T) == 4) {
            words[k] = reinterpret_cast<const uint32_t *>(array)[at + k];
        } else {
            words[k / 2] |= static_cast<uint32_t>(reinterpret_cast<const uint16_t *>(array)[at + k])
                            << k % 2 * 16;
        }
    }
    return {words[0], words[1], words[2], words[3]};
}

/* Vector i of out [count], which may end within it. */
template <class T> SIMT_DEVICE void store_vector(T *out, size_t i, size_t count, uint4 v)
{
    const size_t at = i * LANES<T>;
    if (at + LANES<T> <= count && is_aligned(out, nullptr, 16)) {
        simt_store_16(out + at, v);
        return;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    SIMT_UNROLL
    for (int k = 0; k < LANES<T>; k++) {
        if (at + k >= count) {
            continue;
        }
        if constexpr (sizeof(T) == 4) {
            out[at + k] = simt_bits_float(words[k]);
        } else {
            reinterpret_cast<uint16_t *>(out)[at + k] =
                static_cast<uint16_t>(words[k / 2] >> k % 2 * 16);
        }
    }
}

template <class T>
SIMT_DEVICE void sum_places(const cuda_ranks_t &g, uint32_t step, T *out, size_t count)
{
    size_t i = threadIdx.x;
    for (; (i + blockDim.x) * LANES<T> < count; i += 2 * blockDim.x) { /* two on their way */
        const uint4 v = sum_vector<T>(g, step, i);
        const uint4 next = sum_vector<T>(g, step, i + blockDim.x);
        store_vector(out, i, count, v);
        store_vector(out, i + blockDim.x, count, next);
    }
    if (i * LANES<T> < count) {
        store_vector(out, i, count, sum_vector<T>(g, step, i));
    }
}

/* The same, and the sum goes to this rank's place of the next step on every rank. */
template <class T>
SIMT_DEVICE void sum_and_give(const cuda_ranks_t &g, uint32_t step, T *out, size_t count)
{
    for (size_t i = threadIdx.x; i * LANES<T> < count; i += blockDim.x) {
        const uint4 v = sum_vector<T>(g, step, i);
        store_vector(out, i, count, v);
        for (uint32_t rank = 0; rank < g.size; rank++) {
            if (rank != g.rank) {
                simt_store_16(place_of(g, rank, step + 1, g.rank) + i * 16, v);
            }
        }
    }
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* Everyone gives all of it to everyone. */
template <class T>
static SIMT_KERNEL(THREADS, 1)
    all_reduce_at_once(const SIMT_GRID_CONSTANT cuda_ranks_t g, const T *in, T *out, size_t n)
{
    const part_t part = part_of_channel(n, LANES<T>);
    const size_t piece = g.place_bytes / sizeof(T);
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (size_t done = part.first; done < part.last; done += piece) {
        const size_t count = least(piece, part.last - done);
        give_to_all(g, ++step, in + done, count * sizeof(T));
        if (!meet(g, step)) {
            return;
        }
        sum_places(g, step, out + done, count);
    }
    store_step(g, step);
}

/* Each rank adds its part of a piece and gives the sum to all. */
template <class T>
static SIMT_KERNEL(THREADS, 1)
    all_reduce_in_parts(const SIMT_GRID_CONSTANT cuda_ranks_t g, const T *in, T *out, size_t n)
{
    const part_t part = part_of_channel(n, LANES<T>);
    const size_t piece = g.place_bytes / sizeof(T) * g.size;
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (size_t done = part.first; done < part.last; done += piece) {
        const size_t count = least(piece, part.last - done);
        const size_t share = round_up((count + g.size - 1) / g.size, LANES<T>);
        step++;
        for (uint32_t rank = 0; rank < g.size; rank++) {
            const size_t at = least(count, rank * share);
            copy(place_of(g, rank, step, g.rank), reinterpret_cast<const char *>(in + done + at),
                 least(share, count - at) * sizeof(T));
        }
        if (!meet(g, step)) {
            return;
        }
        const size_t own = least(count, g.rank * share);
        sum_and_give(g, step, out + done + own, least(share, count - own));
        if (!meet(g, ++step)) {
            return;
        }
        for (uint32_t rank = 0; rank < g.size; rank++) {
            const size_t at = least(count, rank * share);
            if (rank != g.rank) {
                copy(reinterpret_cast<char *>(out + done + at), place_of(g, g.rank, step, rank),
                     least(share, count - at) * sizeof(T));
            }
        }
    }
    store_step(g, step);
}

/*
 * Rows are dealt out to channels. A thread reads and writes what it does in rms_norm: chunk c at
 * (c · threads + t) · 4.
 */
SIMT_DEVICE void norm_row(const cuda_ranks_t &g, uint32_t step, const cuda_ranks_norm_t &norm,
                          uint32_t row, float *partial)
{
    float held[K_NORM_CHUNKS][4] = {};
    float sum = 0;
    SIMT_UNROLL
    for (int c = 0; c < K_NORM_CHUNKS; c++) {
        const uint32_t at = (c * blockDim.x + threadIdx.x) * 4;
        if (at < norm.dim) {
            const uint4 v = sum_vector<float>(g, step, at / 4);
            unpack<float>(v, held[c]);
            simt_store_16(norm.x + row * norm.x_stride + at, v);
            sum = k_norm_add_squares(sum, held[c]);
        }
    }
    const float scale = k_norm_scale(k_rows_block_sum(sum, partial), norm.dim, norm.eps);
    SIMT_UNROLL
    for (int c = 0; c < K_NORM_CHUNKS; c++) {
        const uint32_t at = (c * blockDim.x + threadIdx.x) * 4;
        float w[4];
        if (at < norm.dim) {
            k_rows_load(norm.w + at, w);
            k_norm_store(static_cast<__nv_bfloat16 *>(norm.y) + row * norm.y_stride + at, held[c],
                         scale, w);
        }
    }
}

static SIMT_KERNEL(K_NORM_MAX_THREADS, 1)
    all_reduce_norm(const SIMT_GRID_CONSTANT cuda_ranks_t g,
                    const SIMT_GRID_CONSTANT cuda_ranks_norm_t norm)
{
    SIMT_SHARED(float, partial, [32]);
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (uint32_t row = blockIdx.x; row < norm.rows; row += gridDim.x) {
        give_to_all(g, ++step, norm.x + row * norm.x_stride, norm.dim * sizeof(float));
        if (!meet(g, step)) {
            return;
        }
        norm_row(g, step, norm, row, partial);
    }
    store_step(g, step);
}

template <class T>
static SIMT_KERNEL(THREADS, 1)
    reduce_scatter(const SIMT_GRID_CONSTANT cuda_ranks_t g, const T *in, T *out, size_t n)
{
    const part_t part = part_of_channel(n, LANES<T>);
    const size_t piece = g.place_bytes / sizeof(T);
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (size_t done = part.first; done < part.last; done += piece) {
        const size_t count = least(piece, part.last - done);
        step++;
        for (uint32_t rank = 0; rank < g.size; rank++) {
            copy(place_of(g, rank, step, g.rank),
                 reinterpret_cast<const char *>(in + rank * n + done), count * sizeof(T));
        }
        if (!meet(g, step)) {
            return;
        }
        sum_places(g, step, out + done, count);
    }
    store_step(g, step);
}

static SIMT_KERNEL(THREADS, 1)
    all_gather(const SIMT_GRID_CONSTANT cuda_ranks_t g, const char *in, char *out, size_t bytes)
{
    const part_t part = part_of_channel(bytes, 16);
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (size_t done = part.first; done < part.last; done += g.place_bytes) {
        const size_t count = least(g.place_bytes, part.last - done);
        give_to_all(g, ++step, in + done, count);
        if (!meet(g, step)) {
            return;
        }
        for (uint32_t rank = 0; rank < g.size; rank++) {
            copy(out + rank * bytes + done, place_of(g, g.rank, step, rank), count);
        }
    }
    store_step(g, step);
}

static SIMT_KERNEL(THREADS, 1)
    broadcast(const SIMT_GRID_CONSTANT cuda_ranks_t g, char *buffer, size_t bytes, uint32_t root)
{
    const part_t part = part_of_channel(bytes, 16);
    if (!begin(g)) {
        return;
    }
    uint32_t step = load_step(g);
    for (size_t done = part.first; done < part.last; done += g.place_bytes) {
        const size_t count = least(g.place_bytes, part.last - done);
        step++;
        if (g.rank == root) {
            give_to_all(g, step, buffer + done, count);
        }
        if (!meet(g, step)) {
            return;
        }
        if (g.rank != root) {
            copy(buffer + done, place_of(g, g.rank, step, root), count);
        }
    }
    store_step(g, step);
}

static SIMT_KERNEL(THREADS, 1) barrier(const SIMT_GRID_CONSTANT cuda_ranks_t g)
{
    if (!begin(g)) {
        return;
    }
    const uint32_t step = load_step(g) + 1;
    if (meet(g, step)) {
        store_step(g, step);
    }
}

/* Thread 0 waits for all. */
SIMT_DEVICE bool await_pair(const cuda_ranks_t &g, const uint32_t *flag, uint32_t target,
                            uint32_t peer)
{
    return !simt_sync_block_or(threadIdx.x == 0 && !await(g, flag, target, peer));
}

/* After all threads' accesses before it. */
SIMT_DEVICE void say_pair(uint32_t *flag, uint32_t count)
{
    simt_sync_block();
    if (threadIdx.x == 0) {
        simt_fence_system();
        simt_store_release(flag, count);
    }
}

/* Every channel sends at least one piece, be it empty. */
static SIMT_KERNEL(THREADS, 1)
    send(const SIMT_GRID_CONSTANT cuda_ranks_t g, uint32_t to, const char *data, size_t bytes)
{
    const part_t part = part_of_channel(bytes, 16);
    head_t *own = head_of(g, g.rank);
    if (!begin(g)) {
        return;
    }
    uint32_t sent = own->sent[to][blockIdx.x];
    size_t done = part.first;
    do {
        const size_t count = least(g.pair_bytes, part.last - done);
        if (!await_pair(g, &own->taken[to][blockIdx.x], sent - 1, to)) {
            return;
        }
        copy(pair_place_of(g, to, g.rank, sent), data + done, count);
        say_pair(&head_of(g, to)->ready[g.rank][blockIdx.x], ++sent);
        done += count;
    } while (done < part.last);
    if (threadIdx.x == 0) {
        own->sent[to][blockIdx.x] = sent;
    }
}

static SIMT_KERNEL(THREADS, 1)
    receive(const SIMT_GRID_CONSTANT cuda_ranks_t g, uint32_t from, char *out, size_t bytes)
{
    const part_t part = part_of_channel(bytes, 16);
    head_t *own = head_of(g, g.rank);
    if (!begin(g)) {
        return;
    }
    uint32_t received = own->received[from][blockIdx.x];
    size_t done = part.first;
    do {
        const size_t count = least(g.pair_bytes, part.last - done);
        if (!await_pair(g, &own->ready[from][blockIdx.x], received + 1, from)) {
            return;
        }
        copy(out + done, pair_place_of(g, g.rank, from, received), count);
        say_pair(&head_of(g, from)->taken[g.rank][blockIdx.x], ++received);
        done += count;
    } while (done < part.last);
    if (threadIdx.x == 0) {
        own->received[from][blockIdx.x] = received;
    }
}

template <class T>
static SIMT_KERNEL(SUM_THREADS, 4)
    sum_parts(const char *parts, uint32_t n_parts, size_t stride, T *out, size_t n)
{
    const size_t threads = (size_t)gridDim.x * SUM_THREADS;
    for (size_t i = (size_t)blockIdx.x * SUM_THREADS + threadIdx.x; i * LANES<T> < n;
         i += threads) {
        const uint4 v = add_vectors<T>(
            [=](uint32_t part) { return load_vector<T>(parts + part * stride, i, n); }, n_parts);
        store_vector(out, i, n, v);
    }
}

static SIMT_KERNEL(32, 1) count_up(uint32_t *count, uint32_t *told)
{
    if (threadIdx.x == 0) {
        const uint32_t counted = *count + 1;
        *count = counted;
        simt_store_release(told, counted);
    }
}

/* ---- launchers -------------------------------------------------------------------------------- */

static simt_grid_t grid_of(size_t bytes, size_t channel_bytes, size_t channels, void *stream)
{
    const size_t wanted = (bytes + channel_bytes - 1) / channel_bytes;
    const size_t blocks = wanted < 1 ? 1 : wanted < channels ? wanted : channels;
    simt_grid_t grid;
    grid.grid = dim3((unsigned)blocks);
    grid.block = dim3(THREADS);
    grid.stream = static_cast<cudaStream_t>(stream);
    return grid;
}

static simt_grid_t grid_for(size_t bytes, void *stream)
{
    return grid_of(bytes, CHANNEL_BYTES, CUDA_RANKS_CHANNELS, stream);
}

static simt_grid_t pair_grid_for(size_t bytes, void *stream)
{
    return grid_of(bytes, PAIR_CHANNEL_BYTES, CUDA_RANKS_PAIR_CHANNELS, stream);
}

/* All at once moves size - 1 times the data, in parts 2 (size - 1) / size times, with twice the waits. */
static bool goes_at_once(const cuda_ranks_t *ranks, size_t bytes)
{
    return ranks->size <= 2 || bytes <= ((size_t)1 << 20) / ranks->size;
}

template <class T>
static cudaError_t launch_all_reduce(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                                     void *stream)
{
    const size_t bytes = n * sizeof(T);
    if (goes_at_once(ranks, bytes)) {
        return simt_launch(all_reduce_at_once<T>, grid_for(bytes, stream), *ranks,
                           static_cast<const T *>(in), static_cast<T *>(out), n);
    }
    return simt_launch(all_reduce_in_parts<T>, grid_for(bytes, stream), *ranks,
                       static_cast<const T *>(in), static_cast<T *>(out), n);
}

template <class T>
static cudaError_t launch_reduce_scatter(const cuda_ranks_t *ranks, const void *in, void *out,
                                         size_t n, void *stream)
{
    return simt_launch(reduce_scatter<T>, grid_for(n * sizeof(T), stream), *ranks,
                       static_cast<const T *>(in), static_cast<T *>(out), n);
}

size_t cuda_ranks_region_bytes(uint32_t size, size_t place_bytes, size_t pair_bytes)
{
    return CUDA_RANKS_HEAD_BYTES + (size_t)2 * CUDA_RANKS_CHANNELS * size * place_bytes +
           (size_t)(size - 1) * CUDA_RANKS_PAIR_CHANNELS * 2 * pair_bytes;
}

int cuda_ranks_all_reduce(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                          cuda_ranks_dtype_t dtype, void *stream)
{
    switch (dtype) {
    case CUDA_RANKS_F32:
        return launch_all_reduce<float>(ranks, in, out, n, stream);
    case CUDA_RANKS_F16:
        return launch_all_reduce<__half>(ranks, in, out, n, stream);
    case CUDA_RANKS_BF16:
        break;
    }
    return launch_all_reduce<__nv_bfloat16>(ranks, in, out, n, stream);
}

bool cuda_ranks_can_norm(const cuda_ranks_t *ranks, const cuda_ranks_norm_t *norm)
{
    const size_t bytes = (size_t)norm->dim * sizeof(float);
    const uint32_t chunks = k_rows_ceil_div(norm->dim, 4);
    return norm->rows <= NORM_ROWS && goes_at_once(ranks, norm->rows * bytes) &&
           bytes <= ranks->place_bytes && norm->dim % 4 == 0 && norm->x_stride % 4 == 0 &&
           norm->y_stride % 8 == 0 && chunks > SIMT_WARP &&
           chunks <= K_NORM_CHUNKS * K_NORM_MAX_THREADS;
}

int cuda_ranks_all_reduce_norm(const cuda_ranks_t *ranks, const cuda_ranks_norm_t *norm,
                               void *stream)
{
    simt_grid_t grid = grid_of(norm->rows, 1, CUDA_RANKS_CHANNELS, stream);
    grid.block = dim3(k_norm_threads(norm->dim, 4, K_NORM_CHUNKS));
    return simt_launch(all_reduce_norm, grid, *ranks, *norm);
}

int cuda_ranks_reduce_scatter(const cuda_ranks_t *ranks, const void *in, void *out, size_t n,
                              cuda_ranks_dtype_t dtype, void *stream)
{
    switch (dtype) {
    case CUDA_RANKS_F32:
        return launch_reduce_scatter<float>(ranks, in, out, n, stream);
    case CUDA_RANKS_F16:
        return launch_reduce_scatter<__half>(ranks, in, out, n, stream);
    case CUDA_RANKS_BF16:
        break;
    }
    return launch_reduce_scatter<__nv_bfloat16>(ranks, in, out, n, stream);
}

int cuda_ranks_all_gather(const cuda_ranks_t *ranks, const void *in, void *out, size_t bytes,
                          void *stream)
{
    return simt_launch(all_gather, grid_for(bytes, stream), *ranks, static_cast<const char *>(in),
                       static_cast<char *>(out), bytes);
}

int cuda_ranks_broadcast(const cuda_ranks_t *ranks, void *buffer, size_t bytes, uint32_t root,
                         void *stream)
{
    return simt_launch(broadcast, grid_for(bytes, stream), *ranks, static_cast<char *>(buffer),
                       bytes, root);
}

int cuda_ranks_barrier(const cuda_ranks_t *ranks, void *stream)
{
    return simt_launch(barrier, grid_for(0, stream), *ranks);
}

int cuda_ranks_send(const cuda_ranks_t *ranks, uint32_t to, const void *data, size_t bytes,
                    void *stream)
{
    return simt_launch(send, pair_grid_for(bytes, stream), *ranks, to,
                       static_cast<const char *>(data), bytes);
}

int cuda_ranks_receive(const cuda_ranks_t *ranks, uint32_t from, void *out, size_t bytes,
                       void *stream)
{
    return simt_launch(receive, pair_grid_for(bytes, stream), *ranks, from,
                       static_cast<char *>(out), bytes);
}

template <class T>
static cudaError_t launch_sum(const void *parts, uint32_t n_parts, size_t stride, void *out,
                              size_t n, void *stream)
{
    simt_grid_t grid = grid_of(n * sizeof(T), SUM_THREADS * 16, SUM_BLOCKS, stream);
    grid.block = dim3(SUM_THREADS);
    return simt_launch(sum_parts<T>, grid, static_cast<const char *>(parts), n_parts, stride,
                       static_cast<T *>(out), n);
}

int cuda_ranks_sum(const void *parts, uint32_t n_parts, size_t stride, void *out, size_t n,
                   cuda_ranks_dtype_t dtype, void *stream)
{
    switch (dtype) {
    case CUDA_RANKS_F32:
        return launch_sum<float>(parts, n_parts, stride, out, n, stream);
    case CUDA_RANKS_F16:
        return launch_sum<__half>(parts, n_parts, stride, out, n, stream);
    case CUDA_RANKS_BF16:
        break;
    }
    return launch_sum<__nv_bfloat16>(parts, n_parts, stride, out, n, stream);
}

int cuda_ranks_count(uint32_t *count, uint32_t *told, void *stream)
{
    simt_grid_t grid = grid_of(0, 1, 1, stream);
    grid.block = dim3(32);
    return simt_launch(count_up, grid, count, told);
}
