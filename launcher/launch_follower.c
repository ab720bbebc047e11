/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A follower's side. Each attempt to reach the leader is a socket of its own that never connects again
 * by itself, so that a broken connection is known as one.
 */
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <zmq.h>

#include "base/clock.h"
#include "launcher/launch_address.h"
#include "launcher/launch_greeting.h"
#include "launcher/launch_group_priv.h"
#include "launcher/launch_message.h"
#include "launcher/launch_monitor.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define FIRST_REST_NS   (100 * WEFT_NS_PER_MS)
#define LONGEST_REST_NS (2 * WEFT_NS_PER_SECOND)
#define REACH_NS        (5 * WEFT_NS_PER_SECOND)  /* to connect, handshakes done */
#define ANSWER_NS       (15 * WEFT_NS_PER_SECOND) /* to the first word */
#define LOG_NS          (10 * WEFT_NS_PER_SECOND)
#define CURT_ENDS       3 /* handshakes broken off in a row that mean another secret */

typedef enum phase {
    RESTING,  /* before the next attempt */
    REACHING, /* connecting, shaking hands */
    ASKING,   /* to be taken */
    WAITING,  /* for the others */
    MEMBER,
    APART /* a rank is lost, or the leader has left: nothing more to do */
} phase_t;

typedef struct follower {
    launch_group_t *group;
    void *socket;
    void *monitor;
    phase_t phase;
    uint64_t until_ns; /* the end of RESTING, REACHING, ASKING */
    uint64_t rest_ns;  /* of the next pause */
    uint64_t heard_ns;
    uint64_t next_beat_ns;
    uint64_t logged_ns;
    uint32_t attempts;
    uint32_t curt_ends;
    char address[64]; /* of the last attempt, numeric */
    uint64_t epoch;
    char reason[256]; /* of the last attempt's end */
} follower_t;

/* ---- attempts -------------------------------------------------------------------------------- */

static void hang_up(follower_t *follower)
{
    launch_monitor_close(follower->socket, follower->monitor);
    if (follower->socket != NULL) {
        zmq_close(follower->socket);
    }
    follower->socket = NULL;
    follower->monitor = NULL;
}

/* Between half and one and a half times as long: ranks that started together come apart. */
static uint64_t jittered(uint64_t ns)
{
    uint32_t random = 0;
    (void)!getrandom(&random, sizeof(random), GRND_NONBLOCK);
    return ns / 2 + (uint64_t)((double)ns * (random / 4294967296.0));
}

static void rest(follower_t *follower, const char *reason)
{
    const launch_place_t *place = &follower->group->place;
    const uint64_t now = weft_clock_ns();
    const bool is_news = strcmp(reason, follower->reason) != 0;
    hang_up(follower);
    snprintf(follower->reason, sizeof(follower->reason), "%s", reason);
    if (is_news || now - follower->logged_ns > LOG_NS) {
        follower->logged_ns = now;
        weft_log_info("rank %u looks for its leader at %s:%u: %s; trying again", place->rank,
                      place->leader_host, place->leader_port, reason);
    }
    follower->phase = RESTING;
    follower->until_ns = now + jittered(follower->rest_ns);
    follower->rest_ns =
        follower->rest_ns * 2 < LONGEST_REST_NS ? follower->rest_ns * 2 : LONGEST_REST_NS;
}

static weft_status_t set_keys(const launch_group_t *group, void *socket)
{
    const launch_secret_t *secret = &group->secret;
    return !group->has_secret ||
                   (zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, secret->leader.public_key,
                                   LAUNCH_KEY_BYTES) == 0 &&
                    zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, secret->follower.public_key,
                                   LAUNCH_KEY_BYTES) == 0 &&
                    zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret->follower.secret_key,
                                   LAUNCH_KEY_BYTES) == 0)
               ? WEFT_OK
               : WEFT_ERR_INTERNAL;
}

static weft_status_t connect_to(follower_t *follower)
{
    const char *address = follower->address;
    const int never = -1;
    char endpoint[128];
    const bool is_v6 = strchr(address, ':') != NULL;
    snprintf(endpoint, sizeof(endpoint), is_v6 ? "tcp://[%s]:%u" : "tcp://%s:%u", address,
             follower->group->place.leader_port);
    follower->socket = zmq_socket(follower->group->context, ZMQ_DEALER);
    if (follower->socket == NULL) {
        return WEFT_ERR_NO_MEMORY;
    }
    weft_status_t status = launch_group_set_up_socket(follower->group, follower->socket);
    if (status == WEFT_OK) {
        status = set_keys(follower->group, follower->socket);
    }
    if (status == WEFT_OK) {
        zmq_setsockopt(follower->socket, ZMQ_RECONNECT_IVL, &never, sizeof(never));
        status =
            launch_monitor_open(follower->group->context, follower->socket, &follower->monitor);
    }
    return status == WEFT_OK && zmq_connect(follower->socket, endpoint) != 0 ? WEFT_ERR_IO : status;
}

/* One of the leader's addresses, in turns. False: reason says why there is none. */
static bool resolve(const follower_t *follower, char address_out[64], const char **reason_out)
{
    const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    uint32_t n = 0;
    const int failure = getaddrinfo(follower->group->place.leader_host, NULL, &hints, &list);
    if (failure != 0) {
        *reason_out = gai_strerror(failure);
        return false;
    }
    for (const struct addrinfo *at = list; at != NULL; at = at->ai_next) {
        n++;
    }
    const struct addrinfo *chosen = list;
    for (uint32_t i = 0; i < follower->attempts % n; i++) {
        chosen = chosen->ai_next;
    }
    const int named =
        getnameinfo(chosen->ai_addr, chosen->ai_addrlen, address_out, 64, NULL, 0, NI_NUMERICHOST);
    freeaddrinfo(list);
    *reason_out = gai_strerror(named);
    return named == 0;
}

static void attempt(follower_t *follower)
{
    launch_group_t *group = follower->group;
    const char *reason;
    if (!resolve(follower, follower->address, &reason)) {
        rest(follower, reason);
        return;
    }
    follower->attempts++;
    if (!group->has_secret && !launch_address_is_private(follower->address)) {
        launch_group_end(group, WEFT_ERR_DENIED,
                         "the leader's address %s is not private: all ranks need a --secret-file",
                         follower->address);
        return;
    }
    if (connect_to(follower) < 0) {
        rest(follower, zmq_strerror(zmq_errno()));
        return;
    }
    follower->phase = REACHING;
    follower->until_ns = weft_clock_ns() + REACH_NS;
}

/* ---- what is sent ---------------------------------------------------------------------------- */

static void send_message(follower_t *follower, const launch_message_t *message)
{
    (void)launch_message_send(follower->socket, NULL, 0, message);
}

static void ask(follower_t *follower)
{
    launch_group_t *group = follower->group;
    Weft__Rendezvous__Fact facts[LAUNCH_MAX_FACTS];
    Weft__Rendezvous__Fact *list[LAUNCH_MAX_FACTS];
    Weft__Rendezvous__Join body = WEFT__RENDEZVOUS__JOIN__INIT;
    launch_message_t message = LAUNCH_MESSAGE(JOIN, join, &body);
    for (uint32_t i = 0; i < group->n_facts; i++) {
        facts[i] = (Weft__Rendezvous__Fact)WEFT__RENDEZVOUS__FACT__INIT;
        facts[i].key = (char *)group->facts[i].key;
        facts[i].value = (char *)group->facts[i].value;
        list[i] = &facts[i];
    }
    body.protocol = LAUNCH_PROTOCOL;
    body.rank = group->place.rank;
    body.size = group->place.size;
    body.incarnation = group->incarnation;
    body.host = group->host;
    body.n_facts = group->n_facts;
    body.facts = list;
    send_message(follower, &message);
    follower->phase = ASKING;
    follower->until_ns = weft_clock_ns() + ANSWER_NS;
    follower->curt_ends = 0;
}

static void beat(follower_t *follower)
{
    Weft__Rendezvous__Beat body = WEFT__RENDEZVOUS__BEAT__INIT;
    const launch_message_t message = LAUNCH_MESSAGE(BEAT, beat, &body);
    send_message(follower, &message);
}

static void tell_failure(follower_t *follower, char *why)
{
    Weft__Rendezvous__Lost body = WEFT__RENDEZVOUS__LOST__INIT;
    const launch_message_t message = LAUNCH_MESSAGE(LOST, lost, &body);
    body.epoch = follower->epoch;
    body.rank = follower->group->place.rank;
    body.why = why;
    send_message(follower, &message);
}

static void say_goodbye(follower_t *follower)
{
    Weft__Rendezvous__Goodbye body = WEFT__RENDEZVOUS__GOODBYE__INIT;
    const launch_message_t message = LAUNCH_MESSAGE(GOODBYE, goodbye, &body);
    body.epoch = follower->epoch;
    send_message(follower, &message);
}

/* ---- all-gathers ----------------------------------------------------------------------------- */

static void send_part(follower_t *follower)
{
    launch_group_t *group = follower->group;
    Weft__Rendezvous__Gather body = WEFT__RENDEZVOUS__GATHER__INIT;
    const launch_message_t message = LAUNCH_MESSAGE(GATHER, gather, &body);
    pthread_mutex_lock(&group->lock); /* the caller's bytes stay as long as it is wanted */
    launch_gather_t *gather = &group->gather;
    if (gather->is_wanted && !gather->is_sent) {
        gather->is_sent = true;
        body.epoch = follower->epoch;
        body.sequence = gather->sequence;
        body.data = (ProtobufCBinaryData){.len = gather->bytes, .data = (uint8_t *)gather->mine};
        send_message(follower, &message);
    }
    pthread_mutex_unlock(&group->lock);
}

static void end_gathers(follower_t *follower)
{
    pthread_mutex_lock(&follower->group->lock);
    const uint64_t sequence = follower->group->gather.sequence;
    pthread_mutex_unlock(&follower->group->lock);
    launch_group_end_gather(follower->group, sequence, WEFT_ERR_PEER_GONE, "rank 0 has left", NULL,
                            0);
}

/* ---- what the leader says -------------------------------------------------------------------- */

static void part(follower_t *follower, uint32_t rank, const char *why)
{
    follower->phase = APART;
    launch_group_lose(follower->group, rank, why);
}

static void take_refusal(follower_t *follower, const Weft__Rendezvous__Refuse *refuse)
{
    const bool is_known = refuse->status == WEFT_ERR_IN_USE || refuse->status == WEFT_ERR_TIMEOUT;
    if (refuse->is_final) {
        launch_group_end(
            follower->group, is_known ? (weft_status_t)refuse->status : WEFT_ERR_DENIED,
            "the leader refuses rank %u: %s", follower->group->place.rank, refuse->reason);
    } else {
        rest(follower, refuse->reason);
    }
}

static void take_before_all(follower_t *follower, const launch_message_t *message)
{
    const launch_place_t *place = &follower->group->place;
    switch (message->body_case) {
    case WEFT__RENDEZVOUS__MESSAGE__BODY_ACCEPT:
        follower->phase = WAITING;
        weft_log_info("rank %u has joined %s:%u; %u ranks are missing", place->rank,
                      place->leader_host, place->leader_port, message->accept->missing);
        break;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_REFUSE:
        take_refusal(follower, message->refuse);
        break;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_WELCOME:
        if (follower->phase == WAITING) {
            follower->phase = MEMBER;
            follower->epoch = message->welcome->epoch;
            launch_group_set_joined(follower->group, follower->epoch);
        }
        break;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GOODBYE:
        rest(follower, "the leader has left");
        break;
    default:
        break;
    }
}

static void take_as_member(follower_t *follower, const launch_message_t *message)
{
    switch (message->body_case) {
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GATHERED:
        if (message->gathered->epoch == follower->epoch) {
            const Weft__Rendezvous__Gathered *gathered = message->gathered;
            launch_group_end_gather(follower->group, gathered->sequence,
                                    (weft_status_t)gathered->status, gathered->reason,
                                    gathered->data.data, gathered->data.len);
        }
        break;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_LOST:
        if (message->lost->epoch == follower->epoch) {
            part(follower, message->lost->rank, message->lost->why);
        }
        break;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GOODBYE:
        if (message->goodbye->epoch == follower->epoch) {
            weft_log_info("rank 0 has left");
            follower->phase = APART;
            end_gathers(follower);
        }
        break;
    default:
        break;
    }
}

static void take_message(follower_t *follower, const launch_message_t *message)
{
    follower->heard_ns = weft_clock_ns();
    if (message->body_case == WEFT__RENDEZVOUS__MESSAGE__BODY_BEAT) {
        if (message->beat->asks) {
            beat(follower);
        }
    } else if (follower->phase == MEMBER) {
        take_as_member(follower, message);
    } else if (follower->phase == ASKING || follower->phase == WAITING) {
        take_before_all(follower, message);
    }
}

static void receive(follower_t *follower)
{
    zmq_msg_t payload;
    launch_message_t *message;
    zmq_msg_init(&payload);
    while (follower->socket != NULL &&
           zmq_msg_recv(&payload, follower->socket, ZMQ_DONTWAIT) >= 0) {
        if (launch_message_decode(zmq_msg_data(&payload), zmq_msg_size(&payload), &message) < 0) {
            weft_log_warn("the leader sent what is no message of ranks");
            continue;
        }
        take_message(follower, message);
        launch_message_free(message);
    }
    zmq_msg_close(&payload);
}

/* ---- what happens to the connection ---------------------------------------------------------- */

static void refuse_other_mechanism(follower_t *follower)
{
    launch_group_t *group = follower->group;
    launch_group_end(
        group, WEFT_ERR_DENIED, "secrets differ: rank %u has %s --secret-file, the leader has %s",
        group->place.rank, group->has_secret ? "a" : "no", group->has_secret ? "none" : "one");
}

static bool has_other_mechanism(const follower_t *follower)
{
    char mechanism[LAUNCH_MECHANISM_BYTES];
    return launch_greeting_mechanism(follower->address, follower->group->place.leader_port,
                                     mechanism) &&
           strcmp(mechanism, follower->group->has_secret ? "CURVE" : "NULL") != 0;
}

/*
 * Another secret looks like this, but so does a proxy before a leader that is not up yet: without a
 * secret it is tried for as long as there is time.
 */
static void broken_off(follower_t *follower)
{
    const launch_group_t *group = follower->group;
    if (has_other_mechanism(follower)) {
        refuse_other_mechanism(follower);
    } else if (!group->has_secret) {
        rest(follower, "the handshake was broken off: is it the leader?");
    } else if (++follower->curt_ends < CURT_ENDS) {
        rest(follower, "the handshake was broken off");
    } else {
        launch_group_end(follower->group, WEFT_ERR_DENIED,
                         "whoever listens at %s:%u breaks off the handshake: it has another "
                         "secret, or is no leader",
                         group->place.leader_host, group->place.leader_port);
    }
}

static void handshake_failed(follower_t *follower, const launch_event_t *event)
{
    launch_group_t *group = follower->group;
    if (event->kind == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) {
        launch_group_end(
            group, WEFT_ERR_DENIED, "the leader does not let rank %u in: %s", group->place.rank,
            group->has_secret ? "the secrets differ"
                              : "without a --secret-file it takes private addresses alone");
    } else if (event->kind == ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL &&
               event->value == ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH) {
        refuse_other_mechanism(follower);
    } else {
        broken_off(follower);
    }
}

static void connection_ended(follower_t *follower)
{
    receive(follower); /* what came before the end */
    if (follower->phase == MEMBER) {
        part(follower, 0, "its connection ended");
    } else if (follower->phase == REACHING) {
        broken_off(follower);
    } else if (follower->phase == ASKING || follower->phase == WAITING) {
        rest(follower, "the leader went before all had come");
    }
}

static void look_at_connection(follower_t *follower)
{
    launch_event_t event;
    while (follower->monitor != NULL && launch_monitor_next(follower->monitor, &event)) {
        switch (event.kind) {
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
            ask(follower);
            break;
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
            handshake_failed(follower, &event);
            break;
        case ZMQ_EVENT_CLOSED: /* without having been connected */
            follower->curt_ends = 0;
            if (follower->phase == REACHING) {
                rest(follower, "nobody listens there");
            }
            break;
        case ZMQ_EVENT_DISCONNECTED:
            connection_ended(follower);
            break;
        default:
            break;
        }
    }
}

/* ---- time ------------------------------------------------------------------------------------ */

static void give_up(follower_t *follower)
{
    const launch_place_t *place = &follower->group->place;
    const unsigned seconds = (unsigned)(follower->group->join_timeout_ns / WEFT_NS_PER_SECOND);
    if (follower->phase == WAITING) {
        launch_group_end(follower->group, WEFT_ERR_TIMEOUT,
                         "rank %u has joined, but not all others within %u s", place->rank,
                         seconds);
    } else {
        launch_group_end(follower->group, WEFT_ERR_TIMEOUT,
                         "rank %u did not reach its leader at %s:%u within %u s: %s", place->rank,
                         place->leader_host, place->leader_port, seconds, follower->reason);
    }
}

/* The leader's silence. */
static void look_at_heartbeats(follower_t *follower, uint64_t now)
{
    const uint64_t lost_after = follower->group->lost_after_ns;
    if (now - follower->heard_ns > lost_after) {
        char why[64];
        snprintf(why, sizeof(why), "no heartbeat for %u s",
                 (unsigned)(lost_after / WEFT_NS_PER_SECOND));
        if (follower->phase == MEMBER) {
            part(follower, 0, why);
        } else {
            rest(follower, why);
        }
    } else if (now >= follower->next_beat_ns) {
        follower->next_beat_ns = now + lost_after / 4;
        beat(follower);
    }
}

static void look_at_clock(follower_t *follower)
{
    const uint64_t now = weft_clock_ns();
    const launch_state_t state = launch_group_state(follower->group);
    if (state == LAUNCH_MEETING && now >= follower->group->join_deadline_ns) {
        give_up(follower);
    } else if (state == LAUNCH_ENDED) {
        follower->phase = APART;
        hang_up(follower);
    } else if (follower->phase == RESTING && now >= follower->until_ns) {
        attempt(follower);
    } else if ((follower->phase == REACHING || follower->phase == ASKING) &&
               now >= follower->until_ns) {
        rest(follower, follower->phase == ASKING ? "who listens there does not answer"
                                                 : "it does not answer");
    } else if (follower->phase == WAITING || follower->phase == MEMBER) {
        look_at_heartbeats(follower, now);
    }
}

static uint64_t next_time(const follower_t *follower)
{
    uint64_t next = follower->phase == WAITING || follower->phase == MEMBER ? follower->next_beat_ns
                    : follower->phase == APART                              ? UINT64_MAX
                                                                            : follower->until_ns;
    if (follower->phase < MEMBER && follower->group->join_deadline_ns < next) {
        next = follower->group->join_deadline_ns;
    }
    return next;
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void take_wishes(follower_t *follower)
{
    char why[LAUNCH_WHY_BYTES];
    launch_group_drain_wake(follower->group);
    if (launch_group_take_failure(follower->group, why) && follower->phase == MEMBER) {
        tell_failure(follower, why);
        follower->phase = APART;
    }
    if (follower->phase == MEMBER) {
        send_part(follower);
    } else if (follower->phase == APART && launch_group_state(follower->group) == LAUNCH_JOINED) {
        end_gathers(follower); /* the leader has left */
    }
}

static void turn(follower_t *follower)
{
    zmq_pollitem_t items[3] = {{.fd = follower->group->wake_fd, .events = ZMQ_POLLIN}};
    int n = 1;
    if (follower->socket != NULL && follower->phase != APART) {
        items[n++] = (zmq_pollitem_t){.socket = follower->socket, .events = ZMQ_POLLIN};
        items[n++] = (zmq_pollitem_t){.socket = follower->monitor, .events = ZMQ_POLLIN};
    }
    zmq_poll(items, n, launch_group_wait_ms(next_time(follower)));
    if (follower->phase != APART) {
        receive(follower);
        look_at_connection(follower);
    }
    take_wishes(follower);
    look_at_clock(follower);
}

void launch_follower_run(launch_group_t *group)
{
    follower_t follower = {.group = group, .phase = RESTING, .rest_ns = FIRST_REST_NS};
    weft_log_info("rank %u of %u looks for its leader at %s:%u (%s)", group->place.rank,
                  group->place.size, group->place.leader_host, group->place.leader_port,
                  group->place.source);
    while (!launch_group_is_stopping(group)) {
        turn(&follower);
    }
    if (follower.phase == WAITING || follower.phase == MEMBER) {
        say_goodbye(&follower);
    }
    hang_up(&follower);
}
