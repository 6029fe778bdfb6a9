# shellcheck shell=bash
# What the lessons (scripts/demo-*) share. Sourced by them, not run.
#
# A lesson tells the comment at its own top, then goes step by step: it shows commands with what they answer on
# this machine, and checks that it is so. It undoes what it has done however it ends. Exit status:
#    0  everything was as told
#    1  something was not: a check says NO, or a command failed
#   64  wrong usage
#   77  this machine lacks what the lesson is about; which, and what helps, is said
# shellcheck disable=SC2034 # each lesson uses some of the variables
# shellcheck disable=SC2001 # sed, for what & means in ${name//…} depends on the version of bash

set -euo pipefail
umask 022
unset CDPATH
export LC_ALL=C.UTF-8 PATH=$PATH:/usr/local/bin:/usr/sbin:/sbin
python=/usr/bin/python3 # which minirun needs too

bold='' dim='' green='' red='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR-}" ] && [ "${TERM:-dumb}" != dumb ]; then
    bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi

# ---- telling

# The comment at the top of the lesson: its title, and what it is about.
preface() { sed -n -e 1d -e '/^#/!q' -e 's/^# \{0,1\}//p' "$0"; }

# pause: with LESSON_PAUSE set (minirun learn, on a terminal) wait for Enter.
pause() {
    [ -n "${LESSON_PAUSE-}" ] || return 0
    read -rs -p "${dim}(Enter goes on, Ctrl-C leaves)$plain" </dev/tty || exit 130
    printf '\r\e[K'
}

# step TEXT: what comes now, and why.
step() {
    pause
    printf '\n%s== %s%s\n' "$bold" "$1" "$plain"
}

# typed WORD...: a command line as one would type it; only words that need quotes get them.
typed() {
    local word line=''
    for word in "$@"; do
        if [[ ! $word =~ ^([a-zA-Z0-9_./:=,@%+-]+|&)$ ]]; then
            case $word in
                *\'*) word="\"$(sed 's/["$`\\]/\\&/g' <<<"$word")\"" ;;
                *) word="'$word'" ;;
            esac
        fi
        line+=" $word"
    done
    printf '%s  $%s%s\n' "$bold" "$line" "$plain"
}

# show COMMAND...: type it, print its answer, keep that in $said. A failure ends the lesson.
said=''
show() {
    local status=0
    typed "$@"
    said=$("$@" 2>&1) || status=$?
    [ -z "$said" ] || sed 's/^/    /' <<<"$said"
    [ "$status" = 0 ] || printf '    %s(exit status %s)%s\n' "$dim" "$status" "$plain"
    return "$status"
}

# refused PATTERN COMMAND...: like show, of a command that must fail and say what PATTERN (of grep -E) matches.
refused() {
    local status=0
    show "${@:2}" || status=$?
    [ "$status" = 0 ] || grep -Eq "$1" <<<"$said" || status=0
    check "that is refused" [ "$status" != 0 ]
}

# check TEXT COMMAND...: TEXT is so if COMMAND succeeds.
wrong=0
check() {
    local text=$1
    shift
    if "$@" >/dev/null 2>&1; then
        printf '  %sok%s  %s\n' "$green" "$plain" "$text"
    else
        printf '  %sNO%s  %s\n' "$red" "$plain" "$text"
        wrong=$((wrong + 1))
    fi
}

# conclude COMMAND...: the minirun commands that do the same, each one word; then the verdict.
conclude() {
    step "The same by minirun"
    printf '  %s\n' "$@"
    [ "$wrong" = 0 ] || printf '\n%s%d of the checks say NO%s\n' "$red" "$wrong" "$plain"
    [ "$wrong" != 0 ] || [ -z "${LESSON_NEXT-}" ] || printf '\nNext: sudo minirun learn %s\n' "$LESSON_NEXT"
    exit "$((wrong > 0))"
}

# lacks WHAT HELP: this machine cannot show the lesson.
lacks() {
    printf '\n%s: this machine lacks %s\n  %s\n' "${0##*/}" "$1" "$2" >&2
    exit 77
}

# need PROGRAM:PACKAGE...: those programs, and root.
need() {
    local pair
    [ "$(id -u)" = 0 ] || {
        printf '\n%s: needs root, for whom alone the kernel makes most namespaces\n' "${0##*/}" >&2
        printf '  sudo %s\n' "${LESSON_AGAIN:-$0}" >&2
        exit 77
    }
    for pair in "$@"; do
        type -P "${pair%%:*}" >/dev/null || lacks "the program ${pair%%:*}" "Debian, Ubuntu: apt install ${pair#*:}"
    done
}

# ---- doing and undoing

undone=()
# undo COMMAND...: to be done at the end; the last that was said comes first.
undo() { undone+=("${*@Q}"); }

finish() {
    local status=$? index
    trap '' INT TERM HUP
    for ((index = ${#undone[@]} - 1; index >= 0; index--)); do
        eval "${undone[index]}" >/dev/null 2>&1 || :
    done
    case $status in 0 | 64 | 77) ;; *) printf '%s: ended with status %s\n' "${0##*/}" "$status" >&2 ;; esac
}

# await COMMAND...: until it succeeds; a minute at most, for emulated machines are slow ($LESSON_PATIENCE seconds).
await() {
    local tries
    for ((tries = 0; tries < ${LESSON_PATIENCE:-60} * 10; tries++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    printf '  waited in vain for: %s\n' "$*" >&2
    return 1
}

# background COMMAND...: start it, leave its number in $pid; it is killed at the end.
background() {
    typed "$@" '&'
    "$@" </dev/null >/dev/null 2>&1 &
    pid=$!
    ours "$pid"
}

# ours PID: a child of this shell; it is killed at the end, if it is there and still our child.
ours() {
    disown "$1" # or the shell would tell of its death
    undo reap "$1"
}
reap() {
    local below
    [ "$(ps -o ppid= -p "$1" | tr -d ' ')" = "$$" ] || return 0
    below=$(pgrep --parent "$1") || : # those die with it, by --kill-child
    kill -KILL "$1" 2>/dev/null || : # it may end by itself at this moment
    for pid in "$1" $below; do await gone "$pid"; done
}

# gone PID: there is no such process any more, but for an entry that whoever adopted it has yet to read (a zombie).
gone() { [ ! -e "/proc/$1" ] || grep -qs '^State:.*zombie' "/proc/$1/status"; }

# child_of PID: its first child's number, as soon as there is one.
child_of() {
    await pgrep --parent "$1"
    pgrep --parent "$1" | head -n 1
}

# ns KIND [PID]: which namespace a process is in, as the kernel names it: "uts:[4026531838]".
ns() { readlink "/proc/${2:-self}/ns/$1"; }

# scratch: a directory that goes with the lesson, in $scratch.
scratch() {
    scratch=$(mktemp -d /tmp/minirun-lesson.XXXXXX)
    chmod 755 "$scratch"
    undo rm -rf --one-file-system "$scratch"
}

# cgroup_tree: where cgroup version 2 is mounted, in $tree. The usual place first: findmnt lists hidden mounts too.
cgroup_tree() {
    tree=/sys/fs/cgroup
    [ "$(stat --file-system --format=%T "$tree" 2>/dev/null)" != cgroup2fs ] || return 0
    tree=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET) ||
        lacks "a mounted cgroup v2 hierarchy" "sudo mount -t cgroup2 none /sys/fs/cgroup"
}

# need_minirun: where minirun is, in $minirun; $MINIRUN is another one.
need_minirun() {
    minirun=$(type -P "${MINIRUN:-minirun}") || lacks minirun "sudo scripts/quickstart"
}

# root_filesystem DIR: unpack one: $MINIRUN_ROOTFS_TARBALL, else an Alpine of minirun's, else this machine's busybox.
root_filesystem() {
    local stored=${MINIRUN_DATA:-/var/lib/minirun}/rootfs/alpine/rootfs
    mkdir -p "$1"
    if [ -f "${MINIRUN_ROOTFS_TARBALL-}" ]; then
        tar --extract --file="$MINIRUN_ROOTFS_TARBALL" --directory="$1"
    elif [ -d "$stored" ]; then
        cp --archive "$stored/." "$1"
    else
        need busybox:busybox-static
        mkdir -p "$1"/{bin,dev,etc,proc,root,sys,tmp,usr/bin}
        cp --dereference "$(type -P busybox)" "$1/bin/busybox"
        chroot "$1" /bin/busybox --install -s /bin
        echo "PRETTY_NAME=\"a busybox of this machine\"" >"$1/etc/os-release"
    fi
    undo rm -rf --one-file-system "$1"
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
case ${1-} in
    '') preface | sed "1s/.*/$bold&$plain/" ;;
    -h | --help)
        preface
        printf '\nUsage: sudo %s\nStatus: 0 as told, 1 not so, 64 usage, 77 this machine lacks something.\n' "$0"
        exit 0
        ;;
    *)
        echo "Usage: sudo $0" >&2
        exit 64
        ;;
esac
