"""Policies, and the directories in which a training keeps them."""

from reuse_tf.policies.policy import Sampler, build_policy, load_policy

__all__ = ["Sampler", "build_policy", "load_policy"]
