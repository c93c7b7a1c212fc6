// Global memory as allocations of the device, and the shared memory of a block.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "clocks.h"
#include "report.h"
#include "shadow.h"

namespace emu {

struct Machine;
struct Block;
struct Thread;

enum class ByteState : uint8_t {
    Outside,  // of every array
    Unwritten,
    Written,
    WrittenAsync,  // by an engine: the async proxy
    Pending,       // target of a cp.async that nobody has waited for
};

struct Allocation {
    std::string name;
    uintptr_t base = 0;
    size_t bytes = 0;
    bool read_only = false;
    std::unique_ptr<unsigned char[]> storage;
    std::vector<ByteState> states;
    Shadow shadow;
};

class GlobalMemory {
public:
    // The new allocation's address. Its bytes are `poison`.
    uintptr_t allocate(const char* name, size_t bytes, unsigned char poison);
    bool release(uintptr_t base);
    // The allocation that holds the address, or whose base it is (which matters for empty ones); null if none.
    Allocation* find(uintptr_t address) const;
    // The allocation that ends closest before the address, or null: what an access probably meant.
    const Allocation* before(uintptr_t address) const;
    // Gives the allocation a shadow of its size, if it has none.
    void shadow(Allocation& allocation);
    // Forgets every allocation.
    void clear();

private:
    void keep(Shadow& shadow);

    std::vector<std::unique_ptr<Allocation>> allocations;  // by base
    mutable Allocation* recent[64] = {};                   // by page
    // Of former allocations. Cells of earlier launches count as none, so that they need not be cleared, which would take
    // longer than most launches: a shadow has twelve times the bytes of what it is of.
    std::vector<Shadow> spare;
};

constexpr uint32_t SHARED_ARENA = 256 << 10;
// Arrays start here: address 0 is none.
constexpr uint32_t SHARED_START = 1024;
constexpr uint32_t SHARED_GAP = 16;

struct SharedArray {
    const void* tag;
    const char* name;
    uint32_t offset, bytes;
};

// Where the arrays of a launch's blocks are: in the same place in each, as an address that is mapped into another block
// of a cluster means the same array there.
struct SharedLayout {
    std::vector<SharedArray> arrays;
    uint32_t top = SHARED_START;
    uint32_t static_bytes = 0;

    const SharedArray* find(const void* tag) const;
    const SharedArray& add(const SharedArray& array);
};

// What the products of a warpgroup have read of shared memory.
struct ProductReads {
    std::vector<uint32_t> clocks;  // of every 16 bytes the last product that read it; 0: none did
    std::vector<Site> sites;       // of the products, from clock 1 on
};

// Products look at memory again only where something was written.
constexpr uint32_t SHARED_PAGE = 1024;

struct SharedMemory {
    unsigned char* arena = nullptr;  // SHARED_ARENA bytes, aligned to their size
    std::vector<ByteState> states;   // up to the end of the last array so far placed, of any block
    Shadow shadow;
    uint32_t generation = 0;
    bool dynamic_placed = false;
    SharedArray dynamic{};
    std::vector<SharedArray> arrays;
    uint32_t writes[SHARED_ARENA / SHARED_PAGE] = {};  // to each page, ever
    std::vector<ProductReads> products;                // of each warpgroup, as far as they have come to one

    SharedMemory();
    ~SharedMemory();
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;

    void start(uint32_t block_generation);
    uint32_t offset_of(uintptr_t address) const {
        return static_cast<uint32_t>(std::min<uintptr_t>(address - reinterpret_cast<uintptr_t>(arena), SHARED_ARENA));
    }
    bool holds(uint32_t offset, size_t bytes) const;
    // "`name`+offset", for reports.
    Text<96> place(uint32_t offset) const;
};

// An access by `who`, with what reports call it. `async`: through the async proxy.
struct Access {
    const Agent& who;
    AccessKind kind;
    const char* name;
    Site site;
    bool async;
    const Clocks* fenced = nullptr;  // of a read through the async proxy: as of `ProxyFences::known`
    bool unwritten_too = false;      // a read of global memory may take what nothing has written
};

// The last plain write of some bytes that are alike in how they were written.
struct Writer {
    Epoch write;
    uint32_t offset;
    bool async;
};

// Reads through the async proxy, which are of many bytes. First the writers of some bytes are added to those found
// already, if what was written can be read at all; then the reader is checked against them; and after that its reads
// are noted, of products in another way. Atomic accesses are checked for the reader alone that finds the writers.
void find_writers(Block& block, uint32_t offset, uint32_t bytes, const Access& access, std::vector<Writer>& writers);
void check_writers(Block& block, const std::vector<Writer>& writers, const Access& access);
void note_read(Block& block, uint32_t offset, uint32_t bytes, const Access& access);

// Everything else.
void access_shared(Block& block, uint32_t offset, uint32_t bytes, const Access& access);
void access_global(Machine& machine, uintptr_t address, size_t bytes, const Access& access);

// For operations that take a 32-bit shared address.
unsigned char* shared_pointer(Thread& self, uint32_t offset, uint32_t bytes, AccessKind kind, const char* name,
                              Site site);

}  // namespace emu
