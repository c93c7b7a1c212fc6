// The shared memory of a block, and every access to it: bounds, initialisation, order, proxies.
#include "machine.h"

#include <cstdlib>
#include <new>

namespace emu {

SharedMemory::SharedMemory() {
    arena = static_cast<unsigned char*>(aligned_alloc(SHARED_ARENA, SHARED_ARENA));
    if (!arena) {
        throw std::bad_alloc();
    }
}

SharedMemory::~SharedMemory() {
    free(arena);
}

void SharedMemory::start(uint32_t block_generation) {
    std::fill(states.begin(), states.end(), ByteState::Outside);
    generation = block_generation;
    dynamic_placed = false;
    arrays.clear();
    products.clear();
}

const SharedArray* SharedLayout::find(const void* tag) const {
    const auto found =
        std::find_if(arrays.begin(), arrays.end(), [&](const SharedArray& array) { return array.tag == tag; });
    return found == arrays.end() ? nullptr : &*found;
}

const SharedArray& SharedLayout::add(const SharedArray& array) {
    top = array.offset + array.bytes + SHARED_GAP;
    arrays.push_back(array);
    return arrays.back();
}

bool SharedMemory::holds(uint32_t offset, size_t bytes) const {
    return offset + bytes <= states.size() &&
           !memchr(states.data() + offset, static_cast<int>(ByteState::Outside), bytes);
}

Text<96> SharedMemory::place(uint32_t offset) const {
    const SharedArray* best = nullptr;
    for (const auto& array : arrays) {
        if (array.offset <= offset && (!best || array.offset > best->offset)) {
            best = &array;
        }
    }
    if (!best) {
        return Text<96>("shared memory address 0x%x", offset);
    }
    return Text<96>("shared `%.60s`+%u", best->name, offset - best->offset);
}

namespace {

// Places an array of the running block. Its bytes are poison, and count as unwritten.
SharedArray& place_array(Thread& self, const SharedArray& array) {
    const uint32_t offset = array.offset, bytes = array.bytes;
    SharedMemory& shared = self.block->shared;
    if (shared.states.size() < offset + bytes) {
        shared.states.resize(offset + bytes, ByteState::Outside);
        shared.shadow.resize(offset + bytes, true);
    }
    memset(shared.arena + offset, self.machine->poison, bytes);
    std::fill_n(shared.states.begin() + offset, bytes, ByteState::Unwritten);
    shared.arrays.push_back(array);
    return shared.arrays.back();
}

uint32_t aligned(uint32_t offset, uint32_t align) {
    return (offset + align - 1) / align * align;
}

// All of CUDA's limits on a block's shared memory.
void check_shared_size(Thread& self, const char* name, size_t static_bytes, size_t dynamic_bytes, Site site) {
    if (static_bytes > 48 * 1024) {
        self.machine->fail(Kind::Launch, site,
                           "`%s` brings the block to %zu bytes of static shared memory, over 48 KiB", name,
                           static_bytes);
    }
    if (static_bytes + dynamic_bytes > 227 * 1024) {
        self.machine->fail(Kind::Launch, site, "`%s` brings the block to %zu bytes of shared memory, over 227 KiB",
                           name, static_bytes + dynamic_bytes);
    }
}

}  // namespace

void* shared_array(const void* tag, const char* name, size_t bytes, size_t align) {
    Thread& self = current();
    SharedMemory& shared = self.block->shared;
    for (const auto& array : shared.arrays) {
        if (array.tag == tag) {
            return shared.arena + array.offset;
        }
    }
    SharedLayout& layout = self.machine->shared_layout;
    const SharedArray* array = layout.find(tag);
    if (!array) {
        check_shared_size(self, name, layout.static_bytes + bytes, self.machine->dynamic_bytes,
                          site_of(__builtin_return_address(0)));
        layout.static_bytes += static_cast<uint32_t>(bytes);
        const uint32_t offset = aligned(layout.top, std::max<uint32_t>(16, static_cast<uint32_t>(align)));
        array = &layout.add({tag, name, offset, static_cast<uint32_t>(bytes)});
    }
    return shared.arena + place_array(self, *array).offset;
}

void* dynamic_shared(const char* name, size_t align) {
    Thread& self = current();
    SharedMemory& shared = self.block->shared;
    const auto unit = static_cast<uint32_t>(align);
    if (!shared.dynamic_placed) {
        SharedLayout& layout = self.machine->shared_layout;
        const SharedArray* array = layout.find(&layout);
        if (!array) {
            check_shared_size(self, name, layout.static_bytes, self.machine->dynamic_bytes,
                              site_of(__builtin_return_address(0)));
            uint32_t offset = aligned(layout.top, unit);
            if (offset / unit % 2 == 0) {
                offset += unit;  // an odd multiple is aligned to no more
            }
            array = &layout.add({&layout, name, offset, self.machine->dynamic_bytes});
        }
        shared.dynamic = place_array(self, *array);
        shared.dynamic_placed = true;
    }
    if (shared.dynamic.offset % unit != 0) {
        self.machine->fail(Kind::Misaligned, site_of(__builtin_return_address(0)),
                           "`%s` wants dynamic shared memory aligned to %u, `%s` had declared less", name, unit,
                           shared.dynamic.name);
    }
    return shared.arena + shared.dynamic.offset;
}

namespace {

// What keeps a byte from being read by anybody, besides races. Returns if nothing does.
void check_state(Block& block, uint32_t offset, const Access& access) {
    Machine& machine = *block.machine;
    const ByteState state = block.shared.states[offset];
    if (state == ByteState::Unwritten) {
        machine.fail(Kind::Uninitialised, access.site, "%s of %s, which nothing has written", access.name,
                     block.shared.place(offset).text);
    }
    if (state == ByteState::Pending) {
        machine.fail(Kind::Async, access.site, "%s of %s, the target of a cp.async that has not been waited for",
                     access.name, block.shared.place(offset).text);
    }
}

// What was written through the other proxy.
void check_proxy(Block& block, const Epoch& write, uint32_t offset, const Access& access) {
    if (!async_proxy_sees(block, write, access.who, access.fenced)) {
        block.machine->fail(Kind::Async, access.site, "%s of %s, written by %s without fence.proxy.async", access.name,
                            block.shared.place(offset).text,
                            name_of(*block.machine, write.block, write.agent).text);
    }
}

[[noreturn]] void outside_shared(Block& block, uint32_t offset, uint32_t bytes, const Access& access) {
    block.machine->fail(Kind::OutOfBounds, access.site, "%s of %u bytes at %s, outside the array", access.name, bytes,
                        block.shared.place(offset).text);
}

// Whether all of these bytes were written by plain stores: what is so nearly always is found a word at a time.
bool all_written(const ByteState* states, uint32_t bytes) {
    constexpr uint32_t written = 0x01010101u * static_cast<uint32_t>(ByteState::Written);
    for (; bytes >= 4; bytes -= 4, states += 4) {
        uint32_t word;
        memcpy(&word, states, 4);
        if (word != written) {
            return false;
        }
    }
    return std::all_of(states, states + bytes, [](ByteState state) { return state == ByteState::Written; });
}

}  // namespace

namespace {

// Products that have read what is overwritten must have been waited for, by all warps of their warpgroup.
void check_after_products(Block& block, uint32_t offset, uint32_t bytes, const Access& access) {
    const std::vector<ProductReads>& products = block.shared.products;
    for (uint32_t group = 0; group < products.size(); group++) {
        const ProductReads& reads = products[group];
        uint32_t checked = 0;
        for (uint32_t piece = offset / 16; piece <= (offset + bytes - 1) / 16 && !reads.clocks.empty(); piece++) {
            const uint32_t clock = reads.clocks[piece];
            if (clock <= checked) {
                continue;
            }
            for (uint32_t agent = TMA_AGENTS + group * 4; agent < TMA_AGENTS + group * 4 + 4; agent++) {
                if (!access.who.ordered(block.number, agent, clock)) {
                    const Conflict conflict{AccessKind::Read,
                                            {clock, block.number, agent, reads.sites[clock - 1]},
                                            std::max(offset, piece * 16)};
                    block.machine->fail_race(access.who, access.name, access.site, conflict,
                                             block.shared.place(conflict.offset));
                }
            }
            checked = clock;
        }
    }
}

// Products that have read these bytes will read them again.
void count_write(SharedMemory& shared, uint32_t offset, uint32_t bytes) {
    for (uint32_t page = offset / SHARED_PAGE; page <= (offset + bytes - 1) / SHARED_PAGE; page++) {
        shared.writes[page]++;
    }
}

void add_writer(std::vector<Writer>& writers, const Epoch& write, uint32_t offset, bool async) {
    if (writers.empty() || !writers.back().write.same(write) || writers.back().async != async) {
        writers.push_back({write, offset, async});
    }
}

// Adds the one writer of these bytes, if they are words that one write has written.
bool find_one_writer(SharedMemory& shared, uint32_t offset, uint32_t bytes, std::vector<Writer>& writers) {
    const ByteState* states = shared.states.data() + offset;
    const bool async = states[0] == ByteState::WrittenAsync;
    if ((offset | bytes) % 4 != 0 || (!async && states[0] != ByteState::Written) ||
        memcmp(states, states + 1, bytes - 1) != 0) {
        return false;
    }
    Epoch write;
    if (!shared.shadow.one_write(shared.generation, offset, bytes, write)) {
        return false;
    }
    add_writer(writers, write, offset, async);
    return true;
}

void find_writer_of_byte(Block& block, uint32_t offset, const Access& access, std::vector<Writer>& writers) {
    SharedMemory& shared = block.shared;
    ShadowPool& pool = block.machine->pool;
    check_state(block, offset, access);
    if (Epoch by; shared.shadow.unordered_atomics(pool, shared.generation, offset, access.who, by)) {
        block.machine->fail_race(access.who, access.name, access.site, {AccessKind::Atomic, by, offset},
                                 shared.place(offset));
    }
    add_writer(writers, shared.shadow.last_write(pool, shared.generation, offset), offset,
               shared.states[offset] == ByteState::WrittenAsync);
}

}  // namespace

void find_writers(Block& block, uint32_t offset, uint32_t bytes, const Access& access, std::vector<Writer>& writers) {
    if (!block.shared.holds(offset, bytes)) {
        outside_shared(block, offset, bytes, access);
    }
    const auto piece_end = [end = offset + bytes](uint32_t at, uint32_t size) {
        return std::min(end, (at / size + 1) * size);
    };
    for (uint32_t end = offset + bytes; offset < end;) {
        // Mostly they are written by vectors, else by words.
        uint32_t next = piece_end(offset, 16);
        if (!find_one_writer(block.shared, offset, next - offset, writers)) {
            next = piece_end(offset, 4);
            if (!find_one_writer(block.shared, offset, next - offset, writers)) {
                next = offset + 1;
                find_writer_of_byte(block, offset, access, writers);
            }
        }
        offset = next;
    }
}

void check_writers(Block& block, const std::vector<Writer>& writers, const Access& access) {
    for (const Writer& writer : writers) {
        const Epoch& write = writer.write;
        if (write.clock != 0 && !access.who.ordered(write.block, write.agent, write.clock)) {
            block.machine->fail_race(access.who, access.name, access.site, {AccessKind::Write, write, writer.offset},
                                     block.shared.place(writer.offset));
        }
        if (!writer.async) {
            check_proxy(block, write, writer.offset, access);
        }
    }
}

void note_read(Block& block, uint32_t offset, uint32_t bytes, const Access& access) {
    SharedMemory& shared = block.shared;
    Conflict conflict;
    if (!shared.shadow.access(block.machine->pool, shared.generation, offset, bytes, access.who, AccessKind::Read,
                              access.site, conflict)) {
        block.machine->fail_race(access.who, access.name, access.site, conflict, shared.place(conflict.offset));
    }
}

void access_shared(Block& block, uint32_t offset, uint32_t bytes, const Access& access) {
    Machine& machine = *block.machine;
    SharedMemory& shared = block.shared;
    const bool inside = offset + bytes <= shared.states.size();
    const bool plain = inside && !access.async && all_written(shared.states.data() + offset, bytes);
    if (!plain && !shared.holds(offset, bytes)) {
        outside_shared(block, offset, bytes, access);
    }
    Conflict conflict;
    if (!shared.shadow.access(machine.pool, shared.generation, offset, bytes, access.who, access.kind, access.site,
                              conflict)) {
        machine.fail_race(access.who, access.name, access.site, conflict, shared.place(conflict.offset));
    }
    if (access.kind != AccessKind::Read && !shared.products.empty()) {
        check_after_products(block, offset, bytes, access);
        count_write(shared, offset, bytes);
    }
    if (plain) {
        return;
    }
    if (access.kind != AccessKind::Write) {
        for (uint32_t i = offset; i < offset + bytes; i++) {
            check_state(block, i, access);
        }
    }
    if (access.kind != AccessKind::Read) {
        const auto written = access.async ? ByteState::WrittenAsync : ByteState::Written;
        std::fill_n(shared.states.begin() + offset, bytes, written);
    }
}

unsigned char* shared_pointer(Thread& self, uint32_t offset, uint32_t bytes, AccessKind kind, const char* name,
                              Site site) {
    access_shared(*self.block, offset, bytes, {self.agent, kind, name, site, false});
    return self.block->shared.arena + offset;
}

}  // namespace emu
