# shellcheck shell=bash
# What several scripts share. Sourced, not run.
# shellcheck disable=SC2034 # not every script uses all of it

python=/usr/bin/python3

# interruptibly COMMAND...: runs it in a process group of its own, so that a signal to the script is heard before it
# has ended. end_worker SIGNAL, for the script's EXIT trap, ends what is still at work then, all of the group.
worker=''
interruptibly() {
    local status=0
    set -m
    "$@" </dev/null &
    worker=$!
    set +m
    wait "$worker" || status=$?
    worker=''
    return "$status"
}
end_worker() {
    local tries=0
    [ -n "$worker" ] || return 0
    { kill "-$1" -- "-$worker" && wait "$worker"; } 2>/dev/null
    while group_lives "$worker"; do
        tries=$((tries + 1))
        [ "$tries" -lt 300 ] || {
            echo "still running: process group $worker" >&2
            return 1
        }
        sleep 0.1
    done
    worker=''
}

# Zombies do not count: the first process of a container may never wait for them.
group_lives() {
    cat /proc/[0-9]*/stat 2>/dev/null | sed 's/.*) //' |
        awk -v group="$1" '$3 == group && $1 !~ /[ZX]/ { found = 1 } END { exit !found }'
}

# Where environments and machines are kept, outside the checkout.
cache_directory() {
    if [ -n "${XDG_CACHE_HOME-}" ]; then
        echo "$XDG_CACHE_HOME/minirun"
    elif [ "$(id -u)" = 0 ]; then
        echo /var/cache/minirun
    else
        echo "$HOME/.cache/minirun"
    fi
}
