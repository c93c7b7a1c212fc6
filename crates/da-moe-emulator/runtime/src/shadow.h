// Who touched each word of a memory last: the happens-before check of every access.
//
// A cell describes four bytes. A word that is also accessed in parts gets four cells of its own, one a byte. Cells are
// never cleared: one of an earlier launch or block has another generation and counts as untouched.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "clocks.h"
#include "report.h"

namespace emu {

enum class AccessKind : uint8_t { Read, Write, Atomic };

struct Epoch {
    uint32_t clock = 0;  // 0: no access
    uint32_t block = 0;
    uint32_t agent = 0;
    Site site = 0;

    bool same(const Epoch& other) const {
        return clock == other.clock && agent == other.agent && block == other.block;
    }
};

// The accesses, since the last write, of agents that are not ordered among each other. One an agent; those of a warp that
// are alike share an entry.
class AccessSet {
public:
    void clear() {
        entries.clear();
    }
    void insert(const Agent& who, Site site);
    // True only if the agent's last barrier is known to lie after every entry.
    bool all_before_barrier_of(const Agent& who) const {
        return single_block && who.block == block && who.barriers != Agent::NO_BARRIERS && who.barriers > barriers;
    }
    // Whether some entry is not ordered before the agent; `by` is the first.
    bool unordered(const Agent& who, Epoch& by) const;

private:
    struct Entry {
        uint32_t block, group, clock;
        Site site;
        uint32_t lanes;
    };

    std::vector<Entry> entries;
    uint32_t block = 0;
    uint32_t barriers = 0;
    bool single_block = true;
};

struct Cell {
    uint32_t generation = 0;
    uint32_t readers = 0;  // number of the AccessSet that replaces `read`; 0: none
    uint32_t atomics = 0;  // number of the AccessSet of atomic accesses; 0: none
    uint32_t bytes = 0;    // number of the four cells that replace this one; 0: none
    Epoch write;
    Epoch read;
};

// What an access is not ordered with.
struct Conflict {
    AccessKind earlier;
    Epoch by;
    uint32_t offset;  // of the first byte in conflict
};

// Sets and byte cells of one launch, used again by the next.
class ShadowPool {
public:
    void reset();
    uint32_t take_set();
    void give_set(uint32_t number);
    AccessSet& set(uint32_t number) {
        return sets[number - 1];
    }
    uint32_t split(const Cell& cell);
    void join(uint32_t number);
    std::array<Cell, 4>& bytes(uint32_t number) {
        return splits[number - 1];
    }

private:
    uint32_t copy_set(uint32_t number);

    std::vector<AccessSet> sets;
    std::vector<uint32_t> free_sets;
    std::vector<std::array<Cell, 4>> splits;
    std::vector<uint32_t> free_splits;
    size_t used_sets = 0;
    size_t used_splits = 0;
};

// Bytes that one write may have made as a whole.
constexpr uint32_t SHADOW_PAGE = 1024;

class Shadow {
public:
    // With `whole_pages`, a write of a whole page is kept as that until a part of it is touched: copies of the tensor
    // memory accelerator write many, which products then read without touching cells.
    void resize(size_t bytes, bool whole_pages = false) {
        cells.resize((bytes + 3) / 4);
        if (whole_pages) {
            pages.resize((bytes + SHADOW_PAGE - 1) / SHADOW_PAGE);
        }
    }
    bool empty() const {
        return cells.empty();
    }
    // Whether it takes no memory to have a size of so many bytes.
    bool has_room(size_t bytes) const {
        return cells.capacity() >= (bytes + 3) / 4;
    }
    // Checks and records an access. False: it is a race, described in `conflict`.
    bool access(ShadowPool& pool, uint32_t generation, uint32_t offset, uint32_t bytes, const Agent& who,
                AccessKind kind, Site site, Conflict& conflict);
    // The last plain write of a byte in this generation; its clock is 0 if there was none.
    Epoch last_write(ShadowPool& pool, uint32_t generation, uint32_t offset) const;

    // Whether a read of these bytes, whole words, is a matter of one plain write: then `write` is that.
    bool one_write(uint32_t generation, uint32_t offset, uint32_t bytes, Epoch& write) const;
    // Whether atomic accesses to a byte are not ordered before the agent; `by` is one of them.
    bool unordered_atomics(ShadowPool& pool, uint32_t generation, uint32_t offset, const Agent& who, Epoch& by) const;

private:
    // If its generation is the present one, the cells of the page are out of date: all are as this write left them.
    struct Page {
        uint32_t generation = 0;
        Epoch write;
    };

    bool is_whole(uint32_t generation, uint32_t offset) const {
        return !pages.empty() && pages[offset / SHADOW_PAGE].generation == generation;
    }
    void spread(uint32_t generation, uint32_t page);
    bool write_page(ShadowPool& pool, uint32_t generation, uint32_t offset, const Agent& who, Site site,
                    Conflict& conflict);
    bool access_cells(ShadowPool& pool, uint32_t generation, uint32_t offset, uint32_t bytes, const Agent& who,
                      AccessKind kind, Site site, Conflict& conflict);

    std::vector<Cell> cells;
    std::vector<Page> pages;
};

}  // namespace emu
