# Faults between ranks end the job within seconds: a rank that never comes with 76 and the name of the
# rank waited for, disagreement with 70.
# timeout: 60
. "$(dirname "$0")/cli.inc"
program=${BUILD:-build}/tests/mpi/test_p2p
out=$TEST_TMP/out

# ends MODE CODE SENTENCE...: every SENTENCE must be in the output
ends() {
    mode=$1 expected=$2
    shift 2
    timeout 15 mpirun -n 2 "$program" "$mode" >"$out" 2>&1
    code=$?
    [ $code = "$expected" ]
    say $? "$mode: exit code $expected (is $code)"
    for sentence in "$@"; do
        grep -qF "$sentence" "$out"
        say $? "$mode: says '$sentence'"
    done
    [ $status = 0 ] || sed 's/^/# /' "$out"
}

ends collective 76 "rank 0 (host $(hostname), tp 0 pp 0 dp 0)" "barrier of group world" \
    "from rank 1 (host $(hostname), tp 0 pp 1 dp 0)" "distributed_timeout_minutes"
ends p2p 76 "receive 16 bytes of gradients (tag 9) from stage 1" "rank 1 (host $(hostname)" \
    "micro-batch 3 of the test" "distributed_timeout_minutes"
ends overrun 70 "rank 1: the message of stage 0 (activations, tag 4) is longer than the buffer"
ends sizes 70 "all-reduce of group world: rank" "sent another size than"
ends unreserved 70 "of workspace" "more than the 0 reserved"
exit $status
