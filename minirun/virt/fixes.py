"""What helps, and who can do it: you, the administrator's firmware, the provider, the kernel."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from minirun.virt.facts import Facts


class Fix:
    """One thing to do. `command` is typed as it stands, "" where there is none."""

    def __init__(self, name: str, who: str, command: str, text: str) -> None:
        self.name, self.who, self.command, self.text = name, who, command, text


def use_tcg() -> Fix:
    return Fix("use_tcg", "you", "", "use emulation (QEMU's accel=tcg) for ordinary kernels")


def pvm_kernel() -> Fix:
    return Fix("pvm_kernel", "you", "", "use KVM for kernels built with CONFIG_PVM_GUEST=y only")


def use_xl() -> Fix:
    return Fix("use_xl", "you", "xl create FILE", "make Xen guests, with xl or libvirt")


def read_log() -> Fix:
    return Fix("read_log", "you", "dmesg | grep -i kvm", "read what the kernel says of it")


def allow_device() -> Fix:
    return Fix(
        "allow_device",
        "you",
        "minirun run --device /dev/kvm …",
        "pass the device in: the node, and a rule for it (c 10:232 rwm)",
    )


def make_node() -> Fix:
    return Fix(
        "make_node",
        "you",
        "sudo mknod -m 0600 /dev/kvm c 10 232",
        "udev should have made the node: see whether it runs",
    )


def node_rule() -> Fix:
    return Fix(
        "node_rule",
        "you",
        """echo 'KERNEL=="kvm", GROUP="kvm", MODE="0660"'"""
        " | sudo tee /etc/udev/rules.d/65-kvm.rules",
        "give the node to the group kvm, and yourself to the group; not to everybody",
    )


def join_group(group: str, listed: bool) -> Fix:
    if listed:
        return Fix(
            "log_in_again",
            "you",
            f"newgrp {group}",
            "you have been added to the group: log out and in again",
        )
    return Fix(
        "join_group", "you", f'sudo usermod -aG {group} "$USER"', "then log out and in again"
    )


def load(module: str, blacklist: str) -> Fix:
    also = f"; {blacklist} keeps it from being loaded by itself" if blacklist else ""
    return Fix("load_module", "you", f"sudo modprobe {module}", f"load the module{also}")


def other_kernel(name: str) -> Fix:
    option = {"vmx": "CONFIG_KVM_INTEL", "svm": "CONFIG_KVM_AMD"}.get(name, "CONFIG_KVM")
    return Fix(
        "other_kernel",
        "kernel",
        "",
        f"boot a kernel with {option}, and without clearcpuid= and nomodule",
    )


def firmware(name: str) -> Fix:
    entry = {"vmx": "Intel Virtualization Technology (VT-x)", "svm": "SVM Mode (AMD-V)"}[name]
    return Fix(
        "firmware_setup",
        "firmware",
        "",
        f"in the firmware's setup switch on {entry}, then power the machine off and on",
    )


def confirm_firmware(name: str) -> Fix:
    register = {"vmx": "0x3a", "svm": "0xc0010114"}[name]
    sense = {"vmx": "1: locked off", "svm": "bit 4 set: locked off"}[name]
    return Fix("read_msr", "you", f"sudo modprobe msr && sudo rdmsr {register}", sense)


# Where nested virtualization is switched on, by whoever makes the machine. First match.
_NESTED = (
    (
        "Nitro",
        "provider",
        "",
        "a C8i, M8i or R8i instance with nested virtualization, or a .metal one",
    ),
    ("Google", "provider", "", "create the instance with --enable-nested-virtualization"),
    ("Azure", "provider", "", "choose a size that the provider lists with nested virtualization"),
    ("WSL", "you", "", "set nestedVirtualization=true below [wsl2] in %UserProfile%\\.wslconfig"),
    (
        "Hyper-V",
        "provider",
        "Set-VMProcessor NAME -ExposeVirtualizationExtensions $true",
        "on the Windows host, with the machine off",
    ),
    ("VMware", "provider", "", 'set vhv.enable = "TRUE" in the machine\'s .vmx, with it off'),
    (
        "VirtualBox",
        "provider",
        "VBoxManage modifyvm NAME --nested-hw-virt on",
        "on the host, with the machine off",
    ),
    ("Parallels", "provider", "prlctl set NAME --nested-virt on", "on the host, machine off"),
    ("Xen", "provider", "", "set nestedhvm=1 in the guest's configuration (experimental)"),
    (
        "Firecracker",
        "provider",
        "",
        "its makers give guests no such extension: ask the provider for another kind of machine",
    ),
    ("QEMU TCG", "provider", "", "start QEMU with -cpu …,+svm: it emulates AMD-V, slowly"),
    (
        "QEMU",
        "provider",
        "",
        "host-passthrough as CPU mode, and kvm_intel.nested=1 or kvm_amd.nested=1 on the host",
    ),
    ("KVM", "provider", "", "a monitor that passes the host's CPU on, and nested=1 on the host"),
)


def nested(facts: Facts) -> list[Fix]:
    """What switches nested virtualization on here, by the name of who made this machine."""
    if not facts.get("cpu.hypervisor") and not facts.get("machine.virtual"):
        return []
    monitor, cloud, hypervisor = (
        str(facts.get(name) or "")
        for name in ("machine.monitor", "machine.cloud", "machine.hypervisor")
    )
    names = [monitor, cloud, hypervisor]
    if cloud == "Azure":
        names = [cloud]  # Hyper-V's own switch is not the customer's there
    elif facts.get("machine.wsl") == 2:
        names = ["WSL"]
    elif hypervisor == "QEMU TCG":
        names = [hypervisor]  # its monitor is QEMU, as KVM's can be
    for name in names:
        for word, who, command, text in _NESTED:
            if word in name:
                return [Fix("nested", who, command, text)]
    return [Fix("nested", "provider", "", "ask who runs this machine for nested virtualization")]
