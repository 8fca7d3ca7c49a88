"""Memory that two processes share by a file descriptor, which the less trusted one of them cannot take away.

A file that is mapped and then truncated ends its reader with SIGBUS. The files here are sealed against that:
https://man7.org/linux/man-pages/man2/memfd_create.2.html
"""

import ctypes
import fcntl
import mmap
import os
import weakref

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def create(name: str, size: int, *, grows: bool = False) -> int:
    """A file in memory of so many zero bytes, as a descriptor. Raises OSError.

    No process can shorten the file, nor lengthen it unless it `grows`.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL | (0 if grows else fcntl.F_SEAL_GROW)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def mapped(fd: int, size: int) -> memoryview:
    """The first bytes of a file, for reading and writing, until the last reference to the view is gone. Raises OSError.

    Unlike mmap.mmap it keeps no descriptor: Python 3.11 duplicates that of each mapping, and a host maps two files for
    each runner.
    """
    address = _LIBC.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    pages = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(pages, _LIBC.munmap, address, size).atexit = False
    return memoryview(pages).cast("B")
