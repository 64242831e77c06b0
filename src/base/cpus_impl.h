/* Between cpus.c and cgroup.c. */
#ifndef STRATA_CPUS_IMPL_H
#define STRATA_CPUS_IMPL_H

#include "cpus.h"

/* Adds the CPU quotas of this process's control groups to out. */
void cgroup_read_quotas(const char *root, struct cpu_limits *out);

#endif
