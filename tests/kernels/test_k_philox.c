/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/k_philox.h"
#include "tests/support/check.h"

typedef struct known {
    uint32_t counter[4];
    uint32_t key[2];
    uint32_t words[4];
} known_t;

/* Random123 1.14, tests/kat_vectors: "philox4x32 10". */
static const known_t known[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void philox_gives_the_published_answers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        uint32_t words[4];
        k_philox4x32_10(known[i].counter, known[i].key, words);
        assert_memory_equal(words, known[i].words, sizeof(words));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(philox_gives_the_published_answers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
