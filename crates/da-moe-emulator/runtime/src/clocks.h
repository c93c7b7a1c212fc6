// Vector clocks: what one agent knows of the progress of the others.
//
// An agent is a thread, or one of the asynchronous engines that act for a block. Each counts its own releases; an
// access of agent u at clock k happened before now if the present agent's clock of u has reached k. Clocks of one block
// are an array over its agents. Few threads ever learn anything of another block, so those clocks are kept apart, as a
// list. Both are shared between agents and copied when they change.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace emu {

// A counted reference, not atomic: everything of a launch happens on one thread of the host.
template <class T>
class Ref {
public:
    Ref() = default;
    explicit Ref(T* adopted) : target(adopted) {}
    Ref(const Ref& other) : target(other.target) {
        if (target) {
            target->references++;
        }
    }
    Ref(Ref&& other) noexcept : target(std::exchange(other.target, nullptr)) {}
    Ref& operator=(Ref other) noexcept {
        std::swap(target, other.target);
        return *this;
    }
    ~Ref() {
        if (target && --target->references == 0) {
            delete target;
        }
    }
    T* operator->() const {
        return target;
    }
    T& operator*() const {
        return *target;
    }
    explicit operator bool() const {
        return target != nullptr;
    }
    bool operator==(const Ref& other) const {
        return target == other.target;
    }
    // Gives the only reference to an equal value, which may then be changed in place.
    T& unique() {
        if (target->references > 1) {
            *this = Ref(new T(*target));
            target->references = 1;
        }
        return *target;
    }

private:
    T* target = nullptr;
};

struct Clocks {
    uint32_t references = 1;
    std::vector<uint32_t> at;

    explicit Clocks(size_t agents) : at(agents) {}
    void join(const Clocks& other);
    // What both know.
    void meet(const Clocks& other);
};

struct Knowledge;

// Clocks of several blocks, by block number.
struct Foreign {
    uint32_t references = 1;
    std::vector<std::pair<uint32_t, Ref<Clocks>>> blocks;

    const Clocks* find(uint32_t block) const;
    void join(uint32_t block, const Ref<Clocks>& clocks);
    void join(const Foreign& other, uint32_t except);
    // What an agent of `block` knows.
    void join(const Knowledge& known, uint32_t block);
};

// What an agent of a block knows: of its own block, and of other blocks (null: nothing).
struct Knowledge {
    Ref<Clocks> own;
    Ref<Foreign> foreign;

    void join(const Knowledge& other);
    // What others have told to an agent of `block`.
    void join(const Foreign& told, uint32_t block);
};

// A moment of one agent, from which a release is made when some atomic publishes it.
struct Moment {
    Knowledge known;
    uint32_t agent = 0;
    uint32_t clock = 0;  // 0: there was no such moment

    // The clocks of the agent's block, its own included.
    Ref<Clocks> clocks() const;
    // All that whoever learns of the moment knows then.
    Knowledge told() const {
        return {clocks(), known.foreign};
    }
};

// Engines of a block: the tensor memory accelerator writes as one agent for each of 16 mbarriers, and every warp's
// wgmma reads as one. Copies of threads that an mbarrier tells of are written by one agent for each of 16 mbarriers
// too, so that not even the thread that has started them is ordered after them before it has waited. The accelerator's
// stores read and write as two agents for each of 16 threads.
constexpr uint32_t TMA_AGENTS = 16;
constexpr uint32_t WGMMA_AGENTS = 32;
constexpr uint32_t COPY_AGENTS = 16;
constexpr uint32_t STORING_THREADS = 16;
constexpr uint32_t FIRST_COPY_AGENT = TMA_AGENTS + WGMMA_AGENTS;
constexpr uint32_t STORE_READERS = FIRST_COPY_AGENT + COPY_AGENTS;
constexpr uint32_t STORE_WRITERS = STORE_READERS + STORING_THREADS;
constexpr uint32_t ENGINES = STORE_WRITERS + STORING_THREADS;

struct Agent {
    uint32_t block = 0;
    uint32_t index = 0;     // among the block's agents: engines first, then threads
    uint32_t clock = 1;     // own releases so far; 0 stands for "never" wherever a clock is stored
    uint32_t barriers = 0;  // barriers of the whole block passed; NO_BARRIERS for engines
    Knowledge known;
    bool in_order = true;  // what it does is ordered after what it did before

    static constexpr uint32_t NO_BARRIERS = ~0u;

    bool ordered(uint32_t other_block, uint32_t other, uint32_t at) const {
        if (other_block == block) {
            return (other == index && in_order) || known.own->at[other] >= at;
        }
        return ordered_foreign(other_block, other, at);
    }
    // Everything up to now, for others to learn; what follows is not part of it.
    Moment release() {
        return {known, index, clock++};
    }

private:
    bool ordered_foreign(uint32_t other_block, uint32_t other, uint32_t at) const;
};

}  // namespace emu
