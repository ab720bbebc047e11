/* SPDX-License-Identifier: Apache-2.0 */
/* simt_warp.h: lanes, shuffles and votes. */
#include <algorithm>

#include "kernels/cuda/simt/simt.h"
#include "tests/cuda_emu/emu_meeting.h"
#include "tests/cuda_emu/emu_shadow.h"

namespace emu
{

static int lane_of(const Thread &thread)
{
    return thread.linear % warp_size;
}

static Meeting &find_meeting(Warp &warp, const char *what, uint64_t detail, uint32_t mask)
{
    for (std::unique_ptr<Meeting> &open : warp.open) {
        if ((open->mask & mask) == 0) {
            continue;
        }
        if (open->mask != mask || strcmp(open->what, what) != 0 || open->detail != detail) {
            fail(cudaErrorLaunchFailure,
                 "%s with mask %08x meets %s with mask %08x of the same warp%s", what, mask,
                 open->what, open->mask, open->detail != detail ? " (of another size)" : "");
        }
        return *open;
    }
    if (warp.spare.empty()) {
        warp.spare.push_back(std::make_unique<Meeting>());
    }
    warp.open.push_back(std::move(warp.spare.back()));
    warp.spare.pop_back();
    Meeting &meeting = *warp.open.back();
    meeting.what = what;
    meeting.detail = detail;
    meeting.mask = mask;
    meeting.arrived = 0;
    return meeting;
}

static void close_meeting(Warp &warp, const Meeting &meeting)
{
    auto at = std::find_if(warp.open.begin(), warp.open.end(),
                           [&](const auto &open) { return open.get() == &meeting; });
    (*at)->waiting.clear();
    warp.spare.push_back(std::move(*at));
    warp.open.erase(at);
}

void meet_lanes(const char *what, uint64_t detail, uint32_t mask, void *argument,
                compute_fn compute)
{
    Warp &warp = now_block->warps[static_cast<size_t>(now->linear / warp_size)];
    int lane = lane_of(*now);
    now->waited_at = nullptr;
    if ((mask >> lane & 1) == 0) {
        fail(cudaErrorLaunchFailure, "%s: lane %d is not in its own mask %08x", what, lane, mask);
    }
    if ((mask & warp.done) != 0) {
        fail(cudaErrorLaunchFailure, "%s: mask %08x names lanes that have ended (%08x)", what, mask,
             warp.done);
    }
    Meeting &meeting = find_meeting(warp, what, detail, mask);
    meeting.arguments[lane] = argument;
    meeting.arrived |= 1u << lane;
    if (meeting.arrived != mask) {
        meeting.waiting.push_back(now);
        wait_here(what, mask == all_lanes ? 0 : mask);
        return;
    }
    compute(meeting);
    for (Thread *thread : meeting.waiting) {
        make_ready(*thread);
    }
    close_meeting(warp, meeting);
}

void warp_thread_ended(Block &block, Thread &thread)
{
    Warp &warp = block.warps[static_cast<size_t>(thread.linear / warp_size)];
    uint32_t bit = 1u << lane_of(thread);
    warp.done |= bit;
    for (const std::unique_ptr<Meeting> &open : warp.open) {
        if ((open->mask & bit) != 0) {
            fail(cudaErrorLaunchFailure, "ends while %s of its warp waits for it (mask %08x)",
                 open->what, open->mask);
        }
    }
}

/* ---- shuffles ------------------------------------------------------------------------------- */

namespace
{
struct Exchange {
    emu_shuffle_t how;
    void *value;
    size_t bytes;
    int argument;
};

constexpr size_t max_exchange = 1024;

int source_lane(const Exchange &exchange, int lane)
{
    int source = lane;
    switch (exchange.how) {
    case EMU_FROM_LANE:
        return exchange.argument & (warp_size - 1);
    case EMU_FROM_XOR:
        source = lane ^ exchange.argument;
        break;
    case EMU_FROM_DOWN:
        source = lane + exchange.argument;
        break;
    case EMU_FROM_UP:
        source = lane - exchange.argument;
        break;
    }
    return source < 0 || source >= warp_size ? lane : source;
}

void exchange_values(Meeting &meeting)
{
    uint8_t before[warp_size][max_exchange];
    for (int lane = 0; lane < warp_size; lane++) {
        if ((meeting.mask >> lane & 1) != 0) {
            const Exchange &mine = *static_cast<Exchange *>(meeting.arguments[lane]);
            memcpy(before[lane], mine.value, mine.bytes);
        }
    }
    for (int lane = 0; lane < warp_size; lane++) {
        if ((meeting.mask >> lane & 1) == 0) {
            continue;
        }
        const Exchange &mine = *static_cast<Exchange *>(meeting.arguments[lane]);
        int source = source_lane(mine, lane);
        if ((meeting.mask >> source & 1) == 0) {
            fail(cudaErrorLaunchFailure, "a shuffle of lane %d reads lane %d, outside of mask %08x",
                 lane, source, meeting.mask);
        }
        memcpy(mine.value, before[source], mine.bytes);
    }
}

struct Butterfly {
    float *v;
    int n;
    int lanes;
    bool is_max;
};

void reduce_butterfly(Meeting &meeting)
{
    const Butterfly &first = *static_cast<Butterfly *>(meeting.arguments[0]);
    float v[warp_size];
    for (int i = 0; i < first.n; i++) {
        for (int lane = 0; lane < warp_size; lane++) {
            v[lane] = static_cast<Butterfly *>(meeting.arguments[lane])->v[i];
        }
        for (int bits = first.lanes / 2; bits > 0; bits /= 2) {
            float next[warp_size];
            for (int lane = 0; lane < warp_size; lane++) {
                float other = v[lane ^ bits];
                next[lane] = first.is_max ? fmaxf(v[lane], other) : v[lane] + other;
            }
            memcpy(v, next, sizeof(v));
        }
        for (int lane = 0; lane < warp_size; lane++) {
            static_cast<Butterfly *>(meeting.arguments[lane])->v[i] = v[lane];
        }
    }
}

struct Vote {
    bool flag;
    uint32_t ballot;
};

void count_votes(Meeting &meeting)
{
    uint32_t ballot = 0;
    for (int lane = 0; lane < warp_size; lane++) {
        if ((meeting.mask >> lane & 1) != 0 && static_cast<Vote *>(meeting.arguments[lane])->flag) {
            ballot |= 1u << lane;
        }
    }
    for (int lane = 0; lane < warp_size; lane++) {
        if ((meeting.mask >> lane & 1) != 0) {
            static_cast<Vote *>(meeting.arguments[lane])->ballot = ballot;
        }
    }
}

void order_lanes(Meeting &meeting)
{
    if (now_block->grid->is_checked) {
        std::vector<Thread *> threads = meeting.waiting;
        threads.push_back(now);
        shadow_join(threads);
    }
}

void compute_nothing(Meeting &)
{
}
} // namespace

} // namespace emu

using namespace emu;

int simt_lane(void)
{
    return now->linear % warp_size;
}

int simt_warp(void)
{
    return now->linear / warp_size;
}

void emu_shuffle_bytes(emu_shuffle_t how, void *value, size_t bytes, int argument, uint32_t mask)
{
    if (bytes > max_exchange) {
        fail(cudaErrorLaunchFailure, "a shuffle of %zu bytes; at most %zu", bytes, max_exchange);
    }
    Exchange mine = {how, value, bytes, argument};
    meet_lanes("a shuffle", bytes << 2 | how, mask, &mine, exchange_values);
}

void emu_butterfly(float *v, int n, int lanes, bool is_max)
{
    Butterfly mine = {v, n, lanes, is_max};
    meet_lanes(is_max ? "simt_warp_max" : "simt_warp_sum",
               static_cast<uint64_t>(n) << 8 | static_cast<uint64_t>(lanes), all_lanes, &mine,
               reduce_butterfly);
}

float simt_warp_sum(float v, int lanes)
{
    emu_butterfly(&v, 1, lanes, false);
    return v;
}

float simt_warp_max(float v, int lanes)
{
    emu_butterfly(&v, 1, lanes, true);
    return v;
}

static uint32_t vote(const char *what, bool flag, uint32_t mask)
{
    Vote mine = {flag, 0};
    meet_lanes(what, 0, mask, &mine, count_votes);
    return mine.ballot;
}

uint32_t simt_ballot(bool flag, uint32_t mask)
{
    return vote("simt_ballot", flag, mask);
}

bool simt_any(bool flag, uint32_t mask)
{
    return vote("simt_any", flag, mask) != 0;
}

bool simt_all(bool flag, uint32_t mask)
{
    return vote("simt_all", flag, mask) == mask;
}

void simt_sync_warp(uint32_t mask)
{
    meet_lanes("simt_sync_warp", 0, mask, nullptr, order_lanes);
}

bool simt_elect(void)
{
    meet_lanes("simt_elect", 0, all_lanes, nullptr, compute_nothing);
    return simt_lane() == 0;
}
