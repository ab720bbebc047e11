/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The leader's side. A ROUTER tells each message's connection; the monitor tells which connections
 * end, by their file descriptor. A connection's end is told before its descriptor is used again, so
 * all that has ended is noted after a message is taken and before it is believed.
 */
#include <stdio.h>
#include <string.h>
#include <zmq.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "launcher/launch_leader_priv.h"

#define WEFT_LOG_MODULE "ranks"
#include "base/log.h"

#define MESSAGES_A_TURN 64

/* ---- what is sent ---------------------------------------------------------------------------- */

static void send_to(launch_leader_t *leader, const launch_route_t *route,
                    const launch_message_t *message)
{
    (void)launch_message_send(leader->router, route->bytes, route->n, message);
}

static void send_to_all(launch_leader_t *leader, const launch_message_t *message)
{
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        const launch_member_t *member = &leader->members[rank];
        if (member->is_here) {
            send_to(leader, &member->route, message);
        }
    }
}

static void beat(launch_leader_t *leader, const launch_route_t *route, bool asks)
{
    Weft__Rendezvous__Beat body = WEFT__RENDEZVOUS__BEAT__INIT;
    launch_message_t message = LAUNCH_MESSAGE(BEAT, beat, &body);
    body.asks = asks;
    send_to(leader, route, &message);
}

static void refuse(launch_leader_t *leader, const launch_route_t *route, weft_status_t status,
                   bool is_final, const char *reason)
{
    Weft__Rendezvous__Refuse body = WEFT__RENDEZVOUS__REFUSE__INIT;
    launch_message_t message = LAUNCH_MESSAGE(REFUSE, refuse, &body);
    body.status = status;
    body.is_final = is_final;
    body.reason = (char *)reason;
    send_to(leader, route, &message);
}

/* ---- losses ---------------------------------------------------------------------------------- */

static void forget_part(launch_member_t *member)
{
    weft_free(member->part);
    member->part = NULL;
}

/* The place that another one came for is free now: it may ask again. */
static void answer_challenger(launch_leader_t *leader, launch_member_t *member)
{
    if (member->has_challenger) {
        member->has_challenger = false;
        refuse(leader, &member->challenger, WEFT_ERR_IN_USE, false, "the first one has just gone");
    }
}

static void lose(launch_leader_t *leader, uint32_t rank, const char *why)
{
    Weft__Rendezvous__Lost body = WEFT__RENDEZVOUS__LOST__INIT;
    launch_message_t message = LAUNCH_MESSAGE(LOST, lost, &body);
    body.epoch = leader->epoch;
    body.rank = rank;
    body.why = (char *)why;
    leader->members[rank].is_here = false;
    answer_challenger(leader, &leader->members[rank]);
    send_to_all(leader, &message);
    launch_group_lose(leader->group, rank, why);
}

/* One that had come is gone: before all are here its place is free again. */
static void drop(launch_leader_t *leader, uint32_t rank, const char *why)
{
    launch_member_t *member = &leader->members[rank];
    forget_part(member);
    answer_challenger(leader, member);
    if (leader->is_formed && !member->has_left) {
        lose(leader, rank, why);
        return;
    }
    if (!leader->is_formed) {
        weft_log_warn("rank %u (%s) went before all had come: %s", rank, member->host, why);
        leader->n_here--;
    }
    *member = (launch_member_t){.has_left = member->has_left};
}

static void connection_ended(void *user, int fd)
{
    launch_leader_t *leader = user;
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        launch_member_t *member = &leader->members[rank];
        if (member->is_here && member->fd == fd) {
            member->fd = -1;
        }
    }
}

/* When all that came before the ends has been read: a goodbye may be among it. */
static void drop_ended(launch_leader_t *leader)
{
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        if (leader->members[rank].is_here && leader->members[rank].fd < 0) {
            drop(leader, rank, "its connection ended");
        }
    }
}

/* ---- joins ----------------------------------------------------------------------------------- */

static weft_status_t check_join(const launch_leader_t *leader, const Weft__Rendezvous__Join *join,
                                weft_diag_t *diag)
{
    const uint32_t size = leader->group->place.size;
    if (join->protocol != LAUNCH_PROTOCOL) {
        return weft_diag(diag, WEFT_ERR_DENIED,
                         "rendezvous protocol: rank %u has %u, the leader %u", join->rank,
                         join->protocol, LAUNCH_PROTOCOL);
    }
    if (join->size != size) {
        return weft_diag(diag, WEFT_ERR_DENIED, "number of ranks: rank %u has %u, the leader %u",
                         join->rank, join->size, size);
    }
    if (join->rank == 0 || join->rank >= size) {
        return weft_diag(diag, WEFT_ERR_DENIED, "rank %u: there are 1 to %u beside the leader",
                         join->rank, size - 1);
    }
    return launch_facts_compare(leader->group, join, diag);
}

static void form(launch_leader_t *leader)
{
    Weft__Rendezvous__Welcome body = WEFT__RENDEZVOUS__WELCOME__INIT;
    launch_message_t message = LAUNCH_MESSAGE(WELCOME, welcome, &body);
    const uint64_t now = weft_clock_ns();
    body.epoch = leader->epoch;
    leader->is_formed = true;
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        leader->members[rank].heard_ns = now;
    }
    send_to_all(leader, &message);
    weft_log_info("all %u ranks are here", leader->group->place.size);
    launch_group_set_joined(leader->group, leader->epoch);
}

static void take_in(launch_leader_t *leader, const Weft__Rendezvous__Join *join,
                    const launch_from_t *from)
{
    Weft__Rendezvous__Accept body = WEFT__RENDEZVOUS__ACCEPT__INIT;
    launch_message_t message = LAUNCH_MESSAGE(ACCEPT, accept, &body);
    launch_member_t *member = &leader->members[join->rank];
    const bool is_new = !member->is_here;
    *member = (launch_member_t){.is_here = true,
                                .route = from->route,
                                .fd = from->fd,
                                .incarnation = join->incarnation,
                                .heard_ns = weft_clock_ns()};
    snprintf(member->host, sizeof(member->host), "%s", join->host);
    leader->n_here += is_new ? 1 : 0;
    body.missing = leader->group->place.size - leader->n_here;
    send_to(leader, &from->route, &message);
    weft_log_info("rank %u has come (%s); %u of %u are here", join->rank, member->host,
                  leader->n_here, leader->group->place.size);
    if (body.missing == 0) {
        form(leader);
    }
}

/*
 * A second one for a place. Whether the first still lives is asked: its answer refuses the second for
 * good (heard), its silence frees the place.
 */
static void challenge(launch_leader_t *leader, const Weft__Rendezvous__Join *join,
                      const launch_from_t *from)
{
    launch_member_t *member = &leader->members[join->rank];
    if (member->has_challenger) {
        refuse(leader, &member->challenger, WEFT_ERR_IN_USE, false,
               "another one came for this rank");
    }
    member->has_challenger = true;
    member->challenger = from->route;
    snprintf(member->challenger_host, sizeof(member->challenger_host), "%s", join->host);
    beat(leader, &member->route, true);
}

static void take_join(launch_leader_t *leader, const Weft__Rendezvous__Join *join,
                      const launch_from_t *from)
{
    weft_diag_t diag = {0};
    const weft_status_t status = check_join(leader, join, &diag);
    if (status < 0) {
        weft_log_warn("join refused from=%s (%s): %s", from->address, join->host, diag.text);
        snprintf(leader->last_refusal, sizeof(leader->last_refusal), "%s", diag.text);
        refuse(leader, &from->route, status, true, diag.text);
        return;
    }
    const launch_member_t *member = &leader->members[join->rank];
    if (member->is_here && member->incarnation != join->incarnation) {
        challenge(leader, join, from);
    } else if (leader->is_formed) {
        refuse(leader, &from->route, WEFT_ERR_IN_USE, false,
               "the group has formed without this process");
    } else {
        take_in(leader, join, from);
    }
}

/* ---- what members say ------------------------------------------------------------------------ */

/* It lives, and means to stay. */
static void heard(launch_leader_t *leader, uint32_t rank)
{
    launch_member_t *member = &leader->members[rank];
    char reason[256];
    member->heard_ns = weft_clock_ns();
    if (member->has_challenger) {
        member->has_challenger = false;
        snprintf(reason, sizeof(reason), "rank %u is taken by %s, which lives", rank, member->host);
        weft_log_warn("join refused (%s): %s", member->challenger_host, reason);
        refuse(leader, &member->challenger, WEFT_ERR_IN_USE, true, reason);
    }
}

static void take_part(launch_leader_t *leader, uint32_t rank,
                      const Weft__Rendezvous__Gather *gather)
{
    launch_member_t *member = &leader->members[rank];
    uint8_t *copy = weft_alloc(gather->data.len + 1, "launch.gather");
    forget_part(member);
    if (copy == NULL) {
        lose(leader, rank, "no memory for what it gave");
        return;
    }
    if (gather->data.len > 0) {
        memcpy(copy, gather->data.data, gather->data.len);
    }
    member->part = copy;
    member->part_bytes = gather->data.len;
    member->part_sequence = gather->sequence;
}

static void take_of_member(launch_leader_t *leader, uint32_t rank, const launch_message_t *message)
{
    switch (message->body_case) {
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GATHER:
        if (leader->is_formed && message->gather->epoch == leader->epoch) {
            take_part(leader, rank, message->gather);
        }
        break;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_LOST:
        if (leader->is_formed && message->lost->epoch == leader->epoch) {
            lose(leader, rank, message->lost->why);
        }
        break;
    case WEFT__RENDEZVOUS__MESSAGE__BODY_GOODBYE:
        leader->members[rank].has_left = true;
        if (leader->is_formed) {
            weft_log_info("rank %u has left", rank);
        }
        break;
    default: /* a beat; nothing else is said to a leader */
        break;
    }
}

static bool is_last_word(const launch_message_t *message)
{
    return message->body_case == WEFT__RENDEZVOUS__MESSAGE__BODY_GOODBYE ||
           message->body_case == WEFT__RENDEZVOUS__MESSAGE__BODY_LOST;
}

static uint32_t rank_of(const launch_leader_t *leader, const launch_route_t *route)
{
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        const launch_member_t *member = &leader->members[rank];
        if (member->is_here && member->route.n == route->n &&
            memcmp(member->route.bytes, route->bytes, route->n) == 0) {
            return rank;
        }
    }
    return 0;
}

static void take_message(launch_leader_t *leader, zmq_msg_t *payload, const launch_from_t *from)
{
    launch_message_t *message = NULL;
    const uint32_t rank = rank_of(leader, &from->route);
    if (launch_message_decode(zmq_msg_data(payload), zmq_msg_size(payload), &message) < 0) {
        launch_door_log(&leader->door, from->address, "it sent what is no message of ranks");
        return;
    }
    if (message->body_case == WEFT__RENDEZVOUS__MESSAGE__BODY_JOIN) {
        take_join(leader, message->join, from);
    } else if (rank > 0) {
        if (!is_last_word(message)) {
            heard(leader, rank);
        }
        take_of_member(leader, rank, message);
    } else {
        weft_log_debug("a message of nobody who has joined from=%s", from->address);
    }
    launch_message_free(message);
}

/* [route][payload]; with other numbers of parts it is no message of ours. False: there is none. */
static bool receive(launch_leader_t *leader)
{
    launch_from_t from = {.fd = -1};
    zmq_msg_t payload;
    uint32_t more_parts = 0;
    const int n =
        zmq_recv(leader->router, from.route.bytes, sizeof(from.route.bytes), ZMQ_DONTWAIT);
    if (n < 0) {
        return false;
    }
    from.route.n = (size_t)n;
    zmq_msg_init(&payload);
    (void)zmq_msg_recv(&payload, leader->router, ZMQ_DONTWAIT);
    const char *address = zmq_msg_gets(&payload, "Peer-Address");
    snprintf(from.address, sizeof(from.address), "%s", address != NULL ? address : "?");
    from.fd = zmq_msg_get(&payload, ZMQ_SRCFD);
    for (bool is_more = zmq_msg_more(&payload) != 0; is_more; more_parts++) {
        zmq_msg_t rest;
        zmq_msg_init(&rest);
        is_more =
            zmq_msg_recv(&rest, leader->router, ZMQ_DONTWAIT) >= 0 && zmq_msg_more(&rest) != 0;
        zmq_msg_close(&rest);
    }
    launch_door_look(&leader->door);
    if (more_parts > 0 || from.route.n > sizeof(from.route.bytes)) {
        launch_door_log(&leader->door, from.address, "it sent what is no message of ranks");
    } else {
        take_message(leader, &payload, &from);
    }
    zmq_msg_close(&payload);
    return true;
}

/* ---- all-gathers ----------------------------------------------------------------------------- */

static void end_gather(launch_leader_t *leader, uint64_t sequence, weft_status_t status,
                       const char *reason, uint8_t *all, size_t n)
{
    Weft__Rendezvous__Gathered body = WEFT__RENDEZVOUS__GATHERED__INIT;
    launch_message_t message = LAUNCH_MESSAGE(GATHERED, gathered, &body);
    body.epoch = leader->epoch;
    body.sequence = sequence;
    body.status = status;
    body.reason = (char *)reason;
    body.data = (ProtobufCBinaryData){.len = n, .data = all};
    send_to_all(leader, &message);
    launch_group_end_gather(leader->group, sequence, status, reason, all, n);
}

/* Whether all parts of it are here, and of one size. reason [size]: why that will never be, or "". */
static bool has_all_parts(const launch_leader_t *leader, uint64_t sequence, size_t bytes,
                          char *reason, size_t size)
{
    bool has_all = true;
    reason[0] = '\0';
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        const launch_member_t *member = &leader->members[rank];
        const bool is_here = member->part != NULL && member->part_sequence == sequence;
        if (!is_here && member->has_left) {
            snprintf(reason, size, "rank %u has left", rank);
        }
        if (is_here && member->part_bytes != bytes) {
            snprintf(reason, size, "rank %u gave %zu bytes, the leader %zu", rank,
                     member->part_bytes, bytes);
        }
        has_all &= is_here && reason[0] == '\0';
    }
    return has_all;
}

static void gather(launch_leader_t *leader)
{
    launch_group_t *group = leader->group;
    char reason[128];
    uint8_t *all = NULL;
    pthread_mutex_lock(&group->lock);
    const uint64_t sequence = group->gather.sequence;
    const size_t bytes = group->gather.bytes;
    const bool is_wanted = group->gather.is_wanted && group->state == LAUNCH_JOINED;
    const bool is_complete =
        is_wanted && has_all_parts(leader, sequence, bytes, reason, sizeof(reason));
    if (is_complete) {
        all = weft_alloc(group->place.size * bytes + 1, "launch.gather");
    }
    if (all != NULL && bytes > 0) {
        memcpy(all, group->gather.mine, bytes);
    }
    pthread_mutex_unlock(&group->lock);
    if (!is_wanted || (!is_complete && reason[0] == '\0')) {
        return;
    }
    if (!is_complete) {
        end_gather(leader, sequence, WEFT_ERR_PEER_GONE, reason, NULL, 0);
        return;
    }
    if (all == NULL) {
        end_gather(leader, sequence, WEFT_ERR_NO_MEMORY, "no memory to gather in", NULL, 0);
        return;
    }
    for (uint32_t rank = 1; rank < group->place.size; rank++) {
        memcpy(all + rank * bytes, leader->members[rank].part, bytes);
        forget_part(&leader->members[rank]);
    }
    end_gather(leader, sequence, WEFT_OK, "", all, group->place.size * bytes);
    weft_free(all);
}

/* ---- time ------------------------------------------------------------------------------------ */

static void look_at_members(launch_leader_t *leader, uint64_t now)
{
    const launch_group_t *group = leader->group;
    const bool is_time = now >= leader->next_beat_ns;
    if (is_time) {
        leader->next_beat_ns = now + group->lost_after_ns / 4;
    }
    for (uint32_t rank = 1; rank < group->place.size; rank++) {
        const launch_member_t *member = &leader->members[rank];
        if (!member->is_here || member->has_left) {
            continue;
        }
        if (now - member->heard_ns > group->lost_after_ns) {
            char why[64];
            snprintf(why, sizeof(why), "no heartbeat for %u s",
                     (unsigned)(group->lost_after_ns / WEFT_NS_PER_SECOND));
            drop(leader, rank, why);
        } else if (is_time) {
            beat(leader, &member->route, false);
        }
    }
}

/* "1, 3 and 5 more" */
static void name_missing(const launch_leader_t *leader, char *text, size_t size)
{
    size_t length = 0;
    uint32_t named = 0;
    uint32_t unnamed = 0;
    text[0] = '\0';
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        if (leader->members[rank].is_here) {
            continue;
        }
        if (named == 16) {
            unnamed++;
            continue;
        }
        length += (size_t)snprintf(text + length, size - length, named > 0 ? ", %u" : "%u", rank);
        named++;
    }
    if (unnamed > 0) {
        snprintf(text + length, size - length, " and %u more", unnamed);
    }
}

static void give_up(launch_leader_t *leader)
{
    char missing[160];
    char reason[WEFT_DIAG_BYTES + 256];
    name_missing(leader, missing, sizeof(missing));
    snprintf(reason, sizeof(reason), "ranks that did not come within %u s, of %u: %s%s%s",
             (unsigned)(leader->group->join_timeout_ns / WEFT_NS_PER_SECOND),
             leader->group->place.size, missing,
             leader->last_refusal[0] != '\0' ? "; refused: " : "", leader->last_refusal);
    for (uint32_t rank = 1; rank < leader->group->place.size; rank++) {
        if (leader->members[rank].is_here) {
            refuse(leader, &leader->members[rank].route, WEFT_ERR_TIMEOUT, true, reason);
        }
    }
    launch_group_end(leader->group, WEFT_ERR_TIMEOUT, "%s", reason);
}

static void look_at_clock(launch_leader_t *leader)
{
    const uint64_t now = weft_clock_ns();
    look_at_members(leader, now);
    if (!leader->is_formed && now >= leader->group->join_deadline_ns &&
        launch_group_state(leader->group) == LAUNCH_MEETING) {
        give_up(leader);
    }
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void take_wishes(launch_leader_t *leader)
{
    char why[LAUNCH_WHY_BYTES];
    launch_group_drain_wake(leader->group);
    if (launch_group_take_failure(leader->group, why)) {
        lose(leader, 0, why);
    }
    if (leader->is_formed) {
        gather(leader);
    }
}

static void turn(launch_leader_t *leader)
{
    zmq_pollitem_t items[] = {
        {.fd = leader->group->wake_fd, .events = ZMQ_POLLIN},
        {.socket = leader->router, .events = ZMQ_POLLIN},
        {.socket = leader->door.monitor, .events = ZMQ_POLLIN},
        {.socket = leader->door.zap, .events = ZMQ_POLLIN},
    };
    const uint64_t next =
        !leader->is_formed && leader->group->join_deadline_ns < leader->next_beat_ns
            ? leader->group->join_deadline_ns
            : leader->next_beat_ns;
    zmq_poll(items, 4, launch_group_wait_ms(next));
    launch_door_answer(&leader->door);
    launch_door_look(&leader->door);
    bool is_read = false;
    for (int i = 0; i < MESSAGES_A_TURN && !is_read; i++) {
        is_read = !receive(leader);
        launch_door_answer(&leader->door);
    }
    if (is_read) {
        drop_ended(leader);
    }
    take_wishes(leader);
    look_at_clock(leader);
}

static void say_goodbye(launch_leader_t *leader)
{
    Weft__Rendezvous__Goodbye body = WEFT__RENDEZVOUS__GOODBYE__INIT;
    launch_message_t message = LAUNCH_MESSAGE(GOODBYE, goodbye, &body);
    body.epoch = leader->epoch;
    send_to_all(leader, &message);
}

static weft_status_t open_leader(launch_leader_t *leader)
{
    const uint32_t size = leader->group->place.size;
    leader->members = weft_calloc(size, sizeof(*leader->members), "launch.members");
    if (leader->members == NULL) {
        launch_group_end(leader->group, WEFT_ERR_NO_MEMORY, "no memory for %u ranks", size);
        return WEFT_ERR_NO_MEMORY;
    }
    leader->n_here = 1;
    leader->epoch = leader->group->incarnation;
    return launch_door_open(leader->group, connection_ended, leader, &leader->door,
                            &leader->router);
}

void launch_leader_run(launch_group_t *group)
{
    launch_leader_t leader = {.group = group};
    if (open_leader(&leader) == WEFT_OK) {
        if (group->place.size == 1) {
            form(&leader);
        }
        while (!launch_group_is_stopping(group)) {
            turn(&leader);
        }
        say_goodbye(&leader);
    }
    launch_door_close(&leader.door);
    for (uint32_t rank = 0; leader.members != NULL && rank < group->place.size; rank++) {
        forget_part(&leader.members[rank]);
    }
    weft_free(leader.members);
}
