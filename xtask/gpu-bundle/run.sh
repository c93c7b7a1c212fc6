#!/bin/sh
# Everything that needs a GPU, in two calls, for a machine that is there for minutes.
#   ./run.sh first [REST="GROUP..."]             what there is, vectors, smoke, graphs, bench, peers, properties; within 400 s
#   ./run.sh again [NAME...] [REST="GROUP..."]   what failed, alone and watched; properties, sanitizers, bench; within 270 s
# NAME is the start of tests' names, F="NAME..." the same, and REST names groups of properties: both stand in the last line of the
# first call, which is the second. Without REST all groups are in the first call, and those that come last there in the second.
#
# Results go to $OUT, or to the folder `results` here, in at most six files: log.txt has everything, table.txt what is printed here.
# Exit code 0 when all that ran passed or there is no GPU, 1 when something failed, 2 for a call that there is not.
# DA_MOE_BUNDLE is the folder of the programs, if it is not this one; DA_MOE_SECONDS the time for everything, if it is not the above.

cd "$(dirname "$0")" || exit 1
here=$(pwd)
usage() { sed -n '3,4s/^# *//p' "$here/run.sh" >&2; exit 2; }

# Groups of properties, the kernels' own first. Each is a process of its own: after a fault nothing in a process works.
GROUPS_FIRST="kernels::forward kernels::experts kernels::attention kernels::backward kernels::experts_backward properties::workspace
    properties::streams properties::accumulation properties::edges properties::engine refusals::device"
GROUPS_LATER="properties::agreement properties::determinism properties::nonfinite properties::leak properties::state properties::memory
    properties::calls properties::plan properties::hidden properties::gradient_range properties::finite_differences"
# One of every stage and direction, small: for what makes everything slow.
SMALL="smoke:: properties::engine::tensors_on kernels::experts::strided properties::graphs::gradients"

call=$1; names=
case "$call" in
    first) total=400 rest="$GROUPS_FIRST $GROUPS_LATER" ;;
    again) total=270 rest=$GROUPS_LATER ;;
    *) usage ;;
esac
shift
for argument; do
    case "$call $argument" in
        "again F="*) names="$names ${argument#F=}" ;;
        *" REST="*) rest=${argument#REST=} ;;
        "again "[a-z_]*) names="$names $argument" ;;
        *) usage ;;
    esac
done

total=${DA_MOE_SECONDS:-$total}
programs=$(cd "${DA_MOE_BUNDLE:-.}" && pwd) || exit 1
program=$programs/da-moe-gpu
out=${OUT:-results}
mkdir -p "$out" && out=$(cd "$out" && pwd) && work=$(mktemp -d) || exit 1
log=$out/log.txt table=$out/table.txt
: > "$log"; : > "$table"
for packed in "$programs"/*.gz; do [ -e "$packed" ] && gzip -dc "$packed" > "${packed%.gz}"; done
chmod +x "$programs"/da-moe* 2> /dev/null
trap 'kill $background 2> /dev/null; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# The GPU or nothing: the emulator would need a compiler and the sources, and what fails on a GPU must not pass on it.
export DA_MOE_EMULATOR=0 DA_MOE_GPU=1
# After a kernel's fault every call fails, and a smaller case tells nothing.
export PROPTEST_MAX_SHRINK_ITERS=0 PYTHONUNBUFFERED=1 RUST_BACKTRACE=0
export DA_MOE_RECORD="$out"

began=$(date +%s)
now() { echo $(($(date +%s) - began)); }
# Where the part that runs must end.
end=$total
until_percent() { end=$((total * $1 / 100)); }
# at_most SECONDS: as many, or those that are left.
at_most() {
    left=$((end - $(now)))
    if [ "$left" -lt "$1" ]; then echo "$left"; else echo "$1"; fi
}

# What is printed is kept too. Of 12,000 characters of standard output that come back, rows have 4,000.
tell() { printf '%s\n' "$*"; printf '%s\n' "$*" >> "$table"; }
excerpts=7500
# excerpt MOST: standard input, so many bytes of it at most, as far as there is room.
excerpt() {
    most=$1; [ "$most" -lt "$excerpts" ] || most=$excerpts
    text=$(cut -c 1-400 | head -c "$most")
    [ -z "$text" ] && return
    excerpts=$((excerpts - ${#text} - 1))
    tell "$text"
}

passed=0; failed=0; skipped=0; late=0; again=; untried=
# row NAME OUTCOME
row() {
    case "$2" in
        passed*) passed=$((passed + 1)) ;;
        FAILED*) failed=$((failed + 1)) ;;
        skipped*) skipped=$((skipped + 1)) ;;
        *) late=$((late + 1)) ;;
    esac
    tell "$(printf '[%3d s] %-30s %s' "$(now)" "$1" "$2" | cut -c 1-150)"
}

# What explains a failure: every panic once, by test; what tools and programs call an error; or else the last lines.
essence() {
    awk '
        function told() {
            key = message; gsub(/[0-9]+/, "", key)
            if (key in seen) { more++ } else { seen[key] = 1; if (++kinds <= 5) print "  " test ":" message }
            lines = 0
        }
        / panicked at / {
            if (lines) told()
            test = $0; sub(/^.*thread ./, "", test); sub(/. .*panicked at .*$/, "", test)
            message = ""; lines = 4
            next
        }
        lines && (/^note: / || /^test / || /^$/ || --lines == 0) { told() }
        lines { message = message " " $0; next }
        /^=========/ { if (++tool <= 12) print "  " $0 }
        /FAILED:|^[A-Za-z.]*Error|^error/ { if (++others <= 5) print "  " $0 }
        NF { last = before; before = $0 }
        END {
            if (lines) told()
            if (more) print "  and " more " more with the same words"
            if (!kinds && !tool && !others) { print "  " last; print "  " before }
        }'
}

# failures THREADS TESTS: those that failed, by what libtest says of them, on standard input. With one thread it prints a name
# before the test and the outcome alone; a process that was ended has not told of its last ones.
failures() {
    awk -v one_thread="$1" -v tests="$2" '
        /^test .* \.\.\. / { running = $2 }
        /^test .* \.\.\. ok$/ { passed[$2] = 1; running = "" }
        /^ok$/ { passed[running] = 1; running = "" }
        /^test .* \.\.\. FAILED$/ || /^FAILED$/ { if (running != "") print running; running = "" }
        /^test result: / { ended = 1 }
        END {
            if (ended) exit
            if (one_thread != "") { if (running != "") print running; exit }
            count = split(tests, all, /[ \n]+/)
            for (i = 1; i <= count; i++) if (!(all[i] in passed)) print all[i]
        }'
}

# part NAME SECONDS COMMAND...: runs it, keeps what it says, and prints how it ended at once.
part() {
    name=$1; limit=$(at_most "$2"); wanted=$2; shift 2
    if [ "$limit" -lt 5 ]; then row "$name" "no time"; return 2; fi
    printf '\n## %s, %s s: %s\n' "$name" "$limit" "$*" >> "$log"
    from=$(wc -c < "$log")
    timeout -k 5 "$limit" "$@" >> "$log" 2>&1
    code=$?
    tail -c "+$((from + 1))" "$log" > "$work/said"
    counted=$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]* passed; [0-9]* failed\).*/, \1/p; s/^.*\(ERROR SUMMARY: .*\)/, \1/p' "$work/said" | tail -n 1)
    if grep -q 'Device not supported' "$work/said"; then
        row "$name" "skipped, the tool does not support this device"
        return 0
    fi
    why=$(sed -n 's/^peers: skipped, //p' "$work/said" | head -n 1)
    case $code in
        0) if [ -n "$why" ]; then row "$name" "skipped, $why"; else row "$name" "passed$counted"; fi; return 0 ;;
        124 | 137)
            # What may go on in the next call is no failure because this one is over.
            if [ -n "$may_be_cut" ] && [ "$limit" -lt "$wanted" ] && ! grep -q ' panicked at ' "$work/said"; then
                row "$name" "no time, cut off after $limit s"
                return 2
            fi
            row "$name" "FAILED, out of time after $limit s" ;;
        *) row "$name" "FAILED with $code$counted" ;;
    esac
    essence < "$work/said" | excerpt 1200
    return 1
}

# tests NAME SECONDS THREADS PREFIX...: the tests whose names start so. Without THREADS, as many at a time as there are cores.
tests() {
    name=$1; limit=$2; threads=$3; shift 3
    chosen=$(for prefix; do grep "^$prefix" "$work/tests"; done | sort -u)
    if [ -z "$chosen" ]; then row "$name" "FAILED, there is no such test: $*"; return 1; fi
    # shellcheck disable=SC2086 # one word a test
    part "$name" "$limit" $watched "$program" ${threads:+--test-threads "$threads"} --nocapture --exact $chosen
    ended=$?
    [ "$ended" = 1 ] || return "$ended"
    found=$(failures "$threads" "$chosen" < "$work/said" | sort -u)
    # So many that it is rather the whole group.
    if [ -z "$found" ] || [ "$(echo "$found" | wc -l)" -gt 8 ]; then found=$*; fi
    again="$again $found"
    return 1
}
watched=; may_be_cut=
# waited TESTS...: with every launch waited for, so that an error is told where it happens.
waited() {
    watched="env DA_MOE_SYNC=1 CUDA_LAUNCH_BLOCKING=1"
    tests "$@"
    watched=
}

# The Python that has PyTorch, if one has.
for python in python3 /opt/*/.venv/bin/python3 /opt/*/bin/python3 none; do
    "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' 2> /dev/null && break
done
[ "$python" != none ] || python=python3

# Which GPU there is. Ends everything where there is none, or it does not open.
probe() {
    {
        uname -srm; nproc; ldd --version | head -n 1; echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"; ldconfig -p | grep libcuda
        timeout -k 5 10 nvidia-smi; echo "compute-sanitizer: $sanitizer"; command -v "$python"
    } >> "$log" 2>&1
    # A driver that has to translate the kernels takes long.
    limit=$(at_most 120)
    timeout -k 5 "$limit" "$program" --ignored --exact probe --nocapture > "$work/probe" 2>&1
    code=$?
    cat "$work/probe" >> "$log"
    sed -n 's/.*probe: //p' "$work/probe" > "$work/answer"
    answer=$(head -n 1 "$work/answer")
    case "$answer" in
        "found "*) row probe "passed, ${answer#found }"; sed '1d; s/^/  /' "$work/answer" | excerpt 600; return ;;
        "none "*)
            if timeout -k 5 10 nvidia-smi -L 2> /dev/null | grep -q '^GPU'; then
                row probe "FAILED, nvidia-smi sees a GPU: ${answer#none }"
            else
                tell "${answer#none }"; tell "nothing was run"; exit 0
            fi ;;
        "broken "*) row probe "FAILED, the GPU cannot be used"; tell "  ${answer#broken }" ;;
        *) case $code in
                124 | 137) row probe "FAILED, the GPU does not answer within $limit s" ;;
                *) row probe "FAILED, the program does not start: $(tail -n 1 "$work/probe")" ;;
            esac ;;
    esac
    tell "nothing was run"
    exit 1
}

# The clock and what it costs, for as long as this runs; it also keeps the GPU from being shut down between programs.
watch_clock() {
    command -v nvidia-smi > /dev/null || return
    nvidia-smi --query-gpu=timestamp,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active \
        --format=csv,nounits -lms 500 > "$out/smi.csv" 2>&1 &
    background="$background $!"
}

# bench SECONDS: a small run of all of it first, which fails in seconds if it fails.
bench() {
    part bench-tiny 30 env DA_MOE_BENCH=tiny "$program" --ignored --exact bench::layer --nocapture || return
    limit=$(at_most "$1")
    part bench "$limit" env DA_MOE_BENCH_SECONDS="$((limit - limit / 10))" "$program" --ignored --exact bench::layer --nocapture
    cp "$work/said" "$out/bench.txt"
    # The lines of shapes; what belongs to a shape is indented, and in the file.
    grep -E '^[a-z].*(TFLOP/s|TB/s)' "$work/said" | excerpt 3000
}

peers() {
    if ! command -v "$python" > /dev/null; then row peers "skipped, there is no python3"; return; fi
    limit=$(at_most "$1")
    part peers "$limit" "$python" "$here/gpu_moe.py" --seconds "$((limit - limit / 10))"
    cp "$work/said" "$out/peers.txt"
    grep -E '^[a-z].*(TFLOP/s|TB/s|skipped)' "$work/said" | cut -c 1-110 | excerpt 2500
}

properties() {
    may_be_cut=yes
    for group; do
        tests "$group" 45 "" "$group::"
        [ $? = 2 ] && untried="$untried $group"
    done
    may_be_cut=
}

# sanitize TOOL NAME SECONDS PREFIX...: memory is neither pooled nor poisoned then, so that the tool sees it all.
sanitize() {
    tool=$1; shift
    if [ -z "$sanitizer" ]; then row "$1" "skipped, compute-sanitizer is not installed"; return; fi
    watched="env DA_MOE_SANITIZE=1 $sanitizer --tool $tool --print-limit 10 --error-exitcode 1"
    label=$1; limit=$2; shift 2
    tests "$label" "$limit" 1 "$@"
    watched=
}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/compute-sanitizer \
    /opt/nvidia/*/*/compute-sanitizer 2> /dev/null | head -n 1)

first() {
    # PyTorch into the file cache, while the GPU is busy.
    "$python" -c 'import torch' > /dev/null 2>&1 &
    background="$background $!"
    tests conformance 30 1 kernels::conformance::
    # shellcheck disable=SC2086 # one word a prefix
    waited smoke 40 1 $SMALL kernels::forward::plans kernels::backward::no_tokens
    if [ -e "$programs/da-moe" ]; then
        "$programs/da-moe" doctor >> "$log" 2>&1
        part demo 30 "$programs/da-moe" demo --device cuda
    else
        row demo "skipped, there is no da-moe"
    fi
    tests graphs 30 1 properties::graphs::
    bench 100
    peers 70
    export DA_MOE_CASES="${DA_MOE_CASES:-60}"
    # shellcheck disable=SC2086 # one word a group
    properties $rest
}

again() {
    until_percent 45
    for test in $names; do
        waited "alone $test" 25 1 "$test"
        sanitize memcheck "memcheck $test" 50 "$test"
    done
    until_percent 70
    # shellcheck disable=SC2086 # one word a group
    properties $rest
    until_percent 88
    for tool in memcheck racecheck synccheck initcheck; do
        # shellcheck disable=SC2086 # one word a prefix
        sanitize $tool $tool 50 $SMALL
    done
    until_percent 100
    bench 60
}

background=
"$program" --list 2> /dev/null | sed -n 's/: test$//p' > "$work/tests"
probe
watch_clock
$call

tell "$passed passed, $failed failed, $skipped skipped, $late without time, in $(now) s"
if [ "$call" = first ]; then
    again=$(for test in $again; do echo "$test"; done | sort -u | head -n 12 | tr '\n' ' ')
    tell "next: ./run.sh again ${again}REST=\"${untried# }\""
fi
[ "$failed" = 0 ]
