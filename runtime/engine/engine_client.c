/* SPDX-License-Identifier: Apache-2.0 */
#include "base/alloc.h"
#include "base/clock.h"
#include "base/compiler.h"
#include "runtime/engine/engine_priv.h"

weft_status_t engine_client_create(engine_t *engine, engine_client_t **client_out)
{
    engine_client_t *client = weft_zalloc(sizeof(*client), "engine.client");
    if (client == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    const weft_status_t status = mailbox_init(&client->news);
    if (status < 0) {
        weft_free(client);
        return status;
    }
    client->engine = engine;
    atomic_init(&client->refs, 1);
    atomic_fetch_add(&engine->refs, 1);
    *client_out = client;
    return WEFT_OK;
}

void engine_client_unref(engine_client_t *client)
{
    if (atomic_fetch_sub(&client->refs, 1) == 1) {
        engine_t *engine = client->engine;
        mailbox_fini(&client->news);
        weft_free(client);
        engine_unref(engine);
    }
}

static weft_status_t do_nothing(engine_t *engine, engine_call_t *call)
{
    (void)engine;
    (void)call;
    return WEFT_OK;
}

void engine_client_destroy(engine_client_t *client)
{
    if (client == NULL) {
        return;
    }
    /* After this call the engine has seen that the requests are released and tells of them no more:
     * what is in the news now is all that ever will be. */
    engine_call_t call = {.fn = do_nothing};
    (void)engine_call(client->engine, &call);
    while (engine_client_next(client) != NULL) {
    }
    engine_client_unref(client);
}

int engine_client_fd(const engine_client_t *client)
{
    return client->news.fd;
}

void engine_client_note(engine_request_t *request)
{
    engine_t *engine = request->engine;
    if (request->is_noted) {
        return;
    }
    request->is_noted = true;
    request->next_untold = NULL;
    atomic_fetch_add(&request->refs, 1);
    *(engine->untold == NULL ? &engine->untold : &engine->last_untold->next_untold) = request;
    engine->last_untold = request;
}

static void tell(engine_request_t *request)
{
    for (uint32_t i = 0; i < request->n_samples; i++) {
        engine_sample_t *sample = &request->samples[i];
        atomic_store_explicit(&sample->finish, sample->end, memory_order_release);
    }
    /* Pairs with the exchange in next(): whoever reads false there sees what was published here. */
    if (!atomic_load(&request->is_released) &&
        !atomic_exchange_explicit(&request->is_listed, true, memory_order_acq_rel)) {
        atomic_fetch_add(&request->refs, 1);
        mailbox_post(&request->client->news, &request->news);
    }
}

void engine_client_tell(engine_t *engine)
{
    while (engine->untold != NULL) {
        engine_request_t *request = engine->untold;
        engine->untold = request->next_untold;
        request->is_noted = false;
        tell(request);
        engine_request_unref(request);
    }
}

engine_request_t *engine_client_next(engine_client_t *client)
{
    for (;;) {
        if (client->taken == NULL) {
            client->taken = mailbox_take(&client->news);
        }
        if (client->taken == NULL) {
            return NULL;
        }
        engine_request_t *request = WEFT_CONTAINER(client->taken, engine_request_t, news);
        client->taken = client->taken->next;
        (void)atomic_exchange_explicit(&request->is_listed, false, memory_order_acq_rel);
        const bool is_released = atomic_load(&request->is_released);
        engine_request_unref(request); /* its owner's reference holds it, unless released */
        if (!is_released) {
            return request;
        }
    }
}

engine_request_t *engine_client_wait(engine_client_t *client, int timeout_ms)
{
    const uint64_t deadline =
        timeout_ms < 0 ? 0 : weft_clock_ns() + (uint64_t)timeout_ms * WEFT_NS_PER_MS;
    for (;;) {
        engine_request_t *request = engine_client_next(client);
        if (request != NULL) {
            return request;
        }
        int left_ms = -1;
        if (timeout_ms >= 0) {
            const uint64_t now = weft_clock_ns();
            if (now >= deadline) {
                return NULL;
            }
            left_ms = (int)((deadline - now + WEFT_NS_PER_MS - 1) / WEFT_NS_PER_MS);
        }
        mailbox_wait(&client->news, left_ms);
    }
}
