"""The folder of compiled kernels holds code that we load: no other user may be able to write there.

Both languages take one path through it; this one needs no compiler and no device.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import uuid
import warnings
from pathlib import Path

import pytest

import exactile
from abilities import needs
from exactile import _core

IS_ROOT = os.geteuid() == 0
OTHER_USER = 65534
needs_root = needs("root")

IMAGE = b"an image \n of two lines"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("EXACTILE_CACHE_DIR", str(path))
    return path


@pytest.fixture
def source() -> str:
    """A program that nothing has seen yet."""
    return f"// {uuid.uuid4()}"


def keep(source: str) -> Path:
    """Keep a kernel as one that was compiled; where it would lie."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        origin, key, name, image = _core.sycl_keep(source, "k", "", "_Z1k", IMAGE)
    assert (origin, name, image) == ("compiler", "_Z1k", IMAGE)
    return Path(_core.cache_directory()) / f"{key}.spv"


def look_up(source: str):
    """Where a kernel is found; memory, which keeps one for each place to look in, has it not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = _core.sycl_look_up(source, "k", f"/no wheel/{uuid.uuid4()}")
    assert found is None or found[2:] == ("_Z1k", IMAGE)
    return None if found is None else found[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def reason():
    backends = exactile.info()["backends"]
    assert backends["cuda"]["cache_reason"] == backends["sycl"]["cache_reason"]
    return backends["cuda"]["cache_reason"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_made_for_us_alone(umask, folder, source, monkeypatch):
    monkeypatch.setenv("EXACTILE_CACHE_DIR", f"{folder}/of/ours")
    before = os.umask(umask)
    try:
        entry = keep(source)
    finally:
        os.umask(before)
    assert [mode(path) for path in (folder, folder / "of", folder / "of/ours")] == [0o700] * 3
    assert mode(entry) == 0o600
    assert [path.name for path in entry.parent.iterdir()] == [entry.name]
    assert look_up(source) == "cache directory"
    assert reason() is None


class TestRefused:
    """Kernels stay in memory: nothing is read, nothing is written."""

    @pytest.fixture(autouse=True)
    def _planted(self, folder, source):
        self.entry = keep(source)
        self.source = source

    def check(self, why):
        assert look_up(self.source) is None
        assert why in reason()
        other = keep(self.source + " another")
        assert not other.exists()
        assert _core.sycl_look_up(self.source + " another", "k", "")[0] == "memory"

    @pytest.mark.parametrize("bits", [0o777, 0o770, 0o702, 0o1777])
    def test_others_can_write(self, folder, bits):
        folder.chmod(bits)
        self.check(f"others can write to it (mode {bits:04o})")

    @needs_root
    def test_of_another_user(self, folder):
        os.chown(folder, OTHER_USER, -1)
        self.check(f"it belongs to user {OTHER_USER}, expected user 0")

    @pytest.mark.parametrize("end", ["", "/", "//"])
    def test_a_symbolic_link(self, folder, tmp_path, monkeypatch, end):
        link = tmp_path / "link"
        link.symlink_to(folder)
        monkeypatch.setenv("EXACTILE_CACHE_DIR", f"{link}{end}")
        self.check("it is a symbolic link, which is not followed")

    def test_below_a_folder_in_which_all_users_can_rename_it(self, folder, tmp_path):
        tmp_path.chmod(0o757)
        self.check(f"all users can write to {tmp_path} above it (mode 0757)")
        tmp_path.chmod(0o1777)  # as /tmp is
        assert look_up(self.source) == "cache directory"

    def test_no_absolute_path(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("EXACTILE_CACHE_DIR", "cache")
        self.check("kept in cache: expected an absolute path")

    def test_no_folder(self, folder, monkeypatch):
        monkeypatch.setenv("EXACTILE_CACHE_DIR", str(self.entry))
        self.check("Not a directory")

    def test_none_named(self, monkeypatch):
        for name in ("EXACTILE_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        self.check("none of EXACTILE_CACHE_DIR, XDG_CACHE_HOME and HOME names a folder")


@needs_root
def test_what_root_made_is_found_by_others(folder, source, tmp_path):
    """Root could replace the package too. Others find its kernels, and cannot add any."""
    entry = keep(source)
    for path in (folder, *list(tmp_path.parents)[:3], tmp_path):
        path.chmod(0o755)
    entry.chmod(0o644)
    code = (
        "import os, sys\n"
        "from exactile import _core\n"
        "_core.sycl_look_up('// reads the headers', 'k', '')\n"
        f"os.setgroups([]); os.setgid({OTHER_USER}); os.setuid({OTHER_USER})\n"
        "print(_core.sycl_look_up(sys.argv[1], 'k', '')[0], '|', _core.cache_problem())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, source], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cache directory | "), done.stdout
    assert "it is read-only" in done.stdout


class TestEntries:
    """What is no file of ours alone is passed over, and replaced where it is no folder."""

    @pytest.fixture(autouse=True)
    def _kept(self, folder, source):
        self.entry, self.source = keep(source), source
        self.good = self.entry.read_bytes()

    def check(self):
        assert look_up(self.source) is None
        keep(self.source)
        assert look_up(self.source) == "cache directory"
        assert stat.S_ISREG(self.entry.lstat().st_mode)
        assert self.entry.read_bytes() == self.good
        assert len(list(self.entry.parent.iterdir())) == 1

    @pytest.mark.parametrize("bits", [0o666, 0o620, 0o602])
    def test_others_can_write(self, bits):
        self.entry.chmod(bits)
        self.check()

    @needs_root
    def test_of_another_user(self):
        os.chown(self.entry, OTHER_USER, -1)
        self.check()

    @pytest.mark.parametrize("target", ["good", "/dev/zero", "nothing"])
    def test_a_link(self, target, tmp_path):
        good = tmp_path / "good"
        self.entry.rename(good)
        self.entry.symlink_to(good if target == "good" else target)
        self.check()
        assert good.read_bytes() == self.good

    def test_a_fifo(self):
        self.entry.unlink()
        os.mkfifo(self.entry, 0o600)
        self.check()

    def test_a_socket(self, monkeypatch):
        import socket

        self.entry.unlink()
        monkeypatch.chdir(self.entry.parent)  # its path may be too long for an address
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(self.entry.name)
            self.check()

    def test_too_large(self):
        with self.entry.open("r+b") as file:
            file.truncate((64 << 20) + 1)
        self.check()

    def test_a_folder_is_left(self):
        self.entry.unlink()
        self.entry.mkdir()
        (self.entry / "file").touch()
        assert look_up(self.source) is None
        keep(self.source)
        assert look_up(self.source) is None
        assert [path.name for path in self.entry.parent.iterdir()] == [self.entry.name]

    @pytest.mark.parametrize("at", [0, 5, -2, -3, -10, -80, len(IMAGE), len(IMAGE) + 3])
    def test_every_byte_counts(self, at):
        """Of the image, and of the line after it: the name, the size, the digest."""
        changed = bytearray(self.good)
        changed[at] ^= 1
        self.entry.write_bytes(changed)
        self.check()

    @pytest.mark.parametrize("more", [b"\n", b" ", b"x", b" more\n"])
    def test_nor_is_more_accepted(self, more):
        self.entry.write_bytes(self.good + more)
        self.check()

    def test_that_of_another_program(self):
        other = keep(self.source + " another")
        other.rename(self.entry)
        self.check()

    def test_links_at_temporary_names(self, tmp_path):
        """Whatever names we take, a link there is not written through."""
        victim = tmp_path / "victim"
        victim.write_text("untouched")
        for i in range(200):
            Path(f"{self.entry}.{os.getpid()}.{i}.tmp").symlink_to(victim)
        keep(self.source)
        assert victim.read_text() == "untouched"


WARN = """
import sys, warnings
from exactile import _core
for i in range(3):
    _core.sycl_look_up(f"// {i}", "k", "")
    _core.sycl_keep(f"// {i}", "k", "", "name", b"image")
"""


@pytest.mark.parametrize("path", ["relative", "/proc/nowhere"])
def test_one_warning(path):
    """Says what is wrong and what to do; nothing is printed otherwise."""
    done = subprocess.run(
        [sys.executable, "-c", WARN],
        env=os.environ | {"EXACTILE_CACHE_DIR": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr.count("RuntimeWarning") == 1
    assert f"exactile: compiled kernels are not kept in {path}: " in done.stderr
    assert "EXACTILE_CACHE_DIR names another folder" in done.stderr


def test_no_warning_without_a_reason(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WARN],
        env=os.environ | {"EXACTILE_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_relative_xdg_cache_home_is_ignored(monkeypatch):
    monkeypatch.delenv("EXACTILE_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/c")
    assert _core.cache_directory() == "/c/.cache/exactile"


def test_a_home_that_is_no_utf_8(tmp_path):
    """Paths are bytes: in Python as os.fsdecode has them."""
    home = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(home)
    environment = {os.fsencode(k): os.fsencode(v) for k, v in os.environ.items()} | {b"HOME": home}
    for name in (b"EXACTILE_CACHE_DIR", b"XDG_CACHE_HOME"):
        environment.pop(name, None)
    code = (
        "import os, exactile\n"
        "from exactile import _core\n"
        "_core.sycl_keep('//', 'k', '', 'name', b'image')\n"
        "cuda = exactile.info()['backends']['cuda']\n"
        "assert cuda['cache_reason'] is None\n"
        "assert len(os.listdir(cuda['cache_dir'])) == 1\n"
        "assert os.fsencode(cuda['cache_dir']) == os.environb[b'HOME'] + b'/.cache/exactile'\n"
    )
    plan = "import sys; from exactile.cli import main; sys.exit(main(['plan', '--seqlens=3,5']))"
    for program in (code, plan):
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
