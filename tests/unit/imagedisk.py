"""An image file in a directory of its own, and the stories told on it."""

from __future__ import annotations

from pathlib import Path

from tests.unit import images
from vmproxy.initrd import Image
from vmproxy.machines.imagebackup import SUFFIX
from vmproxy.model import Report, Settings

GATEWAY = "192.168.64.1"
SCRIPT = b"/etc/init.d/docker"


class Disk:
    """An image file in a directory of its own."""

    def __init__(self, place: Path) -> None:
        self.path = place / "initrd.img"
        self.backup = place / ("initrd.img" + SUFFIX)

    def write(self, content: bytes, *, mode: int = 0o644) -> None:
        """Somebody's image."""
        self.path.write_bytes(content)
        self.path.chmod(mode)

    def picture(self) -> dict[str, tuple[int, int, int, bytes]]:
        """Every file there: mode, owner, bytes."""
        out = {}
        for path in sorted(self.path.parent.iterdir()):
            seen = path.stat()
            out[path.name] = (seen.st_mode, seen.st_uid, seen.st_gid, path.read_bytes())
        return out

    def tell(self, story: object, **settings: object) -> Report:
        """A story on this image."""
        more = {"gateway": GATEWAY, **settings}
        report = story(f"initrd:{self.path}", Settings(given=frozenset(more), **more))  # type: ignore[operator, arg-type]
        assert isinstance(report, Report)
        return report

    def read(self, path: bytes = SCRIPT) -> bytes:
        """A file as the VM will read it."""
        image = Image(self.path.read_bytes())
        name = image.find(path)
        assert name is not None
        return image.contents([name], limit_bytes=1 << 20)[name]


def moby(place: Path) -> Disk:
    """Docker for Mac's image in small, with gzip as upstream has it."""
    (place / "moby").mkdir()
    made = Disk(place / "moby")
    made.write(images.early() + images.moby())
    return made
