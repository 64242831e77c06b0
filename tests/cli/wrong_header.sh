# Two stages that believe different things about a micro-batch: the receiver ends the job within
# seconds, and its sentence names both sides, the field and both values.
# timeout: 60
. "$(dirname "$0")/cli.inc"
program=${BUILD:-build}/tests/mpi/test_splits
out=$TEST_TMP/out

# ends WHAT SENTENCE...
ends() {
    what=$1
    shift
    timeout 20 mpirun -n 2 "$program" "$what" >"$out" 2>&1
    code=$?
    [ $code = 70 ]
    say $? "$what: exit code 70 (is $code)"
    for sentence in "$@"; do
        grep -q -- "$sentence" "$out"
        say $? "$what: says '$sentence'"
    done
    [ $status = 0 ] || sed 's/^/# /' "$out"
}

ends hash "activation from stage 0 to stage 1" "cut before layer 6" "descriptor hash .* instead of"
ends rows "activation from stage 0 to stage 1" "rows 20 instead of 19, payload bytes 1920 instead of 1824"
ends step "activation from stage 0 to stage 1" "step 0 instead of 1"
ends gradient "gradient from stage 1 to stage 0" "descriptor hash .* instead of"
exit $status
