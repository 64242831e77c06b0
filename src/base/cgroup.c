/* CPU quotas of control groups, version 1 (cpu.cfs_quota_us) and 2 (cpu.max).
 *
 * /proc/self/cgroup names the group of this process in each hierarchy, /proc/self/mountinfo where the
 * hierarchies are mounted and which of their groups is the root of the mount. A group is bound by its
 * own quota and by those of all groups above it, so the path is walked up to the mount point; what is
 * above that, in a container, cannot be seen from inside. */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cpus_impl.h"

/* The first line of a small file, without its line end. */
static bool read_line(const char *folder, const char *name, char *text, size_t size) {
    char *path = xasprintf("%s/%s", folder, name);
    FILE *f = fopen(path, "r");
    free(path);
    if (f == NULL) return false;
    bool got = fgets(text, (int)size, f) != NULL;
    fclose(f);
    if (got) text[strcspn(text, "\n")] = '\0';
    return got;
}

/* Cores that two numbers of microseconds grant; 0: no limit ("max" and -1 are none). */
static double quota_cores(const char *quota, const char *period) {
    int64_t q, p;
    return parse_int64(quota, &q) && parse_int64(period, &p) && q > 0 && p > 0
               ? (double)q / (double)p
               : 0;
}

static double folder_quota(const char *folder) {
    char quota[64], period[64];
    if (read_line(folder, "cpu.max", quota, sizeof quota)) {
        char *blank = strchr(quota, ' ');
        if (blank == NULL) return 0;
        *blank = '\0';
        return quota_cores(quota, blank + 1);
    }
    if (!read_line(folder, "cpu.cfs_quota_us", quota, sizeof quota) ||
        !read_line(folder, "cpu.cfs_period_us", period, sizeof period))
        return 0;
    return quota_cores(quota, period);
}

/* The same hierarchy may be mounted in several places. */
static void add_quota(struct cpu_limits *l, const char *folder, double cores) {
    struct stat s;
    if (l->n_quotas == CPU_QUOTAS_MAX || stat(folder, &s) != 0) return;
    for (int i = 0; i < l->n_quotas; i++)
        if (l->quota[i].device == s.st_dev && l->quota[i].inode == s.st_ino) return;
    l->quota[l->n_quotas++] = (struct cpu_quota){s.st_dev, s.st_ino, cores};
}

static void walk_up(struct cpu_limits *l, const char *mount, const char *group) {
    char *folder = xasprintf("%s%s", mount, group);
    for (size_t top = strlen(mount);; *strrchr(folder, '/') = '\0') {
        double cores = folder_quota(folder);
        if (cores > 0) add_quota(l, folder, cores);
        if (strlen(folder) <= top) break;
    }
    free(folder);
}

/* Is `word` one of the words between commas of `list`? */
static bool in_list(const char *list, const char *word) {
    size_t n = strlen(word);
    for (; list != NULL; list = strchr(list, ',')) {
        if (*list == ',') list++;
        if (strncmp(list, word, n) == 0 && (list[n] == ',' || list[n] == '\0')) return true;
    }
    return false;
}

/* The group of this process in the hierarchy with the controller cpu, or in that of version 2:
 * "number:controllers:path", where version 2 has no controllers. free() it; NULL: none. */
static char *own_group(const char *root, bool v2) {
    char *path = xasprintf("%s/proc/self/cgroup", root), *line = NULL, *found = NULL;
    FILE *f = fopen(path, "r");
    size_t size = 0;
    free(path);
    while (f != NULL && found == NULL && getline(&line, &size, f) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *controllers = strchr(line, ':');
        char *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
        if (group == NULL) continue;
        *controllers++ = *group++ = '\0';
        if (v2 ? *controllers == '\0' : in_list(controllers, "cpu")) found = xstrdup(group);
    }
    free(line);
    if (f != NULL) fclose(f);
    return found;
}

/* mountinfo writes blanks and backslashes of a path as three octal digits. */
static void unescape(char *path) {
    char *to = path;
    for (const char *from = path; *from != '\0'; from++)
        if (from[0] == '\\' && strspn(from + 1, "01234567") >= 3) {
            *to++ = (char)((from[1] - '0') * 64 + (from[2] - '0') * 8 + (from[3] - '0'));
            from += 3;
        } else {
            *to++ = *from;
        }
    *to = '\0';
}

/* What of `group` is below the mount: "" if the mount begins at or below the group itself, as in a
 * container, whose group outside has another name than inside. */
static const char *below(const char *group, const char *mount_root) {
    size_t n = strcmp(mount_root, "/") == 0 ? 0 : strlen(mount_root);
    bool inside = strncmp(group, mount_root, n) == 0 && (group[n] == '/' || group[n] == '\0');
    if (!inside || strstr(group, "/..") != NULL || strcmp(group + n, "/") == 0) return "";
    return group + n;
}

/* "id parent device root mount-point options ... - type source super-options" */
static void look_at_mount(const char *root, char *line, struct cpu_limits *l) {
    char *field[5], *rest = line, *tail = strstr(line, " - ");
    if (tail == NULL) return;
    *tail = '\0';
    tail += 3;
    for (int i = 0; i < 5; i++)
        if ((field[i] = strsep(&rest, " ")) == NULL) return;
    char *type = strsep(&tail, " "), *source = strsep(&tail, " ");
    bool v2 = strcmp(type, "cgroup2") == 0;
    if (source == NULL || tail == NULL) return;
    if (!v2 && (strcmp(type, "cgroup") != 0 || !in_list(tail, "cpu"))) return;
    char *group = own_group(root, v2);
    if (group == NULL) return;
    unescape(field[3]);
    unescape(field[4]);
    char *mount = xasprintf("%s%s", root, field[4]);
    walk_up(l, mount, below(group, field[3]));
    free(mount);
    free(group);
}

void cgroup_read_quotas(const char *root, struct cpu_limits *out) {
    char *path = xasprintf("%s/proc/self/mountinfo", root), *line = NULL;
    FILE *f = fopen(path, "r");
    size_t size = 0;
    free(path);
    while (f != NULL && getline(&line, &size, f) > 0) {
        line[strcspn(line, "\n")] = '\0';
        look_at_mount(root, line, out);
    }
    free(line);
    if (f != NULL) fclose(f);
}
