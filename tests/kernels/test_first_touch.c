/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which thread writes each page of a packed matrix first, by which the system chooses its node, and which
 * reads it: the same. The real kernels run under a team that is not one: it runs the members' ranges one
 * after the other, as k_team shares them out (test_k_team), and the pages tell by a fault who comes first.
 */
#include <signal.h>
#include <sys/mman.h>

#include "kernels/k_team.h"
#include "tests/kernels/kernels_support.h"

enum { MAX_PAGES = 4096, COLUMNS = 256, ROWS = 3000 };
enum { FEW_ROWS = 5 }; /* more are multiplied in smaller items, which does not matter to them */
#define PAGE_BYTES ((size_t)4096)

/* ---- pages that tell ------------------------------------------------------------------------- */

static struct {
    uint8_t *addr;
    size_t pages;
    uint32_t member; /* whose range runs */
    uint32_t owner[MAX_PAGES];
} watched;

#define NOBODY UINT32_MAX

static void note_owner(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    const uintptr_t at = (uintptr_t)info->si_addr - (uintptr_t)watched.addr;
    if ((uintptr_t)info->si_addr < (uintptr_t)watched.addr || at / PAGE_BYTES >= watched.pages) {
        signal(signal_number, SIG_DFL); /* a fault like any other: again, and to the end */
        return;
    }
    watched.owner[at / PAGE_BYTES] = watched.member;
    mprotect(watched.addr + at / PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, PROT_READ | PROT_WRITE);
}

static void watch_pages(void)
{
    for (size_t i = 0; i < watched.pages; i++) {
        watched.owner[i] = NOBODY;
    }
    assert_int_equal(mprotect(watched.addr, watched.pages * PAGE_BYTES, PROT_NONE), 0);
}

static void open_pages(size_t bytes)
{
    watched.pages = (bytes + PAGE_BYTES - 1) / PAGE_BYTES;
    assert_in_range(watched.pages, 1, MAX_PAGES);
    watched.addr =
        mmap(NULL, watched.pages * PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(watched.addr != MAP_FAILED);
}

/* ---- the team -------------------------------------------------------------------------------- */

struct k_team {
    uint32_t size;
};

weft_status_t k_team_create(uint32_t threads, k_team_t **team_out)
{
    *team_out = test_malloc(sizeof(**team_out));
    (*team_out)->size = threads;
    return WEFT_OK;
}

void k_team_destroy(k_team_t *team)
{
    if (team != NULL) {
        test_free(team);
    }
}

uint32_t k_team_size(const k_team_t *team)
{
    return team->size;
}

void k_team_run(k_team_t *team, uint32_t items, k_team_fn fn, const void *arg)
{
    for (uint32_t m = 0; m < team->size; m++) {
        watched.member = m;
        for (uint64_t i = (uint64_t)items * m / team->size;
             i < (uint64_t)items * (m + 1) / team->size; i++) {
            fn(arg, (uint32_t)i, m);
        }
    }
}

/* ---- the claims ------------------------------------------------------------------------------ */

typedef struct touch_case {
    k_dtype_t dtype;
    k_weight_form_t form;
    uint32_t n; /* rows of the matrix */
    uint32_t threads;
} touch_case_t;

static k_weight_t pack(k_stream_t *stream, const touch_case_t *c, const uint8_t *source)
{
    size_t row_bytes = 0;
    k_dtype_row_bytes(c->dtype, COLUMNS, &row_bytes);
    const uint32_t first = c->n / 2;
    const k_weight_part_t parts[] = {{source, first, 0},
                                     {source + first * row_bytes, c->n - first, 0}};
    open_pages(stream->ops->weight_bytes(c->dtype, c->form, c->n, COLUMNS));
    watch_pages();
    stream->ops->weight_pack(stream, c->dtype, c->form, COLUMNS, parts, 2, watched.addr);
    return (k_weight_t){
        .dtype = c->dtype, .form = c->form, .rows = c->n, .columns = COLUMNS, .data = watched.addr};
}

static void multiply(k_stream_t *stream, const k_weight_t *w, const float *x, uint32_t rows,
                     float *y)
{
    const bool is_gated = w->form == K_WEIGHT_GATE_UP;
    const k_linear_args_t args = {.w = w,
                                  .x = x,
                                  .y = y,
                                  .rows = rows,
                                  .x_stride = COLUMNS,
                                  .y_stride = is_gated ? w->rows / 2 : w->rows,
                                  .out = is_gated ? K_OUT_SWIGLU : K_OUT_STORE};
    stream->ops->linear(stream, &args);
    assert_status(k_stream_sync(stream), WEFT_OK);
}

static void check_same_owners(const touch_case_t *c, const uint32_t *packed)
{
    uint32_t members = 1;
    for (size_t i = 0; i < watched.pages; i++) {
        if (watched.owner[i] != packed[i]) {
            fail_msg("%s, %u rows, %u threads: page %zu of %zu is written by %u and read by %u",
                     k_dtype_info(c->dtype)->name, c->n, c->threads, i, watched.pages, packed[i],
                     watched.owner[i]);
        }
        members += i > 0 && packed[i] != packed[i - 1];
    }
    assert_int_equal(members, c->threads); /* each has its part, in one piece */
}

static void check_touches(const char *isa, test_random_t *random, const touch_case_t *c)
{
    static uint32_t packed[MAX_PAGES];
    static float y[FEW_ROWS * ROWS];
    k_stream_t *stream = open_stream(isa, c->threads, FEW_ROWS, ROWS);
    uint8_t *source = random_weights(random, c->dtype, (size_t)c->n * COLUMNS);
    float *x = random_floats(random, (size_t)FEW_ROWS * COLUMNS);
    const k_weight_t w = pack(stream, c, source);
    memcpy(packed, watched.owner, sizeof(packed));
    for (uint32_t rows = 1; rows <= FEW_ROWS; rows += FEW_ROWS - 1) {
        watch_pages();
        multiply(stream, &w, x, rows, y);
        check_same_owners(c, packed);
    }
    munmap(watched.addr, watched.pages * PAGE_BYTES);
    test_free(source);
    test_free(x);
    k_stream_destroy(stream);
}

static void check_isa(const char *isa, test_random_t *random)
{
    static const k_dtype_t dtypes[] = {K_Q4_1, K_Q8_0, K_BF16, K_F16, K_Q6_K, K_F8_32};
    static const uint32_t threads[] = {2, 3, 8, 13};
    if (strcmp(isa, "ref") == 0) {
        return; /* it reads the file, which lies where the page cache has it */
    }
    struct sigaction before;
    struct sigaction action = {.sa_sigaction = note_owner, .sa_flags = SA_SIGINFO};
    assert_int_equal(sigaction(SIGSEGV, &action, &before), 0);
    for (size_t d = 0; d < WEFT_ARRAY_LEN(dtypes); d++) {
        for (size_t t = 0; t < WEFT_ARRAY_LEN(threads); t++) {
            const uint32_t n = test_random_between(random, 1200, ROWS);
            check_touches(isa, random, &(touch_case_t){dtypes[d], K_WEIGHT_ROWS, n, threads[t]});
            check_touches(isa, random,
                          &(touch_case_t){dtypes[d], K_WEIGHT_GATE_UP, n & ~1U, threads[t]});
        }
    }
    assert_int_equal(sigaction(SIGSEGV, &before, NULL), 0);
}

static void a_page_of_weights_is_written_first_by_whom_it_is_read_by(void **state)
{
    (void)state;
    each_isa(check_isa, 47);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_page_of_weights_is_written_first_by_whom_it_is_read_by),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
