"""Immutable model versions, releases and channels on a shared file system."""

from acemath_registry.channels import Canary, Channel
from acemath_registry.errors import (
    Conflict,
    DiskFull,
    InvalidRequest,
    LockTimeout,
    NotFound,
    RejectReason,
    StorageError,
    VerificationError,
)
from acemath_registry.gates import CanaryGate, EvaluationGate, GateReason, GateRefused, Gates
from acemath_registry.manifest import Compatibility, FileEntry, Manifest, ModelKind, PublishMetadata, TensorDigests
from acemath_registry.refs import ModelRef
from acemath_registry.registry import Registry
from acemath_registry.releases import Release, ReleaseMember
from acemath_registry.served import Served
from acemath_registry.signing import SigningKey, TrustedKeys, configured_keys

__all__ = [
    "Canary",
    "CanaryGate",
    "Channel",
    "Compatibility",
    "Conflict",
    "DiskFull",
    "EvaluationGate",
    "FileEntry",
    "GateReason",
    "GateRefused",
    "Gates",
    "InvalidRequest",
    "LockTimeout",
    "Manifest",
    "ModelKind",
    "ModelRef",
    "NotFound",
    "PublishMetadata",
    "Registry",
    "RejectReason",
    "Release",
    "ReleaseMember",
    "Served",
    "SigningKey",
    "StorageError",
    "TensorDigests",
    "TrustedKeys",
    "VerificationError",
    "configured_keys",
]
