// Streams and events. What is started has ended when the call returns, so that their order is the host's; what is checked is
// what may be said to whom, above all while something records.
#include "driver.h"

using namespace driver;

namespace {

constexpr unsigned NON_BLOCKING = 1, DISABLE_TIMING = 2;

// What a recording must not be asked: whether it has ended.
Result refuse_captured(Event& event) {
    const std::shared_ptr<Recording> recording = event.recording.lock();
    if (event.captured && recording) {
        recording->broken = true;
        return CapturedEvent;
    }
    return Success;
}

// A stream that waits for a point of a recording becomes a part of it; one that records waits for nothing else.
Result wait_for_event(Session& session, Stream* stream, const Event& event) {
    const std::shared_ptr<Recording> from = event.recording.lock();
    const bool open = event.captured && from;
    if (stream && stream->recording) {
        if (!open) {
            const bool nothing = !event.captured && !event.recorded;
            stream->recording->broken |= !nothing;
            return nothing ? Success : CaptureIsolation;
        }
        if (from != stream->recording) {
            from->broken = stream->recording->broken = true;
            return CaptureMerge;
        }
        for (const auto& [other, work] : event.known) {
            stream->known[other] = std::max(stream->known[other], work);
        }
        return Success;
    }
    if (!open) {
        return event.captured ? CapturedEvent : Success;
    }
    if (!stream) {
        from->broken = true;
        return CaptureImplicit;
    }
    session.note("joins recording %llu", static_cast<unsigned long long>(from->number));
    stream->recording = from;
    stream->known = event.known;
    stream->known[stream->own] = 0;
    return Success;
}

}  // namespace

EXPORT Result cuStreamCreateWithPriority(Handle* stream, unsigned flags, int priority) {
    return call("cuStreamCreate", Needs::Context, [&](Session& session) -> Result {
        if (flags & ~NON_BLOCKING) {
            return InvalidValue;
        }
        *stream = open_stream(session.driver, !(flags & NON_BLOCKING), std::min(0, std::max(-5, priority)));
        session.note("%p", *stream);
        return Success;
    });
}

EXPORT Result cuStreamCreate(Handle* stream, unsigned flags) {
    return cuStreamCreateWithPriority(stream, flags, 0);
}

EXPORT Result cuStreamDestroy_v2(Handle stream) {
    return call("cuStreamDestroy", Needs::Context, [&](Session& session) -> Result {
        session.note("%p", stream);
        const Stream* found = session->streams.find(stream);
        if (!found) {
            return InvalidHandle;
        }
        if (found->recording) {
            found->recording->broken = true;
        }
        session->streams.remove(stream);
        return Success;
    });
}

EXPORT Result cuStreamSynchronize(Handle stream) {
    return call("cuStreamSynchronize", Needs::Context, [&](Session& session) {
        session.note("%p", stream);
        const Result wrong = refuse_waiting(session, stream);
        return wrong ? wrong : session.wait();
    });
}

EXPORT Result cuStreamQuery(Handle stream) {
    return call("cuStreamQuery", Needs::Context, [&](Session& session) {
        session.note("%p", stream);
        if (const Result wrong = refuse_waiting(session, stream)) {
            return wrong;
        }
        return session->hangs() ? NotReady : session->tell();
    });
}

EXPORT Result cuStreamGetCtx(Handle stream, Handle* context) {
    return call("cuStreamGetCtx", Needs::Context, [&](Session& session) {
        Stream* found;
        *context = current_context();
        return find_stream(session, stream, &found);
    });
}

EXPORT Result cuStreamGetFlags(Handle stream, unsigned* flags) {
    return call("cuStreamGetFlags", Needs::Context, [&](Session& session) {
        Stream* found;
        const Result wrong = find_stream(session, stream, &found);
        *flags = found && !found->blocking ? NON_BLOCKING : 0;
        return wrong;
    });
}

EXPORT Result cuStreamGetPriority(Handle stream, int* priority) {
    return call("cuStreamGetPriority", Needs::Context, [&](Session& session) {
        Stream* found;
        const Result wrong = find_stream(session, stream, &found);
        *priority = found ? found->priority : 0;
        return wrong;
    });
}

EXPORT Result cuStreamWaitEvent(Handle stream, Handle event, unsigned) {
    return call("cuStreamWaitEvent", Needs::Context, [&](Session& session) {
        session.note("%p for %p", stream, event);
        Stream* found;
        if (const Result wrong = find_stream(session, stream, &found)) {
            return wrong;
        }
        const Event* known = session->events.find(event);
        return known ? wait_for_event(session, found, *known) : InvalidHandle;
    });
}

EXPORT Result cuEventCreate(Handle* event, unsigned flags) {
    return call("cuEventCreate", Needs::Context, [&](Session& session) {
        Event made{};
        made.timed = !(flags & DISABLE_TIMING);
        *event = session->events.add(std::move(made));
        session.note("%p", *event);
        return Success;
    });
}

EXPORT Result cuEventDestroy_v2(Handle event) {
    return call("cuEventDestroy", Needs::Context, [&](Session& session) {
        session.note("%p", event);
        return session->events.remove(event) ? Success : InvalidHandle;
    });
}

EXPORT Result cuEventRecord(Handle event, Handle stream) {
    return call("cuEventRecord", Needs::Context, [&](Session& session) -> Result {
        session.note("%p on %p", event, stream);
        Stream* found;
        if (const Result wrong = find_stream(session, stream, &found)) {
            return wrong;
        }
        Event* point = session->events.find(event);
        if (!point) {
            return InvalidHandle;
        }
        point->captured = found && found->recording;
        point->recorded = !point->captured;
        point->time = std::chrono::steady_clock::now();
        point->recording = point->captured ? found->recording : nullptr;
        point->known = point->captured ? found->known : Known{};
        return Success;
    });
}

EXPORT Result cuEventQuery(Handle event) {
    return call("cuEventQuery", Needs::Context, [&](Session& session) {
        session.note("%p", event);
        Event* found = session->events.find(event);
        if (!found) {
            return InvalidHandle;
        }
        if (const Result wrong = refuse_captured(*found)) {
            return wrong;
        }
        if (const Result wrong = refuse_while_recording(session)) {
            return wrong;
        }
        return session->hangs() && found->recorded ? NotReady : session->tell();
    });
}

EXPORT Result cuEventSynchronize(Handle event) {
    return call("cuEventSynchronize", Needs::Context, [&](Session& session) {
        session.note("%p", event);
        Event* found = session->events.find(event);
        if (!found) {
            return InvalidHandle;
        }
        if (const Result wrong = refuse_captured(*found)) {
            return wrong;
        }
        if (const Result wrong = refuse_while_recording(session)) {
            return wrong;
        }
        return found->recorded ? session.wait() : session->tell();
    });
}

EXPORT Result cuEventElapsedTime_v2(float* milliseconds, Handle start, Handle end) {
    return call("cuEventElapsedTime", Needs::Context, [&](Session& session) -> Result {
        const Event* from = session->events.find(start);
        const Event* to = session->events.find(end);
        if (!from || !to || !from->timed || !to->timed || !from->recorded || !to->recorded) {
            return InvalidHandle;
        }
        if (session->hangs()) {
            return NotReady;
        }
        *milliseconds = std::chrono::duration<float, std::milli>(to->time - from->time).count();
        return session->tell();
    });
}

EXPORT Result cuEventElapsedTime(float* milliseconds, Handle start, Handle end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
