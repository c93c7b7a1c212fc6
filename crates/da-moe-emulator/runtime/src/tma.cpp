// The tensor memory accelerator: boxes of tensors in global memory, copied to shared memory while threads run.
#include "machine.h"

namespace emu {

namespace {

constexpr const char* LOAD = "cp.async.bulk.tensor";

// What was known at a moment of block `from`, as an agent of block `to` knows it.
Knowledge known_in(const Moment& moment, const Block& from, const Block& to) {
    if (&from == &to) {
        return moment.told();
    }
    Foreign told;
    told.join(moment.told(), from.number);
    Knowledge known{Ref<Clocks>(new Clocks(to.agents)), {}};
    known.join(told, to.number);
    return known;
}

// Rows inside the tensor are there to be read, and written before. What nothing has written yet may be taken along.
void check_source(Thread& self, const EncodedMap& map, const int* at, Site site) {
    Machine& machine = *self.machine;
    for_each_row(map, at, [&](const BoxRow& row) {
        if (row.bytes > 0) {
            Access access{self.agent, AccessKind::Read, "TMA read", site, false};
            access.unwritten_too = true;
            access_global(machine, row.address, row.bytes, access);
            count_background(machine, row.bytes);
        }
    });
}

void check_target(Thread& self, Block& block, const TmaCopy& copy) {
    Machine& machine = *self.machine;
    if (copy.target % 128 != 0) {
        machine.fail(Kind::Misaligned, copy.site, "%s to shared address 0x%x, not a multiple of 128", LOAD,
                     copy.target);
    }
    use_mbarrier(block, copy.mbarrier, self.agent, LOAD, copy.site);
    const uint32_t bytes = box_bytes(copy.map.shape);
    if (!block.shared.holds(copy.target, bytes)) {
        machine.fail(Kind::OutOfBounds, copy.site, "%s of %u bytes to %s, which leaves the array", LOAD, bytes,
                     block.shared.place(copy.target).text);
    }
}

// The ranks of the blocks that get the box, as a mask.
uint32_t ranks_of(Thread& self, uint32_t to_blocks, uint32_t rank, Site site) {
    const size_t size = self.block->cluster->blocks.size();
    if (to_blocks >> size != 0) {
        self.machine->fail(Kind::OutOfBounds, site, "%s.multicast with mask 0x%x in a cluster of %zu blocks", LOAD,
                           to_blocks, size);
    }
    return to_blocks != 0 ? to_blocks : 1u << rank;
}

// Elements outside the tensor are zero.
void copy_row(Block& block, const TmaCopy& copy, const BoxRow& row) {
    constexpr uint32_t most = 256 * 8;
    unsigned char bytes[most];
    const uint32_t width = row_bytes(copy.map.shape);
    memset(bytes, 0, width);
    if (row.bytes > 0) {
        memcpy(bytes + row.skipped, reinterpret_cast<const void*>(row.address), row.bytes);
    }
    for_each_piece(copy.map.shape, copy.target, row.offset, row.offset + width,
                   [&](uint32_t offset, uint32_t address, uint32_t count) {
                       memcpy(block.shared.arena + address, bytes + (offset - row.offset), count);
                   });
}

}  // namespace

void tma_load(uint32_t target, const CUtensorMap* map, uint32_t mbarrier, unsigned rank, const int* at,
              uint16_t to_blocks) {
    Thread& self = current();
    const Site site = site_of(__builtin_return_address(0));
    // Of a multicast the addresses are those of the same places in every block.
    const ClusterPlace place = cluster_place(self, target, LOAD, site);
    const ClusterPlace arrival = cluster_place(self, mbarrier, LOAD, site);
    if (&place.block != &arrival.block) {
        self.machine->fail(Kind::Async, site, "%s to one block with an mbarrier in another", LOAD);
    }
    TmaCopy copy;
    copy.target = place.offset;
    copy.mbarrier = arrival.offset;
    copy.map = open_tensor_map(self, map, rank, LOAD, site);
    std::copy_n(at, rank, copy.at);
    copy.site = site;
    check_source(self, copy.map, copy.at, site);
    const uint32_t ranks = ranks_of(self, to_blocks, place.block.rank, site);
    const auto for_each_block = [&](auto visit) {
        for (uint32_t rest = ranks; rest != 0; rest &= rest - 1) {
            visit(cluster_block(*self.block, static_cast<uint32_t>(__builtin_ctz(rest))));
        }
    };
    for_each_block([&](Block& block) { check_target(self, block, copy); });
    // The engine knows what the thread knew.
    const Moment moment = self.agent.release();
    copy.agent.index = copy.mbarrier / 8 % TMA_AGENTS;
    copy.agent.barriers = Agent::NO_BARRIERS;
    copy.agent.in_order = false;
    for_each_block([&](Block& block) {
        copy.agent.block = block.number;
        copy.agent.known = known_in(moment, *self.block, block);
        block.tma.push_back(copy);
    });
}

void run_tma(Block& block, size_t number) {
    TmaCopy copy = std::move(block.tma[number]);
    block.tma.erase(block.tma.begin() + static_cast<long>(number));
    copy.agent.clock = ++block.engine_clocks[copy.agent.index];
    const uint32_t bytes = box_bytes(copy.map.shape);
    access_shared(block, copy.target, bytes, {copy.agent, AccessKind::Write, "TMA write", copy.site, true});
    for_each_row(copy.map, copy.at, [&](const BoxRow& row) { copy_row(block, copy, row); });
    block.machine->work.copied_bytes += bytes;
    copy.agent.known.own.unique().at[copy.agent.index] = copy.agent.clock;
    mbarrier_complete_tx(block, copy.mbarrier, bytes, copy.agent, copy.site);
}

}  // namespace emu
