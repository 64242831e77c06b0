#!/usr/bin/env bash
# Is one build as fast as another? Runs both in turn on the sizes of run.sh and prints ratios.
#
#   tests/bench/compare.sh OLD NEW [ROUNDS [SIZE ...]]     OLD, NEW: programs (build/strata); 5 rounds
#                                                          of tiny, small and medium
#   THREADS=1     threads of the one rank
#   TOGETHER=1    on a machine full of other work: both at one time on the same core, which they share in
#                 slices of milliseconds; then processor time says which is faster, samples/s nothing
#
# A machine that others use too changes its speed from minute to minute, so the two follow each other at
# once, in the order OLD NEW, then NEW OLD, and only figures of the same round are compared. samples/s is
# that of the median step, the first one left out; processor time is that of the whole run, which suffers
# less from others. A ratio is NEW / OLD, above 1 where NEW is faster; the last line of a size has the
# ratio of the medians over all rounds and the median of the rounds' ratios.
set -u
cd "$(dirname "$0")/../.." || exit 1
[ $# -ge 2 ] || { sed -n '4,6s/^# *//p' "$0" >&2; exit 64; }
old=$1 new=$2 rounds=${3:-5}
shift "$(($# < 3 ? $# : 3))"
sizes=("$@")
[ ${#sizes[@]} -gt 0 ] || sizes=(tiny small medium)
for program in "$old" "$new"; do
    [ -x "$program" ] || { echo "$program is no program" >&2; exit 66; }
done
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
export OPENBLAS_NUM_THREADS=1
# Steps, and what makes them short: samples/s, not its size, is compared.
declare -A steps=([tiny]=60 [small]=4 [medium]=4)
declare -A shorter=([tiny]="" [small]="training:global_batch_size=4"
    [medium]="training:micro_batch_size=2 training:global_batch_size=2")

median() { sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# run PROGRAM NAME SIZE STEPS: adds "samples/s processor-seconds" to $tmp/NAME.SIZE.
run() {
    local dir=$tmp/run.$2 TIMEFORMAT='%U %S' cpu
    rm -rf "$dir"
    # shellcheck disable=SC2086 # several arguments
    { time ${TOGETHER:+taskset -c 0} "$1" train "tests/bench/$3.ini" "run:run_dir=$dir" "run:threads_per_rank=${THREADS:-1}" \
        "data:data_cache_path=$tmp/cache" "training:train_iters=$4" ${shorter[$3]} logging:log_interval=1000 \
        >"$dir.out" 2>"$dir.err"; } 2>"$dir.time" || { tail -n 5 "$dir.err" >&2; return 1; }
    cpu=$(awk '{ print $1 + $2 }' "$dir.time")
    echo "$(tail -n +3 "$dir/metrics.csv" | cut -d, -f8 | median) $cpu" >>"$tmp/$2.$3"
}

status=0
for size in "${sizes[@]}"; do
    n=${steps[$size]}
    run "$new" warm "$size" 2 || { status=1; continue; } # the index, and the program in memory
    for round in $(seq "$rounds"); do
        if [ -n "${TOGETHER:-}" ]; then
            run "$old" old "$size" "$n" &
            other=$!
            run "$new" new "$size" "$n" || status=1
            wait $other || status=1
        elif [ $((round % 2)) = 1 ]; then
            run "$old" old "$size" "$n" && run "$new" new "$size" "$n" || status=1
        else
            run "$new" new "$size" "$n" && run "$old" old "$size" "$n" || status=1
        fi
        paste "$tmp/old.$size" "$tmp/new.$size" | tail -n 1 | awk -v s="$size" -v r="$round" '{
            printf "%-6s round %d  samples/s %8.2f %8.2f  ratio %.3f   processor s %7.2f %7.2f  ratio %.3f\n",
                s, r, $1, $3, $3 / $1, $2, $4, $2 / $4 }'
    done
    paste "$tmp/old.$size" "$tmp/new.$size" | awk '{ print $3 / $1 }' | median >"$tmp/ratio"
    paste "$tmp/old.$size" "$tmp/new.$size" | awk '{ print $2 / $4 }' | median >"$tmp/ratio.cpu"
    a=$(cut -d' ' -f1 "$tmp/old.$size" | median) b=$(cut -d' ' -f1 "$tmp/new.$size" | median)
    awk -v s="$size" -v a="$a" -v b="$b" -v m="$(cat "$tmp/ratio")" -v c="$(cat "$tmp/ratio.cpu")" 'BEGIN {
        printf "%-6s samples/s %.2f -> %.2f: ratio of the medians %.3f, median of the ratios %.3f; of processor time %.3f\n",
            s, a, b, b / a, m, c }'
done
exit $status
