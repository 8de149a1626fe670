"""Files: the project's root, whole or not there."""

import pytest
from advbn.files import project_root, whole_file


def test_the_root_is_found_from_below(root, tmp_path, monkeypatch):
    assert project_root(root / "nbs" / "stages") == root
    monkeypatch.delenv("ADVBN_ROOT", raising=False)
    with pytest.raises(FileNotFoundError, match="no dvc.yaml"):
        project_root(tmp_path)


def test_a_writer_that_is_stopped_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "rows.csv") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
