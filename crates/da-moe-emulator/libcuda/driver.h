// The state of the driver, and what every one of its functions does first and last.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cubin.h"
#include "emulator.h"
#include "results.h"
#include "settings.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT driver::Result cuGetErrorName(driver::Result result, const char** name);

namespace driver {

struct Driver;
struct Session;
struct Recording;

using Address = uint64_t;
using Handle = void*;

// Something that a stream does: at once, or when the graph that recorded it is started.
using Work = std::function<Result(Driver&)>;

// Objects by handles, which are never used again: what was given back is known to be nothing.
template <class T>
class Registry {
public:
    Handle add(T object) {
        const uintptr_t handle = next();
        objects.emplace(handle, std::move(object));
        return reinterpret_cast<Handle>(handle);
    }
    T* find(Handle handle) {
        const auto found = objects.find(reinterpret_cast<uintptr_t>(handle));
        return found == objects.end() ? nullptr : &found->second;
    }
    bool remove(Handle handle) {
        return objects.erase(reinterpret_cast<uintptr_t>(handle)) > 0;
    }
    void clear() {
        objects.clear();
    }
    auto begin() {
        return objects.begin();
    }
    auto end() {
        return objects.end();
    }

private:
    static uintptr_t next() {
        static uintptr_t last = 0x10000;
        return last += 64;
    }
    std::map<uintptr_t, T> objects;
};

// How much work of each stream of a recording comes before a point of it.
using Known = std::map<Handle, size_t>;

struct Stream {
    Handle own = nullptr;  // its handle
    bool blocking = true;
    int priority = 0;
    std::shared_ptr<Recording> recording = nullptr;  // null: what is started runs
    Known known = {};
};

// How a recording was begun: who else it keeps from what.
enum class Mode : int { Global = 0, ThreadLocal = 1, Relaxed = 2 };

// What the streams between cuStreamBeginCapture and cuStreamEndCapture were asked to do.
struct Recording {
    Handle origin;
    Mode mode;
    std::thread::id thread;
    uint64_t number;
    bool broken = false;
    std::vector<Work> work;
};

struct Event {
    bool timed;
    bool recorded = false;
    std::chrono::steady_clock::time_point time;
    std::weak_ptr<Recording> recording;
    bool captured = false;
    Known known;
};

using Graph = std::vector<Work>;

struct Function {
    Facts facts;
    size_t kernel;  // its number in the emulator
    int most_dynamic_shared;
    bool loaded = false;
    Handle module;
};

struct Module {
    std::vector<Handle> functions;
};

// What was asked of the driver so far. Rust has the same struct.
struct Counts {
    uint64_t launches, waits, context_waits, allocations, frees, copies, fills, replays;
};

struct Driver {
    std::mutex mutex;
    bool initialized = false;
    int references = 0;  // to the primary context
    // What a kernel did wrong: first nobody knows, then every call says it.
    Result fault = Success, told = Success;
    emu::Machine* machine = nullptr;
    std::map<Address, size_t> memory;
    uint64_t memory_used = 0;
    Registry<Stream> streams;
    Registry<Event> events;
    Registry<Graph> graphs, executables;
    Registry<Module> modules;
    Registry<Function> functions;
    Counts counts{};
    FILE* log = nullptr;

    static Driver& get();

    // Whether the launch to hang after has been made.
    bool hangs() const;
    // A kernel did something that ends the context.
    void fail(Result result, const std::string& why);
    // What is known to be wrong, after a wait.
    Result tell();
    // Does work, unless an earlier fault has ended everything.
    void run(const Work& work);
    // Whether all of the bytes are memory of one allocation.
    bool holds(Address address, size_t bytes) const;
    void destroy_context();
};

// What a function needs before it is worth asking.
enum class Needs { Nothing, Driver, Context };

// One call of a function: the driver is its own until it returns.
struct Session {
    Driver& driver;
    std::unique_lock<std::mutex> lock;
    std::string about;

    Driver* operator->() const {
        return &driver;
    }
    Result before(const char* name, Needs needs);
    Result after(const char* name, Result result);
    // For the log.
    __attribute__((format(printf, 2, 3))) void note(const char* format, ...);
    // Waits until everything started has ended: at once, or never.
    Result wait();
};

template <class Body>
Result call(const char* name, Needs needs, Body body) {
    Driver& driver = Driver::get();
    Session session{driver, std::unique_lock<std::mutex>(driver.mutex), {}};
    Result result = session.before(name, needs);
    if (result == Success) {
        result = body(session);
    }
    return session.after(name, result);
}

// The context that is current in this thread.
Handle& current_context();

// Threads that a block of the kernel may have: its launch bounds, and the registers that there are.
int most_threads(const Facts& facts);

// ---- recordings

// The legacy stream, which every context has, and which waits for all others that do not say otherwise.
bool is_legacy(Handle stream);
// A new stream.
Handle open_stream(Driver& driver, bool blocking, int priority);
// The stream of the handle, which may be the one that stands for each thread's own; null for the legacy stream and for none.
Stream* look_up(Driver& driver, Handle handle);
// The stream, or null for the legacy one; refuses what is none, and what a recording has no place for.
Result find_stream(Session& session, Handle handle, Stream** found);
// Starts work on a stream, or records it.
Result start(Session& session, Handle stream, Work work);
// What a recording keeps this thread from, such as taking memory: breaks the recordings that forbid it.
Result refuse_while_recording(Session& session);
// What a wait for a stream must not be asked while something records.
Result refuse_waiting(Session& session, Handle stream);
// As `refuse_while_recording`, for what waits for everything, which no recording of any thread allows.
Result refuse_beside_any_recording(Session& session);

}  // namespace driver
