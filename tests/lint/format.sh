# clang-format 14 agrees with every C file. Skipped aloud where it is not installed, unless asked for
# by `make lint`.
. "$(dirname "$0")/lint.inc"
if ! command -v clang-format-14 >/dev/null; then
    if [ "${STRATA_REQUIRE_CLANG:-0}" = 1 ]; then
        echo "not ok - clang-format-14 is not installed: run make deps-lint"
        exit 1
    fi
    echo "ok - clang-format # SKIP clang-format-14 is not installed"
    exit 0
fi
files 'include/*.h' 'src/*.c' 'src/*.cc' 'src/*.h' 'tests/*.c' 'tests/*.h' | while read -r f; do
    n=$(clang-format-14 "$f" | diff "$f" - | grep -c '^[<>]')
    [ "$n" -eq 0 ] || echo "$f: $n lines differ (make format)"
done | verdict "clang-format 14 changes nothing"
finish
