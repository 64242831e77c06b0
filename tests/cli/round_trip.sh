# Import, evaluation and export of tiny LLaVAs with one key of config.json changed, against the stored
# verdicts of transformers (tests/golden/hf/make_round_trip.py): the same loss, and the exported folder is
# the same model with every field of the source; or refused by name.
# timeout: 600
. "$(dirname "$0")/cli.inc"
python3 tests/cli/round_trip.py "$STRATA" "$TEST_TMP"
exit $?
