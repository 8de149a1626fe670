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


def _dvc_status() -> dict:
    "What `dvc status --json` says; raises `ImportError` where DVC is not installed."
    _need_dvc()
    command = [sys.executable, "-m", "dvc", "status", "--json"]
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"dvc status failed: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout or "{}")


def _is_of(profile: str, stage: str) -> bool:
    return f"@{profile}-" in f"{stage}-"


@contextmanager
def _named(*profiles: str):
    """A folder with a folder for each of `profiles`, in which a `dvc.yaml` names it and a `dvc.lock` has what
    is locked of it; removed afterwards."""
    import yaml

    root, locked = project_root(), locked_stages()
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="status-", dir=root) as folder:
        for profile in profiles:
            for stage in pipeline["stages"].values():
                stage["wdir"], stage["matrix"]["profile"] = "../..", [profile]
            text = yaml.safe_dump({"vars": ["../../params.yaml"], **pipeline}, sort_keys=False)
            (Path(folder) / profile).mkdir()
            (Path(folder) / profile / "dvc.yaml").write_text(text, encoding="utf-8")
            own = {name: stage for name, stage in locked.items() if _is_of(profile, name)}
            lock = yaml.safe_dump({"schema": "2.0", "stages": own}, sort_keys=False)
            (Path(folder) / profile / "dvc.lock").write_text(lock, encoding="utf-8")
        yield Path(folder)


def locked_stages(folder: Path | None = None) -> dict:
    "The stages of the `dvc.lock` in `folder`, of the project's if missing, by their names."
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a second faster
    return yaml.load(((folder or project_root()) / "dvc.lock").read_bytes(), loader)["stages"]


def _is_there(stage) -> bool:
    "Whether all that Git keeps of a stage of DVC's is there."
    return all(out.exists for out in stage.outs if not out.use_cache)


def record(profile: str) -> int:
    """Say in `dvc.lock` that the results of a profile are those of today's code and parameters, which
    `advbn seed` does not say; returns for how many stages. Studies that were not run stay out, and of the
    others what is not there, such as checkpoints. Raises `ParameterError` for a profile without results."""
    known = recorded_profiles()
    if profile not in known:
        hint = did_you_mean(profile, known)
        raise ParameterError(f"no results of {profile!r}; there are those of {', '.join(known)}{hint}")
    _need_dvc()
    from dvc.repo import Repo
    from dvc.utils.serialize import dump_yaml

    from .base.config import load_params

    params = load_params(profile)
    waiting = {f"{profile}-{name}" for name in (*params.run_bases, *params.run_studies)}
    with _named(profile) as folder, Repo(str(project_root())) as repo, repo.lock:
        folder = folder.resolve() / profile
        stages = [stage for stage in repo.index.stages if Path(stage.path).parent == folder]
        stages = [
            stage for stage in stages if stage.name.rpartition("@")[2] not in waiting or _is_there(stage)
        ]
        for stage in stages:
            stage.save(allow_missing=True, run_cache=False)
            stage.dump(update_pipeline=False)
        of_others = {name: stage for name, stage in locked_stages().items() if not _is_of(profile, name)}
        said = locked_stages(folder)
        own = {stage.name: said[stage.name] for stage in stages}
        dump_yaml(project_root() / "dvc.lock", {"schema": "2.0", "stages": of_others | own})
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
    recorded, profiles, found = locked_stages(), recorded_profiles(), {}
    named = named_profile(project_root())
    with _named(*(profile for profile in profiles if profile != named)):
        stages = {name.rpartition(":")[2]: changes for name, changes in _dvc_status().items()}
    for profile in profiles:
        changed = {
            name: _what(changes) if name in recorded else ["not in dvc.lock"]
            for name, changes in stages.items()
            if _is_of(profile, name)
        }
        found[profile] = {name: what for name, what in changed.items() if what}
    return found
