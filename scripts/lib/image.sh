# shellcheck shell=bash
# The steps of a machine image, in the order in which vm-image takes them. Sourced, not run.
#
# A step is a function of the target format ($1) and of what it works on. Formats:
#   vm   kernel, initrd and an ext4 disk without a partition table: scripts/vm boots them directly
#   box  a disk that boots by its BIOS, with the user and the key that Vagrant expects (lib/box.sh)
# Nothing here mounts anything or takes a loop device: mkfs.ext4 -d fills the file system from a directory.

image_suite=${MINIRUN_VM_SUITE:-bookworm}
image_disk_size=6G
image_without=() # packages that the release does not have
# Kernels without drivers of real hardware.
case $image_suite in
    bookworm)
        image_kernel=linux-image-cloud-amd64
        image_keyring=${MINIRUN_VM_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}
        image_sources=(${MINIRUN_VM_MIRROR:+"$MINIRUN_VM_MIRROR"}) # mmdebstrap knows Debian's
        ;;
    noble)
        image_kernel=linux-image-virtual
        image_keyring=${MINIRUN_VM_KEYRING:-/usr/share/keyrings/ubuntu-archive-keyring.gpg}
        image_without=(criu)
        image_sources=()
        for image_pocket in noble noble-updates noble-security; do
            image_sources+=("deb ${MINIRUN_VM_MIRROR:-http://archive.ubuntu.com/ubuntu} $image_pocket main universe")
        done
        ;;
    *) die "unknown release: $image_suite (known: bookworm, noble)" ;;
esac

# What the tests and Vagrant ask of the machine, by purpose. No recommended packages: each name below is meant.
# The same for all formats, so that one can begin with what another has unpacked.
image_packages() {
    local packages=(
        systemd-sysv dbus udev kmod libpam-systemd dbus-user-session    # init, and user sessions for rootless
        "$image_kernel" initramfs-tools zstd e2fsprogs
        openssh-server iproute2 nftables procps less ca-certificates
        python3 python3-venv                                            # what minirun itself needs
        conmon libseccomp2 uidmap busybox-static
        runc crun podman bubblewrap systemd-container                   # the peers it is compared with
        netavark containernetworking-plugins iptables catatonit slirp4netns
        docker.io containerd apparmor                                   # the engines above them
        criu                                                            # checkpoint and restore
        strace libcap2-bin util-linux                                   # the witnesses
        gcc libc6-dev python3-dev libcap-dev                            # python-prctl, where the host's Python differs
        sudo rsync systemd-resolved                                     # Vagrant's user, folders and names
    )
    printf '%s\n' "${packages[@]}" | grep -vxF "$(printf '%s\n' "${image_without[@]}")"
}

# Unpacks and configures the packages into DIRECTORY. The initrd's modules are listed before the kernel is
# configured, for initramfs-tools' other choices look at the machine that builds.
image_tree() {
    local root=$1 packages setup
    packages=$(image_packages | paste -sd,)
    setup=$root.setup
    cat >"$setup" <<'SETUP'
#!/bin/sh
set -e
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/image"
printf '%s\n' virtio_pci virtio_blk virtio_net virtio_rng virtio_scsi sd_mod ext4 \
    >"$1/usr/share/initramfs-tools/modules.d/image"
SETUP
    chmod +x "$setup"
    mmdebstrap --verbose --mode=root --variant=minbase --include="$packages" --setup-hook="$setup" \
        --keyring="$image_keyring" \
        --aptopt='Acquire::Languages "none"' \
        --aptopt='APT::Install-Recommends "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$image_suite" "$root" "${image_sources[@]}"
}

# The tree as it has been unpacked, for another format: archive_tree ROOT FILE, extract_tree FILE ROOT.
archive_tree() {
    tar --create --numeric-owner --xattrs --xattrs-include='*' --directory="$1" --file="$2" .
}
extract_tree() {
    mkdir "$2"
    tar --extract --numeric-owner --same-permissions --xattrs --xattrs-include='*' --directory="$2" --file="$1"
}

# root by key; an ordinary user with subordinate ids, whose own systemd starts when a test asks for it.
image_users() {
    local format=$1 root=$2 public_key=$3
    chroot "$root" useradd --create-home --uid 1000 --shell /bin/bash tester
    grep -q '^tester:' "$root/etc/subuid" || echo tester:100000:65536 >>"$root/etc/subuid"
    grep -q '^tester:' "$root/etc/subgid" || echo tester:100000:65536 >>"$root/etc/subgid"
    install -d -m 700 "$root/root/.ssh"
    install -m 600 "$public_key" "$root/root/.ssh/authorized_keys"
    # Without PAM a login is one process and belongs to ssh.service, not to a session that logind ends.
    cat >"$root/etc/ssh/sshd_config.d/image.conf" <<'SSHD'
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
UsePAM no
UseDNS no
MaxSessions 100
MaxStartups 100
SetEnv LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
SSHD
    rm -f "$root"/etc/ssh/ssh_host_{rsa,ecdsa}_key{,.pub}
    [ "$format" != box ] || box_user "$root" "$public_key"
}

# Emulated, every unit costs: what nobody asks for is masked.
image_services() {
    local format=$1 root=$2
    chroot "$root" systemctl --quiet enable systemd-networkd.service ssh.service
    chroot "$root" systemctl --quiet mask \
        apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
        e2scrub_reap.service systemd-networkd-wait-online.service systemd-pstore.service \
        systemd-binfmt.service getty@tty1.service serial-getty@ttyS0.service nftables.service \
        podman.service podman.socket podman-auto-update.timer podman-auto-update.service \
        podman-restart.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
        docker.service docker.socket containerd.service rsync.service \
        systemd-hwdb-update.service keyboard-setup.service console-setup.service
    [ "$format" = box ] || chroot "$root" systemctl --quiet mask systemd-resolved.service
    # Ubuntu's profiles are a part of how user namespaces work there.
    [ "$image_suite" = noble ] || chroot "$root" systemctl --quiet mask apparmor.service
    rm -f "$root"/etc/systemd/system/*.wants/podman*
    # A test that fills the journal, or hundreds of failing units, must not slow the rest down.
    install -d "$root/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=volatile\nRuntimeMaxUse=32M\n' >"$root/etc/systemd/journald.conf.d/image.conf"
}

image_network() {
    local format=$1 root=$2
    case $format in
        vm) printf '[Match]\nName=en* eth*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n' ;;
        box) box_network ;;
    esac >"$root/etc/systemd/network/80-image.network"
    echo minirun-vm >"$root/etc/hostname"
    printf '127.0.0.1 localhost\n127.0.1.1 minirun-vm\n::1 localhost\n' >"$root/etc/hosts"
    rm -f "$root/etc/resolv.conf" # systemd-resolved has made it a link
    if [ "$format" = box ]; then
        ln -s ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
    else
        echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"
    fi
}

# An empty machine-id would mean "first boot" at every boot: presets, then ten seconds of units.
image_identity() {
    local format=$1 root=$2
    tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
    if [ "$format" = box ]; then
        echo 'LABEL=root / ext4 defaults,noatime 0 0' >"$root/etc/fstab"
        return
    fi
    install -d "$root/mnt/spare"
    cat >"$root/etc/fstab" <<'FSTAB'
/dev/vda / ext4 defaults,noatime 0 0
/dev/disk/by-id/virtio-spare /mnt/spare ext4 defaults,noatime,nofail 0 0
/dev/disk/by-id/virtio-swap none swap sw,nofail 0 0
FSTAB
}

# Leaves in OUT what the format is made of.
image_disk() {
    local format=$1 root=$2 out=$3
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
    chroot "$root" dpkg-query --show >"$out/packages"
    if [ "$format" = box ]; then
        box_disk "$root" "$out"
        return
    fi
    sed 's/^/minirun-vm /' "$root/etc/ssh/ssh_host_ed25519_key.pub" >"$out/known_hosts"
    cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
    cp "$root"/boot/initrd.img-* "$out/initrd"
    case $format in
        vm)
            rm -rf "$root"/boot/{vmlinuz,initrd.img,System.map}-*
            truncate --size="$image_disk_size" "$out/root.img"
            mkfs.ext4 -q -F -L root -E lazy_itable_init=1,nodiscard -d "$root" "$out/root.img"
            ;;
    esac
}
