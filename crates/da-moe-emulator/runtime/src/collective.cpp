// Shuffles, votes, reductions and __syncwarp.
#include "collective.h"

namespace emu {

namespace {

// The open collective with this mask, or a new one. Others may be open only for other lanes.
Collective& find_collective(Thread& self, const char* name, uint32_t mask, Location here, Site site) {
    Warp& warp = *self.warp;
    for (unsigned i = 0; i < warp.collective_count; i++) {
        Collective& open = warp.collectives[i];
        if (open.mask == mask) {
            if (!same_text(open.name, name) || open.at.line != here.line || !same_text(open.at.file, here.file)) {
                self.machine->fail(Kind::Divergence, site, "%s while lanes 0x%x of the warp wait in %s at %s:%d", name,
                                   open.arrived, open.name, open.at.file, open.at.line);
            }
            return open;
        }
        if (open.mask & mask) {
            self.machine->fail(Kind::Divergence, site,
                               "%s with mask 0x%x overlaps the pending %s with mask 0x%x at %s:%d", name, mask,
                               open.name, open.mask, open.at.file, open.at.line);
        }
    }
    const Barrier& barrier = self.block->barriers[0];
    for (unsigned i = 0; i < WARP && barrier.arrived > 0 && barrier.whole_block; i++) {
        const Thread* lane = warp.lanes[i];
        if (lane && mask >> i & 1 && lane->wait == Wait::Barrier && lane->waits_barrier == 0) {
            self.machine->fail(Kind::Divergence, site, "%s with mask 0x%x, of which lane %u waits in %s at %s:%d", name,
                               mask, lane->lane, lane->waits_in, barrier.at.file, barrier.at.line);
        }
    }
    Collective& fresh = warp.collectives[warp.collective_count++];
    fresh.mask = mask;
    fresh.arrived = 0;
    fresh.name = name;
    fresh.at = here;
    return fresh;
}

}  // namespace

void warp_collective(Thread& self, const char* name, uint32_t mask, void* record, CollectiveAction action,
                     Location here, Site site) {
    Machine& machine = *self.machine;
    Warp& warp = *self.warp;
    const uint32_t me = 1u << self.lane;
    // A full mask in a warp that is not full is common and harmless.
    mask &= warp.exist;
    if (!(mask & me)) {
        machine.fail(Kind::Divergence, site, "%s with mask 0x%x, which does not name the calling lane", name, mask);
    }
    if (mask & warp.exited) {
        machine.fail(Kind::Divergence, site, "%s with mask 0x%x, of which lanes 0x%x have ended", name, mask,
                     mask & warp.exited);
    }
    Collective& collective = find_collective(self, name, mask, here, site);
    collective.records[self.lane] = record;
    collective.arrived |= me;
    if (collective.arrived != mask) {
        block_thread(self, Wait::Collective, name, here);
        return;
    }
    if (mask == warp.exist) {
        warp.traffic.close(machine.traffic);
    }
    if (action) {
        action(warp, collective.records, mask);
    }
    if (&collective != &warp.collectives[--warp.collective_count]) {
        collective = warp.collectives[warp.collective_count];
    }
    machine.progress();
    const uint32_t others = mask & ~me;
    for (uint32_t rest = others; rest != 0; rest &= rest - 1) {
        warp.lanes[__builtin_ctz(rest)]->wait = Wait::Nothing;
    }
    warp.ready |= others;
    if (others != 0) {
        enqueue(warp);
        if (machine.policy != Policy::RoundRobin && machine.random.one_in(4)) {
            leave(self);  // the last lane does not always run ahead
        }
    }
}

void check_warpgroup(Thread& self, const char* name, Site site) {
    const bool whole = self.block->thread_count >= (self.warp->number / 4 + 1) * 4 * WARP;
    if (!whole) {
        self.machine->fail(Kind::Divergence, site, "%s in a warpgroup of less than 128 threads", name);
    }
}

namespace {

struct ShuffleRecord {
    uint64_t value, result;
    int argument, width;
    Shuffle mode;
};

int shuffle_source(const ShuffleRecord& record, int lane) {
    const int first = lane & ~(record.width - 1);
    const int end = first + record.width;
    int source = lane;
    switch (record.mode) {
        case Shuffle::Index:
            return first | (record.argument & (record.width - 1));
        case Shuffle::Up:
            source = lane - record.argument;
            break;
        case Shuffle::Down:
            source = lane + record.argument;
            break;
        case Shuffle::Xor:
            source = lane ^ record.argument;
            return source < end ? source : lane;
    }
    return source >= first && source < end ? source : lane;
}

void exchange(Warp&, void** records, uint32_t mask) {
    // What the manual leaves undefined: the value of a lane that takes no part.
    constexpr uint64_t undefined = 0xdeadbeefdeadbeefull;
    for (int lane = 0; lane < static_cast<int>(WARP); lane++) {
        if (mask >> lane & 1) {
            auto& record = *static_cast<ShuffleRecord*>(records[lane]);
            const int source = shuffle_source(record, lane);
            const bool defined = mask >> source & 1;
            record.result = defined ? static_cast<ShuffleRecord*>(records[source])->value : undefined;
        }
    }
}

const char* shuffle_name(Shuffle mode) {
    switch (mode) {
        case Shuffle::Index:
            return "__shfl_sync";
        case Shuffle::Up:
            return "__shfl_up_sync";
        case Shuffle::Down:
            return "__shfl_down_sync";
        default:
            return "__shfl_xor_sync";
    }
}

// A value of each lane, and one result for each.
struct WordRecord {
    uint64_t value, result;
    int mode;
};

const char* vote_name(Vote mode) {
    return mode == Vote::Ballot ? "__ballot_sync" : mode == Vote::Any ? "__any_sync" : "__all_sync";
}

void count_votes(Warp&, void** records, uint32_t mask) {
    uint32_t ballot = 0;
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            ballot |= (static_cast<WordRecord*>(records[lane])->value != 0 ? 1u : 0u) << lane;
        }
    }
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            auto& record = *static_cast<WordRecord*>(records[lane]);
            const auto mode = static_cast<Vote>(record.mode);
            record.result = mode == Vote::Ballot ? ballot : mode == Vote::Any ? ballot != 0 : ballot == mask;
        }
    }
}

void find_matches(Warp&, void** records, uint32_t mask) {
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (!(mask >> lane & 1)) {
            continue;
        }
        auto& record = *static_cast<WordRecord*>(records[lane]);
        record.result = 0;
        for (uint32_t other = 0; other < WARP; other++) {
            if (mask >> other & 1 && static_cast<WordRecord*>(records[other])->value == record.value) {
                record.result |= 1u << other;
            }
        }
    }
}

uint32_t combine(Reduce mode, uint32_t a, uint32_t b) {
    const auto signed_a = static_cast<int32_t>(a);
    const auto signed_b = static_cast<int32_t>(b);
    switch (mode) {
        case Reduce::Add:
            return a + b;
        case Reduce::Min:
            return std::min(a, b);
        case Reduce::Max:
            return std::max(a, b);
        case Reduce::MinSigned:
            return static_cast<uint32_t>(std::min(signed_a, signed_b));
        case Reduce::MaxSigned:
            return static_cast<uint32_t>(std::max(signed_a, signed_b));
        case Reduce::And:
            return a & b;
        case Reduce::Or:
            return a | b;
        default:
            return a ^ b;
    }
}

const char* reduce_name(Reduce mode) {
    switch (mode) {
        case Reduce::Add:
            return "__reduce_add_sync";
        case Reduce::Min:
        case Reduce::MinSigned:
            return "__reduce_min_sync";
        case Reduce::Max:
        case Reduce::MaxSigned:
            return "__reduce_max_sync";
        case Reduce::And:
            return "__reduce_and_sync";
        case Reduce::Or:
            return "__reduce_or_sync";
        default:
            return "__reduce_xor_sync";
    }
}

void reduce_words(Warp&, void** records, uint32_t mask) {
    const auto first = static_cast<uint32_t>(__builtin_ctz(mask));
    const auto mode = static_cast<Reduce>(static_cast<WordRecord*>(records[first])->mode);
    auto total = static_cast<uint32_t>(static_cast<WordRecord*>(records[first])->value);
    for (uint32_t lane = first + 1; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            total = combine(mode, total, static_cast<uint32_t>(static_cast<WordRecord*>(records[lane])->value));
        }
    }
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            static_cast<WordRecord*>(records[lane])->result = total;
        }
    }
}

// __syncwarp orders memory among its lanes. The other collectives do not: CUDA promises nothing.
void join_lanes(Warp& warp, void**, uint32_t mask) {
    const Knowledge known = release_lanes(warp, mask);
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            warp.lanes[lane]->agent.known = known;
        }
    }
}

}  // namespace

Knowledge release_lanes(Warp& warp, uint32_t mask) {
    Knowledge known;
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            known.join(warp.lanes[lane]->agent.known);
        }
    }
    Clocks& clocks = known.own.unique();
    for (uint32_t lane = 0; lane < WARP; lane++) {
        if (mask >> lane & 1) {
            Agent& agent = warp.lanes[lane]->agent;
            clocks.at[agent.index] = agent.clock++;
        }
    }
    return known;
}

uint64_t shuffle(Shuffle mode, uint32_t mask, uint64_t value, int argument, int width, Location here) {
    ShuffleRecord record{value, 0, argument, width, mode};
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    if (width <= 0 || width > static_cast<int>(WARP) || (width & (width - 1)) != 0) {
        self.machine->fail(Kind::Divergence, site, "%s with width %d, which is no power of two up to 32",
                           shuffle_name(mode), width);
    }
    warp_collective(self, shuffle_name(mode), mask, &record, exchange, here, site);
    return record.result;
}

uint32_t vote(Vote mode, uint32_t mask, int predicate, Location here) {
    WordRecord record{static_cast<uint64_t>(predicate != 0), 0, static_cast<int>(mode)};
    const Site site = site_of(__builtin_return_address(0));
    warp_collective(current(), vote_name(mode), mask, &record, count_votes, here, site);
    return static_cast<uint32_t>(record.result);
}

void sync_warp(uint32_t mask, Location here) {
    warp_collective(current(), "__syncwarp", mask, nullptr, join_lanes, here, site_of(__builtin_return_address(0)));
}

uint32_t match_any(uint32_t mask, uint64_t value, Location here) {
    WordRecord record{value, 0, 0};
    const Site site = site_of(__builtin_return_address(0));
    warp_collective(current(), "__match_any_sync", mask, &record, find_matches, here, site);
    return static_cast<uint32_t>(record.result);
}

uint32_t reduce(Reduce mode, uint32_t mask, uint32_t value, Location here) {
    WordRecord record{value, 0, static_cast<int>(mode)};
    const Site site = site_of(__builtin_return_address(0));
    warp_collective(current(), reduce_name(mode), mask, &record, reduce_words, here, site);
    return static_cast<uint32_t>(record.result);
}

}  // namespace emu
