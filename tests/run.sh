#!/usr/bin/env bash
# Runs tests and counts them. Last line: "N passed, N failed" (", N skipped" when some were).
#
#   tests/run.sh [--build DIR] [--timeout SECONDS] [--jobs N] [--require-clang] [--list] [PROGRAM ...]
#
# Without PROGRAM: every tests/{unit,op,mpi,equal}/test_*.c (built below DIR) and every
# tests/{lint,equal,cli}/*.sh. A PROGRAM is such a .c or .sh file. With --jobs N, N programs run at a
# time, those with the longest limits first, and what one prints comes when it ends.
#
# A program is judged by its lines and by its exit code:
#   cmocka's "[       OK ] name", "[  FAILED  ] name", "[  SKIPPED ] name"; or
#   "ok - name", "not ok - name", "ok - name # SKIP reason".
# It failed if any line says so, if it ended with another code than 0, if it ran longer than its
# limit, if a test began and did not end, or if it printed no result at all.
#
# A skipped test is a failed one unless tests/skips.txt lists it with the reason that it may have.
#
# Comments near the top of a .c file: /* ranks: 1 2 4 */ runs it under mpirun once per count (a must
# in tests/mpi and tests/equal), /* timeout: 300 */ gives it more seconds, /* kernels: all */ runs it
# once more, with STRATA_BRIEF=1, under each further kernel set of OpenBLAS that this processor has.
# In a .sh: "# timeout: 300".
set -u
cd "$(dirname "$0")/.." || exit 1

build=build limit=120 list=0 jobs=1
while [ $# -gt 0 ]; do
    case $1 in
    --build) build=$2; shift 2 ;;
    --timeout) limit=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --require-clang) export STRATA_REQUIRE_CLANG=1; shift ;;
    --list) list=1; shift ;;
    -*) echo "tests/run.sh: unknown option $1" >&2; exit 64 ;;
    *) break ;;
    esac
done
case $build in /*) ;; *) build=$PWD/$build ;; esac

# Open MPI inside containers and on two cores: as root, more ranks than cores, yielding while idle.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_plm_rsh_agent=/bin/false
export BUILD=$build STRATA=$build/strata
slow=1
if [ "${SANITIZE:-0}" = 1 ]; then
    # The suppressions of leaks inside the MPI libraries need whole stacks.
    export ASAN_OPTIONS=fast_unwind_on_malloc=0:detect_leaks=1:abort_on_error=0
    export LSAN_OPTIONS=suppressions=$PWD/tests/lsan.supp:print_suppressions=0
    export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
    slow=5
fi

programs_all() {
    ls tests/lint/*.sh tests/unit/test_*.c tests/op/test_*.c tests/mpi/test_*.c \
        tests/equal/test_*.c tests/equal/*.sh tests/cli/*.sh 2>/dev/null
}
if [ $# -eq 0 ]; then
    mapfile -t programs < <(programs_all)
else
    programs=("$@")
fi
if [ $list = 1 ]; then
    printf '%s\n' "${programs[@]}"
    exit 0
fi

logs=$build/test-logs
mkdir -p "$logs" || exit 1
passed=0 failed=0 skipped=0

# note FILE WORD: the rest of the line "WORD: ..." of a comment near the top of FILE.
note() {
    sed -n '1,15{s|^.*[/*#] *'"$2"': *\([0-9 ]*\).*$|\1|p}' "$1" | head -n 1
}

# tally LOG CODE: "passed failed skipped" of one run.
tally() {
    awk -v code="$2" '
        /^\[ RUN      \] / { if (open) bad++; open = 1; next }
        /^\[       OK \] / { if (open) ok++; open = 0; next }
        /^\[  SKIPPED \] / { if (open) skip++; open = 0; next }
        /^\[  FAILED  \] / { if (open) bad++; open = 0; next }
        /^ok .*# *SKIP/ || /^ok .*# *skip/ { skip++; next }
        /^ok( |$)/ { ok++; next }
        /^not ok( |$)/ { bad++ }
        END {
            if (open) bad++
            if (!bad && (code != 0 || ok + skip == 0)) bad = 1
            print ok + 0, bad + 0, skip + 0
        }' "$1"
}

# ---- kernel sets: OpenBLAS chooses one by the processor, and OPENBLAS_CORETYPE another -----------
# Each has sums of its own, and some allocate where others do not. The names are those of OpenBLAS
# 0.3.21; one that the processor lacks is answered by another set's name. STRATA_KERNELS=one: no other.
kernels_now() { "$STRATA" version 2>/dev/null | sed -n 's/^BLAS.*, \(.*\) kernels$/\1/p'; }
kernels_here=$(kernels_now) kernels_more=
[ "${STRATA_KERNELS:-all}" = all ] && for k in Haswell Zen SkylakeX Cooperlake SapphireRapids; do
    [ -n "$kernels_here" ] && [ "$k" != "$kernels_here" ] || continue
    [ "$(OPENBLAS_CORETYPE=$k kernels_now)" = "$k" ] && kernels_more="$kernels_more $k"
done

# unlisted NAME LOG: the skipped tests of LOG that tests/skips.txt does not allow this program.
unlisted() {
    grep -hE '^ok .*# *[Ss][Kk][Ii][Pp]|^\[  SKIPPED \] [^0-9]' "$2" | while IFS= read -r line; do
        allowed=0
        while IFS='|' read -r program pattern _; do
            case $program in '' | '#'*) continue ;; esac
            # shellcheck disable=SC2053 # the program is a pattern
            [[ $1 == $program ]] && [[ $line =~ $pattern ]] && allowed=1
        done <"${STRATA_SKIPS:-tests/skips.txt}"
        [ $allowed = 1 ] || echo "$line"
    done
}

# run_one NAME SECONDS COMMAND...: runs, counts, prints one line.
run_one() {
    local name=$1 seconds=$2 log code begin end ok bad skip why= line
    shift 2
    log=$logs/$(echo "$name" | tr '/ ' '__').log
    TEST_TMP=$(mktemp -d "${TMPDIR:-/tmp}/strata-test.XXXXXX") || exit 1
    export TEST_TMP
    begin=$(date +%s%N)
    timeout -k 5 "$((seconds * slow))" "$@" >"$log" 2>&1 </dev/null
    code=$?
    end=$(date +%s%N)
    rm -rf "$TEST_TMP"
    read -r ok bad skip < <(tally "$log" "$code")
    if [ "$skip" -gt 0 ]; then
        while IFS= read -r line; do
            echo "not ok - skipped without a line in tests/skips.txt: $line" >>"$log"
            bad=$((bad + 1)) skip=$((skip - 1))
        done < <(unlisted "${name%% *}" "$log")
    fi
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
    if [ "$bad" -gt 0 ]; then
        case $code in
        0) [ $((ok + skip)) -gt 0 ] || grep -q '^not ok\|FAILED' "$log" || why=" (printed no result)" ;;
        124 | 137) why=" (ended after $((seconds * slow)) s or killed: code $code)" ;;
        *) why=" (exit code $code)" ;;
        esac
    fi
    awk -v n="$name" -v t=$(((end - begin) / 10000000)) -v ok="$ok" -v bad="$bad" -v skip="$skip" -v why="$why" \
        'BEGIN { printf "%-6s %7.2f s  %-44s %d passed", bad ? "FAILED" : "ok", t / 100, n, ok
                 if (bad) printf ", %d failed", bad; if (skip) printf ", %d skipped", skip; print why }'
    grep -hiE '^ok .*# *skip' "$log" | sed 's/^/         /'
    if [ "$bad" -gt 0 ]; then
        sed 's/^/    | /' "$log" | tail -n 40
        echo "    | whole output: $log"
    fi
}

run_program() {
    local file=$1 k
    run_program_once "$file" ""
    if [ -n "$kernels_more" ] && sed -n '1,15p' "$file" | grep -q '[/*#] *kernels: all'; then
        for k in $kernels_more; do OPENBLAS_CORETYPE=$k STRATA_BRIEF=1 run_program_once "$file" " $k"; done
    fi
}

# run_program_once FILE " KERNELS": the second part ends the name under which it is counted.
run_program_once() {
    local file=$1 with=$2 binary ranks n seconds
    seconds=$(note "$file" timeout)
    seconds=${seconds:-$limit}
    case $file in
    *.sh) run_one "${file#tests/}$with" "$seconds" bash "$file" ;;
    *.c)
        binary=$build/${file%.c}
        ranks=$(note "$file" ranks)
        case $file in tests/mpi/* | tests/equal/*) ranks=${ranks:-missing} ;; esac
        if [ "$ranks" = missing ]; then
            run_one "${file#tests/}$with" "$seconds" sh -c "echo 'no /* ranks: ... */ comment'; exit 1"
        elif [ ! -x "$binary" ]; then
            run_one "${file#tests/}$with" "$seconds" sh -c "echo 'not built: $binary'; exit 1"
        elif [ -z "$ranks" ]; then
            run_one "${file#tests/}$with" "$seconds" "$binary"
        else
            for n in $ranks; do
                OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \
                    run_one "${file#tests/} -n $n$with" "$seconds" mpirun -n "$n" "$binary"
            done
        fi
        ;;
    *) run_one "$file" "$seconds" sh -c "echo 'neither .c nor .sh: $file'; exit 1" ;;
    esac
}

run_named() {
    if [ -e "$1" ]; then
        run_program "$1"
    else
        run_one "$1" 5 sh -c "echo 'there is no $1'; exit 1"
    fi
}

# ---- several at a time: each in a shell of its own, which leaves what it printed and its counts ----
by_limit() {
    local p seconds
    for p in "$@"; do
        seconds=$([ -e "$p" ] && note "$p" timeout)
        echo "${seconds:-$limit} $p"
    done | sort -s -k1,1nr | cut -d' ' -f2-
}
run_apart() { # NUMBER PROGRAM
    passed=0 failed=0 skipped=0
    run_named "$2" >"$apart/$1.out" 2>&1
    echo "$passed $failed $skipped" >"$apart/$1.tmp"
    mv "$apart/$1.tmp" "$apart/$1.count"
}
collect() { # prints and counts what has ended since
    local file ok bad skip
    for file in "$apart"/*.count; do
        [ -e "$file" ] || continue
        cat "${file%.count}.out"
        read -r ok bad skip <"$file"
        passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
        ended=$((ended + 1))
        rm -f "$file"
    done
}
run_several() {
    local n=0 p
    ended=0
    apart=$(mktemp -d) || exit 1
    trap 'trap - INT TERM; rm -rf "$apart"; kill 0' INT TERM
    while read -r p; do
        if [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; then wait -n; collect; fi
        run_apart "$n" "$p" </dev/null &
        n=$((n + 1))
    done < <(by_limit "$@")
    wait
    collect
    if [ $ended != $n ]; then
        echo "FAILED           $((n - ended)) programs left no count"
        failed=$((failed + n - ended))
    fi
    rm -rf "$apart"
}

kernels_line="OpenBLAS kernels: ${kernels_here:-unknown, the program is not built}"
[ -z "$kernels_more" ] || kernels_line="$kernels_line; programs with \"kernels: all\" also under$kernels_more"
echo "$kernels_line"
if [ "$jobs" -gt 1 ]; then
    run_several "${programs[@]}"
else
    for p in "${programs[@]}"; do run_named "$p"; done
fi
echo "$kernels_line"
if [ $skipped -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ $failed -eq 0 ] && [ $passed -gt 0 ]
