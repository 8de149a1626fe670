"""Files: the project's root, whole or not there."""

import hashlib
import os

import pytest

from advbn.base.errors import Busy, ParameterError
from advbn.base.files import check_apart, file_digest, held, is_weights_file, project_root, whole_file


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


def test_the_root_holds_the_documents():
    names = sorted(p.name for p in project_root().iterdir() if not p.name.startswith("."))
    assert names[:5] == ["CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile"]


def test_digests_are_sha256s_of_files_and_of_the_lines_about_a_folders_files(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / ".hidden").write_bytes(b"three")
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"one", b"two"))
    assert file_digest(tmp_path / "a") == one
    lines = f"{one}  a\n{two}  b\n".encode()
    assert file_digest(tmp_path) == hashlib.sha256(lines).hexdigest()


def test_a_second_holder_is_told_who_holds_and_the_names_are_free_afterwards(tmp_path):
    with held(tmp_path / "set"):
        with pytest.raises(Busy, match=f"set is being made by process {os.getpid()} on .*; wait for it or"):
            with held(tmp_path / "set"):
                pass
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "set"):
        pass


@pytest.mark.parametrize(
    "source, out, words",
    [
        ("photos", "photos", "photos is the folder of the pictures themselves"),
        ("photos", "photos/foggy", "lies in photos"),
        ("photos/dogs", "photos", "photos holds photos/dogs"),
        ("photos", "link/foggy", "lies in photos"),
        ("photos", ".", "holds photos"),
    ],
)
def test_what_is_made_of_pictures_goes_to_another_folder(tmp_path, monkeypatch, source, out, words):
    (tmp_path / "photos/dogs").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParameterError, match=f"{words}.*; name a folder beside it, such as "):
        check_apart(source, out)
    check_apart("photos", "foggy"), check_apart("photos", "photos-foggy")


def test_a_file_of_weights_is_told_from_a_name(tmp_path):
    (tmp_path / "net.pt").touch()
    assert is_weights_file(str(tmp_path / "net.pt"))
    assert not is_weights_file("IMAGENET1K_V1") and not is_weights_file(None)
    for missing in ("net.pth", "x.safetensors", "somewhere/net"):
        with pytest.raises(FileNotFoundError, match=f"no weights at {missing}"):
            is_weights_file(missing)
