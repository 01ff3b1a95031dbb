#!/bin/sh
# Runs one server and stops it once nobody uses it any more.
#
#   guard.sh DIRECTORY GRACE_SECONDS STOP_SIGNAL [COMMAND ARGUMENT...]
#
# Who uses the server holds a shared lock on DIRECTORY/lock for life; the kernel releases it however
# the process ends. When the lock could be taken exclusively once a second for GRACE_SECONDS, the
# server is stopped and DIRECTORY emptied. Without COMMAND there is nothing to run (a container):
# only GUARD_STOP is run at the end.
#
# GUARD_COMPANION: a command that runs beside the server (RabbitMQ's port mapper).
# GUARD_STOP: a command to run at the end.
set -u
directory=$1 grace=$2 signal=$3
shift 3
cd "$directory" || exit 1

# Handlers instead of '': ignored signals would be inherited by the server.
trap : HUP INT QUIT

# The start time of a process, to be compared only; fails when it does not run.
started() {
    if [ -r /proc/self/stat ]; then
        { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
        # shellcheck disable=SC2086 # split on purpose
        set -- ${stat##*) }
        [ "$1" != Z ] || return 1
        shift 19
        echo "$1"
    else
        by_ps "$1"
    fi
}

# The same where there is no /proc, in one language and time zone, with one space between words: the
# processes that use the server compare it with what they see.
by_ps() {
    when=$(LC_ALL=C TZ=UTC0 ps -o lstart= -p "$1") && [ -n "$when" ] || return 1
    # shellcheck disable=SC2086 # split on purpose
    echo $when
}

# alive PID START_TIME; a process that ended before its start time was seen has none, and is not.
alive() {
    [ -n "$1" ] && [ -n "$2" ] && [ "$(started "$1")" = "$2" ]
}

try_lock() {
    if command -v flock >/dev/null 2>&1; then flock -n -x 9; else lockf -s -t 0 9; fi
}

# Opening the descriptor anew is the portable way to release it (lockf has no unlock).
release() {
    exec 9<&-
    exec 9<"$directory/lock"
}

# Everything below a process, as lines of pid and start time.
below() {
    if [ -r /proc/self/stat ]; then
        table=$(
            for process in /proc/[0-9]*; do
                { read -r stat <"$process/stat"; } 2>/dev/null || continue
                # shellcheck disable=SC2086 # split on purpose
                set -- ${stat##*) }
                echo "${process#/proc/} $2"
            done
        )
    else
        table=$(ps -axo pid=,ppid=)
    fi
    family=" $1 "
    # A server's helpers have helpers.
    for _ in 1 2 3 4; do
        while read -r pid parent; do
            case $family in
            *" $pid "*) ;;
            *" $parent "*) family="$family$pid " ;;
            esac
        done <<EOF
$table
EOF
    done
    for pid in $family; do
        [ "$pid" = "$1" ] || echo "$pid $(started "$pid")"
    done
}

finish() {
    if alive "$server" "$since"; then
        children=$(below "$server")
        kill -"$signal" "$server" 2>/dev/null
        # A server that is paused does not hear the signal, and its children do not see it go.
        kill -CONT "$server" 2>/dev/null
        while read -r pid when; do
            if alive "$pid" "$when"; then kill -CONT "$pid" 2>/dev/null; fi
        done <<EOF
$children
EOF
        i=0
        while [ $i -lt 50 ] && alive "$server" "$since"; do
            sleep 0.1
            i=$((i + 1))
        done
        if alive "$server" "$since"; then kill -KILL "$server" 2>/dev/null; fi
        while read -r pid when; do
            if alive "$pid" "$when"; then kill -KILL "$pid" 2>/dev/null; fi
        done <<EOF
$children
EOF
    fi
    if alive "$companion" "$companion_since"; then kill -KILL "$companion" 2>/dev/null; fi
    if [ -n "${GUARD_STOP:-}" ]; then sh -c "$GUARD_STOP" >>log 2>&1; fi
    # The lock goes last: whoever opened it meanwhile notices that it is not the one on disk. What was
    # killed a moment ago may still be writing a last file, and then its directory is not empty.
    i=0
    until find . -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf {} + 2>/dev/null; do
        i=$((i + 1))
        [ $i -lt 100 ] || break
        sleep 0.1
    done
    rm -f lock
    cd /
    rmdir "$directory" 2>/dev/null
    # Siblings end at about the same time. One that runs as another account may not remove its own
    # directory, so whoever may removes them all, and the parent with the last one.
    parent=${directory%/*}
    i=0
    while [ $i -lt 300 ] && [ -w "$parent" ] && ! rmdir "$parent" 2>/dev/null; do
        [ -e "$directory/lock" ] && break # the next run is here already
        rmdir "$parent"/* 2>/dev/null
        sleep 0.1
        i=$((i + 1))
    done
    exit 0
}

exec 9<"$directory/lock" || exit 1
if ! command -v flock >/dev/null 2>&1 && ! command -v lockf >/dev/null 2>&1; then
    echo "neither flock (util-linux) nor lockf is on this machine: nobody would stop the server" >>log
    echo 127 >exited.new && mv exited.new exited
    exit 1
fi
printf '%s %s\n' $$ "$(started $$)" >guard
server='' since='' companion='' companion_since=''

if [ -n "${GUARD_COMPANION:-}" ]; then
    sh -c "exec $GUARD_COMPANION" </dev/null >>log 2>&1 9<&- &
    companion=$!
    companion_since=$(started "$companion")
    printf '%s %s\n' "$companion" "$companion_since" >companion
fi
if [ $# -gt 0 ]; then
    "$@" </dev/null >>log 2>&1 9<&- &
    server=$!
    since=$(started "$server")
    printf '%s %s\n' "$server" "$since" >pid.new && mv pid.new pid
fi
trap finish TERM

idle=0
while [ -z "$server" ] || alive "$server" "$since"; do
    sleep 1
    if try_lock; then
        idle=$((idle + 1))
        if [ $idle -ge "$grace" ]; then finish; fi
        release
    else
        idle=0
    fi
done

# The server ended by itself, or somebody killed it. Its files stay, for its log and for a restart.
wait "$server"
echo $? >exited.new && mv exited.new exited
if alive "$companion" "$companion_since"; then kill -KILL "$companion" 2>/dev/null; fi
