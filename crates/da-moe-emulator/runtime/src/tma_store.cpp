// Stores of the tensor memory accelerator: boxes in shared memory, copied to tensors in global memory while threads
// run.
//
// The engine reads a box some time after the instruction, and writes it to global memory some time after that; the
// thread's waits for its bulk groups set the latest time of either. To the checker reading and writing are two agents,
// since a thread may have waited for one and not for the other.
#include "machine.h"

namespace emu {

namespace {

constexpr const char* STORE = "cp.async.bulk.tensor store";

// Which of the block's agents store for the thread. With more threads than agents, some share one.
uint32_t storing_agents(Block& block, unsigned thread) {
    std::vector<unsigned>& threads = block.storing_threads;
    const auto found = std::find(threads.begin(), threads.end(), thread);
    const auto place = static_cast<uint32_t>(found - threads.begin());
    if (found == threads.end()) {
        threads.push_back(thread);
    }
    return place % STORING_THREADS;
}

uint32_t reader_of(uint32_t agents) {
    return STORE_READERS + agents;
}
uint32_t writer_of(uint32_t agents) {
    return STORE_WRITERS + agents;
}

// The box as far as it is inside the tensor: what is outside goes nowhere.
template <class Visit>
void for_each_stored_piece(const TmaStore& store, Visit visit) {
    for_each_row(store.map, store.at, [&](const BoxRow& row) {
        const uint32_t first = row.offset + row.skipped;
        for_each_piece(store.map.shape, store.source, first, first + row.bytes, visit);
    });
}

void read_box(Block& block, TmaStore& store) {
    Access access{store.reader, AccessKind::Read, "TMA store's read", store.site, true};
    access.fenced = store.fenced ? &*store.fenced : nullptr;
    store.bytes.resize(box_bytes(store.map.shape));
    for_each_stored_piece(store, [&](uint32_t, uint32_t address, uint32_t bytes) {
        find_writers(block, address, bytes, access, store.writers);
    });
    check_writers(block, store.writers, access);
    for_each_stored_piece(store, [&](uint32_t offset, uint32_t address, uint32_t bytes) {
        note_read(block, address, bytes, access);
        memcpy(store.bytes.data() + offset, block.shared.arena + address, bytes);
    });
    store.is_read = true;
}

// Each element is added by itself, but two additions to one element are two writes: their order would show.
void add_row(Machine& machine, TmaStore& store, const BoxRow& row, const unsigned char* bytes) {
    access_global(machine, row.address, row.bytes,
                  {store.writer, AccessKind::Read, "TMA addition's read", store.site, false});
    count_background(machine, row.bytes);
    store.writer.known.own.unique().at[store.writer.index] = store.writer.clock;
    for (uint32_t at = 0; at < row.bytes; at += sizeof(float)) {
        float value, sum;
        memcpy(&value, bytes + at, sizeof value);
        memcpy(&sum, reinterpret_cast<const void*>(row.address + at), sizeof sum);
        sum += value;
        memcpy(reinterpret_cast<void*>(row.address + at), &sum, sizeof sum);
    }
}

void write_box(Block& block, TmaStore& store) {
    Machine& machine = *block.machine;
    for_each_row(store.map, store.at, [&](const BoxRow& row) {
        if (row.bytes == 0) {
            return;
        }
        const unsigned char* bytes = store.bytes.data() + row.offset + row.skipped;
        if (store.adds) {
            add_row(machine, store, row, bytes);
        } else {
            memcpy(reinterpret_cast<void*>(row.address), bytes, row.bytes);
        }
        access_global(machine, row.address, row.bytes,
                      {store.writer, AccessKind::Write, "TMA store's write", store.site, false});
        count_background(machine, row.bytes);
    });
}

// Brings the thread's stores up to a clock to their end, or until they have read.
void finish_stores(Thread& self, uint32_t clock, bool read) {
    Block& block = *self.block;
    for (size_t i = 0; i < block.stores.size();) {
        const TmaStore& store = block.stores[i];
        const bool mine = store.thread == self.number && store.reader.clock <= clock;
        if (!mine || (read && store.is_read)) {
            i++;
        } else {
            run_store(block, i);
        }
    }
}

void start_store(const CUtensorMap* map, uint32_t source, unsigned rank, const int* at, bool adds, Site site) {
    Thread& self = current();
    Block& block = *self.block;
    if (is_mapped(source)) {
        self.machine->fail(Kind::Async, site, "%s from a mapped address, 0x%x: it is of the thread's own block", STORE,
                           source);
    }
    TmaStore store;
    store.thread = self.number;
    store.source = source;
    store.map = open_tensor_map(self, map, rank, STORE, site);
    std::copy_n(at, rank, store.at);
    store.adds = adds;
    store.site = site;
    if (adds && store.map.shape.element_bytes != sizeof(float)) {
        self.machine->fail(Kind::Async, site, "cp.reduce.async.bulk.tensor of elements that are not f32");
    }
    if (source % 128 != 0) {
        self.machine->fail(Kind::Misaligned, site, "%s from shared address 0x%x, not a multiple of 128", STORE, source);
    }
    const uint32_t bytes = box_bytes(store.map.shape);
    if (!block.shared.holds(source, bytes)) {
        self.machine->fail(Kind::OutOfBounds, site, "%s of %u bytes from %s, which leaves the array", STORE, bytes,
                           block.shared.place(source).text);
    }
    const uint32_t agents = storing_agents(block, self.number);
    const Moment moment = self.agent.release();
    store.reader.block = block.number;
    store.reader.index = reader_of(agents);
    store.reader.clock = ++block.engine_clocks[reader_of(agents)];
    store.reader.barriers = Agent::NO_BARRIERS;
    store.reader.in_order = false;
    store.reader.known = moment.told();
    store.writer = store.reader;
    store.writer.index = writer_of(agents);
    store.fenced = self.proxy.known;
    self.bulk.issued = store.reader.clock;
    self.bulk.last = site;
    block.stores.push_back(std::move(store));
}

}  // namespace

void tma_store(const CUtensorMap* map, uint32_t source, unsigned rank, const int* at) {
    start_store(map, source, rank, at, false, site_of(__builtin_return_address(0)));
}

void tma_add(const CUtensorMap* map, uint32_t source, unsigned rank, const int* at) {
    start_store(map, source, rank, at, true, site_of(__builtin_return_address(0)));
}

void run_store(Block& block, size_t number) {
    TmaStore& store = block.stores[number];
    block.machine->progress();
    if (!store.is_read) {
        read_box(block, store);
        return;
    }
    write_box(block, store);
    block.stores.erase(block.stores.begin() + static_cast<long>(number));
}

void bulk_commit() {
    Thread& self = current();
    self.bulk.groups.push_back(self.bulk.issued);
}

void bulk_wait(unsigned groups, bool read) {
    Thread& self = current();
    perhaps_yield(self, 4);
    BulkGroups& bulk = self.bulk;
    if (bulk.groups.size() <= groups) {
        return;
    }
    const uint32_t clock = bulk.groups[bulk.groups.size() - groups - 1];
    if (clock == 0) {
        return;
    }
    finish_stores(self, clock, read);
    bulk.read = std::max(bulk.read, clock);
    const uint32_t agents = storing_agents(*self.block, self.number);
    std::vector<uint32_t>& known = self.agent.known.own.unique().at;
    known[reader_of(agents)] = std::max(known[reader_of(agents)], clock);
    if (!read) {
        known[writer_of(agents)] = std::max(known[writer_of(agents)], clock);
    }
}

void end_of_stores(Thread& self) {
    if (self.bulk.read < self.bulk.issued) {
        self.machine->fail(Kind::Async, self.bulk.last,
                           "a thread ends with a TMA store of which it has not waited until shared memory was read");
    }
}

void finish_block_stores(Block& block) {
    while (!block.stores.empty()) {
        run_store(block, 0);
    }
}

}  // namespace emu
