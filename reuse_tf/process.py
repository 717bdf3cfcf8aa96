"""The process that a program plays or trains in."""

import ctypes
import gc

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MOST = 2**31 - 1


def settle():
    """Readies the process for its main job, once all is imported.

    TensorFlow leaves a third of a million Python objects, which live as long
    as the process: they are taken out of the garbage collector's sight, which
    would visit them for 0.2 seconds at a time.

    The C library gives large blocks, as the gradient of a dense layer, back to
    the system as soon as they are freed, and gets them again page by page. It
    is told to keep them, where it is glibc: an update takes a third less time.
    """
    gc.collect()
    gc.freeze()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
