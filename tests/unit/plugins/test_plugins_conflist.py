"""The configuration list: written when the agent is ready, withdrawn on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cilia.apps import cni as setup
from cilia.plugins.cni import conflist
from cilia.plugins.cni.conflist import ConflistError, ConflistSettings


def settings(directory: Path, **changed: object) -> ConflistSettings:
    return ConflistSettings(directory=directory, **changed)  # type: ignore[arg-type]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_file_is_what_a_runtime_reads(tmp_path: Path) -> None:
    path = conflist.write_conflist(settings(tmp_path / "net.d", mtu=1400, log_level="debug"))
    assert path.name == "05-cilia.conflist"
    assert path.stat().st_mode & 0o777 == 0o644
    assert json.loads(path.read_bytes()) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "cilia",
        "plugins": [{"type": "cilia-cni", "mtu": 1400, "log-level": "debug"}],
    }
    assert names(tmp_path / "net.d") == ["05-cilia.conflist"]


def test_writing_the_same_again_touches_nothing(tmp_path: Path) -> None:
    path = conflist.write_conflist(settings(tmp_path))
    before = path.stat()
    conflist.write_conflist(settings(tmp_path))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    conflist.write_conflist(settings(tmp_path, mtu=1400))
    assert b"1400" in path.read_bytes()


def test_exclusive_sets_others_aside_and_withdrawing_brings_them_back(tmp_path: Path) -> None:
    for name in ("00-other.conf", "10-flannel.conflist", "99.json", "README", ".hidden.conf"):
        (tmp_path / name).write_text(name)
    conflist.write_conflist(settings(tmp_path))
    assert names(tmp_path) == [
        ".hidden.conf",
        "00-other.conf.cilia_bak",
        "05-cilia.conflist",
        "10-flannel.conflist.cilia_bak",
        "99.json.cilia_bak",
        "README",
    ]
    (tmp_path / "99.json").write_text("written since")
    conflist.withdraw_conflist(settings(tmp_path))
    conflist.withdraw_conflist(settings(tmp_path))
    assert (tmp_path / "10-flannel.conflist").read_text() == "10-flannel.conflist"
    assert (tmp_path / "99.json").read_text() == "written since"
    assert not (tmp_path / "05-cilia.conflist").exists()


def test_not_exclusive_leaves_others_alone(tmp_path: Path) -> None:
    (tmp_path / "10-flannel.conflist").write_text("{}")
    conflist.write_conflist(settings(tmp_path, exclusive=False))
    assert names(tmp_path) == ["05-cilia.conflist", "10-flannel.conflist"]


def test_a_users_own_list_is_copied_if_it_is_one(tmp_path: Path) -> None:
    own = tmp_path / "own.conflist"
    own.write_text('{"name":"mine","cniVersion":"1.0.0","plugins":[{"type":"cilia-cni"},{"type":"portmap"}]}')
    path = conflist.write_conflist(settings(tmp_path / "net.d", custom=own))
    assert path.read_bytes() == own.read_bytes()
    for wrong in ("[]", "{", '{"name":"x"}', '{"plugins":[]}'):
        own.write_text(wrong)
        with pytest.raises(ConflistError, match=r"own\.conflist"):
            conflist.write_conflist(settings(tmp_path / "net.d", custom=own))
    with pytest.raises(ConflistError, match="can't be read"):
        conflist.render_conflist(settings(tmp_path, custom=tmp_path / "absent"))


def test_an_unwritable_directory_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConflistError, match="writable"):
        conflist.write_conflist(settings(tmp_path / "file"))


def test_installing_and_uninstalling_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bin_dir, conf_dir = tmp_path / "bin", tmp_path / "net.d"
    conflist.write_conflist(settings(conf_dir))
    paths = ["--socket", str(tmp_path / "s"), "--queue-dir", str(tmp_path / "q"), "--bin-dir", str(bin_dir)]
    assert setup.run(["install", *paths]) == 0
    assert (bin_dir / "cilia-cni").stat().st_mode & 0o777 == 0o755
    assert setup.run(["uninstall", "--bin-dir", str(bin_dir), "--conf-dir", str(conf_dir)]) == 0
    assert (names(bin_dir), names(conf_dir)) == ([], [])
    assert setup.run(["install", *paths[:-1], str(tmp_path / "q" / ".lock" / "x"), "--python", "/a b"]) == 1
    assert "#! line" in capsys.readouterr().err
