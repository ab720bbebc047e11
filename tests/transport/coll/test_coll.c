/* SPDX-License-Identifier: Apache-2.0 */
/* What every backend promises, for each row of coll_backends.def. WEFT_TEST_BACKEND=shm runs one. */
#include <string.h>

#include "tests/support/coll_rig.h"

static void add(coll_rig_rank_t *self)
{
    coll_t *coll = coll_rig_create(self, "shm");
    for (size_t n = 1; n < 200000; n = 3 * n + 1) {
        float *in = weft_calloc(n, sizeof(float), "test");
        float *out = weft_calloc(n, sizeof(float), "test");
        for (size_t i = 0; i < n; i++) {
            in[i] = (float)(i * (self->rank + 1));
        }
        coll_all_reduce(coll, self->queue, in, out, n, COLL_F32);
        assert_status(coll_status(coll, NULL), WEFT_OK);
        for (size_t i = 0; i < n; i++) {
            float sum = 0;
            for (uint32_t r = 0; r < self->size; r++) {
                sum += (float)(i * (r + 1));
            }
            assert_true(sum == out[i]);
        }
        weft_free(in);
        weft_free(out);
    }
    coll_barrier(coll, self->queue);
    coll_destroy(coll);
}

static void sums_are_right(void **state)
{
    (void)state;
    for (uint32_t size = 1; size <= 4; size++) {
        coll_rig_run(size, add, NULL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(sums_are_right)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
