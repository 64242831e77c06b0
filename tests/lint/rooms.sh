# The folder tree is the architecture: every include of src/ against rooms.txt.
. "$(dirname "$0")/lint.inc"

# check_includes FILES...: reads rooms.txt and names every include that it does not allow.
check_includes() {
    awk '
    FILENAME ~ /rooms\.txt$/ {
        if ($1 == "module") { module[$2]; for (i = 2; i <= NF; i++) may[$2, $i]; owner[$2 ".h"] = $2 }
        if ($1 == "header") owner[$2] = $3
        if ($1 == "extern") { door[$2] = " "; for (i = 3; i <= NF; i++) door[$2] = door[$2] $i " " }
        next
    }
    FNR == 1 {
        split(FILENAME, part, "/")
        room = part[1] == "include" ? owner[part[2]] : part[2]
        if (!(room in module)) print FILENAME ": belongs to no module of tests/lint/rooms.txt"
        line = 0
    }
    /^[ \t]*#[ \t]*include[ \t]*"/ {
        split($0, q, "\"")
        name = q[2]
        sub(/^.*\//, "", name)
        if (name in owner) {
            if (!((room, owner[name]) in may))
                print FILENAME ":" FNR ": " room " may not include " name " of " owner[name]
        } else if (!(("src/" room "/" name) in private))
            print FILENAME ":" FNR ": " q[2] " is neither public nor a private header of src/" room
    }
    /^[ \t]*#[ \t]*include[ \t]*</ {
        name = $0
        gsub(/^[^<]*<|>.*$/, "", name)
        if (name == "assert.h")
            print FILENAME ":" FNR ": assert.h is not used: CHECK"
        else if (name in door) {
            allowed = 0
            n = split(door[name], place, " ")
            for (i = 1; i <= n; i++) if (index(FILENAME, place[i]) == 1) allowed = 1
            if (!allowed) print FILENAME ":" FNR ": <" name "> has its door elsewhere:" door[name]
        } else if (name !~ STANDARD)
            print FILENAME ":" FNR ": <" name "> is no standard header and not in tests/lint/rooms.txt"
    }
    BEGIN {
        STANDARD = "^(ctype|dirent|endian|errno|execinfo|fcntl|fenv|float|ftw|glob|inttypes|libgen|limits|locale|math|poll|pthread|sched|setjmp|signal|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|string|strings|time|unistd|wchar|sys/[a-z]+|linux/openat2)\\.h$|^[a-z_]+$"
        while (("git ls-files --cached --others --exclude-standard src" | getline f) > 0)
            if (f ~ /\.(h|inc|def)$/) {
                n = split(f, p, "/")
                private["src/" p[2] "/" p[n]]
            }
    }' tests/lint/rooms.txt "$@"
}

mapfile -t sources < <(files 'include/*.h' 'src/*.c' 'src/*.cc' 'src/*.cu' 'src/*.h')
check_includes "${sources[@]}" | verdict "every include goes down the rooms (rooms.txt)"

# Planted faults: the check must see them.
mkdir -p "$TEST_TMP/p/src/nn" && cp -r tests "$TEST_TMP/p/" && cd "$TEST_TMP/p" && git init -q .
printf '#include "config.h"\n#include <mpi.h>\n#include <assert.h>\n#include "train.h"\n' >src/nn/bad.c
expect "planted includes are found" "$(check_includes src/nn/bad.c | wc -l)" 4
finish
