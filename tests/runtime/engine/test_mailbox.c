/* SPDX-License-Identifier: Apache-2.0 */
#include "runtime/engine/mailbox.h"

#include <poll.h>
#include <pthread.h>

#include "base/compiler.h"
#include "tests/support/check.h"

enum { POSTERS = 3, POSTS = 2000 };

typedef struct letter {
    mailbox_item_t item;
    uint32_t poster;
    uint32_t number;
} letter_t;

typedef struct poster {
    mailbox_t *mailbox;
    pthread_t thread;
    letter_t letters[POSTS];
} poster_t;

static void *post_all(void *arg)
{
    poster_t *poster = arg;
    for (uint32_t i = 0; i < POSTS; i++) {
        mailbox_post(poster->mailbox, &poster->letters[i].item);
    }
    return NULL;
}

static void items_come_in_the_order_of_their_posts(void **state)
{
    (void)state;
    mailbox_t mailbox;
    letter_t letters[3] = {{.number = 0}, {.number = 1}, {.number = 2}};
    assert_status(mailbox_init(&mailbox), WEFT_OK);
    assert_null(mailbox_take(&mailbox));
    for (int i = 0; i < 3; i++) {
        mailbox_post(&mailbox, &letters[i].item);
    }
    mailbox_item_t *item = mailbox_take(&mailbox);
    for (uint32_t i = 0; i < 3; i++, item = item->next) {
        assert_int_equal(WEFT_CONTAINER(item, letter_t, item)->number, i);
    }
    assert_null(item);
    mailbox_fini(&mailbox);
}

static void the_descriptor_is_readable_until_taken(void **state)
{
    (void)state;
    mailbox_t mailbox;
    letter_t letter = {0};
    assert_status(mailbox_init(&mailbox), WEFT_OK);
    struct pollfd poll_fd = {.fd = mailbox.fd, .events = POLLIN};
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    mailbox_post(&mailbox, &letter.item);
    assert_int_equal(poll(&poll_fd, 1, 0), 1);
    assert_non_null(mailbox_take(&mailbox));
    assert_int_equal(poll(&poll_fd, 1, 0), 0);
    mailbox_wake(&mailbox);
    mailbox_wait(&mailbox, -1);
    assert_null(mailbox_take(&mailbox));
    mailbox_fini(&mailbox);
}

static void nothing_is_lost_between_threads(void **state)
{
    (void)state;
    static poster_t posters[POSTERS];
    uint32_t next[POSTERS] = {0};
    mailbox_t mailbox;
    assert_status(mailbox_init(&mailbox), WEFT_OK);
    for (uint32_t p = 0; p < POSTERS; p++) {
        posters[p].mailbox = &mailbox;
        for (uint32_t i = 0; i < POSTS; i++) {
            posters[p].letters[i] = (letter_t){.poster = p, .number = i};
        }
        assert_int_equal(pthread_create(&posters[p].thread, NULL, post_all, &posters[p]), 0);
    }
    for (uint32_t taken = 0; taken < POSTERS * POSTS;) {
        mailbox_wait(&mailbox, -1);
        mailbox_item_t *item = mailbox_take(&mailbox);
        for (; item != NULL; item = item->next, taken++) {
            const letter_t *letter = WEFT_CONTAINER(item, letter_t, item);
            assert_int_equal(letter->number, next[letter->poster]++);
        }
    }
    for (uint32_t p = 0; p < POSTERS; p++) {
        assert_int_equal(pthread_join(posters[p].thread, NULL), 0);
    }
    mailbox_fini(&mailbox);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(items_come_in_the_order_of_their_posts),
        cmocka_unit_test(the_descriptor_is_readable_until_taken),
        cmocka_unit_test(nothing_is_lost_between_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
