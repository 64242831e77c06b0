# No mutable globals but those of globals.txt: read from the objects themselves.
. "$(dirname "$0")/lint.inc"
lib=$BUILD/libstrata.a
if [ "${SANITIZE:-0}" = 1 ]; then
    echo "ok - globals # SKIP the sanitizers add their own"
    exit 0
fi
if [ ! -f "$lib" ]; then
    echo "ok - globals # SKIP $lib is not built"
    exit 0
fi
# .data.rel.ro holds constant tables with addresses; C++ and thread-local storage are left alone.
objdump -t "$lib" 2>/dev/null | awk '
    /^[^ ]*\.o:/ { object = $1; sub(/:.*/, "", object) }
    / O \.(data|bss)/ && !/\.data\.rel\.ro/ {
        name = $NF
        sub(/\.[0-9]+$/, "", name)
        print name, object
    }' | sort -u | awk '
    FILENAME ~ /globals\.txt$/ { if ($0 !~ /^#/ && NF) allowed[$1, $2]; next }
    !(($2, $1) in allowed) && $1 !~ /^(_Z|__|DW\.)/ { print $2 ": " $1 " is a mutable global (tests/lint/globals.txt lists the legal ones)" }
' tests/lint/globals.txt - | verdict "no mutable globals but log rank, error trace and stop flag"
finish
