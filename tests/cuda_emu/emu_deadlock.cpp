/* SPDX-License-Identifier: Apache-2.0 */
/* Who waits for what, when nobody can go on. */
#include <algorithm>

#include "tests/cuda_emu/emu_machine.h"

namespace emu
{

static bool is_alike(const Thread &a, const Thread &b)
{
    return a.state == State::waiting && b.state == State::waiting && a.waits_for == b.waits_for &&
           a.waits_detail == b.waits_detail;
}

/* "0..31, 64": those that wait like `first`. */
static std::string list_alike(const std::vector<Thread> &threads, const Thread &first)
{
    std::string text;
    for (size_t i = 0; i < threads.size(); i++) {
        if (!is_alike(threads[i], first)) {
            continue;
        }
        size_t last = i;
        while (last + 1 < threads.size() && is_alike(threads[last + 1], first)) {
            last++;
        }
        text += (text.empty() ? "" : ", ") + std::to_string(i);
        text += last > i ? ".." + std::to_string(last) : "";
        i = last;
    }
    return text;
}

std::string describe_waiting(const Block &block)
{
    const std::vector<Thread> &threads = block.threads;
    std::string text;
    for (size_t i = 0; i < threads.size(); i++) {
        const Thread &thread = threads[i];
        bool is_told = std::any_of(threads.begin(), threads.begin() + static_cast<ptrdiff_t>(i),
                                   [&](const Thread &one) { return is_alike(one, thread); });
        if (thread.state != State::waiting || is_told) {
            continue;
        }
        text += "\n    threads " + list_alike(threads, thread) + " wait for " + thread.waits_for;
        text += thread.waits_detail != 0 ? " " + std::to_string(thread.waits_detail) : "";
    }
    size_t done =
        static_cast<size_t>(std::count_if(threads.begin(), threads.end(), [](const Thread &thread) {
            return thread.state == State::done;
        }));
    return text + "\n    " + std::to_string(done) + " of " + std::to_string(threads.size()) +
           " threads have ended";
}

} // namespace emu
