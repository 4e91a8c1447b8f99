"""Finished work is found again, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tpv.common import resume
from tpv.common.errors import TPVError
from tpv.common.resume import ResumableStore

PLAIN = {"value": 1.5, "name": "Tr(H_eff) ≈", "list": [1, None, {"a": True}]}
TENSORS = {"delta": {"0.weight": torch.arange(6.0).reshape(2, 3)}, "seconds": 0.5}


def same(a: Any, b: Any) -> bool:
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    return True


@pytest.mark.parametrize("entry", [PLAIN, TENSORS["delta"]])
def test_entries_are_found_by_another_process(tmp_path: Path, entry: Any) -> None:
    first = ResumableStore(tmp_path / "new", "a" * 64)
    assert first.get("one") is None
    first.put("one", entry)
    found = ResumableStore(tmp_path / "new", "a" * 64).get("one")
    assert found == entry if entry is PLAIN else same(found, entry)


def test_other_keys_and_identities_are_not_seen(tmp_path: Path) -> None:
    store = ResumableStore(tmp_path, "a" * 64)
    store.put("one", PLAIN)
    (file,) = tmp_path.iterdir()
    assert store.get("two") is None
    assert ResumableStore(tmp_path, "b" * 64).get("one") is None
    other = ResumableStore(tmp_path, "a" * 12 + "b" * 52)  # shares the start of the name
    assert other.get("one") is None
    file.rename(other._paths("two")[0])
    assert other.get("two") is None


@pytest.mark.parametrize("entry", [PLAIN, TENSORS])
@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"identity": 1}', None])
def test_a_broken_file_counts_as_missing_and_is_named(
    tmp_path: Path, entry: Any, damage: bytes | None
) -> None:
    ResumableStore(tmp_path, "a" * 64).put("one", entry)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    store = ResumableStore(tmp_path, "a" * 64)
    with pytest.warns(UserWarning, match=r"cannot be read .*computed again: delete the file") as caught:
        assert store.get("one") is None
    assert str(file) in str(caught[0].message)
    store.put("one", entry)
    assert ResumableStore(tmp_path, "a" * 64).get("one") is not None


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "run",))

    store = ResumableStore(tmp_path, "a" * 64)
    store.put("one", TENSORS)
    (file,) = tmp_path.iterdir()
    torch.save({"identity": "a" * 64, "key": "one", "entry": Evil()}, file)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert ResumableStore(tmp_path, "a" * 64).get("one") is None
    assert not (tmp_path / "run").exists()


def test_discard_takes_its_own_files_alone(tmp_path: Path) -> None:
    (tmp_path / "unfinished-notes.json").write_text("mine")
    ours, theirs = ResumableStore(tmp_path, "a" * 64), ResumableStore(tmp_path, "b" * 64)
    for store in (ours, theirs):
        store.put("one", PLAIN)
        store.put("two", TENSORS)
    assert len(ours) == len(ResumableStore(tmp_path, "a" * 64)) == 2
    ours.discard()
    assert (len(ours), len(theirs)) == (0, 2)
    assert (tmp_path / "unfinished-notes.json").exists()


def test_what_does_not_fit_in_memory_goes_to_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_MEMORY_BYTES", 100)
    store = ResumableStore(None, "a" * 64)
    for i in range(8):
        store.put(str(i), {"delta": torch.full((10,), float(i))})
    assert [store.get(str(i))["delta"][0].item() for i in range(8)] == list(range(8))
    folder = store._folder
    assert folder is not None
    assert len(list(folder.iterdir())) == 6
    del store
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = ResumableStore(tmp_path / "file", "a" * 64, advice="choose another with --out")
    for act in (store.prepare, lambda: store.put("one", PLAIN)):
        with pytest.raises(TPVError, match=r"cannot write to .*: choose another with --out\.$"):
            act()
