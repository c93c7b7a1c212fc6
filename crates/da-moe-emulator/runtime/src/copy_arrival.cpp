// cp.async with an mbarrier: the copies come while the thread goes on, and arrive for it.
#include "machine.h"

namespace emu {

namespace {

bool is_forgotten(const Thread& thread, const std::vector<CpAsync>& copies) {
    return !copies.empty() && copies.back().number >= thread.copies_tracked;
}

// Of copies in the order of their numbers, those below `end`.
void land_first(Block& block, std::vector<CpAsync>& copies, uint64_t end, const Agent& who) {
    auto rest = copies.begin();
    for (; rest != copies.end() && rest->number < end; ++rest) {
        land(block, *rest, who);
    }
    copies.erase(copies.begin(), rest);
}

}  // namespace

void track_copies(Thread& self, uint32_t mbarrier, Site site) {
    self.copies_tracked = self.copies_started;
    self.block->copy_arrivals.push_back({&self, self.copies_started, mbarrier, self.agent.release().told(), site});
}

void run_copy_arrival(Block& block, size_t number) {
    // A thread's arrivals come in order: each waits for the copies of those before.
    auto& all = block.copy_arrivals;
    const Thread* of = all[number].thread;
    const auto first = std::find_if(all.begin(), all.end(), [&](const CopyArrival& a) { return a.thread == of; });
    const CopyArrival arrival = std::move(*first);
    all.erase(first);
    Thread& thread = *arrival.thread;
    Agent agent;
    agent.block = block.number;
    agent.index = FIRST_COPY_AGENT + arrival.mbarrier / 8 % COPY_AGENTS;
    agent.clock = ++block.engine_clocks[agent.index];
    agent.barriers = Agent::NO_BARRIERS;
    agent.known = arrival.known;
    for (auto& group : thread.copy_groups) {
        land_first(block, group, arrival.copies, agent);
    }
    land_first(block, thread.copies, arrival.copies, agent);
    // Of the thread's other accesses nothing is told: the arrival is the copies'.
    if (!thread.copies_come) {
        thread.copies_come = Ref<Clocks>(new Clocks(block.agents));
    }
    thread.copies_come.unique().at[agent.index] = agent.clock;
    reach(block, agent, "cp.async.mbarrier.arrive", arrival.site);
    mbarrier_copies_came(block, arrival.mbarrier, {thread.copies_come, {}}, arrival.site);
}

bool has_forgotten_copies(const Thread& thread) {
    const auto& groups = thread.copy_groups;
    return is_forgotten(thread, thread.copies) ||
           std::any_of(groups.begin(), groups.end(), [&](const auto& group) { return is_forgotten(thread, group); });
}

}  // namespace emu
