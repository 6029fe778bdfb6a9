# shellcheck shell=bash
# What several scripts share. Sourced, not run.

python=/usr/bin/python3

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
