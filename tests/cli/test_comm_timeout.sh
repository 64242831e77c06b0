# A rank that never comes: the others end the job with 76 and say whom they wait for, within seconds.
# timeout: 60
program=${BUILD:-build}/tests/mpi/test_p2p
out=$TEST_TMP/out
failed=0

say() { # GOOD NAME
    if [ "$1" = 0 ]; then
        echo "ok - $2"
    else
        echo "not ok - $2"
        failed=1
    fi
}

# hangs MODE SENTENCE...: every SENTENCE must be in the output
hangs() {
    mode=$1
    shift
    timeout 15 mpirun -n 2 "$program" "$mode" >"$out" 2>&1
    code=$?
    [ $code = 76 ]
    say $? "$mode: exit code 76 (is $code)"
    for sentence in "$@"; do
        grep -qF "$sentence" "$out"
        say $? "$mode: says '$sentence'"
    done
    [ $failed = 0 ] || sed 's/^/# /' "$out"
}

hangs collective "rank 0 (host $(hostname), tp 0 pp 0 dp 0)" "barrier of group tp" \
    "from rank 1 (host $(hostname), tp 1 pp 0 dp 0)" "distributed_timeout_minutes"
hangs p2p "receive 16 bytes of gradients (tag 9) from stage 1" "rank 1 (host $(hostname)" \
    "micro-batch 3 of the test" "distributed_timeout_minutes"
exit $failed
