#!/usr/bin/env bash
# timeout: 1800
# strata import and export on several ranks: the exported files are those of one rank, bit for bit.
# Calls that go wrong below the folder that is written (tests/faults/io_shim.c, preloaded) on any rank:
# the job ends with 74 and one sentence, nothing that looks whole is left, and the same command again
# writes the whole. Also under a file size limit. STRATA_LONG=1 tries every call.
. "$(dirname "$0")/../cli/cli.inc"
patience=$((patience * 3))
tmp=$TEST_TMP
model=tests/golden/hf/names/a
say() { # NAME RANKS COMMAND...
    local name=$1 ranks=$2
    shift 2
    expect 0 '^written: ' "$name, $ranks ranks" mpirun -n "$ranks" "$STRATA" "$@"
}

# ---- any number of ranks --------------------------------------------------------------------------
expect 0 '' "train" "$STRATA" train $tiny "run:run_dir=$tmp/run" "checkpoint:save=$tmp/trained" \
    training:train_iters=1 run:threads_per_rank=1 optimizer:lr_decay_iters=20
say "import" 1 import $model "$tmp/model"
formats=("trained shards --dtype bf16 --names original --max-shard-gb 0.0001" "trained one --dtype fp32 --names original"
    "model wider --dtype fp16 --vocab-size 41" "model projector --projector-only --dtype fp32")
for ranks in 1 2 3 5; do
    for format in "${formats[@]}"; do
        # shellcheck disable=SC2086
        set -- $format
        say "export $2" $ranks export "$tmp/$1" "$tmp/$2_$ranks" "${@:3}"
        yes "$2: the files of one rank" diff -r "$tmp/$2_1" "$tmp/$2_$ranks"
    done
done
yes "there are shards" test "$(ls "$tmp"/shards_5/model-*.safetensors | wc -l)" -ge 3
for ranks in 2 3 5; do
    say "import" $ranks import $model "$tmp/model_$ranks"
    yes "each rank wrote" test "$(ls "$tmp/model_$ranks"/iter_0000000/*shard*.h5 | wc -l)" = $ranks
    say "export that" 2 export "$tmp/model_$ranks" "$tmp/back_$ranks" --dtype fp16 --vocab-size 41
    yes "the same model" diff -r "$tmp/wider_1" "$tmp/back_$ranks"
done
expect 0 '4 with first values' "a fresh projector, 3 ranks" mpirun -n 3 "$STRATA" import \
    --language tests/golden/hf/names/mistral --vision tests/golden/hf/names/clip --fresh-projector "$tmp/fresh"
expect 0 '^dry run: nothing was written' "a dry run, 2 ranks" mpirun -n 2 "$STRATA" import $model --dry-run
expect 73 'is there already: give another folder' "an exported folder is not written over, 3 ranks" \
    mpirun -n 3 "$STRATA" export "$tmp/model" "$tmp/wider_1" --vocab-size 41
expect 65 '^error: .*a header of' "what is no checkpoint is refused, 3 ranks" mpirun -n 3 "$STRATA" import $model/config.json "$tmp/no" 
yes "and leaves nothing" test ! -e "$tmp/no"

# ---- a write that fails -----------------------------------------------------------------------------
if [ "${SANITIZE:-0}" = 1 ]; then
    echo "ok - failing writes # SKIP the sanitizers want to be loaded first"
    exit $status
fi
shim=$tmp/io_shim.so out_dir=$tmp/out
${CC:-cc} -shared -fPIC -O1 -D_GNU_SOURCE -Itests -o "$shim" tests/faults/io_shim.c || exit 1
go() { # [NAME=VALUE ...] -- : the export whose calls fail, on three ranks; its code in $code
    local set=()
    while [ "$1" != -- ]; do set+=("$1"); shift; done
    timeout -k 5 "$patience" mpirun -n 3 env "${set[@]}" "$STRATA" export "$tmp/model" "$out_dir" --dtype fp16 \
        --vocab-size 41 --max-shard-gb 0.00001 >"$tmp/log" 2>&1 </dev/null
    code=$?
}
fault() { echo "LD_PRELOAD=$shim IO_FAULT=$1:$2:$3 IO_FAULT_FOLDER=$out_dir IO_FAULT_LOG=$tmp/fired"; }
go --
yes "the undisturbed export" test $code = 0
cp -r "$out_dir" "$tmp/wanted"
for rank in 0 1 2; do
    rm -rf "$out_dir" "$tmp/fired"
    # shellcheck disable=SC2046
    go $(fault -1 EIO $rank) --
    n[rank]=$(cat "$tmp/fired")
done
echo "# calls of the ranks: ${n[*]}"
# Without config.json nothing takes the folder for a model; with it, it is the whole one.
left() { [ ! -e "$out_dir/config.json" ] || diff -r "$out_dir" "$tmp/wanted"; }
told() { [ "$(grep -cE '^error: .*(cannot|failed)' "$tmp/log")" -ge 1 ]; }
again() {
    go -- && [ $code = 0 ] && rm -f "$out_dir"/.*tmp* "$out_dir"/*.tmp.* && diff -r "$out_dir" "$tmp/wanted"
}
kinds="ENOSPC FULL SHORT KILL"
[ "${STRATA_LONG:-0}" = 1 ] && kinds="$kinds EIO EDQUOT EINTR"
for kind in $kinds; do
    for rank in 0 1 2; do
        step=$(((n[rank] + 2) / 3))
        [ "${STRATA_LONG:-0}" = 1 ] && step=1
        good=0 tried=0 wrong=
        for ((k = rank; k < n[rank]; k += step)); do
            rm -rf "$out_dir" "$tmp/fired"
            # shellcheck disable=SC2046
            go $(fault "$k" $kind $rank) --
            call=$(cat "$tmp/fired" 2>/dev/null)
            tried=$((tried + 1))
            case $kind:$call in
            SHORT:* | EINTR:*write) fine=$([ $code = 0 ] && left >/dev/null && echo yes) ;;
            KILL:*) fine=$([ $code != 0 ] && left >/dev/null && echo yes) ;;
            *unlink* | *:) fine=$([ $code = 0 ] && left >/dev/null && echo yes) ;;
            # A folder that was synced may be closed badly: nothing is lost, and all is there.
            *close) fine=$([ $code = 74 ] && told && left >/dev/null || { [ $code = 0 ] && diff -r "$out_dir" "$tmp/wanted" >/dev/null; } && echo yes) ;;
            *) fine=$([ $code = 74 -o $code = 73 ] && told && left >/dev/null && echo yes) ;;
            esac
            [ "$fine" != yes ] || [ $code = 0 ] || [ $k != "$rank" ] || { again >/dev/null || fine=again; }
            if [ "$fine" = yes ]; then good=$((good + 1)); else wrong="$wrong call $k ($call): code $code $fine;"; fi
        done
        yes "$kind at $tried calls of rank $rank:$wrong" test $good = $tried
    done
done
rm -rf "$out_dir"
printf '#!/bin/sh\nulimit -f 4\nexec "%s" "$@"\n' "$STRATA" >"$tmp/limited"
chmod +x "$tmp/limited"
expect 74 '^error: .*model-0000.-of-0000.*cannot' "files may not grow: 74, one sentence" \
    mpirun -n 2 env OMPI_MCA_btl=self,tcp "$tmp/limited" export "$tmp/model" "$out_dir" --dtype fp16 --vocab-size 41 --max-shard-gb 0.00001
yes "and nothing is left" test -z "$(ls -A "$out_dir")"
exit $status
