# shellcheck shell=bash
# The developer's environment: the checkout's .venv if there is one, else one in the cache that is made on demand
# and again whenever pyproject.toml asks for something else. Sourced; needs common.sh, packages.sh and $checkout.

# Prints what pyproject.toml asks for, one requirement a line: the libraries and the developer's tools.
requirements() {
    "$python" -ISB - "$checkout/pyproject.toml" <<'PYTHON'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["dev"]))
PYTHON
}

requirements_key() {
    {
        requirements
        "$python" -ISB -c 'import sys; print(sys.version)'
    } | sha256sum | cut -c1-12
}

# wheelhouse VERSION DIRECTORY: makes DIRECTORY, with minirun and what its tests take as wheels for that Python. The
# cache of the libraries is every checkout's and changes while minirun's own wheel is made there: hence the lock.
wheelhouse() {
    local cached
    cached=$(cache_directory)/wheels-$(requirements_key)-$1
    mkdir -p "$cached"
    (
        flock 9
        "$checkout/scripts/install" --make-wheelhouse "$cached" --for "$1" --with 'pytest>=7.2' \
            --with 'pytest-timeout>=2.1' --with 'hypothesis>=6.67' --with 'container-runtime-interface-api>=2' && cp -r "$cached" "$2"
    ) 9>"$cached.lock"
}

# Prints the environment's directory.
developer_environment() {
    if [ -x "$checkout/.venv/bin/python" ]; then
        echo "$checkout/.venv"
        return
    fi
    local key directory
    key=$(requirements_key)
    directory=$(cache_directory)/environment-$key
    if [ ! -e "$directory/complete" ]; then
        mkdir -p "$(cache_directory)"
        make_environment "$directory" >&2
    fi
    echo "$directory"
}

make_environment() (
    exec 9>"$1.lock"
    flock 9
    [ ! -e "$1/complete" ] || exit 0
    echo "making the developer's environment in $1 (once)"
    mapfile -t missing < <(missing_packages "${build_packages[@]}")
    if [ "${#missing[@]}" -gt 0 ]; then
        if [ "$(id -u)" != 0 ] || ! type -P apt-get >/dev/null; then
            echo "needs: apt install ${missing[*]}"
            exit 1
        fi
        echo "installing ${missing[*]}"
        apt_install "$1.log" "${missing[@]}" || {
            tail "$1.log"
            exit 1
        }
    fi
    rm -rf "$1"
    "$python" -I -m venv "$1"
    requirements >"$1/requirements"
    "$1/bin/python" -I -m pip install --quiet --disable-pip-version-check --use-pep517 -r "$1/requirements" >"$1.log" 2>&1 || {
        grep -v ^WARNING: "$1.log" | tail -n 25
        exit 1
    }
    touch "$1/complete"
)
