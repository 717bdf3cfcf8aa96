"""Measures this package against plain Keras: `python -m reuse_tf.benchmark`.

What is compared is measured in turns in one process.
"""
