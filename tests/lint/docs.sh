# What the documents say is there: files, exit codes, rooms, the launch line of the job scripts.
. "$(dirname "$0")/lint.inc"

mapfile -t pages < <(files '*.md')
# Paths in backticks that begin with a folder of this repository (patterns and outputs left out).
grep -noE '`(src|include|input|tests|doc|jobscripts|\.ci)/[A-Za-z0-9_./-]+`' "${pages[@]}" | tr -d '`' |
    while IFS=: read -r page line path; do
        [ -e "$path" ] || echo "$page:$line: there is no $path"
    done | verdict "files named in the documents exist"

sed -n 's/^ *EXIT_[A-Z_]* = \([0-9]*\).*/\1/p' include/base.h | while read -r code; do
    grep -qE "^\| \*{0,2}$code\*{0,2} \|" doc/errors.md || echo "doc/errors.md: exit code $code of base.h is missing"
done | verdict "doc/errors.md describes every exit code"

awk '$1 == "module" { print $2 }' tests/lint/rooms.txt | while read -r room; do
    grep -q "^| $room |" doc/architecture.md || echo "doc/architecture.md: room $room is missing"
done | verdict "doc/architecture.md lists every room"

for script in jobscripts/*.sbatch; do
    [ "$(wc -l <"$script")" -lt 60 ] || echo "$script: 60 lines or more"
    launch=$(grep -oE '^srun .*"\$job"' "$script")
    [ -n "$launch" ] && grep -qF "$launch" README.md || echo "$script: its launch line is not README's"
done | verdict "job scripts are short and launch as the README says"

make -s help | awk '{ print $1 }' | sort >"$TEST_TMP/goals"
grep -ohE '`make [a-z-]+|^    make [a-z-]+' "${pages[@]}" | sed 's/.*make //' | grep -v '^-' | sort -u |
    while read -r goal; do
        grep -qx "$goal" "$TEST_TMP/goals" || echo "make $goal is written down, make help does not know it"
    done | verdict "goals of make in the documents exist"
finish
