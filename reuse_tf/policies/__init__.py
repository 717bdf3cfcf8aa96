"""Policies, and the directories in which a training keeps them."""

from reuse_tf.policies.networks import (
    NETWORKS,
    build_network,
    default_filters,
)
from reuse_tf.policies.policy import (
    Sampler,
    build_policy,
    likeliest,
    load_policy,
)

__all__ = [
    "NETWORKS",
    "Sampler",
    "build_network",
    "build_policy",
    "default_filters",
    "likeliest",
    "load_policy",
]
