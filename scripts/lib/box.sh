# shellcheck shell=bash
# What the steps of image.sh do differently for --format box: a disk that a BIOS boots, as Vagrant's libvirt
# provider takes it. Sourced, not run.
#
# Nothing is mounted and no loop device is used: the file system is written at its offset, the boot loader before it.

box_gigabytes=10

# The user that Vagrant logs in as. The key is this box's own: the well-known one would let in every neighbour.
box_user() {
    local root=$1 public_key=$2
    chroot "$root" useradd --create-home --shell /bin/bash vagrant
    chroot "$root" usermod --password '*' vagrant # '!' is a locked account to an sshd without PAM
    echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
    chmod 440 "$root/etc/sudoers.d/vagrant"
    install -d -m 700 "$root/home/vagrant/.ssh"
    install -m 600 "$public_key" "$root/home/vagrant/.ssh/authorized_keys"
    chroot "$root" chown -R vagrant:vagrant /home/vagrant/.ssh
    rm -f "$root/root/.ssh/authorized_keys"
}

# Every machine of this box has the same machine-id; by their MAC addresses a DHCP server tells them apart.
box_network() {
    printf '[Match]\nName=en* eth*\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n'
    printf '[DHCPv4]\nClientIdentifier=mac\n'
}

# Leaves OUT/minirun.box: metadata.json, Vagrantfile, the private key and the disk.
box_disk() {
    local root=$1 out=$2 disk=$2/disk.raw offset=$((2048 * 512)) size=$((box_gigabytes << 30))
    install -d "$root/boot/grub"
    # The links of linux-base, which a newer kernel's package moves on.
    cat >"$root/boot/grub/grub.cfg" <<'GRUB'
linux /vmlinuz root=LABEL=root rw console=tty0 console=ttyS0 fsck.mode=skip psi=1 loglevel=5
initrd /initrd.img
boot
GRUB
    truncate --size="$size" "$disk"
    echo '2048,,L,*' | sfdisk --quiet "$disk"
    # GRUB 2.06 cannot read what newer e2fsprogs switches on; older ones do not know orphan_file.
    mkfs.ext4 -q -F -L root -O '^metadata_csum_seed' -E "offset=$offset,lazy_itable_init=1,nodiscard" \
        -d "$root" "$disk" "$(((size - offset) / 1024))k"
    grub-mkimage --format=i386-pc --prefix='(hd0,msdos1)/boot/grub' --output="$out/core.img" \
        biosdisk part_msdos ext2 linux normal configfile minicmd
    dd if=/usr/lib/grub/i386-pc/boot.img of="$disk" bs=440 count=1 conv=notrunc status=none
    dd if="$out/core.img" of="$disk" bs=512 seek=1 conv=notrunc status=none
    qemu-img convert -c -O qcow2 -o compression_type=zstd "$disk" "$out/box.img"
    printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": %d}\n' "$box_gigabytes" >"$out/metadata.json"
    cat >"$out/Vagrantfile" <<'VAGRANTFILE'
Vagrant.configure("2") do |config|
  config.ssh.private_key_path = File.expand_path("key", File.dirname(__FILE__))
  config.ssh.insert_key = false
  config.vm.provider(:libvirt) { |libvirt| libvirt.disk_bus = "virtio" }
end
VAGRANTFILE
    tar --create --owner=0 --group=0 --directory="$out" --file="$out/minirun.box" metadata.json Vagrantfile key box.img
    rm -f "$disk" "$out"/{box.img,core.img,metadata.json,Vagrantfile,key,key.pub}
}
