# strata without a job: usage, keys, template, version.
. "$(dirname "$0")/cli.inc"

expect 64 '^usage: strata COMMAND' "no command: usage on stderr" "$STRATA"
expect 64 'no command "trian"' "unknown command is named" "$STRATA" trian
expect 0 '^  train ' "help lists the commands" "$STRATA" help
expect 0 '^strata [0-9]+\.[0-9]+\.[0-9]+' "version" "$STRATA" version
expect 64 'takes --template or --markdown' "keys with a wrong option" "$STRATA" keys --tempalte
expect 0 '^ +split_spec ' "keys lists split_spec" "$STRATA" keys
expect 0 '' "markdown" "$STRATA" keys --markdown
yes "markdown has a table row per key" grep -q 'tensor_model_parallel_size' <<<"$out"

# Every key of every shipped job file is in the list.
"$STRATA" keys >"$TEST_TMP/keys"
sed -n 's/^\([A-Za-z_0-9]*\) *=.*/\1/p' input/*.ini | sort -u | while read -r key; do
    grep -qw "$key" "$TEST_TMP/keys" || echo "$key"
done >"$TEST_TMP/unlisted"
yes "keys of the shipped job files are listed" test ! -s "$TEST_TMP/unlisted"

# The template is a job file: every section, and it parses.
"$STRATA" keys --template >"$TEST_TMP/template.ini"
for section in run parallel vision projector language training optimizer data checkpoint logging; do
    grep -q "^\[$section\]" "$TEST_TMP/template.ini" || echo "$section"
done >"$TEST_TMP/missing"
yes "the template has every section" test ! -s "$TEST_TMP/missing"
"$STRATA" check "$TEST_TMP/template.ini" >"$TEST_TMP/checked" 2>&1
yes "the template has no unknown, duplicate or malformed key" \
    sh -c "! grep -E 'unknown|duplicate|twice|not a number' '$TEST_TMP/checked'"
exit $status
