"""Files that are whole or not there."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from tpv.common.errors import TPVError
from tpv.common.files import put, put_text


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim.txt", tmp_path / "report.json"
    victim.write_text("precious")
    for name in (".report.json.part", f".report.json.{os.getpid()}.part", "report.json"):
        (tmp_path / name).symlink_to(victim)
    put_text(path, "{}")
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_text() == "{}"


def test_a_guessed_name_of_the_draft_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".tpv-guessed.part").symlink_to(victim)
    with pytest.raises(TPVError, match="cannot write"):
        put_text(tmp_path / "report.json", "{}")
    assert victim.read_text() == "precious"


def test_an_interrupt_leaves_the_old_file_and_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    put_text(path, "old")

    def stop(draft: Path) -> None:
        draft.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        put(path, stop)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_the_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    put_text(tmp_path / "ours", "")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("name", ["file/report.json", "x" * 300])
def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TPVError, match=r"cannot write to .*: choose another folder with --out\.$"):
        put_text(tmp_path / name, "{}", "choose another folder with --out")


def _write(path: Path, text: str, until: float) -> None:
    while time.time() < until:
        put_text(path, text)


def test_two_writers_do_not_tear(tmp_path: Path) -> None:
    path, until = tmp_path / "report.json", time.time() + 1.5
    texts = [json.dumps({"pad": letter * 200_000}) for letter in "ab"]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, text, until)) for text in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while time.time() < until:
        if path.exists():
            seen.add(path.read_text())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= set(texts)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
