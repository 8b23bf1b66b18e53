"""`python make_release.py REGISTRY`: a tiny random policy and a tiny random reward model, published and promoted.

A process of its own, so that importing torch and transformers touches no test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def main(root: Path) -> None:
    sys.path.insert(0, str(TESTS))
    from reward.tiny import write_checkpoint

    from acemath_registry import PublishMetadata, Registry

    registry, metadata = Registry(root), PublishMetadata(step=1, licence="Apache-2.0")
    with tempfile.TemporaryDirectory() as folder:
        policy, reward = Path(folder, "policy"), Path(folder, "reward")
        subprocess.run([sys.executable, str(TESTS / "policy" / "make_tiny_llama.py"), str(policy)], check=True)
        write_checkpoint(reward)
        refs = (
            registry.publish(policy, name="tiny-policy", kind="policy", metadata=metadata),
            registry.publish(reward, name="tiny-reward", kind="reward", metadata=metadata),
        )
    release = registry.create_release(*refs)
    registry.promote("default", release.id, expected_generation=None, by="contract tests")
    sys.stdout.write(json.dumps({"release": release.id, "policy": str(refs[0]), "reward": str(refs[1])}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
