"""Policies, and the directories in which a training keeps them."""

from reuse_tf.policies.policy import build_policy, load_policy, sample

__all__ = ["build_policy", "load_policy", "sample"]
