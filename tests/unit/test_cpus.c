/* cpus: quotas of control groups in made-up file trees, shares, threads and the sentences on them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "cpus.h"

/* A tree in a folder of its own; the paths of put() begin with '/'. */
static char *tree_make(void) {
    const char *folder = getenv("TEST_TMP");
    char *root = xasprintf("%s/cpus.XXXXXX", folder != NULL ? folder : ".");
    assert_non_null(mkdtemp(root));
    return root;
}
static void put(const char *root, const char *path, const char *text) {
    char *whole = xasprintf("%s%s", root, path), *slash = strrchr(whole, '/');
    *slash = '\0';
    assert_int_equal(dir_make(whole), 0);
    *slash = '/';
    FILE *f = fopen(whole, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    free(whole);
}
static struct cpu_share share_of(const char *root) {
    struct cpu_limits l;
    cpus_read(root, &l);
    return cpus_share_alike(&l, 1);
}
static double quota_of(const char *root) {
    return share_of(root).quota;
}

#define MOUNT2 "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"

static void test_version_2(void **state) {
    (void)state;
    char *root = tree_make();
    assert_true(quota_of(root) == 0); /* nothing there at all */
    put(root, "/proc/self/mountinfo", "23 1 0:5 / / rw - ext4 /dev/a rw\n" MOUNT2);
    put(root, "/proc/self/cgroup", "0::/a.slice/b.scope/c\n");
    put(root, "/sys/fs/cgroup/a.slice/b.scope/c/cpu.max", "max 100000\n");
    assert_true(quota_of(root) == 0);
    put(root, "/sys/fs/cgroup/a.slice/b.scope/c/cpu.max", "250000 100000\n");
    assert_true(quota_of(root) == 2.5);
    /* A group above may grant less, one above that more. */
    put(root, "/sys/fs/cgroup/a.slice/b.scope/cpu.max", "75000 50000\n");
    put(root, "/sys/fs/cgroup/a.slice/cpu.max", "400000 100000\n");
    assert_true(quota_of(root) == 1.5);
    /* The mount itself, as a container sees its own group. */
    put(root, "/sys/fs/cgroup/cpu.max", "50000 100000\n");
    assert_true(quota_of(root) == 0.5);
    /* The sibling of a group does not bind it. */
    put(root, "/sys/fs/cgroup/cpu.max", "max 100000\n");
    put(root, "/sys/fs/cgroup/a.slice/b.scope/d/cpu.max", "10000 100000\n");
    assert_true(quota_of(root) == 1.5);
    free(root);
}

static void test_version_1(void **state) {
    (void)state;
    char *root = tree_make();
    /* cpuset and cpuacct are controllers of other names; the blank of the mount point is escaped. */
    put(root, "/proc/self/mountinfo",
        "31 23 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        "32 23 0:29 / /sys/fs/cg\\040roup/cpu,cpuacct rw shared:9 - cgroup cgroup "
        "rw,cpu,cpuacct\n");
    put(root, "/proc/self/cgroup",
        "3:cpuset:/other\n2:cpu,cpuacct:/job:1/step\n1:name=systemd:/\n");
    const char *group = "/sys/fs/cg roup/cpu,cpuacct/job:1/step/";
    char *quota = xasprintf("%scpu.cfs_quota_us", group);
    char *period = xasprintf("%scpu.cfs_period_us", group);
    put(root, quota, "-1\n");
    put(root, period, "100000\n");
    put(root, "/sys/fs/cgroup/cpuset/other/cpu.cfs_quota_us", "1000\n");
    put(root, "/sys/fs/cgroup/cpuset/other/cpu.cfs_period_us", "100000\n");
    assert_true(quota_of(root) == 0);
    put(root, quota, "300000\n");
    assert_true(quota_of(root) == 3);
    put(root, "/sys/fs/cg roup/cpu,cpuacct/job:1/cpu.cfs_quota_us", "20000\n");
    assert_true(quota_of(root) == 3); /* without a period it is no quota */
    put(root, "/sys/fs/cg roup/cpu,cpuacct/job:1/cpu.cfs_period_us", "10000\n");
    assert_true(quota_of(root) == 2);
    put(root, quota, "none of a number\n");
    assert_true(quota_of(root) == 2);
    free(quota);
    free(period);
    free(root);
}

/* A container's group has its name outside in /proc/self/cgroup and is the root of the mount; in a
 * namespace of its own it is "/" or begins with "/..". */
static void test_containers(void **state) {
    (void)state;
    static const struct {
        const char *mount_root, *group;
    } seen[] = {{"/docker/0a1b", "/docker/0a1b"}, {"/", "/"},
                {"/", "/../../elsewhere"},        {"/docker/0a1b", "/docker/0a1bc"},
                {"/docker/0a1b", "/user.slice"},  {"/docker/0a1b", "/docker/0a1b/sub"}};
    for (size_t i = 0; i < sizeof seen / sizeof *seen; i++) {
        char *root = tree_make();
        char *mounts =
            xasprintf("30 23 0:26 %s /sys/fs/cgroup ro - cgroup2 cgroup rw\n", seen[i].mount_root);
        char *group = xasprintf("0::%s\n", seen[i].group);
        put(root, "/proc/self/mountinfo", mounts);
        put(root, "/proc/self/cgroup", group);
        put(root, "/sys/fs/cgroup/cpu.max", "150000 100000");
        put(root, "/sys/fs/cgroup/docker/0a1bc/cpu.max", "10000 100000");
        assert_true(quota_of(root) == 1.5);
        if (i == 5) {
            put(root, "/sys/fs/cgroup/sub/cpu.max", "20000 100000");
            assert_true(quota_of(root) == 0.2);
        }
        free(mounts);
        free(group);
        free(root);
    }
}

/* Lines that are cut short, empty files, a hierarchy mounted twice. */
static void test_odd_files(void **state) {
    (void)state;
    char *root = tree_make();
    put(root, "/proc/self/mountinfo", "\n1 2 3\n30 23 0:26 - cgroup2\n - - -\n" MOUNT2 MOUNT2);
    put(root, "/proc/self/cgroup", "\n0\n0:\nx\n0::/a\n");
    put(root, "/sys/fs/cgroup/a/cpu.max", "");
    assert_true(quota_of(root) == 0);
    put(root, "/sys/fs/cgroup/a/cpu.max", "100000");
    assert_true(quota_of(root) == 0);
    put(root, "/sys/fs/cgroup/a/cpu.max", "0 0\n");
    assert_true(quota_of(root) == 0);
    put(root, "/sys/fs/cgroup/a/cpu.max", "100000 100000\n");
    struct cpu_limits l;
    cpus_read(root, &l);
    assert_int_equal(l.n_quotas, 1);
    assert_true(l.quota[0].cores == 1);
    free(root);
}

/* ---- shares ------------------------------------------------------------------------------------- */
static struct cpu_limits limits(int first, int end, int launcher) {
    struct cpu_limits l = {.n_quotas = 0};
    for (int i = first; i < end; i++) CPU_SET((size_t)i, &l.mine);
    for (int i = 0; i < launcher; i++) CPU_SET((size_t)i, &l.launcher);
    return l;
}
static void add(struct cpu_limits *l, uint64_t inode, double cores) {
    l->quota[l->n_quotas++] = (struct cpu_quota){7, inode, cores};
}

static void test_shares(void **state) {
    (void)state;
    struct cpu_limits all[4] = {limits(0, 4, 8), limits(0, 4, 8), limits(4, 6, 8), limits(4, 6, 8)};
    struct cpu_share s = cpus_share(all, 4, 0);
    assert_true(s.cores == 4 && s.sharing == 2 && s.processes == 4 && s.quota == 0);
    assert_true(s.launcher_cores == 8 && s.idle == 2);
    /* Three cores for each of two jobs, four for the node's ranks together. */
    for (int i = 0; i < 4; i++) {
        add(&all[i], i < 2 ? 1 : 2, 3);
        add(&all[i], 3, i == 0 ? 4 : 4);
    }
    s = cpus_share(all, 4, 3);
    assert_true(s.quota == 4 && s.quota_sharing == 4 && s.cores == 2);
    /* The first job's quota alone. */
    all[0].n_quotas = all[1].n_quotas = 1;
    s = cpus_share(all, 4, 1);
    assert_true(s.quota == 3 && s.quota_sharing == 2);
    s = cpus_share(all, 4, 2);
    assert_true(s.quota == 3 && s.quota_sharing == 2); /* 3 / 2 < 4 / 2 */
}

static void threads_are(struct cpu_limits l, int n, int asked, const char *environment, int threads,
                        const char *how, const char *notice) {
    char got_how[CPU_TEXT_MAX], got_notice[CPU_TEXT_MAX];
    struct cpu_share s = cpus_share_alike(&l, n);
    assert_int_equal(cpus_threads(&s, asked, environment, got_how, got_notice), threads);
    assert_string_equal(got_how, how);
    if (*notice == '\0')
        assert_string_equal(got_notice, "");
    else if (strstr(got_notice, notice) == NULL)
        fail_msg("no \"%s\" in \"%s\"", notice, got_notice);
}

static void test_threads(void **state) {
    (void)state;
    struct cpu_limits free8 = limits(0, 8, 0), quota = free8, bound = limits(0, 1, 2);
    threads_are(free8, 1, 0, NULL, 8, "8 cores", "");
    threads_are(free8, 3, 0, NULL, 2, "8 cores for 3 ranks", "");
    threads_are(free8, 20, 0, NULL, 1, "8 cores for 20 ranks", "");
    threads_are(free8, 1, 3, "5", 3, "threads_per_rank = 3", "");
    threads_are(free8, 1, 0, "5", 5, "OMP_NUM_THREADS = 5", "");
    threads_are(free8, 1, 0, "4,2", 4, "OMP_NUM_THREADS = 4,2", "");
    threads_are(free8, 1, 0, "", 8, "8 cores", "");
    threads_are(free8, 1, 0, "many", 8, "8 cores", "");
    add(&quota, 1, 0.5);
    threads_are(quota, 1, 0, NULL, 1, "CPU quota of 0.5 cores", "");
    threads_are(quota, 1, 1, NULL, 1, "threads_per_rank = 1", "");
    threads_are(quota, 1, 4, NULL, 4, "threads_per_rank = 4", "CPU quota of 0.5 cores carries");
    quota.quota[0].cores = 6;
    threads_are(quota, 1, 0, NULL, 6, "CPU quota of 6 cores", "");
    threads_are(quota, 4, 0, NULL, 1, "CPU quota of 6 cores for 4 ranks", "");
    threads_are(quota, 2, 0, "4", 4, "OMP_NUM_THREADS = 4",
                "CPU quota of 6 cores for 2 ranks carries");
    quota.quota[0].cores = 1;
    threads_are(quota, 1, 0, NULL, 1, "CPU quota of 1 core", "");
    quota.quota[0].cores = 100;
    threads_are(quota, 1, 0, NULL, 8, "8 cores", "");
    /* mpirun binds one rank to one core of two. */
    threads_are(bound, 1, 0, NULL, 1, "1 core", "--bind-to none");
    threads_are(bound, 1, 1, NULL, 1, "threads_per_rank = 1", "");
    threads_are(bound, 1, 2, NULL, 2, "threads_per_rank = 2", "1 core of the node stays idle");
    add(&bound, 1, 1.5); /* a second core would be of no use */
    threads_are(bound, 1, 0, NULL, 1, "1 core", "");
}

static void test_this_process(void **state) {
    (void)state;
    struct cpu_limits l;
    cpus_read("", &l);
    assert_true(CPU_COUNT(&l.mine) >= 1 && l.n_quotas <= CPU_QUOTAS_MAX);
    struct cpu_share s = cpus_share_alike(&l, 1000000);
    char how[CPU_TEXT_MAX], notice[CPU_TEXT_MAX];
    assert_int_equal(cpus_threads(&s, 0, NULL, how, notice), 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version_2),    cmocka_unit_test(test_version_1),
        cmocka_unit_test(test_containers),   cmocka_unit_test(test_odd_files),
        cmocka_unit_test(test_shares),       cmocka_unit_test(test_threads),
        cmocka_unit_test(test_this_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
