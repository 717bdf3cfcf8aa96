"""The process that a program plays or trains in."""

import gc


def settle():
    """Readies the process for its main job, once all is imported.

    TensorFlow leaves a third of a million Python objects, which live as long
    as the process: they are taken out of the garbage collector's sight, which
    would visit them for 0.2 seconds at a time.
    """
    gc.collect()
    gc.freeze()
