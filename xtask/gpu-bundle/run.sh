#!/bin/sh
# Everything that needs a GPU, within ten minutes; a short table comes last.
#   ./run.sh [--only tests|conformance|sanitizer|bench|peers]
# Results go to $OUT, or to the folder `results` here. Exit code 0 when all that ran passed or there is no GPU, 1 when something failed,
# 2 for a part that there is not.
cd "$(dirname "$0")" || exit 1
only=all
case "$1" in
    "") ;;
    --only) only=$2 ;;
    *) only= ;;
esac
case "$only" in
    all|tests|conformance|sanitizer|bench|peers) ;;
    *) sed -n '3s/^# *//p' "$0" >&2; exit 2 ;;
esac
out=${OUT:-results}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
here=$(pwd)
# The emulator would need a C++ compiler and the kernels' sources.
export DA_MOE_EMULATOR=0

timeout 30 ./da-moe-gpu --ignored --exact probe --nocapture > "$out/device.txt" 2>&1
# `found` or `none` or `broken`, and what; nothing where the program does not even start.
answer=$(sed -n 's/.*probe: //p' "$out/device.txt" | head -n 1)
case "$answer" in
    "found "*) ;;
    "none "*) echo "${answer#none }"; echo "nothing was run"; exit 0 ;;
    "broken "*) echo "the GPU cannot be used: ${answer#broken }"; echo "nothing was run"; exit 1 ;;
    *) echo "the program does not start: $(tail -n 1 "$out/device.txt")"; echo "nothing was run"; exit 1 ;;
esac
table="$out/table.txt"
echo "device       ${answer#found }" > "$table"

row() { printf '%-20s %s\n' "$1" "$2" >> "$table"; }

# part NAME SECONDS COMMAND...: runs it, keeps what it says, notes how it ended. All limits together, with the probe's, are
# at most ten minutes; `cargo xtask gpu-bundle` adds them up.
part() {
    name=$1; limit=$2; shift 2
    case "$only" in all|"${name%%-*}") ;; *) return ;; esac
    start=$(date +%s)
    timeout "$limit" "$@" > "$out/$name.txt" 2>&1
    case $? in
        0) how=passed ;;
        124) how="FAILED, out of time" ;;
        *) how=FAILED ;;
    esac
    row "$name" "$how in $(($(date +%s) - start)) s"
}

part tests 170 ./da-moe-gpu --quiet
cd "$out" || exit 1
part conformance 30 env DA_MOE_RECORD=1 "$here/da-moe-gpu" conformance:: --nocapture
cd "$here" || exit 1

if command -v compute-sanitizer > /dev/null; then
    # One program of every stage and direction, small; memory is neither pooled nor poisoned, so that the tools see it all.
    for tool in memcheck racecheck initcheck synccheck; do
        part "sanitizer-$tool" 45 env DA_MOE_SANITIZE=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
            ./da-moe-gpu --quiet --test-threads 1 engine::tensors kernels::plans expert_kernels::strided expert_backward_kernels::gradients \
            expert_backward_kernels::products accumulation:: graphs::gradients backward_kernels::no_tokens
    done
elif [ "$only" = all ] || [ "$only" = sanitizer ]; then
    row sanitizer "skipped, compute-sanitizer is not installed"
fi

part bench 90 ./da-moe-gpu --ignored --exact bench::layer --nocapture
if command -v python3 > /dev/null; then
    part peers 90 python3 gpu_moe.py 60
elif [ "$only" = all ] || [ "$only" = peers ]; then
    row peers "skipped, there is no python3"
fi

for name in bench peers; do
    case "$only" in all|"$name") grep -E 'TFLOP/s|TB/s|skipped|FAILED' "$out/$name.txt" 2> /dev/null >> "$table" ;; esac
done
echo
cat "$table"
! grep -q FAILED "$table"
