"""Measures this package against plain Keras: `python -m reuse_tf.benchmark`.

Every figure is a ratio of times taken in alternation in one process.
"""
