"""What a followed version remembers."""

from __future__ import annotations

from acemath_registry.following import FollowedVersion
from acemath_registry.releases import ReleaseMember


def test_a_version_that_a_thousand_releases_name_remembers_the_last_of_them() -> None:
    member = ReleaseMember(name="p", version="s1-aaaaaaaaaaaa", manifest_sha256="a" * 64)
    version = FollowedVersion(member, 1, {"r-0"})
    for number in range(1000):
        version.named_by(f"r-{number}")
        version.named_by(f"r-{number}")
        assert f"r-{number}" in version.releases and len(version.releases) <= 64
        assert number == 0 or number % 64 == 0 or f"r-{number - 1}" in version.releases
