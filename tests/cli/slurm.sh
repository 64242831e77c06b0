# jobscripts/ in a real Slurm on this machine (slurmctld + slurmd, throw-away, as root): what they do with
# each kind of end. A stand-in for build/strata plays the ends; the real one runs once if it is built.
# timeout: 150
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
export PATH=$PATH:/usr/sbin:/sbin
if [ "$(id -u)" != 0 ] || ! command -v slurmctld slurmd srun >/dev/null; then
    echo "ok - job scripts under Slurm # SKIP needs root and slurm-wlm"
    exit 0
fi
d=$TEST_TMP/s
mkdir -p "$d/state" "$d/log" "$d/spool-n0" "$d/node-n0"
host=$(hostname -s)
port=$((20000 + $$ % 10000 * 2))
cat >"$d/slurm.conf" <<CONF
ClusterName=ci
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation=$d/state
SlurmctldPidFile=$d/slurmctld.pid
SlurmctldLogFile=$d/log/slurmctld.log
SlurmdPidFile=$d/slurmd-%n.pid
SlurmdLogFile=$d/log/slurmd-%n.log
SlurmdSpoolDir=$d/spool-%n
TmpFS=$d/node-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
MpiDefault=pmix
ReturnToService=2
KillWait=3
SlurmdTimeout=60
MailProg=/bin/true
NodeName=n0 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=16 CoresPerSocket=16 RealMemory=8000
PartitionName=main Nodes=n0 Default=YES
CONF
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' >"$d/cgroup.conf"
export SLURM_CONF=$d/slurm.conf
stop_rig() {
    local f pid pids=()
    for f in "$d"/slurmd-*.pid "$d/slurmctld.pid"; do [ -f "$f" ] && pids+=("$(cat "$f")"); done
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null
    # They write their state while they end; the folder goes away after that.
    for pid in "${pids[@]}"; do
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null && sleep 0.1; done
    done
}
trap stop_rig EXIT
slurmctld -f "$SLURM_CONF" >/dev/null 2>&1 && slurmd -f "$SLURM_CONF" -N n0 >/dev/null 2>&1
for _ in $(seq 100); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 1 ] && break
    sleep 0.1
done
if [ "$(sinfo -h -t idle -o %D 2>/dev/null)" != 1 ]; then
    echo "ok - job scripts under Slurm # SKIP slurmd does not start here: $(tail -n 1 "$d/log/slurmd-n0.log" 2>/dev/null)"
    exit 0
fi

# A checkout with a stand-in: attempt k of job NAME does line k of NAME.plan.
cd "$d" && mkdir -p repo/build repo/input repo/jobscripts && cp "$here"/jobscripts/*.sbatch repo/jobscripts/
cd repo || exit 1
cat >build/strata <<'FAKE'
#!/bin/bash
# train input/NAME.ini: "CODE STEP" ends with CODE after a checkpoint of STEP; "wait" waits for USR1.
name=$(basename "$2" .ini)
[ "${SLURM_PROCID:-0}" = 0 ] || { trap 'exit 75' USR1; sleep 0.5; [ -e "runs/$name/wait" ] && sleep 60; exit 0; }
mkdir -p "runs/$name"
k=$(($(cat "runs/$name/attempts" 2>/dev/null || echo 0) + 1))
echo $k >"runs/$name/attempts"
read -r what step < <(sed -n "${k}p" "input/$name.plan")
status() { printf '{\n "state": "%s",\n "last_checkpoint": %s\n}\n' "$1" "$2" >"runs/$name/status.json"; }
if [ "$what" = wait ]; then
    trap 'rm -f runs/'"$name"'/wait; status stopped '"$step"'; exit 75' USR1
    touch "runs/$name/wait"
    for _ in $(seq 300); do sleep 0.1; done
    exit 1
fi
status finished "$step"
[ "$what" -lt 128 ] && exit "$what"
kill -$((what - 128)) $$
FAKE
chmod +x build/strata
plan() {
    printf '[run]\nrun_dir = ../runs/%s\n' "$1" >"input/$1.ini"
    shift
    printf '%s\n' "${@:2}" >"input/$1.plan"
}
submit() { sbatch --parsable --ntasks-per-node=2 --time=5 "jobscripts/$1" "input/$2.ini"; }
plan signal signal "wait 10" "0 20"
plan bad bad "65 0"
plan killed killed "137 0"
plan hung hung "76 0" "0 5"
a=$(submit llava_one_node.sbatch signal)
b=$(submit llava_one_node.sbatch bad)
c=$(submit llava_one_node.sbatch killed)
e=$(sbatch --parsable --nodes=1 --ntasks-per-node=2 --oversubscribe --time=5 \
    <(grep -v -- --exclusive jobscripts/llava_multi_node.sbatch) input/hung.ini)
for _ in $(seq 100); do [ -e runs/signal/wait ] && break; sleep 0.1; done
scancel --signal=USR1 --batch "$a"
for _ in $(seq 500); do
    [ -z "$(squeue -h -j "$a,$b,$c,$e" 2>/dev/null)" ] && break
    sleep 0.2
done

status=0
# is NAME JOB "State Restarts Attempts"
is() {
    show=$(scontrol show job "$2" 2>/dev/null)
    got="$(grep -o 'JobState=[A-Z_]*' <<<"$show" | cut -d= -f2) $(grep -o 'Restarts=[0-9]*' <<<"$show" | cut -d= -f2) $(cat "runs/$3/attempts" 2>/dev/null)"
    if [ "$got" = "$4" ]; then
        echo "ok - $1"
    else
        echo "not ok - $1: got \"$got\", expected \"$4\""
        sed 's/^/#   /' "llava-$2.log" 2>/dev/null
        status=1
    fi
}
is "USR1 to the script reaches the ranks; 75 is put back and finishes" "$a" signal "COMPLETED 1 2"
is "bad data (65) stops" "$b" bad "FAILED 0 1"
is "killed without a new checkpoint stops" "$c" killed "FAILED 0 1"
is "a hang (76) is put back" "$e" hung "COMPLETED 1 2"
exit $status
