#!/bin/sh
# Everything that needs a GPU, in about ten minutes; a short table comes last.
#   ./run.sh [--only tests|conformance|sanitizer|bench|peers]
# Results go to $OUT, or to the folder `results` here.
cd "$(dirname "$0")" || exit 1
only=all
case "$1" in
    "") ;;
    --only) only=$2 ;;
    *) sed -n 3p "$0"; exit 2 ;;
esac
out=${OUT:-results}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
# The emulator would need a C++ compiler and the kernels' sources.
export DA_MOE_EMULATOR=0

if ! ./da-moe-gpu --ignored --exact probe --nocapture > "$out/device.txt" 2>&1; then
    grep -o 'no GPU.*\|CUDA kernels are not built.*\|the NVIDIA driver is for.*\|.*there are kernels for.*' "$out/device.txt" | head -n 1
    echo "nothing was run"
    exit 0
fi
device=$(grep sm_ "$out/device.txt" | head -n 1)
table="$out/table.txt"
echo "device       $device" > "$table"

# part NAME SECONDS COMMAND...: runs it, keeps what it says, notes how it ended.
part() {
    name=$1; limit=$2; shift 2
    case "$only" in all|"$name"|"${name%%-*}") ;; *) return ;; esac
    start=$(date +%s)
    if timeout "$limit" "$@" > "$out/$name.txt" 2>&1; then how=passed; else how="FAILED ($?)"; fi
    printf '%-12s %s in %d s\n' "$name" "$how" $(($(date +%s) - start)) >> "$table"
}

part tests 240 ./da-moe-gpu --quiet
if [ "$only" = all ] || [ "$only" = conformance ]; then
    start=$(pwd); cd "$out" || exit 1
    DA_MOE_RECORD=1 part conformance 60 "$start/da-moe-gpu" conformance:: --nocapture
    cd "$start" || exit 1
fi
if command -v compute-sanitizer > /dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        part "sanitizer-$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 1 ./da-moe-gpu --quiet engine::tensors kernels::plans expert_kernels::strided
    done
else
    echo "sanitizer    compute-sanitizer is not installed" >> "$table"
fi
part bench 150 ./da-moe-gpu --ignored --exact bench::layer --nocapture
part peers 150 python3 gpu_moe.py

for name in bench peers; do
    [ -f "$out/$name.txt" ] && grep -E 'TFLOP/s|TB/s|skipped|cannot' "$out/$name.txt" >> "$table"
done
echo
cat "$table"
! grep -q FAILED "$table"
