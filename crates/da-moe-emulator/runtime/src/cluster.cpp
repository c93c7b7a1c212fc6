// Clusters: blocks that are alive together, meet at a barrier of their own and reach each other's shared memory.
#include "collective.h"
#include "emulator/ptx.h"

namespace emu {

namespace {

unsigned living_threads(const Cluster& cluster) {
    unsigned count = 0;
    for (const Block* block : cluster.blocks) {
        count += block->thread_count - block->exited;
    }
    return count;
}

// Starts the next phase if nobody is missing in this one.
void advance(Cluster& cluster) {
    if (cluster.missing > 0 || cluster.arrived == 0) {
        return;
    }
    // Nobody needs what the last phase told any more: who arrived for this one had waited for that.
    cluster.complete = std::move(cluster.gathering);
    cluster.gathering = {};
    cluster.phase++;
    cluster.arrived = 0;
    cluster.missing = living_threads(cluster);
    for (Block* block : cluster.blocks) {
        block->machine->progress();
        for (Thread* thread : block->threads) {
            if (thread->wait == Wait::Cluster) {
                wake(*thread);
            }
        }
    }
}

// A warp arrives as a whole.
void arrive_at_cluster(Warp& warp, void**, uint32_t mask) {
    Cluster& cluster = *warp.block->cluster;
    if (!cluster.gathering) {
        cluster.gathering = Ref<Foreign>(new Foreign);
    }
    cluster.gathering->join(release_lanes(warp, mask), warp.block->number);
    for (uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) {
        Thread& lane = *warp.lanes[__builtin_ctz(lanes)];
        lane.cluster_arrived = true;
        lane.cluster_phase = cluster.phase;
    }
    const auto count = static_cast<unsigned>(__builtin_popcount(mask));
    cluster.arrived += count;
    cluster.missing -= count;
    advance(cluster);
}

bool knows(const Block& block, const Reach& reach) {
    return std::any_of(block.threads.begin(), block.threads.end(), [&](const Thread* thread) {
        return thread->agent.ordered(reach.block, reach.agent, reach.clock);
    });
}

}  // namespace

uint32_t cluster_rank() {
    return current().block->rank;
}

uint32_t map_shared(uint32_t address, uint32_t rank) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    if (address >= SHARED_ARENA) {
        self.machine->fail(Kind::OutOfBounds, site, "mapa of 0x%x, which is no shared address of this block", address);
    }
    if (rank >= self.block->cluster->blocks.size()) {
        self.machine->fail(Kind::OutOfBounds, site, "mapa to rank %u of a cluster of %zu blocks", rank,
                           self.block->cluster->blocks.size());
    }
    return (rank + 1) << MAP_SHIFT | address;
}

Block& cluster_block(Block& of, uint32_t rank) {
    return *of.cluster->blocks[rank];
}

ClusterPlace cluster_place(Thread& self, uint32_t address, const char* operation, Site site) {
    const uint32_t rank = is_mapped(address) ? (address >> MAP_SHIFT) - 1 : self.block->rank;
    if (rank >= self.block->cluster->blocks.size()) {
        self.machine->fail(Kind::OutOfBounds, site, "%s at 0x%x, which is in no block of the cluster", operation,
                           address);
    }
    return {cluster_block(*self.block, rank), address & ((1u << MAP_SHIFT) - 1)};
}

void cluster_arrive(Location here) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    if (self.cluster_arrived) {
        self.machine->fail(Kind::Async, site, "barrier.cluster.arrive again, without a wait between");
    }
    warp_collective(self, "barrier.cluster.arrive", FULL_MASK, nullptr, arrive_at_cluster, here, site);
    perhaps_yield(self, 4);
}

void cluster_wait(Location here) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    if (!self.cluster_arrived) {
        self.machine->fail(Kind::Async, site, "barrier.cluster.wait without an arrive before");
    }
    warp_collective(self, "barrier.cluster.wait", FULL_MASK, nullptr, nullptr, here, site);
    const Cluster& cluster = *self.block->cluster;
    if (cluster.phase == self.cluster_phase) {
        block_thread(self, Wait::Cluster, "barrier.cluster.wait", here);
    }
    self.cluster_arrived = false;
    self.agent.known.join(*cluster.complete, self.block->number);
    perhaps_yield(self, 4);
}

void leave_cluster(Thread& self) {
    Cluster& cluster = *self.block->cluster;
    const bool has_arrived = self.cluster_arrived && self.cluster_phase == cluster.phase;
    cluster.missing -= has_arrived ? 0 : 1;
    advance(cluster);
}

void reach(Block& block, const Agent& who, const char* operation, Site site) {
    if (has_ended(block)) {
        block.machine->fail_by(who.block, who.index, Kind::Async, site, "%s at %s of the cluster, which has ended",
                               operation, name_of(block).text);
    }
    for (Reach& earlier : block.reaches) {
        if (earlier.block == who.block && earlier.agent == who.index) {
            earlier = {who.block, who.index, who.clock, operation, site};
            return;
        }
    }
    block.reaches.push_back({who.block, who.index, who.clock, operation, site});
}

void check_end(Block& block) {
    Machine& machine = *block.machine;
    if (!block.tma.empty()) {
        machine.fail(Kind::Async, block.tma[0].site, "a block ends while a TMA copy to its shared memory is in flight");
    }
    if (!block.copy_arrivals.empty()) {
        machine.fail(Kind::Async, block.copy_arrivals[0].site,
                     "a block ends while copies that an mbarrier waits for are in flight");
    }
    for (const Reach& reach : block.reaches) {
        if (!knows(block, reach)) {
            machine.fail_by(reach.block, reach.agent, Kind::Async, reach.site,
                            "%s at %s, no thread of which waits for that before it ends", reach.operation,
                            name_of(block).text);
        }
    }
    check_registers(block);
}

}  // namespace emu
