/* Signals and files that ask a run to save or to stop. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run_impl.h"
#include "fault.h"

/* The stop flag: the only thing a handler may touch. */
static volatile sig_atomic_t stop_signal;

static void remember(int signal) {
    if (signal == SIGUSR2) {
        if (stop_signal < STOP_SAVE) stop_signal = STOP_SAVE;
    } else if (signal == SIGINT) {
        if (stop_signal < STOP_FINISH) stop_signal = STOP_FINISH;
    } else {
        stop_signal = STOP_AGAIN;
    }
}

static int configured_signal(const struct run *r) {
    switch (r->cfg->training.exit_signal) {
    case EXIT_SIGNAL_INT:
        return SIGINT;
    case EXIT_SIGNAL_USR1:
        return SIGUSR1;
    case EXIT_SIGNAL_USR2:
        return SIGUSR2;
    case EXIT_SIGNAL_HUP:
        return SIGHUP;
    default:
        return SIGTERM;
    }
}

void stop_install(struct run *r) {
    r->save_path = xasprintf("%s/SAVE", r->cfg->run.run_dir);
    r->stop_path = xasprintf("%s/STOP", r->cfg->run.run_dir);
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_handler = remember;
    act.sa_flags = SA_RESTART;
    stop_signal = STOP_NO;
    if (!r->cfg->training.exit_signal_handler) return;
    const int signals[] = {SIGTERM, SIGUSR1, SIGUSR2, SIGINT, configured_signal(r)};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) sigaction(signals[i], &act, NULL);
}

static bool file_asks(const char *path, bool remove) {
    bool there = access(path, F_OK) == 0;
    if (there && remove) unlink(path);
    return there;
}

enum stop_level stop_wanted(struct run *r, bool *busy) {
    int64_t word[2] = {stop_signal, save_busy(r)}, level = word[0];
    if (stop_signal == STOP_SAVE) stop_signal = STOP_NO;
    if (r->first_rank) {
        if (save_due(r) && level < STOP_SAVE) level = STOP_SAVE;
        if (file_asks(r->save_path, true) && level < STOP_SAVE) level = STOP_SAVE;
        if (file_asks(r->stop_path, false) && level < STOP_FINISH) level = STOP_FINISH;
        int64_t minutes = r->cfg->training.exit_duration_in_mins;
        if (minutes > 0 && clock_seconds() - r->started >= 60.0 * (double)minutes)
            level = STOP_AGAIN;
    }
    fault_point("save.ask.in");
    word[0] = level;
    comm_allreduce_i64(grid_group(r->grid, GROUP_WORLD), word, 2, REDUCE_MAX);
    *busy = word[1] != 0;
    return (enum stop_level)word[0];
}
