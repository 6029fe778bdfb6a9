# shellcheck shell=bash
# Which Debian packages are needed for what, and how the missing ones get here. Sourced, not run.
# shellcheck disable=SC2034 # each script uses some of the lists

# What building python-prctl takes; nobody publishes wheels of it.
build_packages=(
    gcc:gcc
    '/usr/include/python3*/Python.h:python3-dev'
    /usr/include/sys/capability.h:libcap-dev
    '/usr/lib/python3*/ensurepip/__init__.py:python3-venv'
)
# What minirun calls or loads.
runtime_packages=(
    nft:nftables
    ip:iproute2
    '/usr/lib/*/libseccomp.so.2:libseccomp2'
    /bin/busybox:busybox-static
)
# What building the image for Vagrant takes (scripts/vagrant-box).
box_build_packages=(
    mmdebstrap:mmdebstrap
    /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
    mkfs.ext4:e2fsprogs
    sfdisk:fdisk
    grub-mkimage:grub-common
    /usr/lib/grub/i386-pc/boot.img:grub-pc-bin
    qemu-img:qemu-utils
    ssh-keygen:openssh-client
)
# What a machine of Vagrant's takes with libvirt and QEMU (scripts/vagrant-test).
vagrant_packages=(
    vagrant:vagrant
    '/usr/share/rubygems-integration/*/specifications/vagrant-libvirt-*.gemspec:vagrant-libvirt'
    libvirtd:libvirt-daemon
    '/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so:libvirt-daemon-driver-qemu'
    /etc/libvirt/libvirtd.conf:libvirt-daemon-system
    virsh:libvirt-clients
    qemu-system-x86_64:qemu-system-x86
    dnsmasq:dnsmasq-base
    iptables:iptables
    ip:iproute2
    rsync:rsync
    ssh:openssh-client
)

# missing_packages FILE:PACKAGE...: the packages of those files (commands, if without a slash) that are not there.
missing_packages() {
    local pair file
    for pair in "$@"; do
        file=${pair%%:*}
        case $file in
            */*) compgen -G "$file" >/dev/null || echo "${pair#*:}" ;;
            *) PATH=$PATH:/usr/sbin:/sbin type -P "$file" >/dev/null || echo "${pair#*:}" ;;
        esac
    done | sort -u
}

# apt_install LOG PACKAGE...
apt_install() {
    local log=$1
    shift
    # Another apt may be at work, perhaps a script's of ours.
    local patient=(-o DPkg::Lock::Timeout=300)
    # An update may fail for some other source of the user's; the installation decides.
    DEBIAN_FRONTEND=noninteractive apt-get "${patient[@]}" update -q </dev/null >>"$log" 2>&1 || :
    DEBIAN_FRONTEND=noninteractive apt-get "${patient[@]}" install --yes --no-install-recommends "$@" </dev/null >>"$log" 2>&1
}
