"""Whether committed results are what today's code, parameters and images give: DVC asked of each profile."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from .base.errors import ParameterError, did_you_mean
from .base.files import project_root


def recorded_profiles() -> list:
    "The profiles whose results are there, in the order of their names."
    return sorted(path.parent.name for path in (project_root() / "results").glob("*/metrics.json"))


def _need_dvc():
    if find_spec("dvc") is None:
        raise ImportError(
            "status asks DVC, which is not installed; make env installs it, and verify needs none"
        )


def _dvc_status(*target) -> dict:
    "What `dvc status --json` says; raises `ImportError` where DVC is not installed."
    _need_dvc()
    command = [sys.executable, "-m", "dvc", "status", "--json", *target]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"dvc status failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout or "{}")


@contextmanager
def _named(profile: str):
    "A folder with a `dvc.yaml` in which `profile` is named, and today's `dvc.lock`; removed afterwards."
    import yaml

    root = project_root()
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    for stage in pipeline["stages"].values():
        stage["wdir"], stage["matrix"]["profile"] = "..", [profile]
    with tempfile.TemporaryDirectory(prefix="status-", dir=root) as folder:
        file = Path(folder) / "dvc.yaml"
        text = yaml.safe_dump({"vars": ["../params.yaml"], **pipeline}, sort_keys=False)
        file.write_text(text, encoding="utf-8")
        (Path(folder) / "dvc.lock").write_bytes((root / "dvc.lock").read_bytes())
        yield Path(folder)


def _as_if_named(profile: str) -> dict:
    "What `dvc status` would say if `params.yaml` named `profile`; nothing of the project is changed."
    with _named(profile) as folder:
        found = _dvc_status(str(folder.relative_to(project_root()) / "dvc.yaml"))
    return {name.rpartition(":")[2]: changes for name, changes in found.items()}


def record(profile: str) -> int:
    """Say in `dvc.lock` that the results of a profile are those of today's code and parameters, which
    `advbn seed` does not say; returns for how many stages. What is not there, such as checkpoints, is left
    out. Raises `ParameterError` for a profile without results."""
    known = recorded_profiles()
    if profile not in known:
        hint = did_you_mean(profile, known)
        raise ParameterError(f"no results of {profile!r}; there are those of {', '.join(known)}{hint}")
    _need_dvc()
    from dvc.repo import Repo

    with _named(profile) as folder, Repo(str(project_root())) as repo, repo.lock:
        stages = [stage for stage in repo.index.stages if Path(stage.path).parent == folder.resolve()]
        for stage in stages:
            stage.save(allow_missing=True, run_cache=False)
            stage.dump(update_pipeline=False)
        (project_root() / "dvc.lock").write_bytes((folder / "dvc.lock").read_bytes())
    return len(stages)


def named_profile(root: Path) -> str:
    "The profile that `params.yaml` names."
    import yaml

    return yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))["profile"]


def _what(changes) -> list:
    """The dependencies and parameters of a stage that have changed; outputs that are only missing do not
    count."""
    found = []
    for change in changes:
        for kind, entries in change.items() if isinstance(change, dict) else ():
            for name, state in entries.items():
                if kind == "changed deps" and state != "deleted" and isinstance(state, str):
                    found.append(f"{name} ({state})")
                elif kind == "changed deps" and isinstance(state, dict):
                    found += [f"{key} ({how})" for key, how in state.items()]
                elif kind == "changed outs" and state != "deleted" and name.startswith("results/"):
                    found.append(f"{name} ({state})")
    return found


def status() -> dict:
    """`{profile: {stage: what has changed}}` of every profile whose results are there; an empty dictionary
    says that they hold.

    What can be made again and is not there, such as checkpoints in a fresh clone, is no change."""
    import yaml

    root, found = project_root(), {}
    recorded = yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    for profile in recorded_profiles():
        stages = _dvc_status() if profile == named_profile(root) else _as_if_named(profile)
        stages = {name: changes for name, changes in stages.items() if f"@{profile}" in name}
        changed = {
            name: _what(changes) if name in recorded else ["not in dvc.lock"]
            for name, changes in stages.items()
        }
        found[profile] = {name: what for name, what in changed.items() if what}
    return found
