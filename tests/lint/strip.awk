# C source without comments and with empty string and character literals; as many lines as before.
{
    out = ""
    n = length($0)
    for (i = 1; i <= n; i++) {
        c = substr($0, i, 1)
        d = substr($0, i, 2)
        if (inside == "comment") {
            if (d == "*/") { inside = ""; i++; out = out " " }
        } else if (inside != "") {
            if (c == "\\") i++
            else if (c == inside) { inside = ""; out = out c }
        } else if (d == "/*") { inside = "comment"; i++ }
        else if (d == "//") break
        else if (c == "\"" && $0 ~ /^[ \t]*#[ \t]*include/) { out = out substr($0, i); break }
        else if (c == "\"" || c == "'") { inside = c; out = out c }
        else out = out c
    }
    if (inside != "comment" && $0 !~ /\\$/) inside = ""
    print out
}
