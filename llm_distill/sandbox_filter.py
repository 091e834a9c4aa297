"""The system calls that a sandboxed program may not make, as a seccomp filter that libseccomp writes.

Most kill the program, so that an attempt is seen. A few are answered as by a kernel that does not know them, because the C
library tries them first and has another way.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from functools import lru_cache

from llm_distill.errors import UserError

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NOT_EQUAL, _MASKED_EQUAL = 1, 7
_BAD_ARCHITECTURE = 2  # the attribute: what becomes of calls by another architecture's numbers
#: Other networks, other roots, other processes, the kernel itself.
_FATAL = """
    mount umount2 pivot_root open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr unshare setns
    ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
    bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
    keyctl add_key request_key name_to_handle_at open_by_handle_at fanotify_init quotactl quotactl_fd acct
    init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff syslog
    settimeofday clock_settime adjtimex clock_adjtime iopl ioperm sethostname setdomainname vhangup nfsservctl lookup_dcookie
"""
#: Memory that no limit counts, and `clone` with flags that no filter can read.
_UNKNOWN = "clone3 memfd_create memfd_secret shmget shmat shmctl"
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
_NEW = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)


class _Compare(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


@lru_cache(maxsize=1)
def rules() -> bytes:
    """The filter as BPF, for this machine's own system calls; those of other architectures kill."""
    try:
        seccomp = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        raise UserError("no program can be held here: libseccomp is missing (Debian, Ubuntu: libseccomp2).") from None
    seccomp.seccomp_init.restype = ctypes.c_void_p
    seccomp.seccomp_init.argtypes = [ctypes.c_uint32]
    context = ctypes.c_void_p(seccomp.seccomp_init(_ALLOW))
    try:
        _must(seccomp.seccomp_attr_set(context, _BAD_ARCHITECTURE, ctypes.c_uint32(_KILL)), "attr_set")
        for names, action in ((_FATAL, _KILL), (_UNKNOWN, _ERRNO | errno.ENOSYS)):
            for name in names.split():
                _rule(seccomp, context, action, name)
        # Beyond local sockets there are families that no network name space bounds, such as those to a host of machines.
        _rule(seccomp, context, _KILL, "socket", _Compare(0, _NOT_EQUAL, socket.AF_UNIX, 0))
        for flag in _NEW:
            _rule(seccomp, context, _KILL, "clone", _Compare(0, _MASKED_EQUAL, flag, flag))
        file = os.memfd_create("filter")
        try:
            _must(seccomp.seccomp_export_bpf(context, file), "export_bpf")
            os.lseek(file, 0, os.SEEK_SET)
            return os.read(file, 1 << 20)
        finally:
            os.close(file)
    finally:
        seccomp.seccomp_release(context)


def _rule(seccomp: ctypes.CDLL, context: ctypes.c_void_p, action: int, name: str, *compare: _Compare) -> None:
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number == -1:  # this libseccomp does not know it; a newer kernel's call may then pass, within the other walls
        return
    array = (_Compare * max(1, len(compare)))(*compare)
    done = seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(compare), array)
    _must(done, name)


def _must(done: int, what: str) -> None:
    if done < 0:
        raise UserError(f"no program can be held here: libseccomp refuses {what} ({os.strerror(-done)}).")
