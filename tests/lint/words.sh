# Things that went wrong once, or elsewhere, and are not written here.
. "$(dirname "$0")/lint.inc"

mapfile -t code < <(files 'include/*.h' 'src/*.c' 'src/*.cc' 'src/*.cu' 'src/*.h' 'tests/*.c' 'tests/*.h')
mapfile -t product < <(files 'include/*.h' 'src/*.c' 'src/*.cc' 'src/*.cu' 'src/*.h')

calls='(^|[^A-Za-z0-9_>.])(ato[fil]|atoll|strtok|sprintf|vsprintf|gets|strcpy|strcat|system|popen|alloca|rand|srand)[ ]*\('
search "$calls" "${code[@]}" | verdict "no atoi, strtok, sprintf, gets, strcpy, system, alloca, rand"
search '#[ ]*include[ ]*<assert\.h>|(^|[^A-Za-z0-9_])assert[ ]*\(' "${code[@]}" |
    verdict "no assert: CHECK and error_raise"
search '#[ ]*(if|ifdef|ifndef|elif).*(CUDA|NCCL)' "${product[@]}" |
    verdict "no conditional compilation on CUDA: whole files are left out"
grep -nE '(TODO|FIXME|XXX)' "${product[@]}" /dev/null | verdict "no TODO left in the code"
search '#[ ]*pragma[ ]+GCC[ ]+optimize|-ffast-math' "${product[@]}" | verdict "no fast-math"

# A NaN must fail a comparison: !(diff <= tol), never diff > tol.
mapfile -t tests < <(files 'tests/*.c' 'tests/*.h')
[ ${#tests[@]} -eq 0 ] || search '\(?(fabsf?\(.*\)|[a-z_]*(diff|err|error)[a-z_]*) >=? [^=]*(tol|eps|[0-9]e-[0-9])' "${tests[@]}" |
    verdict "tests compare as !(diff <= tol), so that NaN fails"

# Paths of one machine. (Brackets keep this line from finding itself.)
mapfile -t tracked < <(files | grep -vE '\.(png|jpg|jpeg|model|h5|bin)$')
grep -nIE '(^|[^A-Za-z0-9_.])/(wor[k]|hom[e]|roo[t]|mn[t]|scratc[h])/' "${tracked[@]}" /dev/null |
    verdict "no path of one machine"
grep -nIE '(^|[^A-Za-z0-9_.])/tm[p]/' "${product[@]}" /dev/null | verdict "no fixed temporary path in the program"
grep -lIP '\r$' "${tracked[@]}" /dev/null | verdict "no CRLF line ends"
grep -nIE '[[:blank:]]+$' "${code[@]}" Makefile /dev/null | verdict "no blanks at line ends"
grep -nP '^ *\t' "${code[@]}" /dev/null | verdict "no tabs in C files"

printf 'int f(void) {\n    return atoi("x"); /* system() */\n}\n' >"$TEST_TMP/bad.c"
expect "a planted call is found, a comment is not" "$(search "$calls" "$TEST_TMP/bad.c" | wc -l)" 1
finish
