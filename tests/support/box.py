"""A real systemd as PID 1, in namespaces of its own over an overlay of this machine's root. What it writes is gone after.

Needs root and a cgroup2 hierarchy, nothing else: no container engine, no network (it has a loopback alone).
"""

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

BOOT_SECONDS = 60.0
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MASKED = [
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-timesyncd.service",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-networkd-wait-online.service",
    "systemd-logind.service",
    "systemd-firstboot.service",
    "systemd-pstore.service",
    "systemd-hwdb-update.service",
    "console-getty.service",
    "getty@.service",
    "getty.target",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "man-db.timer",
]
"""Units of the machine's own that would touch the kernel that is shared, or keep the boot waiting."""

_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}

_INIT = r"""
set -eu
top=$1 base=$2; shift 2
mount --make-rprivate /
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t tmpfs -o mode=755 box "$top"
mkdir "$top/upper" "$top/work" "$top/root"
root=$top/root
mount -t overlay -o "lowerdir=$base,upperdir=$top/upper,workdir=$top/work" box "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 -o nsdelegate cgroup2 "$root/sys/fs/cgroup" || mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -o remount,bind,ro "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
"""


class Box:
    def __init__(self, leader: int) -> None:
        self.leader = leader

    def command(self, *words: str) -> list[str]:
        """The command line that runs this inside."""
        inside = ["/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"]
        return ["nsenter", "-t", str(self.leader), "-a", "--", *inside, *words]

    def run(self, *words: str, check: bool = True, timeout: float = 60) -> str:
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip()

    def write(self, path: str, text: str | bytes, mode: str = "644") -> None:
        data = text.encode() if isinstance(text, str) else text
        subprocess.run(
            self.command("install", "-D", "-m", mode, "/dev/stdin", path), input=data, check=True, timeout=30
        )

    def until(self, wanted: str, *words: str, seconds: float = 20) -> str:
        """Wait until a command says this."""
        end = time.monotonic() + seconds
        while wanted not in (said := self.run(*words, check=False)):
            assert time.monotonic() < end, f"{words} does not say {wanted!r}: {said}"
            time.sleep(0.05)
        return said


def why_not() -> str | None:
    """What keeps a box from starting here; None when nothing does."""
    if os.geteuid() != 0:
        return "a box with a systemd of its own needs root"
    if _hierarchy() is None:
        return "there is no cgroup2 hierarchy"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "the kernel forbids new namespaces"


def _hierarchy() -> Path | None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return next((Path(where) for _, where, kind, *_ in mounts if kind == "cgroup2"), None)


@contextmanager
def booted(folder: Path, binds: Mapping[Path, str], base: Path = Path("/")) -> Iterator[Box]:
    """``binds`` are folders of this machine, and where they are, read-only, in the box."""
    hierarchy = _hierarchy()
    assert hierarchy is not None
    own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    group = hierarchy / own.strip("/") / f"codexd-box-{uuid.uuid4().hex[:12]}"
    group.mkdir()
    top = folder / "box"
    top.mkdir()
    console = folder / "console"
    script = _INIT + _binds(binds) + _identity()
    with console.open("wb") as log:
        outer = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--cgroup", "--uts", "--ipc", "--net",
             "--propagation", "private", "bash", "-c", script, "box", str(top), str(base)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            preexec_fn=lambda: (group / "cgroup.procs").write_text("0"),
        )  # fmt: skip
    try:
        box = Box(_leader(outer, console))
        _wait_booted(box, outer, console)
        yield box
        os.kill(box.leader, signal.SIGRTMIN + 4)
        outer.wait(timeout=30)
    finally:
        outer.kill()
        outer.wait()
        _remove(group)
        shutil.rmtree(top, ignore_errors=True)


def _binds(binds: Mapping[Path, str]) -> str:
    return "".join(
        f'mkdir -p "$root{inside}"; mount --rbind "{outside}" "$root{inside}"; '
        f'mount -o remount,bind,ro "$root{inside}"\n'
        for outside, inside in binds.items()
    )


def _identity() -> str:
    """A machine of its own: no host's services, no first boot, and then systemd."""
    nodes = "".join(f'mknod -m 666 "$root/dev/{name}" c {a} {b}\n' for name, (a, b) in _DEVICES.items())
    masks = "".join(f'ln -sfn /dev/null "$root/etc/systemd/system/{unit}"\n' for unit in _MASKED)
    return f"""{nodes}
ln -s /proc/self/fd "$root/dev/fd"; ln -s pts/ptmx "$root/dev/ptmx"
echo {uuid.uuid4().hex} > "$root/etc/machine-id"
echo box > "$root/etc/hostname"; hostname box
: > "$root/etc/fstab"; rm -f "$root/etc/resolv.conf"; : > "$root/etc/resolv.conf"
rm -f "$root/usr/sbin/policy-rc.d"
rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/*.requires
{masks}ip link set lo up
cd "$root"; mkdir .old; pivot_root . .old
umount -l /.old; rmdir /.old
mount --make-rshared /
exec env -i container=box PATH={PATH} LANG=C.UTF-8 /lib/systemd/systemd --system --unit=multi-user.target \\
    --show-status=no --log-target=journal-or-kmsg
"""


def _leader(outer: subprocess.Popen[bytes], console: Path) -> int:
    """The process id, here, of the systemd inside."""
    children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
    end = time.monotonic() + BOOT_SECONDS
    while time.monotonic() < end:
        assert outer.poll() is None, console.read_text()
        for word in children.read_text().split():
            if Path(f"/proc/{word}/comm").read_text().strip() == "systemd":
                return int(word)
        time.sleep(0.02)
    raise AssertionError(f"no systemd came up: {console.read_text()}")


def _wait_booted(box: Box, outer: subprocess.Popen[bytes], console: Path) -> None:
    end = time.monotonic() + BOOT_SECONDS
    while box.run("systemctl", "is-system-running", check=False) not in ("running", "degraded"):
        assert outer.poll() is None, console.read_text()
        assert time.monotonic() < end, "the box does not finish booting"
        time.sleep(0.05)


def _remove(group: Path) -> None:
    end = time.monotonic() + 5
    while group.exists() and time.monotonic() < end:
        for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
            _rmdir(folder)
        _rmdir(group)
        time.sleep(0.02)


def _rmdir(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()
