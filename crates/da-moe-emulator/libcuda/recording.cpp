// Recordings: what is started on a stream that records is kept, and whoever does what a recording forbids breaks it.
#include "driver.h"

#include <unistd.h>

namespace driver {

namespace {

const Handle LEGACY = reinterpret_cast<Handle>(1), PER_THREAD = reinterpret_cast<Handle>(2);

// What a thread has said of itself: whose recordings keep it from what they forbid.
Mode& mode_of_thread() {
    static thread_local Mode mode = Mode::Global;
    return mode;
}

bool forbids(const Recording& recording) {
    if (recording.mode == Mode::Relaxed || mode_of_thread() == Mode::Relaxed) {
        return false;
    }
    const bool own = recording.thread == std::this_thread::get_id();
    return own || (recording.mode == Mode::Global && mode_of_thread() == Mode::Global);
}

// Breaks every recording that `meant` means.
template <class Meant>
bool break_recordings(Driver& driver, Meant meant) {
    bool any = false;
    for (auto& [handle, stream] : driver.streams) {
        if (stream.recording && meant(stream)) {
            stream.recording->broken = true;
            any = true;
        }
    }
    return any;
}

// The streams of a recording no longer record.
void end(Driver& driver, const std::shared_ptr<Recording>& recording) {
    for (auto& [handle, stream] : driver.streams) {
        if (stream.recording == recording) {
            stream.recording = nullptr;
            stream.known.clear();
        }
    }
}

// Whether some stream of the recording has work that its first stream never waited for.
bool has_unjoined_work(Driver& driver, const Recording& recording) {
    Known& known = driver.streams.find(recording.origin)->known;
    for (auto& [handle, stream] : driver.streams) {
        if (stream.recording.get() == &recording && known[stream.own] < stream.known[stream.own]) {
            return true;
        }
    }
    return false;
}

}  // namespace

bool is_legacy(Handle stream) {
    return stream == nullptr || stream == LEGACY;
}

Handle open_stream(Driver& driver, bool blocking, int priority) {
    const Handle handle = driver.streams.add({});
    Stream& stream = *driver.streams.find(handle);
    stream.own = handle;
    stream.blocking = blocking;
    stream.priority = priority;
    return handle;
}

Stream* look_up(Driver& driver, Handle handle) {
    if (handle != PER_THREAD) {
        return driver.streams.find(handle);
    }
    static thread_local Handle own = nullptr;
    if (!driver.streams.find(own)) {
        own = open_stream(driver, true, 0);
    }
    return driver.streams.find(own);
}

Result find_stream(Session& session, Handle handle, Stream** found) {
    *found = nullptr;
    if (is_legacy(handle)) {
        const auto blocking = [](const Stream& stream) { return stream.blocking; };
        return break_recordings(session.driver, blocking) ? CaptureImplicit : Success;
    }
    *found = look_up(session.driver, handle);
    if (!*found) {
        return InvalidHandle;
    }
    return (*found)->recording && (*found)->recording->broken ? CaptureInvalidated : Success;
}

Result start(Session& session, Handle handle, Work work) {
    Stream* stream;
    if (const Result wrong = find_stream(session, handle, &stream)) {
        return wrong;
    }
    if (!stream || !stream->recording) {
        session->run(work);
        return Success;
    }
    const std::shared_ptr<Recording> recording = stream->recording;
    if (const uint64_t slow = Settings::get().slow_recording) {
        session.lock.unlock();
        usleep(static_cast<useconds_t>(slow));
        session.lock.lock();
        if (const Result wrong = find_stream(session, handle, &stream)) {
            return wrong;
        }
    }
    recording->work.push_back(std::move(work));
    stream->known[stream->own]++;
    session.note("recorded");
    return Success;
}

Result refuse_while_recording(Session& session) {
    const auto forbidding = [](const Stream& stream) { return forbids(*stream.recording); };
    return break_recordings(session.driver, forbidding) ? CaptureUnsupported : Success;
}

Result refuse_beside_any_recording(Session& session) {
    return break_recordings(session.driver, [](const Stream&) { return true; }) ? CaptureUnsupported : Success;
}

// A thread that records waits for no stream at all: that it may for others is written nowhere.
Result refuse_waiting(Session& session, Handle handle) {
    Stream* stream;
    if (const Result wrong = find_stream(session, handle, &stream)) {
        return wrong;
    }
    const auto meant = [&](const Stream& recording) {
        const bool own = recording.recording->thread == std::this_thread::get_id();
        return &recording == stream || (own && forbids(*recording.recording));
    };
    return break_recordings(session.driver, meant) ? CaptureUnsupported : Success;
}

}  // namespace driver

using namespace driver;

EXPORT Result cuThreadExchangeStreamCaptureMode(Mode* mode) {
    std::swap(*mode, mode_of_thread());
    return Success;
}

EXPORT Result cuStreamBeginCapture_v2(Handle handle, Mode mode) {
    return call("cuStreamBeginCapture", Needs::Context, [&](Session& session) -> Result {
        session.note("%p, mode %d", handle, static_cast<int>(mode));
        static uint64_t number;
        Stream* stream;
        if (const Result wrong = find_stream(session, handle, &stream)) {
            return wrong;
        }
        if (!stream) {
            return CaptureUnsupported;
        }
        if (stream->recording) {
            return IllegalState;
        }
        stream->recording = std::make_shared<Recording>();
        stream->recording->origin = stream->own;
        stream->recording->mode = mode;
        stream->recording->thread = std::this_thread::get_id();
        stream->recording->number = ++number;
        stream->known = {{stream->own, 0}};
        return Success;
    });
}

EXPORT Result cuStreamEndCapture(Handle handle, Handle* graph) {
    *graph = nullptr;
    return call("cuStreamEndCapture", Needs::Context, [&](Session& session) -> Result {
        session.note("%p", handle);
        const Stream* stream = look_up(session.driver, handle);
        if (!stream) {
            return is_legacy(handle) ? IllegalState : InvalidHandle;
        }
        const std::shared_ptr<Recording> recording = stream->recording;
        if (!recording) {
            return IllegalState;
        }
        if (recording->mode != Mode::Relaxed && recording->thread != std::this_thread::get_id()) {
            return CaptureWrongThread;
        }
        if (recording->origin != stream->own) {
            recording->broken = true;
            return CaptureUnmatched;
        }
        const bool unjoined = has_unjoined_work(session.driver, *recording);
        end(session.driver, recording);
        if (recording->broken || unjoined) {
            return recording->broken ? CaptureInvalidated : CaptureUnjoined;
        }
        *graph = session->graphs.add(std::move(recording->work));
        return Success;
    });
}

EXPORT Result cuStreamGetCaptureInfo_v2(Handle handle, int* status, uint64_t* number, Handle* graph,
                                        const Handle** before, size_t* count) {
    return call("cuStreamGetCaptureInfo", Needs::Context, [&](Session& session) -> Result {
        Stream* stream;
        const Result wrong = find_stream(session, handle, &stream);
        if (wrong && wrong != CaptureInvalidated) {
            return wrong;
        }
        const Recording* recording = stream ? stream->recording.get() : nullptr;
        *status = !recording ? 0 : recording->broken ? 2 : 1;
        if (number && recording) {
            *number = recording->number;
        }
        // The graph itself is not shown before it is finished.
        if (graph) {
            *graph = nullptr;
        }
        if (before) {
            *before = nullptr;
        }
        if (count) {
            *count = 0;
        }
        return Success;
    });
}

EXPORT Result cuStreamGetCaptureInfo_v3(Handle handle, int* status, uint64_t* number, Handle* graph,
                                        const Handle** before, const void** edges, size_t* count) {
    if (edges) {
        *edges = nullptr;
    }
    return cuStreamGetCaptureInfo_v2(handle, status, number, graph, before, count);
}

EXPORT Result cuStreamIsCapturing(Handle handle, int* status) {
    return cuStreamGetCaptureInfo_v2(handle, status, nullptr, nullptr, nullptr, nullptr);
}
