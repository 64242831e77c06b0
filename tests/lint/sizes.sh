# Sizes of functions and files: 90 % of the functions <= 40 lines, at most 5 % > 60, none > 120 but
# those listed in long_functions.txt (tables and kernels); files at most 800 lines, better 400.
. "$(dirname "$0")/lint.inc"

# functions FILE...: "lines file:line name" of every function definition. K&R: a definition starts at
# column 0, its head ends with ") {", its body with "}" at column 0.
functions() {
    awk '
    FNR == 1 { head = ""; in_body = 0 }
    in_body {
        if ($0 ~ /^}/) { print FNR - start + 1, FILENAME ":" start, name; in_body = 0; head = "" }
        next
    }
    /^[A-Za-z_]/ && !/^(struct|enum|union)[^()]*\{/ && !/=[^=]*$/ { head = ""; start = FNR }
    /^[A-Za-z_]/ || head != "" { head = head $0 " " }
    /;[ \t]*$/ || /^[#}]/ { head = "" }
    head ~ /\)[ \t]*\{[ \t]*$/ {
        name = head
        sub(/[ \t]*\(.*$/, "", name)
        sub(/^.*[ *]/, "", name)
        in_body = 1
    }
    ' "$@"
}

mapfile -t sources < <(files 'include/*.h' 'src/*.c' 'src/*.cc' 'src/*.cu' 'src/*.h')
stripped=$TEST_TMP/stripped
for f in "${sources[@]}"; do
    mkdir -p "$stripped/$(dirname "$f")"
    awk -f tests/lint/strip.awk "$f" >"$stripped/$f"
done
(cd "$stripped" && functions "${sources[@]}") | sort -rn >"$TEST_TMP/functions"

awk -v list=tests/lint/long_functions.txt '
    BEGIN { while ((getline line < list) > 0) if (line !~ /^#/) { split(line, w, " "); allowed[w[1]] } }
    $1 > 120 && !($3 in allowed) { print $2 ": " $3 " has " $1 " lines; 120 is the limit" }
' "$TEST_TMP/functions" | verdict "no function over 120 lines"

awk '
    { n++; if ($1 > 40) { over40++; if (over40 <= 15) longest = longest $2 ": " $3 " has " $1 " lines\n" }; if ($1 > 60) over60++ }
    END {
        if (n && over40 > 0.10 * n) printf "%d of %d functions are over 40 lines, 10 %% may be:\n%s", over40, n, longest
        if (n && over60 > 0.05 * n) printf "%d of %d functions are over 60 lines, 5 %% may be\n", over60, n
    }' "$TEST_TMP/functions" | verdict "90 % of the functions <= 40 lines, 5 % > 60"

mapfile -t all < <(files 'include/*.h' 'src/*.c' 'src/*.cc' 'src/*.cu' 'src/*.h' 'tests/*.c' 'tests/*.h')
wc -l "${all[@]}" | awk '$2 != "total" && $1 > 800 { print $2 ": " $1 " lines; 800 is the limit" }' |
    verdict "no file over 800 lines"
wc -l "${all[@]}" | awk '$2 != "total" && $1 > 400 { print "# longer than 400 lines, may want splitting: " $2 ", " $1 }'
awk '{ n++; s += $1; if ($1 > 40) a++; if ($1 > 60) b++ }
    END { if (n) printf "# %d functions, mean %.1f lines, %.1f %% over 40, %.1f %% over 60\n", n, s / n, 100 * a / n, 100 * b / n }' "$TEST_TMP/functions"

# Planted: a function of 130 lines must be counted.
{ echo 'static int planted(int a,'; echo '                   int b) {'; seq 1 128; echo '}'; } >"$TEST_TMP/long.c"
expect "a planted long function is measured" \
    "$(functions "$TEST_TMP/long.c" | awk '{ print $1, $3 }')" "131 planted"
finish
