"""The messages of CRIU's service: criu's images/rpc.proto, as much as is said and understood here.

The numbers are the protocol's; see `protobuf` for the form of the tables.
"""

from __future__ import annotations

# enum criu_req_type
DUMP, RESTORE, CHECK, PRE_DUMP, NOTIFY, FEATURE_CHECK, VERSION = 1, 2, 3, 4, 6, 9, 10
TYPES = {
    DUMP: "DUMP",
    RESTORE: "RESTORE",
    CHECK: "CHECK",
    PRE_DUMP: "PRE_DUMP",
    NOTIFY: "NOTIFY",
    FEATURE_CHECK: "FEATURE_CHECK",
    VERSION: "VERSION",
}

# enum criu_cg_mode, by the names that --manage-cgroups-mode takes; "" is CRIU's own choice.
CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5, "": 6}

_PAGE_SERVER = {"address": (1, "string"), "port": (2, "int")}
_KEY_VALUE = {"key": (1, "string"), "val": (2, "string")}
_JOIN_NAMESPACE = {"ns": (1, "string"), "ns_file": (2, "string")}
_INHERIT_FD = {"key": (1, "string"), "fd": (2, "int")}
_CGROUP_ROOT = {"ctrl": (1, "string"), "path": (2, "string")}

OPTIONS = {
    "images_dir_fd": (1, "int"),
    "pid": (2, "int"),
    "leave_running": (3, "bool"),
    "ext_unix_sk": (4, "bool"),
    "tcp_established": (5, "bool"),
    "evasive_devices": (6, "bool"),
    "shell_job": (7, "bool"),
    "file_locks": (8, "bool"),
    "log_level": (9, "int"),
    "log_file": (10, "string"),
    "ps": (11, _PAGE_SERVER),
    "notify_scripts": (12, "bool"),
    "root": (13, "string"),
    "parent_img": (14, "string"),
    "track_mem": (15, "bool"),
    "auto_dedup": (16, "bool"),
    "work_dir_fd": (17, "int"),
    "link_remap": (18, "bool"),
    "ext_mnt": (23, _KEY_VALUE),
    "manage_cgroups": (24, "bool"),
    "cg_root": (25, _CGROUP_ROOT),
    "rst_sibling": (26, "bool"),
    "inherit_fd": (27, _INHERIT_FD),
    "manage_cgroups_mode": (34, "int"),
    "external": (37, "string"),
    "empty_ns": (38, "int"),
    "join_ns": (39, _JOIN_NAMESPACE),
    "freeze_cgroup": (44, "string"),
    "tcp_skip_in_flight": (46, "bool"),
    "lazy_pages": (48, "bool"),
    "orphan_pts_master": (50, "bool"),
    "config_file": (51, "string"),
    "lsm_profile": (53, "string"),
    "lsm_mount_context": (63, "string"),
}

FEATURES = {"mem_track": (1, "bool"), "lazy_pages": (2, "bool")}

REQUEST = {
    "type": (1, "int"),
    "opts": (2, OPTIONS),
    "notify_success": (3, "bool"),
    "features": (5, FEATURES),
}

RESPONSE = {
    "type": (1, "int"),
    "success": (2, "bool"),
    "restore": (4, {"pid": (1, "int")}),
    "notify": (5, {"script": (1, "string"), "pid": (2, "int")}),
    "cr_errno": (7, "int"),
    "features": (8, FEATURES),
    "cr_errmsg": (9, "string"),
    "version": (10, {"major": (1, "int"), "minor": (2, "int"), "sublevel": (4, "int")}),
}
