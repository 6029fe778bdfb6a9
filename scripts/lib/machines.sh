# shellcheck shell=bash
# The privileged tests in machines of scripts/vm, dealt to as many as the host can carry. Sourced by scripts/test, whose
# variables these are: $scratch $results $cache $mine $keep $pytest_arguments $machines_of_ours $children.
# shellcheck disable=SC2154

limit_in_machine=70m

# Prints the names of the machines to use, one a line; the first is the one that `scripts/vm` means without a name.
machine_names() {
    local first=${MINIRUN_VM_NAME:-$mine} count=${MINIRUN_TEST_MACHINES-} number
    if [ -z "$count" ]; then
        count=1
        # Emulated, a machine uses one CPU while tests run one after the other.
        [ "${#pytest_arguments[@]}" = 0 ] && [ "$(nproc)" -ge 2 ] && [ "$(free_gibibytes)" -ge 8 ] && count=2
    fi
    echo "$first"
    for ((number = 2; number <= count; number++)); do
        echo "$first-$number"
    done
}

free_gibibytes() { awk '$1 == "MemAvailable:" { print int($2 / 1048576) }' /proc/meminfo; }

# start_machines NAME...: all at once, over one image. The first has two CPUs, for tests that want them (tests/dealing.py).
# Two emulated CPUs take more of the host's time for the same work, and more yet where they have to share the host's.
start_machines() {
    local name cpus pids=() status=0
    scripts/vm build >/dev/null || return 1
    for name in "$@"; do
        scripts/vm --name "$name" status >/dev/null && continue
        [ "$name" = "$1" ] && cpus=2 || cpus=1
        [ "$keep" = 1 ] || machines_of_ours+=("$name")
        scripts/vm --name "$name" start --cpus "$cpus" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || status=1
    done
    return "$status"
}

# make_cargo NAME: $scratch/cargo.tar, what the tests need in a machine; the wheels are for the Python of machine NAME.
make_cargo() {
    local version data=$scratch/data name
    version=$(scripts/vm --name "$1" exec python3 -ISc 'import sys; print("%d.%d" % sys.version_info[:2])') || return 1
    echo "test: wheels for Python $version" >&2
    mkdir -p "$data" "$scratch/checkout"
    wheelhouse "$version" "$scratch/wheels" || return 1
    given=()
    if [ -n "${MINIRUN_ROOTFS_TARBALL-}" ]; then
        cp "$MINIRUN_ROOTFS_TARBALL" "$data/"
        given+=("MINIRUN_ROOTFS_TARBALL=/root/tests/data/$(basename "$MINIRUN_ROOTFS_TARBALL")")
    fi
    if [ -n "${MINIRUN_OCI_SCHEMA-}" ]; then
        cp -r "$MINIRUN_OCI_SCHEMA" "$data/oci-schema"
        given+=(MINIRUN_OCI_SCHEMA=/root/tests/data/oci-schema)
    fi
    for name in MINIRUN_DIFFERENTIAL MINIRUN_DIFFERENTIAL_SEED; do
        [ -z "${!name-}" ] || given+=("$name=${!name}")
    done
    tar --create --exclude-vcs --exclude=.venv --exclude=__pycache__ --exclude='rootfs/*.tar*' . |
        tar --extract --directory="$scratch/checkout"
    tar --create --directory="$scratch" --file="$scratch/cargo.tar" data wheels checkout
}

# load_machine NAME: brings it what make_cargo has packed.
load_machine() {
    echo "test: copying into $1" >&2
    scripts/vm --name "$1" exec -- sh -c \
        'rm -rf /root/tests && mkdir -p /root/tests && tar --extract --no-same-owner --directory=/root/tests' <"$scratch/cargo.tar"
}

# pytest_in NAME HAND/HANDS: the words that run a machine's share of the tests.
pytest_in() {
    words=(scripts/vm --name "$1" exec -- env "${given[@]}" /root/tests/checkout/scripts/lib/test-inside
        --junitxml=/root/tests/vm.xml --deal="$2" "${pytest_arguments[@]}")
}

# test_in_machines NAME...: the first machine's output is shown as it comes, that of the others afterwards.
test_in_machines() {
    local first=$1 names=("$@") number name words status=0 judged others=()
    for name in "${names[@]}"; do
        load_machine "$name" || return 1
    done
    for ((number = 2; number <= ${#names[@]}; number++)); do
        pytest_in "${names[number - 1]}" "$number/${#names[@]}"
        timeout --kill-after=10 "$limit_in_machine" "${words[@]}" </dev/null >"$scratch/machine-$number.out" 2>&1 &
        others+=($!)
        children+=($!)
    done
    pytest_in "$first" "1/${#names[@]}"
    run_pytest "$limit_in_machine" "${words[@]}" || status=$?
    fetch_results "$first" vm
    # A machine of its own, for less than a minute, while the others end; whoever picks tests has not picked it.
    [ "${#pytest_arguments[@]}" -gt 0 ] || scripts/virt-lookalike >&2 || status=1
    for ((number = 2; number <= ${#names[@]}; number++)); do
        judged=0
        wait "${others[number - 2]}" || judged=$?
        printf '\n-- machine %s of %s\n' "$number" "${#names[@]}"
        cat "$scratch/machine-$number.out"
        judge_pytest "$judged" "$limit_in_machine" || status=$?
        fetch_results "${names[number - 1]}" "vm-$number"
    done
    children=()
    return "$status"
}

# fetch_results NAME FILE: the machine's results as FILE.xml; none if there are none, which is a failure then.
fetch_results() {
    scripts/vm --name "$1" exec -- cat /root/tests/vm.xml >"$results/$2.xml" 2>/dev/null || rm -f "$results/$2.xml"
}
